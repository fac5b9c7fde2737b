"""`make compose-test`: docker-compose.yml built and run for real, attacked, checked and taken down to nothing."""

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir
from types import FrameType
from typing import NoReturn

import click

from tests.compose.base import base_image
from tests.compose.checks import CHECKS
from tests.compose.engine import engine
from tests.compose.host import build_files, pip_settings
from tests.compose.project import REGIONS, Project
from tests.compose.report import Failure, Report, echo
from tests.compose.scene import Scene

_LOCK = Path(gettempdir()) / f"tidegate-compose-test-{os.geteuid()}.lock"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GATEWAY_LIMIT_MB = 250


class Interrupted(BaseException):
    """A signal that asks the run to end."""


@click.command()
@click.option("--fresh", is_flag=True, help="Forget the images and caches of an engine that earlier runs started.")
def main(fresh: bool) -> None:
    """Build docker-compose.yml, run it, check it and take it down. Needs a Docker engine, or root on Debian."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    report = Report()
    try:
        with _alone():
            _run(report, fresh)
    except Failure as failure:
        echo(f"error: {failure}", err=True)
        sys.exit(1)
    except Interrupted:
        echo("error: interrupted; everything that was started is stopped and removed", err=True)
        sys.exit(130)
    echo(report.closing())


def _run(report: Report, fresh: bool) -> None:
    with ExitStack() as stack:
        try:
            started = stack.enter_context(engine(report, fresh=fresh))
            with report.step("Nothing in the way", 60):
                _clear(report, Project(started, {}))
                _require_free_ports()
            base = base_image(report, started)
            project = Project(started, {"BASE_IMAGE": base, **pip_settings()})
            report.figure(f"{' '.join(project.command)} {project.version()}")
            _build(report, project)
            stack.enter_context(_up(report, project))
            scene = Scene(report, project)
            for what, limit, check in CHECKS:
                with report.step(what, limit):
                    check(scene)
        finally:
            _deaf()  # what is taken down now is taken down whole


def _build(report: Report, project: Project) -> None:
    with report.step("The compose file, as Compose reads it", 30):
        project.compose("config", "--quiet")
    with ExitStack() as stack:
        with report.step("What a build needs from this machine", 120):
            stack.enter_context(build_files(report))
        for kind, limit in (("gateway", 400), ("worker", 900)):
            with report.step(f"Building the {kind} image", limit) as took:
                project.compose("build", f"{kind}-us-east")
            size = project.engine.megabytes(f"tidegate-{kind}:compose-test")
            report.figure(f"{kind} image {size} MB in {took():.0f} s")
            if kind == "gateway":
                report.check(size < _GATEWAY_LIMIT_MB, f"the gateway image has less than {_GATEWAY_LIMIT_MB} MB", size)


@contextmanager
def _up(report: Report, project: Project) -> Iterator[None]:
    """The project up and well for as long as the block runs; nothing is left of it afterwards."""
    try:
        with report.step("Starting all services until they are well", 240) as took:
            project.compose("up", "--detach")
            project.await_health(report)
        report.figure(f"well in {took():.0f} s")
        yield
    except Exception:
        project.tell(report)
        raise
    finally:
        with report.step("Taking all down", 120):
            project.down()
            left = project.left()
            report.check(not left, "`down --volumes` leaves no container, volume or network", left)


def _clear(report: Report, project: Project) -> None:
    if project.left():
        report.say("the last run was killed; what it left is removed first")
        project.down()


def _require_free_ports() -> None:
    for region, port in REGIONS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise Failure(f"port {port}, for {region}, is taken by another program; stop that first") from error


@contextmanager
def _alone() -> Iterator[None]:
    """One run at a time on a machine: they would take each other's ports."""
    with _LOCK.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Failure("another compose-test is running on this machine; wait for its end") from error
        yield


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    _deaf()
    raise Interrupted


def _deaf() -> None:
    for number in _SIGNALS:
        signal.signal(number, lambda *_: echo("    taking down what was started; a moment"))


if __name__ == "__main__":
    main()
