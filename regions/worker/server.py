"""The worker's process: binds first, so that it is alive at once, then loads, serves, and ends on SIGTERM or SIGINT."""

import signal
import socket
from functools import partial
from types import FrameType

import uvicorn

from regions.engine.runner import available_cores, use_cores
from regions.settings import WorkerSettings
from regions.worker import logs
from regions.worker.app import DRAIN_SECONDS, create_app
from regions.worker.serving import Loader, Serving
from regions.worker.settings import WorkerConfig

_BACKLOG = 2048


class CannotListen(Exception):
    """The address cannot be bound."""


def run(worker: WorkerConfig, *, host: str, port: int) -> int:
    """Serves until a signal comes; the exit code: 0 after a signal, 1 when the models could not be loaded."""
    listener = _bind(host, port)
    log = logs.configure(worker.region)
    serving = Serving(
        worker.models,
        worker.settings,
        loader=lambda: _loader(worker.settings),
        log=log,
        cores=available_cores(),
        use_cores=use_cores,
    )
    failed = False

    def fail() -> None:
        nonlocal failed
        failed = server.should_exit = True

    config = uvicorn.Config(
        create_app(serving, on_failure=fail),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(DRAIN_SECONDS),
    )
    server = uvicorn.Server(config)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    # Uvicorn takes the signals over while it serves and raises them again afterwards, which would end this process as
    # if it had been killed; before and after, they come here.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    log.info("listening", host=host, port=listener.getsockname()[1])
    server.run(sockets=[listener])
    log.info("stopped")
    return int(failed)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(f"--host {host} --port {port}: {error.strerror}; choose a free port, or 0") from error
    return listener


def _loader(settings: WorkerSettings) -> Loader:
    from regions.models.load import load  # noqa: PLC0415 - it imports torch, while this process already answers

    return partial(load, settings=settings, shared={})
