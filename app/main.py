"""The composition root: which stores, which clients, in which order they start and stop. Nothing else picks them."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import structlog
from starlette.types import ASGIApp

from app.access import KeyRing
from app.activity import Activity
from app.api import kserve, openai
from app.api.health import Health
from app.api.inference import Dispatcher
from app.api.others import Others
from app.audit.keys import FileKeys
from app.audit.place import EDGE
from app.audit.pseudonym import Pseudonyms
from app.audit.witness.witness import Witness
from app.audit.writer import Trail, TrailError
from app.caching import Caching
from app.config import RESERVED_LOG, CacheSettings, Settings
from app.configuration import Configuration, ConfigurationFiles
from app.delivery import Delivery
from app.failures import Failures
from app.fleet.prober import Prober
from app.fleet.registry import Registry
from app.fleet.trust import Trust
from app.fleet.worker_client import Connections, WorkerClient
from app.flights import Flights
from app.forwarding import Forwarder, Retries
from app.gate import Gate
from app.hangup import Terminal
from app.i18n import LOCALES, Translator
from app.limiting import Limiter
from app.pipeline import Gateway
from app.recorder import Recorder
from app.reload import Reloader
from app.serving import Current, Serving
from app.stores.memory import MemoryCache, MemoryLimits
from app.telemetry.metrics import Metrics
from app.views import Views
from regions import catalogue

VERSION = version("tidegate")

log = structlog.get_logger("tidegate.main")


class Works:
    """What outlives a configuration, and makes what serves from each: counts, caches, connections, records, health.

    `managed` maps a region to the URL of the worker that was started for it.
    """

    def __init__(self, first: Configuration, managed: Mapping[str, str], activity: Activity) -> None:
        settings = first.settings
        self._managed = managed
        self._activity = activity
        self._registry = Registry(settings, managed, time.monotonic)
        self._cache = MemoryCache(settings.cache)
        self.metrics = Metrics(self._describe, lambda: self._cache.stats(time.monotonic()))
        trust = Trust()
        self.prober = Prober(self._registry, settings.resilience.health, time.monotonic, trust)
        self.translator = Translator(LOCALES)
        self._connections = Connections(trust)
        self._retries = Retries()
        self._limiter = Limiter(MemoryLimits(), self.metrics)
        self._flights = Flights()
        self._tasks: set[asyncio.Task[None]] = set()

        # The audit trail: open for as long as the process lives, whatever is reloaded.
        self.logs = [*(region.id for region in settings.regions), RESERVED_LOG]
        self.trail = Trail(settings.audit, self.logs, settings.gateway.region or EDGE, observe=self.metrics.committed)
        self._pseudonyms = Pseudonyms(FileKeys(settings.audit.key_directory))
        self._witnessing: asyncio.Task[None] | None = None
        self._notebook = asyncio.Lock()

        self.current = Current(self._serving(first, self._registry, self._cache, self._flights), self._let_go)

    def take(self, configuration: Configuration) -> None:
        """Serve by another configuration from now on; it must not differ in what `settings_fixed` lists."""
        settings, before = configuration.settings, self.current.serving.gateway.settings
        registry = Registry(settings, self._managed, time.monotonic, self._registry)
        cache, flights = self._cache, self._flights
        if settings.regions != before.regions or not _same_store(settings.cache, before.cache):
            # An answer is from a region as it was, and from its servers; so is one that is under way.
            cache, flights = MemoryCache(settings.cache), Flights()
        serving = self._serving(configuration, registry, cache, flights)
        # All of it is made, so from here on nothing is refused.
        if flights is not self._flights:
            self._run(self._flights.aclose())
        self._registry, self._cache, self._flights = registry, cache, flights
        self.current.replace(serving)
        self.prober.follow(registry, settings.resilience.health)
        if _witnessed(settings) != _witnessed(before):
            self.witness()

    def witness(self) -> None:
        """Follow the audit logs of the other regions' gateways, as now configured."""
        if self._witnessing:
            self._witnessing.cancel()
        witness = Witness(self.current.serving.gateway.settings, self.logs, self.metrics)
        self._witnessing = _started(self._witness(witness), "witness")

    async def _witness(self, witness: Witness) -> None:
        async with self._notebook:  # until the one before has ended: both write the same files
            await witness.run()

    def probe_now(self) -> None:
        """Look at the managed backends at once: one of them says that it is ready."""
        self._run(self.prober.probe_now())

    async def aclose(self) -> None:
        """Finish what is under way and close what is open."""
        if self._witnessing:
            self._witnessing.cancel()
        await self._flights.aclose()
        await asyncio.gather(*self._tasks, *filter(None, [self._witnessing]), return_exceptions=True)
        self._connections.close()
        await self.prober.aclose()
        await self.trail.close()

    def _serving(
        self, configuration: Configuration, registry: Registry, cache: MemoryCache, flights: Flights
    ) -> Serving:
        settings = configuration.settings
        client = WorkerClient(self._connections, settings.resilience.health)
        forwarder = Forwarder(registry, client, settings.resilience.retry, self._retries, self.metrics)
        digest = configuration.ground.book.digest
        recorder = Recorder(self.trail, self._pseudonyms, digest, settings.gateway.region)
        caching = Caching(cache, flights, settings.cache, self.metrics)
        gateway = Gateway(
            settings=settings,
            ground=configuration.ground,
            keys=KeyRing(settings.tenants),
            geo=configuration.geo,
            registry=registry,
            forwarder=forwarder,
            limiter=self._limiter,
            recorder=recorder,
            delivery=Delivery(recorder, forwarder, caching),
            caching=caching,
            metrics=self.metrics,
        )
        views = Views(configuration, datetime.now(UTC), registry, self.prober, self.trail, self._activity)
        return Serving(gateway, views, Failures(gateway, self.translator))

    def _let_go(self) -> None:
        """Close the connections that nobody uses any more."""
        used = {backend for serving in self.current.all for backend in serving.gateway.registry.backends}
        self._connections.keep(used)

    def settings(self) -> Settings:
        """Those in force."""
        return self.current.serving.gateway.settings

    def _describe(self) -> list[dict[str, Any]]:
        return self._registry.describe()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def create_app(
    files: ConfigurationFiles, first: Configuration, managed: Mapping[str, str], activity: Activity
) -> ASGIApp:
    """The gateway as an ASGI application, serving by `first` until `files` hold something else.

    `managed` maps a region to the URL of the worker that was started for it.
    """
    works = Works(first, managed, activity)
    reloader = Reloader(files, first, works.take, works.metrics)
    inference, health = Dispatcher([*openai.ENDPOINTS, *kserve.ENDPOINTS]), Health(works.metrics)

    @contextlib.asynccontextmanager
    async def lifetime() -> AsyncIterator[None]:
        try:
            await works.trail.start()
        except TrailError as error:
            activity.failure = str(error)
            raise
        own = [
            _started(works.prober.run(), "prober"),
            _started(reloader.run(), "reloader"),
            _started(others.settle(), "settle"),
        ]
        works.witness()
        _on_signals(works, reloader)
        log.info("gateway ready", version=VERSION, region=first.settings.gateway.region, regions=works.logs[:-1])
        try:
            yield
        finally:
            for task in own:
                task.cancel()
            await asyncio.gather(*own, return_exceptions=True)
            await works.aclose()
            log.info("gateway stopped")

    others = Others(lifetime, health, lambda: _built(works, inference.described() | health.described()))
    return Gate(
        others, inference, current=works.current, translator=works.translator, metrics=works.metrics, activity=activity
    )


