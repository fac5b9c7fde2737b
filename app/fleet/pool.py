"""The connections to one backend: kept for reuse, the last one used first, bounded in number and in idle time."""

import asyncio
import ssl
from collections import deque
from typing import Final
from urllib.parse import urlsplit

from app.fleet.http1 import Connection

SIZE: Final = 1024
"""Connections to one backend. Each has its own, so one that hangs takes none from the others."""
IDLE: Final = 64
"""Those of them that are kept when nothing is asked."""
KEEP_ALIVE: Final = 3.0
"""Seconds that an idle connection is kept; less than the five after which uvicorn, so most backends, closes it."""


class Pool:
    """Connections to the server of a URL; `netloc` and `path` are what a request to it begins with.

    `trust` is what its certificate is judged by where the URL is https.
    """

    def __init__(self, url: str, trust: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self.path = parts.path.rstrip("/")
        self.netloc = parts.netloc
        self._host, self._port = parts.hostname or "", parts.port or (443 if secure else 80)
        self._trust = trust if secure else None
        self._idle: deque[tuple[Connection, float]] = deque()
        self._places = SIZE
        self._turns: deque[asyncio.Future[None]] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False

    async def connection(self, patience: float) -> Connection:
        """A connection for one exchange, to be begun before the next await: an idle one or a new one.

        Raises OSError, `ssl.SSLError` among them, where none can be made, and TimeoutError after `patience` seconds.
        """
        placed = self._places > 0
        if placed:
            self._places -= 1
            if (kept := self._kept()) is not None:
                return kept
        async with asyncio.timeout(patience):
            if not placed:
                await self._turn()
            return await self._made()

    def _kept(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection, expires = self._idle.pop()
            if expires > now and connection.silent:
                return connection
            connection.abort()
        return None

    async def _turn(self) -> None:
        """Wait for a place that another gives up."""
        turn = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._turns:
                self._turns.remove(turn)
            elif not turn.cancelled() and turn.exception() is None:
                self._leave()  # it came as we left: it is the next one's
            raise

    async def _made(self) -> Connection:
        """An idle connection by now, or a new one; the place is given up again where there is none."""
        connection = None
        try:
            connection = self._kept() or await self._new()
        finally:
            if connection is None:
                self._leave()
        return connection

    async def _new(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._over), self._host, self._port, ssl=self._trust
        )
        if self._closed:
            connection.abort()
            raise _unconfigured()
        return connection

    def _over(self, connection: Connection) -> None:
        if self._closed:
            connection.abort()
        elif connection.open:
            loop = asyncio.get_running_loop()
            self._idle.append((connection, loop.time() + KEEP_ALIVE))
            if len(self._idle) > IDLE:
                self._idle.popleft()[0].abort()
            if self._expiry is None:
                self._expiry = loop.call_later(KEEP_ALIVE, self._expire)
        self._leave()

    def _leave(self) -> None:
        """Give up a place, to whoever has waited longest."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._places += 1

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle and (self._idle[0][1] <= loop.time() or not self._idle[0][0].open):
            self._idle.popleft()[0].abort()
        self._expiry = loop.call_at(self._idle[0][1], self._expire) if self._idle else None

    def close(self) -> None:
        """Close what is idle now, and what is in use as soon as its exchange has ended; nobody gets another."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        while self._idle:
            self._idle.pop()[0].abort()
        for turn in self._turns:
            if not turn.done():
                turn.set_exception(_unconfigured())
        self._turns.clear()


def _unconfigured() -> ConnectionAbortedError:
    return ConnectionAbortedError("the backend is no longer configured")
