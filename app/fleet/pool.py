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
    """Connections to the server of a URL; `netloc` and `path` are what a request to it begins with."""

    def __init__(self, url: str, trust: ssl.SSLContext) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port
        self.path = parts.path.rstrip("/")
        self.netloc = parts.netloc.rpartition("@")[2]
        self._host, self._port = host, port or (443 if secure else 80)
        self._trust = trust if secure else None
        self._idle: deque[tuple[Connection, float]] = deque()
        self._taken: set[Connection] = set()
        self._connecting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False

    async def connection(self, patience: float) -> Connection:
        """A connection for one exchange, an idle one or a new one.

        Raises OSError, `ssl.SSLError` among them, where none can be made, and TimeoutError after `patience` seconds.
        """
        connection = self._kept()
        if connection is not None:
            return connection
        async with asyncio.timeout(patience):
            return await self._made()

    def _kept(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.pop()
            if connection.reusable:
                self._taken.add(connection)
                return connection
            connection.abort()
        return None

    async def _made(self) -> Connection:
        while len(self._taken) + self._connecting >= SIZE:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
            connection = self._kept()
            if connection is not None:
                return connection
        self._connecting += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._ended), self._host, self._port, ssl=self._trust
            )
        finally:
            self._connecting -= 1
        if self._closed:
            connection.abort()
            raise ConnectionAbortedError("the backend is no longer configured")
        self._taken.add(connection)
        return connection

    def _ended(self, connection: Connection) -> None:
        if connection not in self._taken:
            return
        self._taken.discard(connection)
        if connection.reusable and not self._closed:
            self._idle.append((connection, asyncio.get_running_loop().time()))
            if len(self._idle) > IDLE:
                self._idle.popleft()[0].abort()
            if self._expiry is None:
                self._expiry = asyncio.get_running_loop().call_later(KEEP_ALIVE, self._expire)
        else:
            connection.abort()
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._idle and (now - self._idle[0][1] >= KEEP_ALIVE or not self._idle[0][0].reusable):
            self._idle.popleft()[0].abort()
        self._expiry = None
        if self._idle:
            wait = self._idle[0][1] + KEEP_ALIVE - now
            self._expiry = asyncio.get_running_loop().call_later(max(wait, 0.01), self._expire)

    def close(self) -> None:
        """Close what is idle now, and what is in use as soon as its exchange has ended."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        while self._idle:
            self._idle.pop()[0].abort()
