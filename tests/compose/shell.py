"""Runs programs: nothing they print is lost, nothing they start outlives them, and a slow one is heard of meanwhile."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from tests.compose.report import Failure, echo

_HEARD_EVERY = 10.0
_SHOWN_LINES = 30
_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def tail(self) -> str:
        """The last lines of both."""
        return "\n".join((self.out + self.err).splitlines()[-_SHOWN_LINES:])


def run(*command: str, env: Mapping[str, str] | None = None, check: bool = True, given: str = "") -> Ended:
    """Run a program to its end, `env` laid over the environment and `given` at its standard input.

    It has a session of its own: Ctrl-C reaches only us, who then end it with all that it started. Raises `Failure`
    where it is not there, or with `check` where its status is not 0.
    """
    with tempfile.TemporaryFile("w+") as into, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        into.write(given)
        into.seek(0)
        try:
            process = subprocess.Popen(
                command, env={**os.environ, **(env or {})}, stdin=into, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            raise Failure(f"{command[0]}: {error.strerror}") from error
        try:
            _attend(process, out, err)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        ended = Ended(process.returncode, out.read(), err.read())
    if check and ended.status:
        raise Failure(f"{' '.join(command)}: exit status {ended.status}\n{ended.tail}")
    return ended


def _attend(process: "subprocess.Popen[bytes]", *printed: IO[str]) -> None:
    """Wait for the end, and show the newest line now and then."""
    begun = time.monotonic()
    heard = begun + _HEARD_EVERY
    while process.poll() is None:
        time.sleep(0.05)
        if time.monotonic() > heard:
            heard += _HEARD_EVERY
            echo(f"    {time.monotonic() - begun:.0f} s: {_newest(*printed)[:_WIDTH]}")


def _newest(*printed: IO[str]) -> str:
    """The last line that was printed."""
    for file in printed:
        text = os.pread(file.fileno(), 4096, max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()
    return "..."
