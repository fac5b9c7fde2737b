"""Single flight: of requests for the same answer that come at the same time, one goes to a region and the others wait.

Nobody waits past their own deadline, and nobody fails because the one ahead failed or its client left: the next goes.
Beside that, the requests that renew answers while old ones are still given out.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from enum import Enum
from http import HTTPStatus
from typing import Any, Final

from app.errors import GatewayError
from app.types import CacheEntry

RENEWALS: Final = 32
"""Answers that are renewed at the same time, at most; what is stale beyond them is renewed by a later request."""


class _Landed(Enum):
    """How a flight ended that has no answer for others."""

    FAILED = "failed"
    """Nobody knows the answer yet: the next may try."""
    ALONE = "alone"
    """The answer is for its own request: everyone goes, and nobody waits for anybody."""


class Flights:
    """What is under way, by cache key. Used on the event loop's thread alone."""

    def __init__(self) -> None:
        self._open: dict[bytes, asyncio.Future[CacheEntry | _Landed]] = {}
        self._renewals: dict[bytes, asyncio.Task[None]] = {}

    async def follow(self, key: bytes, left: Callable[[], float]) -> CacheEntry | None:
        """The answer that another request has fetched meanwhile; None where the caller has to fetch it itself.

        Raises TimeoutError when `left()` seconds have passed.
        """
        while (flight := self._open.get(key)) is not None:
            async with asyncio.timeout(left()):
                landed = await asyncio.shield(flight)
            if isinstance(landed, CacheEntry):
                return landed
            if landed is _Landed.ALONE:
                return None
        return None

    @contextmanager
    def leading(self, key: bytes | None) -> Iterator[None]:
        """Fetch an answer inside: others wait for it, unless it has no key, or someone is ahead already."""
        if key is None or key in self._open:
            yield
            return
        flight = self._open[key] = asyncio.get_running_loop().create_future()
        outcome = _Landed.ALONE
        try:
            yield
        except GatewayError as error:
            if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR or error.status == HTTPStatus.TOO_MANY_REQUESTS:
                outcome = _Landed.FAILED
            raise
        except BaseException:
            outcome = _Landed.FAILED
            raise
        finally:
            del self._open[key]
            if not flight.done():
                flight.set_result(outcome)

    def land(self, key: bytes, entry: CacheEntry) -> None:
        """Give the answer to all who wait for it."""
        flight = self._open.get(key)
        if flight is not None and not flight.done():
            flight.set_result(entry)

    def renew(self, key: bytes, fetching: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have an answer fetched in the background, unless that is being done, or enough else is."""
        if key in self._open or key in self._renewals or len(self._renewals) >= RENEWALS:
            return
        task = self._renewals[key] = asyncio.get_running_loop().create_task(fetching())
        task.add_done_callback(lambda _: self._renewals.pop(key, None))

    async def aclose(self) -> None:
        """Give up the renewals that are under way."""
        tasks = list(self._renewals.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
