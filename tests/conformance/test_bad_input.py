"""Input that no model should see, through the whole chain to the real models, in both wire shapes and two languages."""

import socket
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from app.config import DEMO_KEY
from app.i18n import LOCALES, Translator
from tests.conformance.topology import EMBED, INFER, Topology, until

pytestmark = pytest.mark.xdist_group("topology")

LANGUAGES = ("es", "zh")
LONG = "tide " * 20_000
TRANSLATOR = Translator(LOCALES)
CloseTo = Callable[[Any, Sequence[str]], None]


def embedding(**fields: Any) -> dict[str, Any]:
    return {"model": "minilm", **fields}


def texts(*values: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(values)], "data": list(values)}], **more}


def refused(topology: Topology, path: str, body: Any, detail: str, param: str | None = None, **values: Any) -> None:
    """The body is refused in each language with exactly this message, in the shape of its endpoint."""
    for language in LANGUAGES:
        answer = topology.post(path, body, Accept_Language=language)
        assert answer.status_code == 400, answer.text
        assert answer.headers["Content-Language"] == language
        assert answer.headers["x-should-retry"] == "false"
        message = TRANSLATOR.message(f"invalid_request.{detail}", language, {"param": param, **values})
        if path == EMBED:
            error = {"message": message, "type": "invalid_request_error", "param": param, "code": "invalid_request"}
            assert answer.json() == {"error": error}
        else:
            assert answer.json() == {"error": message}


@pytest.mark.parametrize("text", ["", " ", "\n\t \r", "\u3000\u2003"])
def test_text_without_anything_in_it(topology: Topology, text: str) -> None:
    refused(topology, EMBED, embedding(input=text), "empty_text", "input")
    refused(topology, EMBED, embedding(input=["a", text]), "empty_text", "input[1]")
    refused(topology, INFER.format("minilm-moe"), texts("a", text), "empty_text", "text[1]")


def test_a_text_beyond_the_model(topology: Topology) -> None:
    text = "tide " * 2000
    refused(topology, EMBED, embedding(input=text), "text_too_long", "input", n=2002, limit=256)
    refused(topology, INFER.format("minilm"), texts("a", text), "text_too_long", "text[1]", n=2002, limit=256)


def test_a_text_beyond_what_is_read(topology: Topology) -> None:
    assert len(LONG) == 100_000
    refused(topology, EMBED, embedding(input=LONG), "text_characters", "input", n=100_000, limit=32_768)
    refused(topology, INFER.format("minilm"), texts(LONG), "text_characters", "text[0]", n=100_000, limit=32_768)


def test_a_text_beyond_the_model_is_cut_where_asked(topology: Topology, close_to: CloseTo) -> None:
    given = [LONG, "short", LONG]
    cut = topology.post(EMBED, embedding(input=given, truncate=True))
    assert cut.status_code == 200, cut.text
    assert cut.json()["usage"] == {"prompt_tokens": 515, "total_tokens": 515, "details": {"truncated": 2}}
    close_to([each["embedding"] for each in cut.json()["data"]], given)
    tensor = topology.post(INFER.format("minilm-moe"), texts(*given, parameters={"truncate": True}))
    assert tensor.json()["parameters"]["truncated"] == 2
    uncut = topology.post(EMBED, embedding(input="short", truncate=True))
    assert uncut.json()["usage"]["details"] == {"truncated": 0}


@pytest.mark.parametrize(
    ("value", "param", "expected"),
    [
        (5, "input", "string | string[]"),
        (True, "input", "string | string[]"),
        ({"text": "a"}, "input", "string | string[]"),
        ([1, 2, 3], "input[0]", "string"),
        (["a", None], "input[1]", "string"),
        ([["a"]], "input[0]", "string"),
    ],
)
def test_input_of_another_type(topology: Topology, value: Any, param: str, expected: str) -> None:
    refused(topology, EMBED, embedding(input=value), "field_type", param, expected=expected)


