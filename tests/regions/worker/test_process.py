"""A real worker process with the real models, driven over a socket as the gateway and other clients drive it."""

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http as triton

from regions.models.minilm import MiniLM
from regions.models.source import find_text_model
from regions.wire import OWNER_HEADER
from tests.regions.fakes import until
from tests.regions.worker.processes import ROOT, Process, Worker, started


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with started() as running:
        yield running


def fault(response: httpx.Response) -> tuple[int, str, str | None]:
    body = response.json()
    assert isinstance(body["error"], str)
    return response.status_code, body["code"], body.get("detail")


def norm(vector: Any) -> float:
    return float(np.linalg.norm(vector))


def test_it_is_ready_with_all_models(worker: Worker) -> None:
    assert worker.client.get("/v2/health/ready").status_code == 200
    listed = worker.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["minilm", "minilm-moe", "dynamic-moe"]


def test_the_openai_client_gets_normalised_embeddings(worker: Worker) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{worker.port}/v1", api_key="none") as client:
        answer = client.embeddings.create(model="minilm", input=["A cat sits.", "A kitten sits.", "Stock prices fell."])
    vectors = np.array([entry.embedding for entry in answer.data])
    assert vectors.shape == (3, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert answer.usage.prompt_tokens > 9


@pytest.mark.parametrize(("precision", "furthest"), [("fp32", 1e-5), ("bf16", 1e-3)])
def test_embeddings_are_as_exact_as_the_precision_says(precision: str, furthest: float) -> None:
    texts = ["The tide turns.", "A ferry leaves every hour, except on Sundays.", "潮"]
    model = MiniLM(find_text_model(None))
    items = [model.prepare_text(text, param="input", truncate=False, budget=None) for text in texts]
    exact = np.stack([outcome.arrays["embedding"] for outcome in model.forward(items).outcomes])
    with started("--models", "minilm", TIDEGATE_WORKER__PRECISION=precision) as running:
        answer = running.embed(input=texts).raise_for_status().json()
    given = np.array([entry["embedding"] for entry in answer["data"]])
    distances = 1 - (given * exact).sum(axis=1)
    assert distances.max() < furthest
    assert (distances.max() < 1e-6) == (precision == "fp32")


def test_base64_holds_the_same_numbers(worker: Worker) -> None:
    plain = worker.embed(input="same").json()["data"][0]["embedding"]
    packed = worker.embed(input="same", encoding_format="base64").json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), "<f4") == pytest.approx(plain, abs=1e-6)


def test_the_budget_governs_the_share_of_flops(worker: Worker) -> None:
    def details(budget: float) -> Any:
        return worker.embed(model="minilm-moe", input="Spend less.", compute_budget=budget).json()["usage"]["details"]

    low, full = details(0.25), details(1.0)
    assert low["compute_budget"] == 0.25
    assert low["flops_share"] < 0.6 * full["flops_share"]


def test_at_full_budget_the_split_model_equals_the_dense_one(worker: Worker) -> None:
    dense = worker.embed(input="Equal at full budget.").json()["data"][0]["embedding"]
    split = worker.embed(model="minilm-moe", input="Equal at full budget.", compute_budget=1.0).json()
    assert split["data"][0]["embedding"] == pytest.approx(dense, abs=1e-4)


@pytest.mark.parametrize("binary", [False, True])
def test_the_triton_client_infers_from_text(worker: Worker, *, binary: bool) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{worker.port}")
    tensor = triton.InferInput("text", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["Ebbe"], ["潮"]], dtype=np.object_), binary_data=binary)
    outputs = [triton.InferRequestedOutput("embedding", binary_data=binary)]
    result = client.infer("minilm-moe", [tensor], outputs=outputs, parameters={"compute_budget": 0.5})
    assert result.as_numpy("embedding").shape == (2, 384)
    assert norm(result.as_numpy("embedding")[0]) == pytest.approx(1, abs=1e-4)
    assert set(result.get_response()["parameters"]) >= {"compute_budget", "flops_share"}
    client.close()


