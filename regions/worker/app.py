"""The worker's HTTP app: KServe v2, OpenAI embeddings, health and metrics over the models of one region."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from regions.models.base import ServedModel
from regions.wire import HEADER_LENGTH, OWNER_HEADER, REQUEST_ID_HEADER, TIMEOUT_HEADER, Fault, read_count
from regions.worker.jobs import Job
from regions.worker.kserve import read_inference
from regions.worker.openai import list_models, read_embeddings
from regions.worker.refusals import BodyTooLarge, Loading, ModelNotFound, Refused, status_and_fault
from regions.worker.serving import Serving

BODY_LIMIT = 64 << 20
DRAIN_SECONDS = 10.0
_LONGEST_ID = 128
_FEW = 4096
"""Numbers that are written in less time than another thread takes to wake up."""
_OVERLOADED = 503
_INTERNAL = 500


def create_app(serving: Serving, *, on_failure: Callable[[], None] = lambda: None) -> Starlette:
    """The app over `serving`, which begins to load once the app has started; `on_failure` is told if that fails.

    Without FastAPI's layer, which describes and checks requests: the gateway describes the API to callers, and here it
    would cost a short text a tenth of its time.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        work = asyncio.create_task(serving.scheduler.work())
        load = asyncio.create_task(_load(serving, on_failure))
        yield
        load.cancel()
        await serving.close(DRAIN_SECONDS)
        work.cancel()
        await asyncio.gather(load, work, return_exceptions=True)

    routes = [*_inference(serving), *_models(serving), *_health(serving)]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _refused})


def _health(serving: Serving) -> list[Route]:
    async def server(_: Request) -> Response:
        return _json({"name": "tidegate-worker", "version": _version(), "extensions": ["binary_tensor_data"]})

    async def live(_: Request) -> Response:
        return _json({"live": True})

    async def ready(_: Request) -> Response:
        return _json({"ready": serving.ready}, status=200 if serving.ready else _OVERLOADED)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(serving.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def metrics_as_json(_: Request) -> Response:
        return _json(serving.metrics.as_json())

    return [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/metrics", metrics),
        Route("/metrics.json", metrics_as_json),
    ]


def _models(serving: Serving) -> list[Route]:
    async def models(_: Request) -> Response:
        return _bytes(list_models(serving))

    async def metadata(request: Request) -> Response:
        try:
            return _json(_model(request, serving).metadata())
        except Refused as error:
            return _fault(*status_and_fault(error))

    async def model_ready(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            _model(request, serving)
        except Loading:
            return _json({"name": name, "ready": False}, status=_OVERLOADED)
        except ModelNotFound as error:
            return _fault(*status_and_fault(error))
        return _json({"name": name, "ready": True})

    return [
        Route("/v1/models", models),
        Route("/v2/models/{name}", metadata),
        Route("/v2/models/{name}/versions/{version}", metadata),
        Route("/v2/models/{name}/ready", model_ready),
        Route("/v2/models/{name}/versions/{version}/ready", model_ready),
    ]


def _inference(serving: Serving) -> list[Route]:
    async def embeddings(request: Request) -> Response:
        return await _serve(request, serving, lambda body, left: read_embeddings(body, serving, left))

    async def infer(request: Request) -> Response:
        def read(body: bytes, left: Callable[[], bool]) -> Job:
            header = request.headers.get(HEADER_LENGTH)
            length = None if header is None else read_count(header, header=HEADER_LENGTH)
            job = read_inference(body, length, _model(request, serving), serving.budgets, left)
            return job.on_behalf_of(request.headers.get(OWNER_HEADER, "")[:_LONGEST_ID])

        return await _serve(request, serving, read)

    return [
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v2/models/{name}/infer", infer, methods=["POST"]),
        Route("/v2/models/{name}/versions/{version}/infer", infer, methods=["POST"]),
    ]


def _model(request: Request, serving: Serving) -> ServedModel:
    """The model that the path names. Raises ModelNotFound, or Loading while it is on its way."""
    return serving.model(request.path_params["name"], request.path_params.get("version"))


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
                body = await _body(request)
                with _unless_gone(request):
                    job = await serving.in_thread(read, body, left.is_set)
            model = job.model.name
            with _unless_gone(request):
                outcomes = await serving.scheduler.submit(job.model, job.items)
            few = sum(array.size for outcome in outcomes for array in outcome.arrays.values()) <= _FEW
            answer = job.answer(outcomes) if few else await serving.in_thread(job.answer, outcomes)
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


@contextmanager
def _unless_gone(request: Request) -> Iterator[None]:
    """Raises ClientDisconnect inside as soon as the client hangs up; a request then leaves the queue that it is in."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - requests are served by tasks
    before = task.cancelling()
    gone = asyncio.ensure_future(request.receive())  # the body has been read: the next message is the hang-up

    def leave(_: asyncio.Future[Any]) -> None:
        task.cancel()

    gone.add_done_callback(leave)
    try:
        yield
    except asyncio.CancelledError:
        # Whoever else cancels the task, such as a deadline, comes first.
        if gone.done() and task.uncancel() <= before:
            raise ClientDisconnect from None
        raise
    finally:
        gone.remove_done_callback(leave)
        gone.cancel()


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
