"""The composition root: which stores, which clients, in which order they start and stop. Nothing else picks them."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from importlib.metadata import version
from types import MappingProxyType

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from app.access import KeyRing
from app.activity import Activity
from app.api import audit, audit_rights, health, kserve, openai, routes
from app.api.access import exchange_of
from app.audit.auditor import Auditor
from app.audit.keys import FileKeys
from app.audit.place import EDGE
from app.audit.pseudonym import Pseudonyms
from app.audit.reader import Reader
from app.audit.rights import Rights
from app.audit.witness import Witness
from app.audit.writer import Trail, TrailError
from app.caller import Geo
from app.config import RESERVED_LOG, Settings
from app.delivery import Delivery
from app.errors import AuditUnavailable, GatewayError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from app.exchange import CLIENT_CLOSED
from app.failures import Failures
from app.fleet.prober import Prober
from app.fleet.registry import Registry
from app.fleet.worker_client import WorkerClient
from app.forwarding import Forwarder
from app.gate import Gate
from app.geoip import Database
from app.i18n import LOCALES, Translator
from app.limiting import Limiter
from app.pipeline import Gateway
from app.policy.ground import Ground
from app.policy.rules import LawBook
from app.recorder import Recorder
from app.stores.memory import MemoryCache, MemoryLimits
from app.telemetry.metrics import Metrics
from app.views import Views
from regions import catalogue

VERSION = version("tidegate")
_KINDS = MappingProxyType(
    {
        "string": "string",
        "int": "integer",
        "float": "number",
        "bool": "boolean",
        "date": "YYYY-MM-DD",
        "tuple": "array",
        "too_long": "<= 64",
    }
)
"""What a field of a dry run may be, by the beginning of pydantic's name for the problem."""
_DEPTH = {"minimal": 256, "standard": 64, "strict": 32}
"""Levels that a JSON body may nest, by gateway.security."""

log = structlog.get_logger("tidegate.main")


