"""Processes with what they cost: processor time and memory of a whole tree, as the kernel counts them."""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_PATIENCE = 120


@contextmanager
def running(
    command: Sequence[str], log: Path, *, core: int | None = None, environ: Mapping[str, str] | None = None
) -> Iterator[int]:
    """The process's id while it runs, on one core where that is named; its whole group is ended afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            on_core(command, core),
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    try:
        yield process.pid
    finally:
        _end(process)


def heed_sigterm() -> None:
    """Have SIGTERM end this program by its own way out, so that what `running` started is ended as well."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def on_core(command: Sequence[str], core: int | None) -> list[str]:
    """The command, bound to one core."""
    return list(command) if core is None else ["taskset", "--cpu-list", str(core), *command]


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tree(root: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended since
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, seen = [root], 0
    while seen < len(found):
        found += children.get(found[seen], [])
        seen += 1
    return found


def cpu_seconds(root: int) -> float:
    """Processor time that the tree has taken, in hundredths; threads and children that have ended count as well."""
    ticks = 0
    for pid in tree(root):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(int(fields[at]) for at in (11, 12, 13, 14))  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(root: int) -> float:
    """MiB of the tree's resident memory, what processes share counted for each."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in tree(root))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def until(answers: Callable[[], bool], began: float, pause: float = 0.02) -> float:
    """Seconds from `began` (`time.monotonic`) until it answers; raises TimeoutError after two minutes."""
    while time.monotonic() - began < _PATIENCE:
        with suppress(OSError, http.client.HTTPException):
            if answers():
                return time.monotonic() - began
        time.sleep(pause)
    raise TimeoutError
