"""Reload: on SIGHUP, or once changed files lie still, what they hold takes force whole, or not at all and says why."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final, Literal

import structlog

from app.configuration import Configuration, ConfigurationFiles
from app.settings_fixed import differences, needs_restart
from app.telemetry.metrics import Metrics
from app.yaml_source import ConfigInvalid, Problem, dotted

POLL: Final = 0.5
"""Seconds between two looks at the files; changes count once they are the same twice, so that none is read half."""

Cause = Literal["signal", "files"]

LOGGER: Final = "tidegate.reload"

_REFUSED: Final = "configuration refused, the running one stays"

log = structlog.get_logger(LOGGER)


class Reloader:
    """Holds the configuration in force, and has `take` put another in its place. `run` works until it is cancelled."""

    def __init__(
        self,
        files: ConfigurationFiles,
        first: Configuration,
        take: Callable[[Configuration], None],
        metrics: Metrics,
    ) -> None:
        self._files = files
        self._running = first
        self._take = take
        self._metrics = metrics
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Reload now, whether or not a file has changed."""
        self._asked.set()

    async def run(self) -> None:
        """Watch the files and wait to be asked."""
        last = self._files.read
        while True:
            asked = await self._wait()
            try:
                now = await asyncio.to_thread(self._files.stamp)
                if asked:
                    await self._reload("signal")
                elif now == last != self._files.read:
                    await self._reload("files")
                last = now
            except Exception as error:  # the edge: a bug in one reload must not end those to come
                self._metrics.reloaded("refused")
                log.exception(_REFUSED, cause="signal" if asked else "files", problem=f"unexpected {error!r}")

    async def _wait(self) -> bool:
        try:
            async with asyncio.timeout(POLL):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _reload(self, cause: Cause) -> None:
        try:
            found = await self._acceptable(cause)
        except ConfigInvalid as error:
            self._metrics.reloaded("refused")
            for problem in error.problems:
                log.warning(_REFUSED, cause=cause, problem=str(problem))
            return
        if found.says_the_same(self._running):
            self._metrics.reloaded("unchanged")
            log.info("configuration unchanged", cause=cause, digest=found.digest)
            return
        for warning in found.overdue:
            log.warning("law is due for review", problem=str(warning))
        changed = [dotted(key) for key in differences(self._running.settings, found.settings)]
        self._take(found)
        self._running = found
        self._metrics.reloaded("applied")
        law = found.ground.book.digest
        log.info("configuration applied", cause=cause, digest=found.digest, policy_digest=law, changed=changed)

    async def _acceptable(self, cause: Cause) -> Configuration:
        """What the files hold; raises `ConfigInvalid` where it is unsound, or cannot follow what runs."""
        found = await asyncio.to_thread(self._files.load)
        problems = list(self._against(found, cause))
        if problems:
            raise ConfigInvalid(problems)
        return found

    def _against(self, found: Configuration, cause: Cause) -> Iterator[Problem]:
        """What stands against putting a sound configuration in the place of the one that runs."""
        running = self._running
        for key, why in needs_restart(running.settings, found.settings):
            yield found.source.problem(key, why)
        if cause == "signal" or found.settings.residency.rules != running.settings.residency.rules:
            return
        # A law that is missing may forbid what those that are left permit. Where nobody said so, a file was lost.
        for law in sorted({law.id for law in running.ground.book.laws} - {law.id for law in found.ground.book.laws}):
            why = f"no file holds the law {law} any more; bring it back, or send SIGHUP to go on without it"
            yield found.source.problem(("residency", "rules"), why)
