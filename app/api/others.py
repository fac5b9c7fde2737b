"""All that is no request of inference: start and stop, health, and FastAPI's endpoints, which are built off the loop.

To load FastAPI and describe its endpoints takes as long as half of all else at a start, and no request of inference
needs it. So it is built when the first request for it comes, or a moment after the start, whichever is sooner.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.health import Health

SETTLED: Final = 2.0
"""Seconds after the start at which the building begins unasked, so that who starts a gateway gets the processor."""


class Others:
    """An ASGI application. `lifetime` is entered at the server's start, left at its end; `build` runs in a thread."""

    def __init__(
        self, lifetime: Callable[[], AbstractAsyncContextManager[None]], health: Health, build: Callable[[], ASGIApp]
    ) -> None:
        self._lifetime = lifetime
        self._health = health
        self._build = build
        self._built: ASGIApp | None = None
        self._building = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._health.has(scope["path"]):
            await self._health(scope, receive, send)
        else:
            await (self._built or await self._ask())(scope, receive, send)

    async def settle(self) -> None:
        """Build what nobody has asked for yet, a moment from now."""
        await asyncio.sleep(SETTLED)
        await self._ask()

    async def _ask(self) -> ASGIApp:
        async with self._building:
            if self._built is None:
                self._built = await asyncio.to_thread(self._build)
            return self._built

    async def _live(self, receive: Receive, send: Send) -> None:
        """The lifespan protocol of ASGI; what fails is told in one line."""
        stage = "startup"
        await receive()
        try:
            async with self._lifetime():
                await send({"type": "lifespan.startup.complete"})
                stage = "shutdown"
                await receive()
        except Exception as error:
            await send({"type": f"lifespan.{stage}.failed", "message": f"{type(error).__name__}: {error}"})
            raise
        await send({"type": "lifespan.shutdown.complete"})