def test_fields_of_a_body(topology: Topology) -> None:
    refused(topology, EMBED, embedding(), "field_missing", "input")
    refused(topology, EMBED, embedding(input=None), "field_missing", "input")
    refused(topology, EMBED, embedding(input=[]), "field_value", "input", expected="1..2048")
    refused(topology, EMBED, embedding(input="a", truncate="yes"), "field_type", "truncate", expected="boolean")
    refused(topology, EMBED, embedding(input="a", dimensions=385), "field_value", "dimensions", expected="1..384")
    coding = {"expected": "float | base64"}
    refused(topology, EMBED, embedding(input="a", encoding_format="hex"), "field_value", "encoding_format", **coding)
    text_models = {"expected": "minilm, minilm-moe"}
    refused(topology, EMBED, {"model": "dynamic-moe", "input": "a"}, "field_value", "model", **text_models)


def test_tensors_of_another_type(topology: Topology) -> None:
    path = INFER.format("minilm")
    refused(topology, path, texts(1), "field_type", "inputs[0].data", expected="BYTES")
    refused(topology, path, {"inputs": []}, "field_value", "inputs", expected="object[]")
    numbers = {"inputs": [{"name": "text", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
    refused(topology, path, numbers, "tensor_datatype", name="text", datatype="FP32", expected="BYTES")
    short = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a"]}]}
    refused(topology, path, short, "tensor_size", name="text", n=1, expected=2)
    refused(topology, path, b'{"inputs": [{"name": "text", "data": NaN}]}', "json", position=37)


def test_more_inputs_than_a_request_may_hold(topology: Topology) -> None:
    many = ["a"] * 3000
    refused(topology, EMBED, embedding(input=many), "batch_too_large", "input", n=3000, limit=2048)
    refused(topology, INFER.format("minilm"), texts(*many), "batch_too_large", "text", n=3000, limit=2048)


@pytest.mark.parametrize(
    "text",
    [
        "🌊🏳️‍🌈👩‍👩‍👧‍👦",
        "مرحبا بالعالم",
        "שלום \u202eעולם\u202c",  # noqa: RUF001 - Hebrew is meant
        "z̸͎̈́a̷̰͝l̷̫̆g̷̱̈́o̶̙̓",
        "日本語のテキスト",
        "a\x00b",
        "\ufeffbom",
        "\U0001d57f\U0001d58d\U0001d58a tide",
    ],
)
def test_unicode_is_embedded_as_the_reference_does(topology: Topology, close_to: CloseTo, text: str) -> None:
    answer = topology.embed(text)
    assert answer.status_code == 200, answer.text
    close_to([answer.json()["data"][0]["embedding"]], [text])


def test_a_pair_of_surrogates_is_a_character_and_half_of_one_is_not(topology: Topology) -> None:
    pair = topology.post(EMBED, b'{"model": "minilm", "input": "tide \\ud83c\\udf0a"}')
    assert pair.json()["data"] == topology.embed("tide 🌊").json()["data"]
    for half in (b"\\ud83c", b"\\udf0a", b"\\ud83c\\ud83c", b"\\ud83cx"):
        for path, body in (
            (EMBED, b'{"model": "minilm", "input": "tide ' + half + b'"}'),
            (INFER.format("minilm"), b'{"inputs": [{"name": "' + half + b'"}]}'),
        ):
            answers = [topology.post(path, body, Accept_Language=language) for language in LANGUAGES]
            assert [answer.status_code for answer in answers] == [400, 400]
            assert len({answer.text for answer in answers}) == 2


def test_a_body_that_nests_too_deep(topology: Topology) -> None:
    deep = b"[" * 100 + b"]" * 100
    very = b"[" * 500_000 + b"]" * 500_000
    for nested in (deep, very, b'{"a":' * 100 + b"1" + b"}" * 100):
        refused(topology, EMBED, b'{"model": "minilm", "input": ' + nested + b"}", "depth", limit=64)
        refused(topology, INFER.format("minilm"), b'{"inputs": ' + nested + b"}", "depth", limit=64)


@pytest.mark.parametrize("budget", [0, 0.09, 1.01, -0.5, 1e300, 10**30])
def test_a_compute_budget_out_of_range(topology: Topology, budget: float) -> None:
    body = {"model": "minilm-moe", "input": "a", "compute_budget": budget}
    refused(topology, EMBED, body, "field_value", "compute_budget", expected="0.1..1.0")
    tensors = texts("a", parameters={"compute_budget": budget})
    path = INFER.format("minilm-moe")
    refused(topology, path, tensors, "field_value", "parameters.compute_budget", expected="0.1..1.0")


@pytest.mark.parametrize("budget", ["0.5", True, [0.5], {"share": 0.5}])
def test_a_compute_budget_that_is_no_number(topology: Topology, budget: Any) -> None:
    body = {"model": "minilm-moe", "input": "a", "compute_budget": budget}
    refused(topology, EMBED, body, "field_type", "compute_budget", expected="number")
    tensors = texts("a", parameters={"compute_budget": budget})
    path = INFER.format("minilm-moe")
    refused(topology, path, tensors, "field_type", "parameters.compute_budget", expected="number")


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e400"])
def test_a_compute_budget_that_is_no_json(topology: Topology, literal: bytes) -> None:
    body = b'{"model": "minilm-moe", "input": "a", "compute_budget": ' + literal + b"}"
    answer = topology.post(EMBED, body, Accept_Language="es")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert "JSON" in answer.json()["error"]["message"]


def hang_up(topology: Topology, request_id: str, body: bytes, sent: int, when: Callable[[], object]) -> None:
    """Announce `body`, send so many bytes of it, and close the connection once `when` holds."""
    head = (
        f"POST {EMBED} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {DEMO_KEY}\r\nX-Region: us-east\r\n"
        f"X-Request-Id: {request_id}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", topology.port), timeout=30) as connection:
        connection.sendall(head.encode() + body[:sent])
        until(when, lambda: "the moment to hang up did not come", 30)


def well(topology: Topology) -> bool:
    fresh = topology.embed(f"still there? {uuid.uuid4().hex}", X_Region="us-east")
    return fresh.status_code == 200 and topology.in_flight()["us-east"] == 0


def test_a_client_that_hangs_up_while_it_is_served(topology: Topology) -> None:
    many = ", ".join(f'"{number} {"tide " * 200}"' for number in range(500))  # far more than a moment of work
    body = f'{{"model": "minilm", "input": [{many}]}}'.encode()
    left = topology.requests("us-east", status="499")["us-east"]
    hang_up(topology, "left-while-served", body, len(body), lambda: topology.in_flight()["us-east"] == 1)
    decision, completion = topology.pair("left-while-served")
    assert (decision["outcome"], decision["region"]) == ("permitted", "us-east")
    assert (completion["outcome"], completion["status"]) == ("cancelled", 499)
    assert [attempt["outcome"] for attempt in completion["attempts"]] == ["cancelled"]
    until(
        lambda: topology.requests("us-east", status="499") == {"us-east": left + 1},
        lambda: "the worker did not notice",
        30,
    )
    assert well(topology)


def test_a_client_that_hangs_up_in_the_middle_of_its_body(topology: Topology) -> None:
    def logged() -> list[dict[str, Any]]:
        return [entry for entry in topology.logged("gateway") if entry.get("request_id") == "left-while-sending"]

    body = b'{"model": "minilm", "input": "never finished"}'
    sent = topology.requests("us-east")
    hang_up(topology, "left-while-sending", body, 20, lambda: True)
    until(logged, lambda: "the gateway did not notice", 30)
    [entry] = logged()
    assert (entry["event"], entry["level"], entry["status"]) == ("request", "info", 499)  # no failure of ours
    assert topology.requests("us-east") == sent
    _, completion = topology.pair("left-while-sending")
    assert (completion["outcome"], completion["status"]) == ("cancelled", 499)
    assert (completion["attempts"], completion["body_may_have_arrived"]) == ([], False)
    assert well(topology)
