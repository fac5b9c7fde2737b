"""Asks every backend at intervals whether it is well. A probe carries nothing of any request."""

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import httpx
import orjson
import structlog

from app.config import HealthSettings
from app.fleet.backend import BackendState
from app.fleet.registry import Registry
from app.fleet.trust import Trust

RETURN_INTERVAL: Final = (0.5, 1.0)
"""Seconds between probes of a managed worker that is not up, so that it is used soon after it has started."""
_JITTER: Final = 0.1
_READ_LIMIT: Final = 1 << 20
_log = structlog.get_logger(__name__)


class Prober:
    """Health checks, and the description of models. `run` works until it is cancelled; `aclose` comes after it."""

    def __init__(self, registry: Registry, health: HealthSettings, clock: Callable[[], float], trust: Trust) -> None:
        self._registry = registry
        self._health = health
        self._clock = clock
        self._followed = asyncio.Event()
        self._watching: dict[BackendState, asyncio.Task[None]] = {}
        self._trust = trust
        self._clients: dict[ssl.SSLContext | None, httpx.AsyncClient] = {}

    async def run(self) -> None:
        """Probe each backend, at once and then at intervals, each in its own rhythm."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._followed.clear()
                for backend in self._registry.backends:
                    if backend not in self._watching:
                        task = group.create_task(self._watch(backend), name=f"probe {backend.region}")
                        self._watching[backend] = task
                await self._followed.wait()

    def follow(self, registry: Registry, health: HealthSettings) -> None:
        """Probe the backends of another configuration from now on; those that it leaves as they were go on as before.

        What a probe under way still finds out is told to the registry that is followed by then.
        """
        kept = set(registry.backends) if health == self._health else set()
        for backend in self._watching.keys() - kept:
            self._watching.pop(backend).cancel()
        self._registry, self._health = registry, health
        self._followed.set()

    async def probe_now(self) -> None:
        """One round over the managed backends, now: their supervisor says that one of them has become ready."""
        managed = [backend for backend in self._registry.backends if backend.config.managed]
        await asyncio.gather(*(self._probe(backend, promptly=True) for backend in managed))

    async def describe_model(self, registry: Registry, model: str) -> dict[str, Any] | None:
        """KServe's metadata of a configured model as a backend that is up tells it (JSON), or None where none does.

        Nothing that a caller wrote travels: not even the version it asks about.
        """
        path = f"/v2/models/{quote(model, safe='')}"
        for backend in registry.backends:
            if backend.alive and backend.serves(model, "kserve"):
                status, body, _ = await self._get(backend, path)
                if status == httpx.codes.OK and (found := _object(body)) is not None:
                    return found
        return None

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    def _client(self, url: str) -> httpx.AsyncClient:
        """What asks a server: a probe opens its own connection, so that it sees that nobody listens."""
        trust = self._trust.context(url)
        if trust not in self._clients:
            self._clients[trust] = httpx.AsyncClient(
                verify=trust or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # this one trusts nobody, nor is asked to
                limits=httpx.Limits(max_keepalive_connections=0),
                follow_redirects=False,
                trust_env=False,
                headers={"user-agent": "tidegate-probe"},
            )
        return self._clients[trust]

    async def _watch(self, backend: BackendState) -> None:
        while True:
            await self._probe(backend)
            await asyncio.sleep(self._pause(backend))

    def _pause(self, backend: BackendState) -> float:
        interval = self._health.interval
        jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads probes, guards nothing
        if backend.config.managed and backend.health != "up":
            return min(interval, random.uniform(*RETURN_INTERVAL))  # noqa: S311 - as above
        return interval * jitter

    async def _probe(self, backend: BackendState, *, promptly: bool = False) -> None:
        was = backend.health
        path = "/v1/models" if backend.config.protocol == "openai" else "/v2/health/ready"
        status, _, seconds = await self._get(backend, path)
        self._registry.probed(backend, status == httpx.codes.OK, seconds, promptly)
        if backend.health != was:
            _log.info("backend_health", region=backend.region, url=backend.url, health=backend.health, status=status)

    async def _get(self, backend: BackendState, path: str) -> tuple[int | None, bytes, float]:
        """Status (None: no answer in time), body up to 1 MiB, and seconds until the head of the answer had come."""
        start = self._clock()
        head = start
        body = bytearray()
        key = backend.config.api_key
        headers = {} if key is None else {"authorization": f"Bearer {key.get_secret_value()}"}
        try:
            async with (
                asyncio.timeout(self._health.timeout),
                self._client(backend.url).stream(
                    "GET", backend.url + path, headers=headers, timeout=self._health.timeout
                ) as response,
            ):
                head = self._clock()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > _READ_LIMIT:
                        return None, b"", head - start
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            return None, b"", self._clock() - start
        return response.status_code, bytes(body), head - start


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
