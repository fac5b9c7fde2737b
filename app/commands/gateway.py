"""`tidegate gateway`: one gateway alone, in the foreground."""

import gc
import math
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import click
import structlog
import uvicorn
from starlette.types import ASGIApp

from app.activity import Activity
from app.config import Settings, environment
from app.configuration import Configuration, ConfigurationFiles
from app.http import BoundedHttp
from app.main import create_app
from app.ports import listen
from app.telemetry import logging
from app.yaml_source import ConfigInvalid, Problem

log = structlog.get_logger("tidegate.gateway")
_BACKLOG = 2048
_DRAIN_S = 10
_KEEP_ALIVE_S = 75
_REGION_VARIABLE = "TIDEGATE_GATEWAY__REGION"


@click.command("gateway")
@click.option("--config", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The configuration.")
@click.option("--region", metavar="ID", help="The region in which it stands; else gateway.region of the file.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Port; else that of gateway.listen.")
@click.option("--backend", "backends", multiple=True, metavar="REGION=URL", help="Address of a managed worker.")
def command(config: Path, region: str | None, port: int | None, backends: Sequence[str]) -> None:
    """Run one gateway alone."""
    # "Probe now" and "reload" may come before the gateway listens for them, and must not end the process then.
    for number in (signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    files = ConfigurationFiles(config, {**environment(), **({} if region is None else {_REGION_VARIABLE: region})})
    first = _load(files, region)
    settings = first.settings
    managed = _managed(settings, backends)
    logging.configure()
    for warning in first.overdue:
        log.warning("law is due for review", problem=str(warning))
    activity = Activity()
    app = create_app(files, first, managed, activity)
    _serve(app, activity, settings.gateway.host, settings.gateway.port if port is None else port)


def _load(files: ConfigurationFiles, region: str | None) -> Configuration:
    try:
        return files.load()
    except ConfigInvalid as error:
        if region is None:
            raise
        raise ConfigInvalid(
            Problem("--region", None, "", p.message) if p.key == _REGION_VARIABLE else p for p in error.problems
        ) from error


def _managed(settings: Settings, backends: Sequence[str]) -> Mapping[str, str]:
    """The address of the worker of each region that has a managed backend; raises `click.UsageError` otherwise."""
    wanted = {region.id for region in settings.regions if any(backend.managed for backend in region.backends)}
    managed: dict[str, str] = {}
    for text in backends:
        region, _, url = text.partition("=")
        if region not in wanted:
            raise click.UsageError(f"--backend {text}: region {region!r} has no managed backend")
        if not url.startswith(("http://", "https://")):
            raise click.UsageError(f"--backend {text}: write REGION=URL, such as eu-west=http://127.0.0.1:9001")
        managed[region] = url.rstrip("/")
    if missing := sorted(wanted - managed.keys()):
        raise click.UsageError(
            f"the backends of {', '.join(missing)} are managed: `tidegate up` starts them; here, give the "
            f"address of each with --backend {missing[0]}=URL, or write a `url` in the file"
        )
    return managed


class _DrainingServer(uvicorn.Server):
    """Goes on answering after SIGTERM or SIGINT until the requests under way are done, `/readyz` saying 503 meanwhile.

    So a load balancer sees it leave before its port closes. A second signal, or `_DRAIN_S`, ends the waiting.
    """

    def __init__(self, config: uvicorn.Config, activity: Activity) -> None:
        super().__init__(config)
        self._activity = activity
        self._end = math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Besides, spares the collector of cycles what the start has made: it stays, and need not be searched again."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 100)  # a request makes hundreds of objects and hardly a cycle

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._activity.draining:
            super().handle_exit(sig, frame)
        self._activity.draining = True
        self._end = time.monotonic() + _DRAIN_S

    async def on_tick(self, counter: int) -> bool:
        if self._activity.draining and (not self._activity.running or time.monotonic() > self._end):
            self.should_exit = True
        return await super().on_tick(counter)


def _serve(app: ASGIApp, activity: Activity, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM, then drains; exits 0 after a drain, 1 where the start failed."""
    with listen(host, port, _BACKLOG) as sock:
        server = _DrainingServer(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=BoundedHttp,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # the gate itself decides which proxies to trust
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_DRAIN_S,
                backlog=_BACKLOG,
            ),
            activity,
        )
        # uvicorn raises the signal that stopped it once more when it has drained; that is a clean end.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        try:
            server.run(sockets=[sock])
        except SystemExit:
            if server.started:
                raise
    if not server.started:
        raise click.ClickException(activity.failure or "the gateway did not start; its log says why")