def test_the_triton_client_infers_from_a_tensor(worker: Worker) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{worker.port}")
    assert client.is_server_ready()
    assert client.is_model_ready("dynamic-moe")
    names = [output["name"] for output in client.get_model_metadata("dynamic-moe")["outputs"]]
    values = np.random.default_rng(7).standard_normal((5, 768), dtype=np.float32)
    tensor = triton.InferInput("hidden_states", [5, 768], "FP32").set_data_from_numpy(values)
    result = client.infer("dynamic-moe", [tensor])
    assert [output["name"] for output in result.get_response()["outputs"]] == names
    assert result.as_numpy(names[0]).shape == (5, 768)
    assert np.isfinite(result.as_numpy(names[0])).all()
    client.close()


def hidden_states(worker: Worker, values: list[Any], **changes: Any) -> httpx.Response:
    tensor = {"name": "hidden_states", "shape": [1, 768], "datatype": "FP32", "data": values} | changes
    return worker.post("/v2/models/dynamic-moe/infer", {"inputs": [tensor]})


def test_unsound_tensors_are_refused(worker: Worker) -> None:
    assert hidden_states(worker, [0.5] * 768).status_code == 200
    assert fault(hidden_states(worker, [0.5] * 767, shape=[1, 767])) == (400, "invalid_request", "tensor_shape")
    assert fault(hidden_states(worker, [0.5] * 768, datatype="FP64")) == (400, "invalid_request", "tensor_datatype")
    assert fault(hidden_states(worker, [1e300] + [0.5] * 767)) == (400, "invalid_request", "tensor_not_finite")
    assert fault(hidden_states(worker, [0.5] * 768, name="x")) == (400, "invalid_request", "tensor_unknown")
    raw = np.full(768, np.nan, dtype="<f4").tobytes()
    size = {"binary_data_size": len(raw)}
    tensor = {"name": "hidden_states", "shape": [1, 768], "datatype": "FP32", "parameters": size}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    response = worker.post("/v2/models/dynamic-moe/infer", head + raw, **headers)
    assert fault(response) == (400, "invalid_request", "tensor_not_finite")


def test_an_answer_that_is_kept_of_one_owner_is_computed_again_for_another(worker: Worker) -> None:
    tensor = {"name": "hidden_states", "shape": [1, 768], "datatype": "FP32", "data": [0.125] * 768}

    def computed(owner: str) -> float:
        def flops() -> float:
            counted = worker.client.get("/metrics.json").json()["tidegate_worker_flops_total"]
            return sum(entry["value"] for entry in counted if entry["labels"]["model"] == "dynamic-moe")

        before = flops()
        body = {"inputs": [tensor]}
        worker.post("/v2/models/dynamic-moe/infer", body, **{OWNER_HEADER: owner}).raise_for_status()
        return flops() - before

    assert computed("a") > 0
    assert computed("a") == 0
    assert computed("b") > 0


def test_texts_that_cannot_be_embedded_are_refused(worker: Worker) -> None:
    long = "tide " * 20_000
    assert len(long) == 100_000
    assert fault(worker.embed(input="")) == (400, "invalid_request", "empty_text")
    assert fault(worker.embed(input=long)) == (400, "invalid_request", "text_characters")
    assert fault(worker.embed(input=long[:10_000])) == (400, "invalid_request", "text_too_long")
    answer = worker.embed(input=[long, "short"], truncate=True).json()
    assert answer["usage"]["details"]["truncated"] == 1
    assert norm(answer["data"][0]["embedding"]) == pytest.approx(1, abs=1e-4)


