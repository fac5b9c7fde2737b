"""The wire: what clients really send is read, what is malformed is refused by name, and answers read back."""

import struct
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st

from regions.tensors import ITEM_BYTES, MAX_VALUES, read_bytes_values
from regions.wire import (
    Fault,
    InvalidInput,
    Tensor,
    read_count,
    read_infer,
    read_object,
    read_texts,
    refusal,
    write_bytes_values,
    write_infer,
)


def body(**changes: Any) -> bytes:
    """A sound request with one tensor `x` of shape [2, 2], whose keys `changes` replaces (None removes)."""
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2.5, -3, 4]} | changes
    return orjson.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not None}]})


def refused(raw: bytes, header_length: int | None = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read_infer(raw, header_length)
    return caught.value


def from_triton(*, binary: bool) -> tuple[bytes, int | None]:
    """A body as the unmodified Triton client builds it: a matrix and two texts."""
    matrix = triton.InferInput("x", [2, 3], "FP32")
    matrix.set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3), binary_data=binary)
    texts = triton.InferInput("text", [2], "BYTES")
    texts.set_data_from_numpy(np.array(["Ebbe", "潮"], dtype=np.object_), binary_data=binary)
    outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
    return triton.InferenceServerClient.generate_request_body(
        [matrix, texts], outputs=outputs, request_id="r1", parameters={"compute_budget": 0.3}
    )


@pytest.mark.parametrize("binary", [False, True])
def test_reads_what_the_triton_client_sends(*, binary: bool) -> None:
    raw, header_length = from_triton(binary=binary)
    request = read_infer(raw, header_length)
    matrix, texts = request.inputs
    assert request.id == "r1"
    assert request.parameters["compute_budget"] == 0.3
    assert (matrix.name, matrix.shape, matrix.datatype) == ("x", (2, 3), "FP32")
    values = np.frombuffer(matrix.raw, "<f4").tolist() if matrix.raw is not None else matrix.data
    assert values == [0, 1, 2, 3, 4, 5]
    assert read_texts(texts) == ["Ebbe", "潮"]
    assert [output.name for output in request.outputs] == ["y"]


@pytest.mark.parametrize("binary", [False, True])
def test_the_triton_client_reads_what_is_written(*, binary: bool) -> None:
    values = np.arange(6, dtype=np.float32)
    tensor = Tensor("y", (2, 3), "FP32", **({"raw": values.tobytes()} if binary else {"data": values}))
    raw, head = write_infer(
        model_name="m", model_version="1", outputs=[tensor], request_id="r1", parameters={"flops_share": 0.5}
    )
    assert (head is not None) == binary
    result = triton.InferenceServerClient.parse_response_body(raw, header_length=head)
    assert result.as_numpy("y").tolist() == values.reshape(2, 3).tolist()
    assert result.get_response()["id"] == "r1"
    assert result.get_response()["parameters"]["flops_share"] == 0.5


def test_nested_data_are_flattened() -> None:
    assert read_infer(body(data=[[1, 2], [3, 4]])).inputs[0].data == [1, 2, 3, 4]
    assert read_infer(body(shape=[1, 2, 2], data=[[[1, 2], [3, 4]]])).inputs[0].data == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("raw", "detail", "values"),
    [
        (b"", "json", {"position": 0}),
        (b'{"inputs": [}', "json", {"position": 12}),
        ('{"ä": x}'.encode(), "json", {"position": 7}),
        (b'{"inputs": [{"data": [NaN]}]}', "json", {"position": 22}),
        (b"\xff\xfe", "json", {"position": 0}),
        (b"[" * 100_000, "depth", {"limit": 64}),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "depth", {"limit": 64}),
        (b'{"a": [' + b"[1]," * 100 + b"[1]]}", "field_missing", {}),
        (b"[]", "not_object", {}),
        (b"null", "not_object", {}),
        (b"{}", "field_missing", {}),
        (b'{"inputs": 1}', "field_type", {"expected": "object[]"}),
        (b'{"inputs": [1]}', "field_type", {"expected": "object[]"}),
        (b'{"inputs": []}', "field_value", {"expected": "object[]"}),
        (b'{"id": 7, "inputs": [{}]}', "field_type", {"expected": "string"}),
    ],
)
def test_a_malformed_body_is_refused(raw: bytes, detail: str, values: dict[str, Any]) -> None:
    error = refused(raw)
    assert error.detail == detail
    assert error.values == values


