"""The Docker engine: one that answers, or one started here, as root on Debian, stopped by its pid and cleaned up after.

One of our own keeps its images and caches below `HOME` from run to run, so that the second is short. What it needs
while it runs is below `RUN`: if a run was killed, the next one finds there what to stop and what to take back.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.compose.firewall import Network, restore
from tests.compose.report import Failure, Report, until
from tests.compose.shell import run

HOME = Path("/var/lib/tidegate-compose-test")
RUN = Path("/run/tidegate-compose-test")
_PID, _SOCKET, _LOG, _BEFORE = RUN / "pid", RUN / "sock", RUN / "log", RUN / "network.json"
_CONTAINERD = RUN / "exec" / "containerd" / "containerd.pid"
_PROGRAMS = {
    "dockerd": "docker.io",
    "docker-compose": "docker-compose",
    "iptables": "iptables",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
}
_NO_ENGINE = "no Docker engine answers"


@dataclass(frozen=True, slots=True)
class Engine:
    """Where it listens (the usual place, if `env` is empty), and how Compose is called."""

    own: bool
    env: dict[str, str] = field(default_factory=dict)

    def docker(self, *arguments: str, check: bool = True) -> str:
        """What `docker` prints."""
        return run("docker", *arguments, env=self.env, check=check).out.strip()

    def version(self) -> str:
        return self.docker("version", "--format", "{{.Server.Version}}")

    def megabytes(self, image: str) -> int:
        return int(self.docker("image", "inspect", "--format", "{{.Size}}", image)) // 1_000_000

    def compose(self) -> tuple[str, ...]:
        """Compose v2 where it is there, else docker-compose 1.29."""
        if run("docker", "compose", "version", env=self.env, check=False).status == 0:
            return ("docker", "compose")
        if shutil.which("docker-compose"):
            return ("docker-compose",)
        raise Failure("there is neither `docker compose` nor `docker-compose`; install one of them")


@contextmanager
def engine(report: Report, *, fresh: bool) -> Iterator[Engine]:
    """An engine for as long as the block runs. With `fresh` one of our own begins with nothing."""
    with report.step("A Docker engine that answers", 30):
        found = _answering()
        if not found:
            _require_root_on_debian()
    if not found:
        missing = sorted({package for name, package in _PROGRAMS.items() if not shutil.which(name)})
        if missing:
            with report.step(f"Debian packages: {', '.join(missing)}", 300):
                _install(missing)
            found = _answering()  # where services start by themselves, the package has started one
    if found:
        report.figure(f"engine {found.version()}")
        yield found
        return
    with report.step("No engine; starting one", 90):
        _end_the_last(report)
        if fresh:
            shutil.rmtree(HOME, ignore_errors=True)
        before = Network.now()
        started = _start(before)
    try:
        report.figure(f"engine {started.version()} started here")
        yield started
    finally:
        with report.step("Stopping the engine", 90):
            _stop(before)


def _answering() -> Engine | None:
    if not shutil.which("docker"):
        return None
    answer = run("docker", "version", "--format", "{{.Server.Version}}", check=False)
    return Engine(own=False) if answer.status == 0 and answer.out.strip() else None


def _require_root_on_debian() -> None:
    why = f"{_NO_ENGINE} ({_said_instead()})"
    if os.geteuid():
        raise Failure(f"{why}, and only root can start one; start Docker, or run this as root on Debian")
    if not shutil.which("apt-get"):
        raise Failure(f"{why}, and this is no Debian to install one on; install Docker and start it")


def _said_instead() -> str:
    """Why none answers, as `docker` says it in a line: a user may just not be let near one that runs."""
    if not shutil.which("docker"):
        return "there is no program `docker`"
    return " ".join(run("docker", "version", check=False).err.split())[:200] or "docker says nothing"


def _install(packages: list[str]) -> None:
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", env=quiet)
    run("apt-get", "install", "-y", "--no-install-recommends", *packages, env=quiet)


def _start(before: Network) -> Engine:
    RUN.mkdir(mode=0o700, exist_ok=True)
    HOME.mkdir(mode=0o700, exist_ok=True)
    before.save(_BEFORE)
    own = Engine(own=True, env={"DOCKER_HOST": f"unix://{_SOCKET}"})
    command = ["dockerd", "--data-root", str(HOME / "engine"), "--exec-root", str(RUN / "exec")]
    with _LOG.open("w") as log:
        process = subprocess.Popen(
            [*command, "--pidfile", str(_PID), "--host", f"unix://{_SOCKET}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us alone: what runs in it is taken down first
        )

    def answers() -> bool:
        if process.poll() is not None:
            raise Failure(f"dockerd ended with status {process.returncode}:\n{_tail(_LOG)}")
        return run("docker", "version", env=own.env, check=False).status == 0

    try:
        until(answers)
    except BaseException:
        _stop(before)
        raise
    return own


def _stop(before: Network) -> None:
    """End the engine by its pid, and its containerd should that be left; then take back what it did to the network."""
    for file, name in ((_PID, "dockerd"), (_CONTAINERD, "containerd")):
        _end(file, name)
    left = restore(before)
    shutil.rmtree(RUN, ignore_errors=True)
    if left:
        raise Failure(f"the engine left behind: {', '.join(left)}; remove these by hand")


def _end_the_last(report: Report) -> None:
    """Stop and clean up after the engine of a run that was killed."""
    if _BEFORE.exists():
        report.say("the last run was killed; first its engine is stopped and the network set back")
        _stop(Network.load(_BEFORE))


def _end(file: Path, name: str) -> None:
    """SIGTERM, and after 45 seconds SIGKILL, to the process of a pid file, as long as it is the one we started."""
    with suppress(OSError, ValueError):
        pid = int(file.read_text())
        for number, patience in ((signal.SIGTERM, 45), (signal.SIGKILL, 5)):
            if _is(pid, name):
                os.kill(pid, number)
            end = time.monotonic() + patience
            while _is(pid, name) and time.monotonic() < end:
                _reap(pid)
                time.sleep(0.1)


def _is(pid: int, name: str) -> bool:
    """Whether that process lives and is the one of our own engine."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return Path(os.fsdecode(command[0])).name == name and any(os.fsencode(RUN) in word for word in command)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _tail(file: Path) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-15:])
