"""The children of `tidegate up`: started together, restarted with back-off when they die, stopped in order."""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import httpx

from app.child import Child, Spec
from app.hangup import Terminal

_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 15.0
_STEADY_S: Final = 30.0
"""A child that lived this long begins again with the shortest delay."""
_POLL_S: Final = 0.2
_ASK_TIMEOUT_S: Final = 2.0
_GRACE_S: Final = 12.0


class Report(Protocol):
    """Where the supervisor tells what happens."""

    def say(self, text: str) -> None:
        """One event, in one line."""

    def waiting(self, seconds: Mapping[str, float]) -> None:
        """The children that are not ready yet, and for how long; called a few times a second."""

    def wrote(self, name: str, lines: Sequence[str]) -> None:
        """What a child has logged."""

    def ready(self) -> None:
        """Every child is ready, for the first time."""


@dataclass(slots=True)
class _Kept:
    """A child and how it is doing; times are the loop's clock, in seconds."""

    child: Child
    is_worker: bool
    started: float = 0.0
    ready: bool = False
    takes_signals: bool = False
    deaths: int = 0

    @property
    def name(self) -> str:
        return self.child.spec.name


class Supervisor:
    """Keeps workers and gateways running until it is told to stop."""

    def __init__(self, workers: Sequence[Spec], gateways: Sequence[Spec], report: Report) -> None:
        self._workers = [_Kept(Child(spec), is_worker=True) for spec in workers]
        self._gateways = [_Kept(Child(spec), is_worker=False) for spec in gateways]
        self._report = report
        self._stopping = asyncio.Event()
        self._terminal = Terminal()

    async def run(self) -> None:
        """Runs until SIGINT, SIGTERM or the end of its terminal; a second one of them ends the children at once.

        Any other SIGHUP has the gateways reload the configuration.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        # A proxy set in the environment is not for loopback.
        async with httpx.AsyncClient(trust_env=False, timeout=_ASK_TIMEOUT_S) as client:
            jobs = [*(self._keep(kept, client) for kept in self._all()), self._watch(), self._until_told()]
            tasks = [asyncio.create_task(job) for job in jobs]
            try:
                # Ends by the stop event, or by a bug in one of the others, which must not go unseen.
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                gone = self._terminal.hung_up()  # maybe before its signal has come: what is said fails from then on
                await self._stop_all()
            for task in done if not gone else ():
                task.result()

    def _all(self) -> list[_Kept]:
        return [*self._workers, *self._gateways]

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            for kept in self._all():
                kept.child.kill()
        self._stopping.set()

    def _on_hangup(self) -> None:
        if self._terminal.hung_up():
            self._on_signal()
        elif not self._stopping.is_set():
            self._report.say("the gateways reload the configuration")
            self._tell_gateways(signal.SIGHUP)

    async def _until_told(self) -> None:
        await self._stopping.wait()

    async def _keep(self, kept: _Kept, client: httpx.AsyncClient) -> None:
        """Starts a child for as long as we run, and again after each of its deaths."""
        loop = asyncio.get_running_loop()
        delay = _FIRST_DELAY_S
        while True:
            kept.started = loop.time()
            self._report.say(f"{kept.name}: starting{' again' if kept.deaths else ''}")
            await kept.child.start()
            asking = asyncio.create_task(self._until_ready(kept, client))
            try:
                status = await kept.child.exited()
            finally:
                asking.cancel()
            kept.ready = kept.takes_signals = False
            kept.deaths += 1
            if loop.time() - kept.started >= _STEADY_S:
                delay = _FIRST_DELAY_S
            words = kept.child.last_words()
            last = f"; it last wrote: {words}" if words else ""
            self._report.say(f"{kept.name}: died ({status}), next start in {delay:g} s{last}")
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_S)

    async def _until_ready(self, kept: _Kept, client: httpx.AsyncClient) -> None:
        """Asks a starting child until it is ready, and lets the gateways know at once that a worker is."""
        spec = kept.child.spec
        if spec.alive:
            await _until_200(client, spec.alive)
            kept.takes_signals = True
            if any(worker.ready for worker in self._workers):
                kept.child.send(signal.SIGUSR1)
        await _until_200(client, spec.health)
        kept.ready = True
        seconds = asyncio.get_running_loop().time() - kept.started
        self._report.say(f"{kept.name}: ready after {seconds:.1f} s")
        if kept.is_worker:
            self._tell_gateways(signal.SIGUSR1)

    def _tell_gateways(self, number: signal.Signals) -> None:
        for gateway in self._gateways:
            if gateway.takes_signals:
                gateway.child.send(number)

    async def _watch(self) -> None:
        """Shows progress and logs, several times a second."""
        loop = asyncio.get_running_loop()
        told = False
        while True:
            self._pass_on_logs()
            waiting = {kept.name: loop.time() - kept.started for kept in self._all() if not kept.ready}
            self._report.waiting(waiting)
            if not waiting and not told:
                told = True
                self._report.ready()
            await asyncio.sleep(_POLL_S)

    def _pass_on_logs(self) -> None:
        for kept in self._all():
            if lines := kept.child.news():
                self._report.wrote(kept.name, lines)

    async def _stop_all(self) -> None:
        """Gateways first, so that they finish what they have begun while the workers still answer."""
        self._report.waiting({})
        self._report.say("stopping")
        for group in (self._gateways, self._workers):
            await asyncio.gather(*(kept.child.stop(_GRACE_S) for kept in group))
        self._pass_on_logs()
        self._report.say("stopped")


async def _until_200(client: httpx.AsyncClient, url: str) -> None:
    while True:
        try:
            if (await client.get(url)).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass  # it does not listen yet
        await asyncio.sleep(_POLL_S)
