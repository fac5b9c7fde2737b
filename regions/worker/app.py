"""The worker's HTTP app: KServe v2, OpenAI embeddings, health and metrics over the models of one region."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from regions.wire import HEADER_LENGTH, REQUEST_ID_HEADER, TIMEOUT_HEADER, Fault, read_count
from regions.worker.jobs import Job
from regions.worker.kserve import read_inference
from regions.worker.openai import list_models, read_embeddings
from regions.worker.refusals import BodyTooLarge, Loading, ModelNotFound, Refused, status_and_fault
from regions.worker.serving import Serving

T = TypeVar("T")

BODY_LIMIT = 64 << 20
DRAIN_SECONDS = 10.0
_LONGEST_ID = 128
_OVERLOADED = 503
_INTERNAL = 500


def create_app(serving: Serving, *, on_failure: Callable[[], None] = lambda: None) -> FastAPI:
    """The app over `serving`, which begins to load once the app has started; `on_failure` is told if that fails."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(serving.scheduler.work())
        load = asyncio.create_task(_load(serving, on_failure))
        yield
        load.cancel()
        await serving.close(DRAIN_SECONDS)
        work.cancel()
        await asyncio.gather(load, work, return_exceptions=True)

    # The gateway describes the API to callers; what a worker takes is the same.
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(HTTPException, _refused)
    _add_health(app, serving)
    _add_models(app, serving)
    _add_inference(app, serving)
    return app


def _add_health(app: FastAPI, serving: Serving) -> None:
    @app.get("/v2")
    async def server() -> Response:
        return _json({"name": "tidegate-worker", "version": _version(), "extensions": ["binary_tensor_data"]})

    @app.get("/v2/health/live")
    async def live() -> Response:
        return _json({"live": True})

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        return _json({"ready": serving.ready}, status=200 if serving.ready else _OVERLOADED)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(serving.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/metrics.json")
    async def metrics_as_json() -> Response:
        return _json(serving.metrics.as_json())


def _add_models(app: FastAPI, serving: Serving) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return _bytes(list_models(serving))

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> Response:
        try:
            return _json(serving.model(name, version).metadata())
        except Refused as error:
            return _fault(*status_and_fault(error))

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        try:
            serving.model(name, version)
        except Loading:
            return _json({"name": name, "ready": False}, status=_OVERLOADED)
        except ModelNotFound as error:
            return _fault(*status_and_fault(error))
        return _json({"name": name, "ready": True})


def _add_inference(app: FastAPI, serving: Serving) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        return await _serve(request, serving, lambda body, left: read_embeddings(body, serving, left))

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        def read(body: bytes, left: Callable[[], bool]) -> Job:
            header = request.headers.get(HEADER_LENGTH)
            length = None if header is None else read_count(header, header=HEADER_LENGTH)
            return read_inference(body, length, serving.model(name, version), serving.budgets, left)

        return await _serve(request, serving, read)


async def _serve(request: Request, serving: Serving, read: Callable[[bytes, Callable[[], bool]], Job]) -> Response:
    """One inference request from its body to its answer; every failure becomes an answer here.

    `read` runs on a thread and asks now and then whether its client has left or its time is up.
    """
    request_id = request.headers.get(REQUEST_ID_HEADER, "")[:_LONGEST_ID]
    started = perf_counter()
    model, limit = "unknown", None
    left = threading.Event()
    try:
        limit = _time_limit(request)
        async with asyncio.timeout(limit):
            with serving.scheduler.expecting():
                job = await _unless_gone(request, serving.in_thread(read, await _body(request), left.is_set))
            model = job.model.name
            outcomes = await _unless_gone(request, serving.scheduler.submit(job.model, job.items))
            answer = await serving.in_thread(job.answer, outcomes)
        response = Response(answer.body, headers=dict(answer.headers))
    except Exception as error:  # noqa: BLE001 - the edge: whatever fails becomes a fault, logged below
        status, fault = status_and_fault(error, limit=limit)
        response = _fault(status, fault)
        log = serving.log.error if status == _INTERNAL else serving.log.info
        log(
            "request refused",
            request_id=request_id,
            path=request.url.path,
            status=status,
            code=fault.code,
            detail=fault.detail,
            seconds=round(perf_counter() - started, 4),
            exc_info=error if status == _INTERNAL else None,
        )
    finally:
        left.set()
    serving.metrics.answered(model, response.status_code)
    return response


def _time_limit(request: Request) -> float | None:
    """Seconds that the request may take; None where its sender sets no limit. Raises InvalidInput."""
    value = request.headers.get(TIMEOUT_HEADER)
    return None if value is None else read_count(value, header=TIMEOUT_HEADER) / 1000


async def _body(request: Request) -> bytes:
    """The body. Raises BodyTooLarge, before it is read where its length was announced, and ClientDisconnect."""
    announced = request.headers.get("content-length", "0")
    if int(announced) > BODY_LIMIT:
        raise BodyTooLarge(BODY_LIMIT)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_LIMIT:
            raise BodyTooLarge(BODY_LIMIT)
        chunks.append(chunk)
    return b"".join(chunks)


async def _unless_gone(request: Request, awaited: Awaitable[T]) -> T:
    """What is awaited, or ClientDisconnect as soon as the client hangs up; then it leaves the queue that it is in."""
    work = asyncio.ensure_future(awaited)
    gone = asyncio.ensure_future(request.receive())  # the body has been read: the next message is the hang-up
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _load(serving: Serving, on_failure: Callable[[], None]) -> None:
    try:
        await serving.load_all()
    except Exception:
        serving.log.exception("loading failed")
        on_failure()


async def _refused(_: Request, error: Exception) -> Response:
    return _fault(*status_and_fault(error))


def _fault(status: int, fault: Fault) -> Response:
    headers = {"retry-after": "1"} if status == _OVERLOADED else None
    return Response(fault.encode(), status, headers=headers, media_type="application/json")


def _json(body: Any, *, status: int = 200) -> Response:
    return _bytes(orjson.dumps(body), status)


def _bytes(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _version() -> str:
    try:
        return version("tidegate")
    except PackageNotFoundError:  # running from a source tree
        return "0"
