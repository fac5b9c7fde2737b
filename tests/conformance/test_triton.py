"""KServe v2 through the unmodified `tritonclient.http`, in binary and in JSON, from the real models."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from app.config import DEMO_KEY
from tests.conformance.topology import Topology

pytestmark = pytest.mark.xdist_group("topology")

TEXTS = ("Where does the tide go?", "Wohin geht die Flut? 🌊", "مرحبا بالعالم")
BYTES = np.array([text.encode() for text in TEXTS], dtype=object)
STATES = np.random.default_rng(7).standard_normal((5, 768), dtype=np.float32)
CloseTo = Callable[[Any, Sequence[str]], None]


def key(language: str = "en", **more: str) -> dict[str, str]:
    """Headers for one call: tritonclient writes into the dictionary that it is given."""
    return {"Authorization": f"Bearer {DEMO_KEY}", "Accept-Language": language, **more}


def tensor(name: str, values: Any, datatype: str, *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(values.shape), datatype)
    return made.set_data_from_numpy(values, binary_data=binary)


@pytest.fixture
def client(topology: Topology) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{topology.port}", concurrency=4) as opened:
        yield opened


def test_the_server(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata["name"] == "tidegate"
    assert metadata["extensions"] == ["binary_tensor_data"]


def test_models(client: triton.InferenceServerClient) -> None:
    for name in ("minilm", "minilm-moe", "dynamic-moe"):
        assert client.is_model_ready(name, headers=key())
        assert client.is_model_ready(name, "1", headers=key())
        assert not client.is_model_ready(name, "7", headers=key())
        assert client.get_model_metadata(name, headers=key())["name"] == name
        assert client.get_model_metadata(name, "1", headers=key())["versions"] == ["1"]
    minilm = client.get_model_metadata("minilm", headers=key())
    assert minilm["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert minilm["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}]
    assert not client.is_model_ready("none", headers=key())
    assert not client.is_model_ready("minilm")  # without a key


@pytest.mark.parametrize(("model", "version"), [("none", ""), ("minilm", "7")])
def test_what_is_not_there(client: triton.InferenceServerClient, model: str, version: str) -> None:
    told = set()
    for language in ("fr", "de"):
        for ask in (
            lambda headers: client.get_model_metadata(model, version, headers=headers),
            lambda headers: client.infer(model, [tensor("text", BYTES, "BYTES")], version, headers=headers),
        ):
            with pytest.raises(InferenceServerException) as missing:
                ask(key(language))
            assert missing.value.status() == "404"
            assert (f"{model}/versions/{version}" if version else model) in missing.value.message()
            told.add(missing.value.message())
    assert len(told) == 2  # one text a language, whoever of gateway and worker finds out


@pytest.mark.parametrize("binary", [True, False])
def test_texts(client: triton.InferenceServerClient, close_to: CloseTo, binary: bool) -> None:
    result = client.infer(
        "minilm",
        [tensor("text", BYTES, "BYTES", binary=binary)],
        outputs=[triton.InferRequestedOutput("embedding", binary_data=binary)],
        request_id="texts",
        headers=key(),
    )
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("minilm", "1", "texts")
    assert ("data" in response["outputs"][0]) is not binary
    close_to(result.as_numpy("embedding"), TEXTS)


def test_a_column_of_texts_of_one_version(client: triton.InferenceServerClient, close_to: CloseTo) -> None:
    column = tensor("text", BYTES.reshape(-1, 1), "BYTES")
    close_to(client.infer("minilm", [column], "1", headers=key()).as_numpy("embedding"), TEXTS)


def test_a_compute_budget(client: triton.InferenceServerClient, close_to: CloseTo) -> None:
    def at(budget: float) -> tuple[Any, dict[str, float]]:
        result = client.infer(
            "minilm-moe", [tensor("text", BYTES, "BYTES")], headers=key(), parameters={"compute_budget": budget}
        )
        return result.as_numpy("embedding"), result.get_response()["parameters"]

    low, told = at(0.3)
    assert told["compute_budget"] == 0.3
    assert 0 < told["flops_share"] <= 0.35
    whole, told = at(1.0)
    assert told == {"compute_budget": 1.0, "flops_share": 1.0}
    close_to(whole, TEXTS)
    assert ((low * whole).sum(axis=1) < 0.9999).all()


def test_hidden_states_with_all_that_the_router_did(client: triton.InferenceServerClient) -> None:
    result = client.infer("dynamic-moe", [tensor("hidden_states", STATES, "FP32")], headers=key())
    described = [output["name"] for output in client.get_model_metadata("dynamic-moe", headers=key())["outputs"]]
    assert [output["name"] for output in result.get_response()["outputs"]] == described
    states, experts, weights = (result.as_numpy(name) for name in ("hidden_states", "experts", "weights"))
    complexity, flops = result.as_numpy("complexity"), result.as_numpy("flops")
    assert (states.shape, states.dtype) == ((5, 768), np.float32)
    assert np.isfinite(states).all()
    assert experts.shape == weights.shape == (5, 3)
    assert experts.dtype == flops.dtype == np.int64
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    used = [row[weight > 0] for row, weight in zip(experts, weights, strict=True)]
    assert all(1 <= len(row) <= 3 and len(set(row)) == len(row) and 0 <= min(row) <= max(row) < 8 for row in used)
    assert ((complexity >= 0) & (complexity <= 1)).all()
    assert (flops > 0).all()
    counts = np.array([len(row) for row in used])
    assert len(set(zip(counts, flops, strict=True))) == len(set(counts))  # what a token cost follows from its experts


def test_hidden_states_alone_in_json_and_from_another_region(client: triton.InferenceServerClient) -> None:
    whole = client.infer("dynamic-moe", [tensor("hidden_states", STATES, "FP32")], headers=key())
    one = client.infer(
        "dynamic-moe",
        [tensor("hidden_states", STATES[:1], "FP32", binary=False)],
        outputs=[triton.InferRequestedOutput("hidden_states", binary_data=False)],
        headers=key(**{"X-Region": "ap-southeast"}),
    )
    assert [output["name"] for output in one.get_response()["outputs"]] == ["hidden_states"]
    np.testing.assert_allclose(one.as_numpy("hidden_states"), whole.as_numpy("hidden_states")[:1], atol=1e-5)


def test_asynchronous_calls(client: triton.InferenceServerClient, close_to: CloseTo) -> None:
    calls = [
        client.async_infer("minilm", [tensor("text", BYTES[index : index + 1], "BYTES")], headers=key())
        for index in range(len(TEXTS))
    ]
    close_to([call.get_result().as_numpy("embedding")[0] for call in calls], TEXTS)


def spoilt(value: float) -> Any:
    states = STATES.copy()
    states[2, 3] = value
    return states


REFUSED = [
    ("dynamic-moe", "hidden_states", STATES[:, :5], "FP32", "[5, 5]", ("has shape", "hat die Form")),
    ("dynamic-moe", "hidden_states", STATES[0], "FP32", "[768]", ("has shape", "hat die Form")),
    ("dynamic-moe", "hidden_states", STATES.astype(np.float64), "FP64", "FP32", ("has datatype", "Datentyp FP64")),
    ("dynamic-moe", "hidden_states", spoilt(np.nan), "FP32", "hidden_states", ("holds NaN", "enthält NaN")),
    ("dynamic-moe", "hidden_states", spoilt(np.inf), "FP32", "hidden_states", ("infinity", "unendliche Werte")),
    ("dynamic-moe", "hidden_states", spoilt(-np.inf), "FP32", "hidden_states", ("infinity", "unendliche Werte")),
    ("dynamic-moe", "states", STATES, "FP32", "states", ("no input tensor", "keinen Eingabetensor")),
    ("minilm", "text", STATES, "FP32", "BYTES", ("has datatype", "hat den Datentyp")),
    ("minilm", "text", np.array([b""], dtype=object), "BYTES", "text[0]", ("is empty", "ist leer")),
    ("minilm", "text", np.array([b"a", b"\xff"], dtype=object), "BYTES", "UTF-8", ("not allowed", "nicht zulässig")),
    ("minilm", "text", BYTES.reshape(1, 3), "BYTES", "[1, 3]", ("has shape", "hat die Form")),
]


@pytest.mark.parametrize(("model", "name", "values", "datatype", "named", "said"), REFUSED)
def test_tensors_that_are_refused(
    client: triton.InferenceServerClient,
    model: str,
    name: str,
    values: Any,
    datatype: str,
    named: str,
    said: tuple[str, str],
) -> None:
    for language, words in zip(("en", "de"), said, strict=True):
        with pytest.raises(InferenceServerException) as refused:
            client.infer(model, [tensor(name, values, datatype)], headers=key(language))
        assert refused.value.status() == "400"
        assert words in refused.value.message()
        assert named in refused.value.message()


def test_a_budget_that_is_refused(client: triton.InferenceServerClient) -> None:
    for budget in (0.05, 7, "half"):
        with pytest.raises(InferenceServerException, match=r"parameters\.compute_budget"):
            client.infer(
                "minilm-moe", [tensor("text", BYTES, "BYTES")], headers=key(), parameters={"compute_budget": budget}
            )


def test_residency_and_keys(client: triton.InferenceServerClient) -> None:
    texts = [tensor("text", BYTES, "BYTES")]
    with pytest.raises(InferenceServerException, match="us-east") as denied:
        client.infer("minilm", texts, headers=key(**{"X-Data-Subject": "DE", "X-Region": "us-east"}))
    assert denied.value.status() == "451"
    with pytest.raises(InferenceServerException, match="API") as stranger:
        client.infer("minilm", texts, headers={"Accept-Language": "de"})
    assert stranger.value.status() == "401"


def test_compression(client: triton.InferenceServerClient) -> None:
    texts = [tensor("text", BYTES, "BYTES")]
    with pytest.raises(InferenceServerException) as compressed:
        client.infer("minilm", texts, headers=key("zh"), request_compression_algorithm="gzip")
    assert compressed.value.status() == "415"
    assert "Content-Encoding" in compressed.value.message()
    asked = client.infer("minilm", texts, headers=key(), response_compression_algorithm="gzip")
    assert asked.as_numpy("embedding").shape == (3, 384)
