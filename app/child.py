"""One child process: started so that it cannot outlive us, with its log in a file, waited for and stopped."""

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

LOG_LIMIT = 16 << 20
"""Bytes in a log file before it is moved to NAME.log.1, so that two of these bound what a child can leave on disk."""
_LAST_WORDS = 16_384
_LINE = 300
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Spec:
    """What to start. `health` is asked until it answers 200; `alive` before that says that signals may be sent."""

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    log: Path
    health: str
    alive: str | None = None


class Child:
    """A process made from a `Spec`, any number of times one after the other."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._process: Process | None = None
        self._read = 0
        spec.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec.log.unlink(missing_ok=True)
        spec.log.touch(mode=0o600)  # its lines name requests

    async def start(self) -> None:
        """Starts it in a session of its own, so that a terminal's Ctrl-C reaches only us; raises OSError."""
        with self.spec.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.argv,
                env=dict(self.spec.environ),
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )

    async def exited(self) -> str:
        """Waits for its end; how it ended, in words."""
        assert self._process is not None  # noqa: S101 - the caller has started it
        code = await self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once, with whatever it has started itself."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def stop(self, grace: float) -> None:
        """Asks it to end, and ends it after `grace` seconds."""
        if self._process is None or self._process.returncode is not None:
            return
        self.send(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), grace)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def last_words(self) -> str:
        """What it wrote at the end: the last error of a JSON log, else the last line, else an empty text."""
        with self.spec.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_WORDS))
            lines = [line.strip() for line in log.read().decode(errors="replace").split("\n") if line.strip()]
        errors = (said for line in reversed(lines) if (said := _error(line)))
        return next(errors, lines[-1] if lines else "")[:_LINE]

    def news(self) -> list[str]:
        """The whole lines that it has written since the last call; keeps its file within bounds."""
        try:
            log = self.spec.log.open("rb")
        except FileNotFoundError:  # somebody has tidied up; it is there again at the child's next start
            return []
        with log:
            size = log.seek(0, os.SEEK_END)
            if size < self._read:  # somebody has emptied the file
                self._read = 0
            log.seek(self._read)
            new = log.read(size - self._read)
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        if size > LOG_LIMIT:
            # The child appends to the open file, so it goes on at the new end.
            shutil.copy(self.spec.log, self.spec.log.with_suffix(".log.1"))
            os.truncate(self.spec.log, 0)
            self._read = 0
        return whole.decode(errors="replace").splitlines()


def _error(line: str) -> str | None:
    """The event of a log line of level error or above, and what was raised, where it tells."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or entry.get("level") not in ("error", "critical"):
        return None
    raised = entry.get("exception")
    if isinstance(raised, list) and raised and isinstance(raised[0], dict):  # structlog's dictionaries
        raised = f"{raised[0].get('exc_type')}: {raised[0].get('exc_value')}"
    cause = str(raised).strip().rpartition("\n")[2] if raised else ""
    return f"{entry.get('event')}: {cause}" if cause else str(entry.get("event"))


def _die_with(parent: int) -> Callable[[], None] | None:
    """What the child does before it becomes the command: it asks the kernel to kill it when `parent` dies (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def before_exec() -> None:
        if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)  # the parent died before the kernel knew

    return before_exec
