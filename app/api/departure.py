"""Gives work up when the client that it is for has left."""

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

from app.errors import GatewayError

PATIENCE = 0.1
"""Seconds of work before anyone looks whether the client is still there: most answers are out by then, and a task to
look costs as much as the rest of a short one."""


class Departure:
    """A context that cancels its own task as soon as `receive`, all of the body read, says that the client is gone.

    That cancellation ends here, and with it whatever error the work made of it: the answer has nowhere to go.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.remove_done_callback(self._left)
            self._watch.cancel()
        if not self._gone:
            return False
        self._task.uncancel()
        return isinstance(error, asyncio.CancelledError | GatewayError)

    def _begin(self) -> None:
        self._watch = asyncio.ensure_future(self._gone_away())
        self._watch.add_done_callback(self._left)

    async def _gone_away(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _left(self, watch: asyncio.Future[None]) -> None:
        if not watch.cancelled():
            self._gone = True
            self._task.cancel()
