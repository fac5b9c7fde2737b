"""The worker's app over small models: both APIs, health, refusals, deadlines, hang-ups, overload and metrics."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
import tritonclient.http as triton
from structlog.testing import capture_logs

from regions.models.base import ServedModel
from regions.settings import QueueSettings, WorkerSettings
from regions.worker import app as worker_app
from regions.worker.budgets import Budgets
from regions.worker.kserve import read_inference
from regions.worker.serving import Serving
from tests.regions.fakes import Doubler, LetterCounts, until


class Worker:
    """An app at work over the fakes, and a client of it."""

    def __init__(self, serving: Serving, app: Any, letters: LetterCounts) -> None:
        self.serving = serving
        self.app = app
        self.letters = letters
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://worker")

    async def until_ready(self) -> None:
        await until(lambda: self.serving.ready)

    async def embed(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/embeddings", json={"model": "letters"} | body)

    async def infer(self, model: str, body: Any, **headers: str) -> httpx.Response:
        return await self.client.post(f"/v2/models/{model}/infer", json=body, headers=headers)

    async def hold(self) -> asyncio.Task[httpx.Response]:
        """Keeps the runner busy until `letters.gate` is set."""
        while self.letters.entered.acquire(blocking=False):
            pass
        self.letters.gate.clear()
        task = asyncio.create_task(self.embed(input="first"))
        assert await asyncio.to_thread(self.letters.entered.acquire, timeout=20)
        self.letters.batches.clear()
        return task


@asynccontextmanager
async def worker(
    *, settings: WorkerSettings | None = None, load: Callable[[str], ServedModel] | None = None
) -> AsyncIterator[Worker]:
    letters = LetterCounts()
    models: dict[str, ServedModel] = {"letters": letters, "doubler": Doubler()}
    failures: list[str] = []
    serving = Serving(
        list(models),
        settings or WorkerSettings(),
        loader=lambda: load or models.__getitem__,
        log=structlog.get_logger(),
    )
    app = worker_app.create_app(serving, on_failure=lambda: failures.append("load"))
    app.state.failures = failures
    async with app.router.lifespan_context(app):
        running = Worker(serving, app, letters)
        async with running.client:
            yield running
        letters.gate.set()


@pytest.fixture
async def ready() -> AsyncIterator[Worker]:
    async with worker() as running:
        await running.until_ready()
        yield running


def fault(response: httpx.Response) -> tuple[int, str, str | None, str | None]:
    body = response.json()
    assert isinstance(body["error"], str)
    return response.status_code, body["code"], body.get("detail"), body.get("param")


async def test_embeddings_of_one_text(ready: Worker) -> None:
    response = await ready.embed(input="a cab", user="someone", unknown=1)
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "list"
    assert body["model"] == "letters"
    assert body["data"] == [{"object": "embedding", "index": 0, "embedding": [2, 1, 1] + [0] * 23}]
    assert body["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


async def test_embeddings_of_several_texts_in_base64(ready: Worker) -> None:
    body = (await ready.embed(input=["a", "bb"], encoding_format="base64", dimensions=26)).json()
    rows = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in body["data"]]
    assert [row[:2].tolist() for row in rows] == [[1, 0], [0, 2]]
    assert [entry["index"] for entry in body["data"]] == [0, 1]


async def test_details_tell_the_budget_and_what_was_cut(ready: Worker) -> None:
    body = (await ready.embed(input=["word " * 20, "short"], truncate=True, compute_budget=0.3)).json()
    assert body["usage"]["prompt_tokens"] == 17
    assert body["usage"]["details"] == {"compute_budget": 0.3, "truncated": 1}
    body = (await ready.embed(input="short", truncate=True)).json()
    assert body["usage"]["details"] == {"truncated": 0}


@pytest.mark.parametrize(
    ("body", "detail", "param"),
    [
        ({"input": None}, "field_missing", "input"),
        ({"model": None, "input": "a"}, "field_missing", "model"),
        ({"model": 7, "input": "a"}, "field_type", "model"),
        ({"model": "doubler", "input": "a"}, "field_value", "model"),
        ({"input": 7}, "field_type", "input"),
        ({"input": []}, "field_value", "input"),
        ({"input": [1, 2]}, "field_type", "input[0]"),
        ({"input": ["a", None]}, "field_type", "input[1]"),
        ({"input": ["a"] * 2049}, "batch_too_large", "input"),
        ({"input": ""}, "empty_text", "input"),
        ({"input": ["a", " "]}, "empty_text", "input[1]"),
        ({"input": "a " * 17}, "text_too_long", "input"),
        ({"input": "a", "encoding_format": "hex"}, "field_value", "encoding_format"),
        ({"input": "a", "dimensions": 27}, "field_value", "dimensions"),
        ({"input": "a", "dimensions": 0}, "field_value", "dimensions"),
        ({"input": "a", "dimensions": True}, "field_value", "dimensions"),
        ({"input": "a", "compute_budget": 0.05}, "field_value", "compute_budget"),
        ({"input": "a", "compute_budget": 1.5}, "field_value", "compute_budget"),
        ({"input": "a", "compute_budget": "0.5"}, "field_type", "compute_budget"),
        ({"input": "a", "compute_budget": True}, "field_type", "compute_budget"),
        ({"input": "a", "truncate": 1}, "field_type", "truncate"),
    ],
)
async def test_embeddings_refuse(ready: Worker, body: dict[str, Any], detail: str, param: str) -> None:
    assert fault(await ready.embed(**body)) == (400, "invalid_request", detail, param)


async def test_the_largest_request_is_answered(ready: Worker) -> None:
    body = (await ready.embed(input=["a"] * 2048)).json()
    assert len(body["data"]) == 2048


async def test_malformed_json_is_refused_by_position(ready: Worker) -> None:
    for path in ("/v1/embeddings", "/v2/models/letters/infer"):
        response = await ready.client.post(path, content=b'{"input": }')
        assert fault(response)[:3] == (400, "invalid_request", "json")
        assert response.json()["values"] == {"position": 10}


def text_input(*, binary: bool, shape: tuple[int, ...] = (2,)) -> triton.InferInput:
    tensor = triton.InferInput("text", list(shape), "BYTES")
    return tensor.set_data_from_numpy(np.array(["a cab", "bb"], dtype=np.object_).reshape(shape), binary_data=binary)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
@pytest.mark.parametrize("binary", [False, True])
async def test_kserve_texts(ready: Worker, shape: tuple[int, ...], *, binary: bool) -> None:
    raw, length = triton.InferenceServerClient.generate_request_body(
        [text_input(binary=binary, shape=shape)],
        request_id="r1",
        outputs=[triton.InferRequestedOutput("embedding", binary_data=binary)],
        parameters={"compute_budget": 0.4, "truncate": True},
    )
    headers = {"inference-header-content-length": str(length)} if length else {}
    response = await ready.client.post("/v2/models/letters/versions/1/infer", content=raw, headers=headers)
    head = response.headers.get("inference-header-content-length")
    assert (head is not None) == binary
    result = triton.InferenceServerClient.parse_response_body(response.content, header_length=head and int(head))
    assert result.as_numpy("embedding").shape == (2, 26)
    assert result.as_numpy("embedding")[:, :3].tolist() == [[2, 1, 1], [0, 2, 0]]
    told = result.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("r1", "letters", "1")
    assert told["parameters"] == {"compute_budget": 0.4, "truncated": 0}


async def test_kserve_tensor_answers_all_outputs_in_the_models_order(ready: Worker) -> None:
    tensor = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    body = (await ready.infer("doubler", {"inputs": [tensor]})).json()
    assert [(out["name"], out["shape"], out["datatype"]) for out in body["outputs"]] == [
        ("double", [2, 4], "FP32"),
        ("total", [2], "FP32"),
    ]
    assert body["outputs"][0]["data"] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert body["outputs"][1]["data"] == [10, 26]


async def test_kserve_mixes_binary_and_json_outputs_as_asked(ready: Worker) -> None:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    request = {
        "inputs": [tensor],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "total", "parameters": {"binary_data": False}}, {"name": "double"}],
    }
    response = await ready.infer("doubler", request)
    length = int(response.headers["inference-header-content-length"])
    head = json.loads(response.content[:length])
    assert head["outputs"][0]["data"] == [10]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 16}
    assert np.frombuffer(response.content[length:], "<f4").tolist() == [2, 4, 6, 8]


def matrix(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]} | changes
    return {"inputs": [tensor]}


@pytest.mark.parametrize(
    ("model", "body", "detail"),
    [
        ("doubler", matrix(name="y"), "tensor_unknown"),
        ("doubler", {"inputs": matrix()["inputs"] + matrix(name="y")["inputs"]}, "tensor_unknown"),
        ("doubler", matrix(datatype="FP64"), "tensor_datatype"),
        ("doubler", matrix(datatype="BYTES", data=["a"] * 4), "tensor_datatype"),
        ("doubler", matrix(shape=[4]), "tensor_shape"),
        ("doubler", matrix(shape=[2, 4]), "tensor_size"),
        ("doubler", matrix(data=[1, 2, 3, 1e300]), "tensor_not_finite"),
        ("doubler", matrix() | {"outputs": [{"name": "z"}]}, "field_value"),
        ("doubler", matrix() | {"parameters": {"compute_budget": 2}}, "field_value"),
        ("letters", matrix(name="text"), "tensor_datatype"),
        ("letters", matrix(name="text", datatype="BYTES", shape=[1, 2], data=["a", "b"]), "tensor_shape"),
        ("letters", matrix(name="text", datatype="BYTES", shape=[1], data=[""]), "empty_text"),
        ("letters", matrix(name="text", datatype="BYTES", shape=[2049], data=["a"] * 2049), "batch_too_large"),
    ],
)
async def test_kserve_refuses(ready: Worker, model: str, body: dict[str, Any], detail: str) -> None:
    assert fault(await ready.infer(model, body))[:3] == (400, "invalid_request", detail)


async def test_nan_in_a_binary_tensor_is_refused(ready: Worker) -> None:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([[1, np.nan, 3, 4]], dtype=np.float32))
    raw, length = triton.InferenceServerClient.generate_request_body([tensor])
    response = await ready.client.post(
        "/v2/models/doubler/infer", content=raw, headers={"inference-header-content-length": str(length)}
    )
    assert fault(response)[2] == "tensor_not_finite"


async def test_a_header_that_cannot_be_read_is_refused(ready: Worker) -> None:
    for name in ("inference-header-content-length", "x-request-timeout-ms"):
        assert fault(await ready.infer("doubler", matrix(), **{name: "many"})) == (
            400,
            "invalid_request",
            "header",
            name,
        )


async def test_unknown_models_and_paths(ready: Worker) -> None:
    assert fault(await ready.infer("nobody", matrix()))[:2] == (404, "model_not_found")
    assert fault(await ready.embed(model="nobody", input="a"))[:2] == (404, "model_not_found")
    for path in ("/v2/models/nobody", "/v2/models/nobody/ready", "/v2/models/letters/versions/2"):
        assert fault(await ready.client.get(path))[:2] == (404, "model_not_found")
    assert fault(await ready.client.post("/v2/models/letters/versions/2/infer", json={}))[:2] == (
        404,
        "model_not_found",
    )
    assert fault(await ready.client.get("/v3"))[:2] == (404, "not_found")
    assert fault(await ready.client.get("/v1/embeddings"))[:2] == (405, "method_not_allowed")


async def test_health_and_metadata(ready: Worker) -> None:
    assert (await ready.client.get("/v2")).json()["extensions"] == ["binary_tensor_data"]
    assert (await ready.client.get("/v2/health/live")).json() == {"live": True}
    assert (await ready.client.get("/v2/health/ready")).json() == {"ready": True}
    assert (await ready.client.get("/v2/models/doubler")).json()["inputs"][0]["shape"] == [-1, 4]
    assert (await ready.client.get("/v2/models/doubler/versions/1")).status_code == 200
    assert (await ready.client.get("/v2/models/doubler/versions/1/ready")).json()["ready"] is True
    listed = (await ready.client.get("/v1/models")).json()
    assert [(model["id"], model["object"]) for model in listed["data"]] == [("letters", "model"), ("doubler", "model")]


async def test_a_worker_is_alive_while_it_loads_and_ready_afterwards() -> None:
    letters, may_load = LetterCounts(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def load(name: str) -> ServedModel:
        asyncio.run_coroutine_threadsafe(may_load.wait(), loop).result(timeout=20)
        return letters if name == "letters" else Doubler()

    async with worker(load=load) as running:
        assert (await running.client.get("/v2/health/live")).status_code == 200
        response = await running.client.get("/v2/health/ready")
        assert (response.status_code, response.json()) == (503, {"ready": False})
        response = await running.client.get("/v2/models/letters/ready")
        assert (response.status_code, response.json()) == (503, {"name": "letters", "ready": False})
        response = await running.embed(input="a")
        assert fault(response)[:2] == (503, "overloaded")
        assert response.headers["retry-after"] == "1"
        may_load.set()
        await running.until_ready()
        assert (await running.client.get("/v2/health/ready")).status_code == 200
        assert letters.batches == [["The tide turns."]]


async def test_a_failed_load_is_logged_and_told() -> None:
    def load(name: str) -> ServedModel:
        raise FileNotFoundError(f"no weights for {name}")

    with capture_logs() as logs:
        async with worker(load=load) as running:
            await until(lambda: running.app.state.failures)
            assert (await running.client.get("/v2/health/ready")).status_code == 503
    assert any(line["event"] == "loading failed" for line in logs)


async def test_concurrent_requests_are_batched(ready: Worker) -> None:
    first = await ready.hold()
    others = [asyncio.create_task(ready.embed(input=f"text {index}")) for index in range(64)]
    await until(lambda: len(ready.serving.scheduler._requests) == 65)
    ready.letters.gate.set()
    answers = await asyncio.gather(first, *others)
    assert all(answer.status_code == 200 for answer in answers)
    assert [len(batch) for batch in ready.letters.batches][1:] == [64]


async def test_a_deadline_ends_a_request_that_waits(ready: Worker) -> None:
    first = await ready.hold()
    response = await ready.client.post(
        "/v1/embeddings", json={"model": "letters", "input": "late"}, headers={"x-request-timeout-ms": "20"}
    )
    assert fault(response)[:2] == (504, "deadline_exceeded")
    assert response.json()["values"] == {"limit": 0.02}
    ready.letters.gate.set()
    assert (await first).status_code == 200
    assert ready.letters.batches == [["first"]]


async def test_a_full_queue_is_said_at_once() -> None:
    async with worker(settings=WorkerSettings(queue=QueueSettings(max_requests=1))) as running:
        await running.until_ready()
        first = await running.hold()
        response = await running.embed(input="second")
        assert fault(response)[:2] == (503, "overloaded")
        running.letters.gate.set()
        assert (await first).status_code == 200


async def test_an_unexpected_failure_is_logged_with_the_request_id(ready: Worker) -> None:
    with capture_logs() as logs:
        response = await ready.client.post(
            "/v1/embeddings", json={"model": "letters", "input": "poison"}, headers={"x-request-id": "r-17"}
        )
    assert fault(response) == (500, "internal_error", None, None)
    assert "poison" not in response.text
    line = next(line for line in logs if line["event"] == "request refused")
    assert (line["request_id"], line["code"], line["log_level"]) == ("r-17", "internal_error", "error")
    assert isinstance(line["exc_info"], ArithmeticError)
    assert (await ready.embed(input="fine")).status_code == 200


async def until_hung_up(app: Any, body: bytes, when: Awaitable[Any]) -> list[Any]:
    """Posts `body` for embeddings and hangs up once `when` is done; what the app sent meanwhile."""
    sent: list[Any] = []
    gone = asyncio.ensure_future(when)
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        message = next(messages, None)
        if message is None:
            await asyncio.shield(gone)
            return {"type": "http.disconnect"}
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embeddings",
        "query_string": b"",
        "headers": [(b"content-length", str(len(body)).encode())],
        "app": app,
    }
    await app(scope, receive, send)
    return sent


async def test_what_a_client_left_behind_is_never_computed(ready: Worker) -> None:
    first = await ready.hold()
    queued = until(lambda: len(ready.serving.scheduler._requests) == 2)
    async with asyncio.timeout(20):
        await until_hung_up(ready.app, b'{"model": "letters", "input": "gone"}', queued)
    ready.letters.gate.set()
    assert (await first).status_code == 200
    assert (await ready.embed(input="next")).status_code == 200
    assert ready.letters.batches == [["first"], ["next"]]


async def test_texts_of_a_client_that_left_are_not_read_on() -> None:
    async with worker(settings=WorkerSettings(threads=1)) as running:
        await running.until_ready()
        letters = running.letters
        letters.read.clear()
        letters.may_read.clear()
        async with asyncio.timeout(20):
            body = b'{"model": "letters", "input": ["first", "second"]}'
            await until_hung_up(running.app, body, until(lambda: letters.read == ["first"]))
            queued = until(lambda: running.serving.threads._work_queue.qsize() == 1)
            await until_hung_up(running.app, b'{"model": "letters", "input": "third"}', queued)
        letters.may_read.set()
        assert (await running.embed(input="last")).status_code == 200
        assert letters.read == ["first", "last"]


async def test_a_request_that_waits_does_not_keep_its_body() -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    body = json.dumps({"id": "r1", "inputs": [tensor]}).encode()
    job = read_inference(body, None, LetterCounts(), Budgets(WorkerSettings()), lambda: False)
    assert (job.request.id, job.request.inputs, len(job.items)) == ("r1", (), 1)


async def test_an_oversized_body_is_refused_from_its_announced_length(ready: Worker) -> None:
    response = await ready.client.post("/v1/embeddings", headers={"content-length": str((64 << 20) + 1)}, content=b"x")
    assert fault(response)[:2] == (413, "payload_too_large")


async def test_an_oversized_body_in_chunks_is_refused(ready: Worker) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(65):
            yield bytes(1 << 20)

    response = await ready.client.post("/v1/embeddings", content=chunks())
    assert fault(response)[:2] == (413, "payload_too_large")
    assert response.json()["values"] == {"limit": 64 << 20}


async def test_fewer_dimensions_are_the_first_ones_at_length_one(ready: Worker) -> None:
    whole, short = [
        np.array((await ready.embed(input="abba acd", **asked)).json()["data"][0]["embedding"])
        for asked in ({}, {"dimensions": 2})
    ]
    assert short == pytest.approx(whole[:2] / np.linalg.norm(whole[:2]))
    packed = (await ready.embed(input="abba acd", dimensions=2, encoding_format="base64")).json()["data"][0]
    assert np.frombuffer(base64.b64decode(packed["embedding"]), "<f4") == pytest.approx(short)


async def test_metrics_count_requests_batches_flops_and_experts(ready: Worker) -> None:
    await ready.embed(input=["a", "b c"])
    await ready.embed(input="")
    await ready.infer("nobody", matrix())
    await ready.infer("doubler", matrix())
    text = (await ready.client.get("/metrics")).text
    for line in (
        'tidegate_worker_requests_total{model="letters",status="200"} 1.0',
        'tidegate_worker_requests_total{model="unknown",status="400"} 1.0',
        'tidegate_worker_requests_total{model="unknown",status="404"} 1.0',
        'tidegate_worker_batch_size_sum{model="letters"} 3.0',
        'tidegate_worker_batch_tokens_sum{model="letters"} 6.0',
        'tidegate_worker_queue_seconds_count{model="letters"} 3.0',
        'tidegate_worker_compute_seconds_count{model="letters"} 2.0',
        'tidegate_worker_flops_total{model="letters"} 78.0',
        'tidegate_worker_dense_flops_total{model="letters"} 156.0',
        'tidegate_worker_expert_tokens_total{expert="0",model="doubler"} 2.0',
    ):
        assert line in text
    figures = (await ready.client.get("/metrics.json")).json()
    assert {"labels": {"model": "letters"}, "value": 78.0} in figures["tidegate_worker_flops_total"]
    assert {"labels": {"model": "unknown", "status": "404"}, "value": 1.0} in figures["tidegate_worker_requests_total"]