def create_app(settings: Settings, book: LawBook, managed: Mapping[str, str], activity: Activity) -> ASGIApp:
    """The gateway as an ASGI application; `managed` maps a region to the URL of the worker that was started for it."""
    ground = Ground.lay(book, settings.regions)
    catalogue.centroid("US")  # reads its tables now, so that no request waits for them
    registry = Registry(settings, managed, time.monotonic)
    cache = MemoryCache(settings.cache)
    metrics = Metrics(registry.describe, lambda: cache.stats(time.monotonic()))
    prober = Prober(registry, settings, time.monotonic)
    client = WorkerClient(registry, settings)
    logs = [*(region.id for region in settings.regions), RESERVED_LOG]
    trail = Trail(settings.audit, logs, settings.gateway.region or EDGE, observe=metrics.committed)
    limiter = Limiter(MemoryLimits(), metrics)
    forwarder = Forwarder(registry, client, settings.resilience.retry, metrics)
    pseudonyms = Pseudonyms(FileKeys(settings.audit.key_directory))
    recorder = Recorder(trail, pseudonyms, book.digest, settings.gateway.region)
    gateway = Gateway(
        settings=settings,
        ground=ground,
        keys=KeyRing(settings.tenants),
        geo=Geo(Database(settings.gateway.geoip).country) if settings.gateway.geoip else Geo(),
        registry=registry,
        forwarder=forwarder,
        limiter=limiter,
        recorder=recorder,
        delivery=Delivery(recorder, forwarder, limiter, cache),
        cache=cache,
        metrics=metrics,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await trail.start()
        except TrailError as error:
            activity.failure = str(error)
            raise
        working = asyncio.gather(prober.run(), Witness(settings, logs, metrics).run(), return_exceptions=True)
        loop = asyncio.get_running_loop()
        prompts: set[asyncio.Task[None]] = set()
        with contextlib.suppress(ValueError, RuntimeError):  # only the main thread of a process gets signals
            loop.add_signal_handler(signal.SIGUSR1, lambda: _start(prober, prompts))
        log.info("gateway ready", version=VERSION, region=settings.gateway.region, regions=logs[:-1])
        try:
            yield
        finally:
            working.cancel()
            await asyncio.gather(working, *prompts, return_exceptions=True)
            await client.aclose()
            await prober.aclose()
            await trail.close()
            log.info("gateway stopped")

    views = Views(settings, ground, registry, prober, trail, activity)
    translator = Translator(LOCALES)
    failures = Failures(gateway, translator)
    app = FastAPI(
        title="Tidegate",
        version=VERSION,
        summary="Multi-region inference gateway that fails closed on data residency",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # it would build the address from the caller's Host, and repeat the body there
    )
    depth = _DEPTH[settings.gateway.security]
    reader = Reader(settings.audit, logs, [tenant.id for tenant in settings.tenants])
    app.include_router(openai.routes(gateway, views, depth, sampled=settings.cache.sampled))
    app.include_router(kserve.routes(gateway, views, VERSION, depth))
    app.include_router(routes.routes(views))
    app.include_router(audit.routes(reader, Auditor(settings.audit, reader, trail), trail))
    app.include_router(audit_rights.routes(Rights(trail, settings.audit, settings), trail))
    app.include_router(health.routes(views, metrics))
    _handle_errors(app, gateway, failures)
    return Gate(
        app,
        gateway=gateway,
        failures=failures,
        translator=translator,
        metrics=metrics,
        activity=activity,
        body_limit=settings.gateway.body_limit,
    )


def _start(prober: Prober, prompts: set[asyncio.Task[None]]) -> None:
    task = asyncio.get_running_loop().create_task(prober.probe_now())
    prompts.add(task)
    task.add_done_callback(prompts.discard)


def _handle_errors(app: FastAPI, gateway: Gateway, failures: Failures) -> None:
    """Every failure of every route ends in `failures`, in whatever form it was raised."""

    async def ours(request: Request, error: GatewayError) -> Response:
        return await failures.answer(exchange_of(request), error)

    async def http(request: Request, error: HTTPException) -> Response:
        return await failures.answer(exchange_of(request), _of_router(request, error))

    async def validation(request: Request, error: RequestValidationError) -> Response:
        return await failures.answer(exchange_of(request), _invalid(error))

    async def left(request: Request, _: Exception) -> Response:
        # In the middle of its body: nothing has been forwarded, and nobody is there to be told.
        with contextlib.suppress(AuditUnavailable):
            await gateway.abandoned(exchange_of(request))
        return Response(status_code=CLIENT_CLOSED)

    async def unforeseen(request: Request, _: Exception) -> Response:
        exchange = exchange_of(request)
        return await failures.answer(exchange, InternalError(request_id=exchange.request_id))

    app.add_exception_handler(GatewayError, ours)  # type: ignore[arg-type] # starlette types handlers by Exception
    app.add_exception_handler(HTTPException, http)  # type: ignore[arg-type] # as above
    app.add_exception_handler(RequestValidationError, validation)  # type: ignore[arg-type] # as above
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(Exception, unforeseen)


def _of_router(request: Request, error: HTTPException) -> GatewayError:
    """FastAPI itself raises three: no such path, no such method on it, and a body that is not text."""
    path = request.url.path
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return NotFound(path=path)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "")
            return MethodNotAllowed(path=path, method=request.method, allowed=allowed, headers={"Allow": allowed})
    return InvalidRequest("json", position=0)


def _invalid(error: RequestValidationError) -> InvalidRequest:
    """The first complaint of pydantic, in the words of our catalogue."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    if first["type"] == "json_invalid":
        return InvalidRequest("json", position=first["loc"][-1])
    if first["type"] == "missing" and place:
        return InvalidRequest("field_missing", param=place)
    if first["type"] == "extra_forbidden":
        return InvalidRequest("field_unknown", param=place)
    kind = next((name for start, name in _KINDS.items() if first["type"].startswith(start)), first["type"])
    if not place:
        return InvalidRequest("not_object")
    return InvalidRequest("field_type", param=place, expected=kind)