def peak_mib(worker: Worker) -> int:
    """The most memory that the worker has held at once."""
    status = Path(f"/proc/{worker.process.child.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def test_an_enormous_text_takes_little_memory(worker: Worker) -> None:
    text = "a " * (7 << 20)
    before = peak_mib(worker)
    assert fault(worker.embed(input=text)) == (400, "invalid_request", "text_characters")
    assert worker.embed(input=text, truncate=True).json()["usage"]["prompt_tokens"] == 256
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
    assert fault(worker.post("/v2/models/minilm/infer", {"inputs": [tensor]})) == (
        400,
        "invalid_request",
        "text_characters",
    )
    assert peak_mib(worker) - before < 400


def test_malformed_requests_are_refused(worker: Worker) -> None:
    assert fault(worker.post("/v1/embeddings", b"{")) == (400, "invalid_request", "json")
    assert fault(worker.post("/v1/embeddings", b"[" * 50_000)) == (400, "invalid_request", "depth")
    assert fault(worker.embed(model="nobody", input="a")) == (404, "model_not_found", None)
    assert fault(worker.post("/v2/models/nobody/infer", {}))[:2] == (404, "model_not_found")


def test_a_deadline_is_kept(worker: Worker) -> None:
    body = {"model": "minilm", "input": ["tide " * 200] * 64}
    response = worker.post("/v1/embeddings", body, **{"x-request-timeout-ms": "1"})
    assert fault(response) == (504, "deadline_exceeded", None)


def hung_up(worker: Worker) -> float:
    lines = worker.client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if "requests_total{" in line and 'status="499"' in line)


async def test_clients_that_hang_up_leave_the_worker_healthy(worker: Worker) -> None:
    body = json.dumps({"model": "minilm", "input": ["tide " * 200] * 32}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    for sent in (head + body, head + body[:100]):
        with socket.create_connection(("127.0.0.1", worker.port)) as client:
            client.sendall(sent)
    await until(lambda: hung_up(worker) == 2)
    assert worker.embed(input="afterwards").status_code == 200
    assert worker.client.get("/v2/health/ready").status_code == 200


async def test_concurrent_requests_are_all_answered_and_batched(worker: Worker) -> None:
    def figures() -> tuple[float, float]:
        lines = worker.client.get("/metrics").text.splitlines()
        values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
        name = "tidegate_worker_batch_size_{}" + '{{model="minilm"}}'
        return values[name.format("sum")], values[name.format("count")]

    texts = [f"Message {index} of a tide of messages." for index in range(64)]
    inputs_before, batches_before = figures()
    async with httpx.AsyncClient(base_url=worker.client.base_url, timeout=60) as client:
        calls = [client.post("/v1/embeddings", json={"model": "minilm", "input": text}) for text in texts]
        answers = await asyncio.gather(*calls)
    inputs, batches = figures()
    assert inputs - inputs_before == 64
    assert batches - batches_before < 32
    alone = worker.embed(input=texts[40]).json()["data"][0]["embedding"]
    assert answers[40].json()["data"][0]["embedding"] == pytest.approx(alone, abs=1e-4)


def test_a_worker_answers_liveness_before_its_models_are_loaded_and_ends_cleanly() -> None:
    process = Process("--region", "us-east", "--models", "dynamic-moe")
    try:
        port = process.event("listening")["port"]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            assert client.get("/v2/health/live").status_code == 200
            assert client.get("/v2/health/ready").status_code == 503
            assert process.event("ready")["region"] == "us-east"
            assert client.get("/v2/health/ready").status_code == 200
    finally:
        code = process.end(signal.SIGINT)
    assert code == 0


def run(*arguments: str, **environ: str) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "regions.worker", *arguments],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stderr


def test_a_wrong_configuration_ends_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "local.yaml"
    file.write_text("regions: [{id: eu-west}]\n", encoding="utf-8")
    code, said = run("--region", "mars", "--config", str(file))
    assert (code, said.count("\n")) == (2, 1)
    assert said == f"worker: {file}: regions: there is no region 'mars'; configured: eu-west\n"
    code, said = run("--region", "mars", TIDEGATE_WORKER__BATCH__WINDOW="soon")
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("worker: TIDEGATE_WORKER__BATCH__WINDOW: 'soon' is not a duration")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = run("--region", "eu-west", "--port", str(taken.getsockname()[1]))
    assert (code, said.count("\n")) == (2, 1)
    assert "Address already in use" in said


def test_a_model_that_cannot_be_loaded_ends_the_worker(tmp_path: Path) -> None:
    code, said = run("--region", "x", "--models", "minilm", TIDEGATE_WORKER__TEXT_MODEL=str(tmp_path))
    assert code == 1
    assert "loading failed" in said
