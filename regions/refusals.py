"""Refusals of an input, as a worker raises them, writes them into an error body, and a gateway reads them there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson


class InvalidInput(Exception):
    """An input that a worker refuses (HTTP 400), told so that the gateway can say it in the caller's language.

    `detail` names the message (`invalid_request.<detail>` in the catalogues), `param` the field at fault and `values`
    fill the placeholders; `str()` is the English sentence for a caller that talks to the worker directly.
    """

    def __init__(self, message: str, *, detail: str, param: str | None = None, **values: Any) -> None:
        super().__init__(message)
        self.detail = detail
        self.param = param
        self.values = values


@dataclass(frozen=True, slots=True)
class Fault:
    """The body of a worker's error: `code` is the public code, `message_id` finds the text in the catalogues."""

    code: str
    message: str
    detail: str | None = None
    param: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message_id(self) -> str:
        return f"{self.code}.{self.detail}" if self.detail else self.code

    @classmethod
    def of(cls, error: InvalidInput) -> "Fault":
        return cls("invalid_request", str(error), error.detail, error.param, error.values)

    def encode(self) -> bytes:
        body: dict[str, Any] = {"error": self.message, "code": self.code}
        optional = {"detail": self.detail, "param": self.param, "values": dict(self.values)}
        return orjson.dumps(body | {name: value for name, value in optional.items() if value})

    @classmethod
    def decode(cls, body: bytes) -> "Fault | None":
        """The fault in an error body, or None where the body is not one of a worker of ours."""
        try:
            raw = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        match raw:
            case {"error": str(message), "code": str(code)}:
                detail, param, values = raw.get("detail"), raw.get("param"), raw.get("values", {})
            case _:
                return None
        if not isinstance(detail, str | None) or not isinstance(param, str | None) or not isinstance(values, dict):
            return None
        return cls(code, message, detail, param, values)


def refusal(text: str, detail: str, param: str | None = None, **values: Any) -> InvalidInput:
    """An InvalidInput whose English sentence is `text` with `param` and `values` filled in."""
    return InvalidInput(text.format(param=param, **values), detail=detail, param=param, **values)


def missing(param: str) -> InvalidInput:
    return refusal("The field {param} is missing", "field_missing", param)


def wrong_type(param: str, expected: str) -> InvalidInput:
    return refusal(
        "The field {param} has the wrong type; {expected} is expected", "field_type", param, expected=expected
    )


def wrong_value(param: str, expected: str) -> InvalidInput:
    text = "The field {param} has a value that is not allowed; {expected} is expected"
    return refusal(text, "field_value", param, expected=expected)


def wrong_binary_size(expected: int, actual: int) -> InvalidInput:
    text = "The binary data of the tensors does not match the body: {expected} bytes were announced, {actual} arrived"
    return refusal(text, "binary_size", expected=expected, actual=actual)


def wrong_datatype(name: str, datatype: str, expected: str) -> InvalidInput:
    text = "The tensor {name} has datatype {datatype}; {expected} is expected"
    return refusal(text, "tensor_datatype", name=name, datatype=datatype, expected=expected)


def wrong_shape(name: str, shape: tuple[int, ...], expected: str) -> InvalidInput:
    text = "The tensor {name} has shape {shape}; {expected} is expected"
    return refusal(text, "tensor_shape", name=name, shape=str(list(shape)), expected=expected)


def wrong_size(name: str, n: int, expected: int) -> InvalidInput:
    text = "The tensor {name} holds {n} values; its shape needs {expected}"
    return refusal(text, "tensor_size", name=name, n=n, expected=expected)