@pytest.mark.parametrize(
    ("changes", "detail", "param"),
    [
        ({"name": None}, "field_missing", "inputs[0].name"),
        ({"name": 1}, "field_type", "inputs[0].name"),
        ({"name": "x" * 257}, "field_value", "inputs[0].name"),
        ({"datatype": None}, "field_missing", "inputs[0].datatype"),
        ({"datatype": "FLOAT"}, "tensor_datatype", None),
        ({"shape": None}, "field_missing", "inputs[0].shape"),
        ({"shape": 4}, "field_type", "inputs[0].shape"),
        ({"shape": [2, "2"]}, "field_type", "inputs[0].shape"),
        ({"shape": [2, True]}, "field_type", "inputs[0].shape"),
        ({"shape": []}, "field_value", "inputs[0].shape"),
        ({"shape": [0, 2]}, "field_value", "inputs[0].shape"),
        ({"shape": [-1, 2]}, "field_value", "inputs[0].shape"),
        ({"shape": [MAX_VALUES + 1]}, "field_value", "inputs[0].shape"),
        ({"shape": [MAX_VALUES, MAX_VALUES]}, "field_value", "inputs[0].shape"),
        ({"shape": [1] * 100_000}, "field_value", "inputs[0].shape"),
        ({"shape": [2, 3]}, "tensor_size", None),
        ({"parameters": []}, "field_type", "inputs[0].parameters"),
        ({"parameters": {"binary_data_size": "4"}}, "field_type", "inputs[0].parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": -4}}, "field_type", "inputs[0].parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": 16}}, "binary_size", None),
        ({"parameters": {"binary_data_size": 0}}, "field_value", "inputs[0].data"),
        ({"data": None}, "field_missing", "inputs[0].data"),
        ({"data": 1}, "field_type", "inputs[0].data"),
        ({"data": [1, 2, 3]}, "tensor_size", None),
        ({"data": [1, 2, 3, "4"]}, "field_type", "inputs[0].data"),
        ({"data": [1, 2, 3, True]}, "field_type", "inputs[0].data"),
        ({"data": [[1, 2], [3]]}, "field_value", "inputs[0].data"),
        ({"data": [[1, 2], 3]}, "field_type", "inputs[0].data"),
        ({"data": [[[1], [2]], [[3], [4]]]}, "field_type", "inputs[0].data"),
        ({"datatype": "BYTES"}, "field_type", "inputs[0].data"),
        ({"datatype": "BOOL"}, "field_type", "inputs[0].data"),
        ({"datatype": "INT8"}, "field_type", "inputs[0].data"),
        ({"datatype": "INT8", "data": [1, 2, 3, 128]}, "field_value", "inputs[0].data"),
        ({"datatype": "UINT16", "data": [1, 2, 3, -1]}, "field_value", "inputs[0].data"),
    ],
)
def test_a_malformed_tensor_is_refused(changes: dict[str, Any], detail: str, param: str | None) -> None:
    error = refused(body(**changes))
    assert (error.detail, error.param) == (detail, param)


def test_integers_at_the_ends_of_their_range_are_read() -> None:
    for datatype, values in (("INT8", [-128, 127]), ("UINT8", [0, 255]), ("INT64", [-(2**63), 2**63 - 1])):
        assert read_infer(body(datatype=datatype, shape=[2], data=values)).inputs[0].data == values


def test_names_are_told_apart() -> None:
    tensor = orjson.loads(body())["inputs"][0]
    assert refused(orjson.dumps({"inputs": [tensor, tensor]})).param == "inputs[1].name"
    twice = {"inputs": [tensor], "outputs": [{"name": "y"}, {"name": "y"}]}
    assert refused(orjson.dumps(twice)).param == "outputs[1].name"