def _built(works: Works, described: Mapping[str, Any]) -> ASGIApp:
    """What no request of inference needs at once: FastAPI with its endpoints, and tables that are read when used."""
    from app.api.application import Parts, application  # noqa: PLC0415 - loads FastAPI, see `Others`

    catalogue.centroid("US")
    works.translator.negotiate("en")
    return application(Parts(VERSION, works.trail, works.logs, works.settings), described)


def _same_store(one: CacheSettings, other: CacheSettings) -> bool:
    return one == other.model_copy(update={"sampled": one.sampled})


def _witnessed(settings: Settings) -> tuple[Mapping[str, str], float | None]:
    return settings.peers, settings.audit.witness


def _on_signals(works: Works, reloader: Reloader) -> None:
    terminal = Terminal()
    loop = asyncio.get_running_loop()

    def hangup() -> None:
        if terminal.hung_up():
            signal.raise_signal(signal.SIGTERM)
        else:
            reloader.ask()

    with contextlib.suppress(ValueError, RuntimeError):  # only the main thread of a process gets signals
        loop.add_signal_handler(signal.SIGUSR1, works.probe_now)
        loop.add_signal_handler(signal.SIGHUP, hangup)


def _started(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task for as long as the gateway runs; a bug that ends it sooner must not go unseen."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.error("stopped working", task=name, exc_info=error)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    return task
