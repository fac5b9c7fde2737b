"""What a run says: each step as it begins, how it goes on and how long it took; last of all, one line of figures."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import click


class Failure(Exception):
    """What ends a run: the message names what is wrong and what would be right."""


def echo(text: str, *, err: bool = False) -> None:
    """Print, to nobody where nobody reads any more: what was started is taken down all the same."""
    with suppress(OSError):
        click.echo(text, err=err)


class Report:
    """Numbers the steps, bounds each in time, and counts what was checked. For the main thread, which gets SIGALRM."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._steps = self._checks = 0
        self._figures: list[str] = []

    @contextmanager
    def step(self, what: str, limit: int) -> Iterator[Callable[[], float]]:
        """A step that may take so many seconds; what it is and what it took are printed. Steps do not nest.

        Gives how long it has taken, or took in the end.
        """
        self._steps += 1
        echo(f"==> {self._steps}. {what} (at most {limit} s)")
        begun = time.monotonic()

        def late(_signal: int, _frame: FrameType | None) -> NoReturn:
            raise Failure(f"{what}: not done after {limit} s; the machine is too slow or something hangs, see above")

        signal.signal(signal.SIGALRM, late)
        signal.alarm(limit)
        ended: list[float] = []
        try:
            yield lambda: (ended or [time.monotonic()])[0] - begun
        finally:
            signal.alarm(0)
            ended.append(time.monotonic())
        self.say(f"done in {ended[0] - begun:.1f} s")

    def say(self, text: str) -> None:
        """How the step goes on."""
        echo(f"    {text}")

    def check(self, holds: object, what: str, found: object = "") -> None:
        """Count what holds; raise `Failure` with what was found instead where it does not."""
        if not holds:
            raise Failure(f"expected: {what}" + (f"; found: {found}" if found != "" else ""))
        self._checks += 1
        self.say(f"ok: {what}")

    def figure(self, text: str) -> None:
        """A part of the closing line."""
        self._figures.append(text)

    def closing(self) -> str:
        """The run in one line."""
        took = time.monotonic() - self._begun
        return " | ".join([f"compose-test: passed in {took:.0f} s", *self._figures, f"{self._checks} checks"])


def until(condition: Callable[[], bool], pause: float = 0.5) -> None:
    """Wait until it holds; the step around it bounds how long."""
    while not condition():
        time.sleep(pause)