def test_binary_data_must_fit_head_shape_and_body() -> None:
    raw, length = from_triton(binary=True)
    assert length is not None
    assert refused(raw[:-1], length).detail == "binary_size"
    assert refused(raw + b"x", length).detail == "binary_size"
    assert refused(raw, length - 1).detail == "json"
    assert refused(raw, len(raw) + 1).values == {"expected": len(raw) + 1, "actual": len(raw)}
    head = body(data=None, parameters={"binary_data_size": 12})
    assert refused(head + bytes(12), len(head)).values == {"expected": 16, "actual": 12}


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        (struct.pack("<I", 3) + b"ab", "binary_size"),
        (struct.pack("<I", 0xFFFFFFFF) + b"ab", "binary_size"),
        (struct.pack("<I", 0) * 2 + b"ab", "binary_size"),
        (struct.pack("<I", 1) + b"a", "tensor_size"),
        (struct.pack("<I", 0) * 3, "tensor_size"),
    ],
)
def test_malformed_text_in_binary_is_refused(raw: bytes, detail: str) -> None:
    head = body(shape=[2], datatype="BYTES", data=None, parameters={"binary_data_size": len(raw)})
    assert refused(head + raw, len(head)).detail == detail


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_texts(Tensor("text", (1,), "BYTES", raw=write_bytes_values([b"\xff"])))
    assert caught.value.detail == "field_value"


@given(st.lists(st.binary(max_size=40)))
def test_bytes_values_read_back(values: list[bytes]) -> None:
    assert list(read_bytes_values(write_bytes_values(values))) == values


@given(st.binary(max_size=200), st.none() | st.integers(0, 220))
def test_arbitrary_bytes_are_read_or_refused(raw: bytes, header_length: int | None) -> None:
    try:
        read_infer(raw, header_length)
    except InvalidInput:
        return
    pytest.fail("no request begins like this")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from([*ITEM_BYTES, "x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | json_values,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | json_values,
        "datatype": st.sampled_from([*ITEM_BYTES]) | json_values,
        "data": st.lists(st.integers(-3, 300) | st.floats(0, 1) | st.text(max_size=3), max_size=6) | json_values,
        "parameters": st.dictionaries(st.just("binary_data_size"), st.integers(-1, 9) | json_values) | json_values,
    },
)


@given(st.lists(tensors | json_values, max_size=3) | json_values, st.binary(max_size=12))
def test_arbitrary_requests_are_read_whole_or_refused(inputs: Any, tail: bytes) -> None:
    head = orjson.dumps({"inputs": inputs})
    try:
        request = read_infer(head + tail, len(head))
    except InvalidInput:
        return
    for tensor in request.inputs:
        assert (tensor.data is None) != (tensor.raw is None)
        if tensor.data is not None:
            assert len(tensor.data) == np.prod(tensor.shape)


def test_depth_is_counted_in_values_not_in_text() -> None:
    deep = b'{"a":' * 63 + b'"' + b"[" * 500 + b'"' + b"}" * 63
    assert read_object(deep)
    with pytest.raises(InvalidInput):
        read_object(deep, max_depth=62)


@pytest.mark.parametrize("value", ["", "-1", "1.5", "1e3", " 7", "٣", "0x10", "9" * 5000, str((1 << 53) + 1)])
def test_a_header_that_is_no_count_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_count(value, header="x-request-timeout-ms")
    assert (caught.value.detail, caught.value.param) == ("header", "x-request-timeout-ms")


def test_a_header_that_is_a_count_is_read() -> None:
    assert read_count("0250", header="x") == 250


def test_a_fault_reads_back() -> None:
    error = refusal("The text in {param} has {n} tokens", "text_too_long", "input[1]", n=300, limit=256)
    fault = Fault.of(error)
    assert Fault.decode(fault.encode()) == fault
    assert fault.message == "The text in input[1] has 300 tokens"
    assert fault.message_id == "invalid_request.text_too_long"
    assert Fault.decode(Fault("overloaded", "full").encode()) == Fault("overloaded", "full")


@pytest.mark.parametrize(
    "raw",
    [b"", b"not JSON", b"[]", b'{"error": "text alone"}', b'{"error": {"message": "m"}, "code": "c"}',
     b'{"error": "m", "code": "c", "values": []}', b'{"error": "m", "code": "c", "param": 7}'],
)  # fmt: skip
def test_other_servers_errors_are_no_faults(raw: bytes) -> None:
    assert Fault.decode(raw) is None
