"""Tensors of the KServe Open Inference Protocol v2, in JSON and in binary: reads them strictly, and writes them.

Sources: the protocol's REST part, and its extension for binary data (Triton's `extension_binary_data.md`): values are
little-endian and row-major, and each value of a BYTES tensor is preceded by its length in four bytes.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any, Final

from regions.refusals import missing, wrong_binary_size, wrong_datatype, wrong_size, wrong_type, wrong_value

MAX_VALUES = 1 << 26
"""Values that one tensor may hold, and the largest dimension: a 64 MiB body cannot carry more."""
_MAX_RANK = 16
_MAX_NAME = 256

ITEM_BYTES: Final[Mapping[str, int | None]] = {
    "BOOL": 1,
    **{f"{sign}INT{bits}": bits // 8 for sign in ("U", "") for bits in (8, 16, 32, 64)},
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": None,
}
"""Bytes of one value of each datatype; None where every value carries its own length."""

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a request or an answer: either `data` (JSON, flat, row-major) or `raw` (little-endian) is set."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    data: Any = None
    raw: bytes | memoryview | None = None


def read_tensor(entry: Mapping[str, Any], path: str, rest: memoryview) -> Tensor:
    """The tensor in `entry`; where it is binary, its values are the first bytes of `rest`. Raises InvalidInput."""
    name = string(entry, "name", path)
    datatype = string(entry, "datatype", path)
    if datatype not in ITEM_BYTES:
        raise wrong_datatype(name, datatype, ", ".join(ITEM_BYTES))
    shape = _shape(entry, f"{path}.shape")
    parameters = parameters_of(entry, path)
    size = parameters.get("binary_data_size")
    data = entry.get("data")
    if size is None:
        if data is None:
            raise missing(f"{path}.data")
        if not isinstance(data, list):
            raise wrong_type(f"{path}.data", "array")
        return Tensor(name, shape, datatype, parameters, data=_data(name, data, shape, datatype, f"{path}.data"))
    if data is not None:
        raise wrong_value(f"{path}.data", "null")
    raw = rest[:size]
    _check_raw(name, raw, shape, datatype)
    return Tensor(name, shape, datatype, parameters, raw=raw)


def write_tensor(tensor: Tensor) -> dict[str, Any]:
    """The entry of a tensor in a JSON head; its raw values, where it has them, follow the head."""
    entry: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
    if tensor.raw is None:
        return entry | {"data": tensor.data}
    return entry | {"parameters": {"binary_data_size": len(tensor.raw)}}


def read_bytes_values(raw: bytes | memoryview) -> Iterator[bytes]:
    """The values of a BYTES tensor in binary: each a 4-byte little-endian length and so many bytes.

    Raises InvalidInput (`binary_size`) at the first value that runs past the end.
    """
    offset = 0
    while offset < len(raw):
        start = offset + _LENGTH.size
        length = _LENGTH.unpack_from(raw, offset)[0] if start <= len(raw) else 0
        if start + length > len(raw):
            raise wrong_binary_size(start + length, len(raw))
        yield bytes(raw[start : start + length])
        offset = start + length


def write_bytes_values(values: Iterable[bytes]) -> bytes:
    """A BYTES tensor in binary, as `read_bytes_values` takes it."""
    return b"".join(chain.from_iterable((_LENGTH.pack(len(value)), value) for value in values))


def read_texts(tensor: Tensor) -> list[str]:
    """The values of a BYTES tensor as text. Raises InvalidInput where one is not UTF-8."""
    if tensor.raw is None:
        return list(tensor.data)
    try:
        return [value.decode() for value in read_bytes_values(tensor.raw)]
    except UnicodeDecodeError as error:
        raise wrong_value(tensor.name, "UTF-8") from error


def string(entry: Mapping[str, Any], key: str, path: str) -> str:
    """The string under `key`; `path` leads to `entry`. Raises InvalidInput."""
    value = entry.get(key)
    if value is None:
        raise missing(f"{path}.{key}")
    if not isinstance(value, str):
        raise wrong_type(f"{path}.{key}", "string")
    if len(value) > _MAX_NAME:  # names are told back in refusals and logs
        raise wrong_value(f"{path}.{key}", f"length <= {_MAX_NAME}")
    return value


def parameters_of(entry: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The parameters of `entry`, empty where there are none. Raises InvalidInput."""
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise wrong_type(f"{path}.parameters".lstrip("."), "object")
    return parameters


def _shape(entry: Mapping[str, Any], path: str) -> tuple[int, ...]:
    shape = entry.get("shape")
    if shape is None:
        raise missing(path)
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise wrong_type(path, "integer[]")
    # The rank is bounded before the product is taken: a million large dimensions would multiply for hours.
    if not 1 <= len(shape) <= _MAX_RANK or min(shape) < 1 or prod(shape) > MAX_VALUES:
        raise wrong_value(path, f"1..{MAX_VALUES}")
    return tuple(shape)


def _data(name: str, data: list[Any], shape: tuple[int, ...], datatype: str, path: str) -> list[Any]:
    """The values of a JSON tensor, flat: they come flat or nested as the shape says."""
    if data and isinstance(data[0], list):
        data = _flattened(data, shape, path)
    if len(data) != prod(shape):
        raise wrong_size(name, len(data), prod(shape))
    kinds: set[type] = set(map(type, data))
    if not kinds <= _kinds(datatype):
        raise wrong_type(path, datatype)
    if int in kinds and "INT" in datatype and not _in_range(data, datatype):
        raise wrong_value(path, datatype)
    return data


def _flattened(data: list[Any], shape: tuple[int, ...], path: str) -> list[Any]:
    for size in shape[1:]:
        if not all(isinstance(row, list) for row in data):
            raise wrong_type(path, "array")
        if any(len(row) != size for row in data):
            raise wrong_value(path, str(list(shape)))
        data = list(chain.from_iterable(data))
    return data


def _kinds(datatype: str) -> set[type]:
    if datatype == "BYTES":
        return {str}
    if datatype == "BOOL":
        return {bool}
    return {int} if "INT" in datatype else {int, float}


def _in_range(data: list[int], datatype: str) -> bool:
    bits = 8 * (ITEM_BYTES[datatype] or 0)
    low, high = (0, 1 << bits) if datatype.startswith("U") else (-1 << bits - 1, 1 << bits - 1)
    return low <= min(data) and max(data) < high


def _check_raw(name: str, raw: memoryview, shape: tuple[int, ...], datatype: str) -> None:
    width = ITEM_BYTES[datatype]
    if width is None:
        count = sum(1 for _ in read_bytes_values(raw))
        if count != prod(shape):
            raise wrong_size(name, count, prod(shape))
    elif len(raw) != prod(shape) * width:
        raise wrong_binary_size(prod(shape) * width, len(raw))
