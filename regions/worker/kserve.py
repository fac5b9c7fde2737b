"""KServe v2 inference: its request into a job for the engine, and outcomes into its answer, in JSON or in binary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from regions.models.base import Item, Outcome, ServedModel
from regions.wire import (
    HEADER_LENGTH,
    InferRequest,
    RequestedOutput,
    Tensor,
    read_infer,
    read_texts,
    refusal,
    write_infer,
    wrong_datatype,
    wrong_shape,
    wrong_value,
)
from regions.worker.budgets import Budget, Budgets
from regions.worker.jobs import Answer, check_count, details, prepare_texts, read_flag

_DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "|b1",
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
}


@dataclass(frozen=True, slots=True)
class Inference:
    """A KServe request, its inputs prepared: an item for each text, or one for the whole tensor.

    `request` no longer holds them: they would keep the whole body in memory until the answer.
    """

    model: ServedModel
    items: Sequence[Item]
    request: InferRequest
    version: str
    truncate: bool
    budget: Budget

    def on_behalf_of(self, owner: str) -> Self:
        """The same for one owner: what is kept of it answers no other."""
        return replace(self, items=[replace(item, owner=owner) for item in self.items])

    def answer(self, outcomes: Sequence[Outcome]) -> Answer:
        wanted = self.request.outputs or [RequestedOutput(name, {}) for name in outcomes[0].arrays]
        binary_by_default = self.request.parameters.get("binary_data_output") is True
        outputs = [
            _written(
                output.name,
                self._values(output.name, outcomes),
                binary=output.parameters.get("binary_data", binary_by_default) is True,
            )
            for output in wanted
        ]
        body, head = write_infer(
            model_name=self.model.name,
            model_version=self.version,
            outputs=outputs,
            request_id=self.request.id,
            parameters=details(self.items, outcomes, truncate=self.truncate) | self.budget.details,
        )
        if head is None:
            return Answer(body, {"content-type": "application/json"} | self.budget.headers)
        headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(head)}
        return Answer(body, headers | self.budget.headers)

    def _values(self, name: str, outcomes: Sequence[Outcome]) -> npt.NDArray[Any]:
        if self.model.takes == "text":
            return np.stack([outcome.arrays[name] for outcome in outcomes])
        return outcomes[0].arrays[name]


def read_inference(
    body: bytes, header_length: int | None, model: ServedModel, budgets: Budgets, left: Callable[[], bool]
) -> Inference:
    """The request in `body` for `model`. Raises InvalidInput, and ClientDisconnect once its client has `left`."""
    request = read_infer(body, header_length)
    metadata = model.metadata()
    tensor = _only_input(request, metadata["inputs"][0])
    names = [output["name"] for output in metadata["outputs"]]
    for index, output in enumerate(request.outputs):
        if output.name not in names:
            raise wrong_value(f"outputs[{index}].name", ", ".join(names))
    truncate = read_flag(request.parameters.get("truncate"), "parameters.truncate")
    budget = budgets.read(request.parameters.get("compute_budget"), "parameters.compute_budget", model)
    if model.takes == "text":
        items = prepare_texts(
            _texts(tensor),
            model,
            param=lambda index: f"{tensor.name}[{index}]",
            truncate=truncate,
            budget=budget.value,
            left=left,
        )
    else:
        items = [model.prepare_tensor(_array(tensor), name=tensor.name, budget=budget.value)]
    return Inference(model, items, replace(request, inputs=()), metadata["versions"][-1], truncate, budget)


def _only_input(request: InferRequest, declared: Mapping[str, Any]) -> Tensor:
    """The input that the model declares; every model here takes exactly one."""
    name = declared["name"]
    tensors = {tensor.name: tensor for tensor in request.inputs}
    for other in tensors:
        if other != name:
            raise refusal("The model has no input tensor named {name}", "tensor_unknown", name=other)
    if name not in tensors:
        raise refusal("The input tensor {name} is missing", "tensor_missing", name=name)
    if tensors[name].datatype != declared["datatype"]:
        raise wrong_datatype(name, tensors[name].datatype, declared["datatype"])
    return tensors[name]


def _texts(tensor: Tensor) -> list[str]:
    if len(tensor.shape) > 2 or (len(tensor.shape) == 2 and tensor.shape[1] != 1):  # noqa: PLR2004 - the axes that the line below names
        raise wrong_shape(tensor.name, tensor.shape, "[n], [n, 1]")
    check_count(tensor.shape[0], tensor.name)
    return read_texts(tensor)


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """The values as an array of their own, so that a small tensor does not keep the whole body alive."""
    dtype = np.dtype(_DTYPES[tensor.datatype])
    if tensor.raw is not None:
        return np.frombuffer(tensor.raw, dtype=dtype).reshape(tensor.shape).copy()
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, which the model refuses by name
        return np.array(tensor.data, dtype=dtype).reshape(tensor.shape)


def _written(name: str, values: npt.NDArray[Any], *, binary: bool) -> Tensor:
    dtype = values.dtype.newbyteorder("<").str
    datatype = next(known for known, spelled in _DTYPES.items() if spelled == dtype)
    flat = np.ascontiguousarray(values, dtype=dtype).ravel()
    if binary:
        return Tensor(name, values.shape, datatype, raw=flat.tobytes())
    return Tensor(name, values.shape, datatype, data=flat)
