"""Processes with what they cost: processor time and memory of a whole tree, as the kernel counts them."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


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
    """Processor time that the tree has taken, of all threads: on the core, in nanoseconds (schedstat)."""
    spent = 0
    for pid in tree(root):
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            spent += int(task.read_text().split()[0])
    return spent / 1e9


def resident(root: int) -> float:
    """MiB of the tree's resident memory, what processes share counted for each."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in tree(root))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
