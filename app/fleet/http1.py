"""One HTTP/1.1 connection to a server, and the exchanges that it carries one after another; knows nothing of regions.

Own code where httpx would do: most of what a request costs would go to httpx and httpcore
(`benchmarks/upstream_client.py`). `Connection` is what outlives an exchange; `Exchange` belongs to one caller, who may
still hold it when the connection has long been another's.
"""

import asyncio
import select
from collections.abc import Callable
from typing import Final, cast

from app.fleet.answer import AnswerReader, Broken, Field, TooLong

HIGH_WATER, LOW_WATER = 256 << 10, 64 << 10
"""Bytes of a stream that wait for their reader: above the first the server is held back, below the second let on."""
_AT_ONCE: Final = 64 << 10
"""Bytes of a body that leave together with their head, and of a stream that are read at once."""


class Late(Exception):
    """The answer, or the next part of it, did not come in time."""


class Exchange:
    """One request and its answer. Whoever gives it up before its end calls `close`, which costs the connection.

    Made by `Connection.exchange`, and awaited by one task at a time.
    """

    __slots__ = ("_connection", "_fault", "_loop", "_paused", "_reader", "_ready", "_timer", "_told")

    def __init__(self, connection: "Connection", reader: AnswerReader, deadline: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = connection
        self._reader = reader
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = self._loop.call_at(deadline, self._late)
        self._fault: Exception | None = None
        self._paused = self._told = False

    @property
    def status(self) -> int:
        return self._reader.status

    @property
    def fields(self) -> list[Field]:
        """As they came, without trailers."""
        return self._reader.fields

    @property
    def streamed(self) -> bool:
        """Whether `read` gives the body."""
        return self._reader.streamed

    async def answer(self) -> bytes:
        """Wait for the answer, and give its body; b"" as soon as the head has come where it is `streamed`.

        Raises `Broken`, `TooLong` and `Late`. Cancelling it closes the exchange.
        """
        try:
            await self._ready
        except asyncio.CancelledError:
            self.close()
            raise
        if self._fault is not None:
            raise self._fault
        return b"" if self._reader.streamed else bytes(self._reader.body)

    async def read(self, patience: float) -> bytes:
        """The next part of a stream, b"" at its end.

        Raises `Broken` where it breaks off, and `Late` after `patience` seconds; what came before is given first.
        Cancelling it closes the exchange.
        """
        body = self._reader.body
        if not body and not self._reader.complete and self._fault is None:
            self._ready = self._loop.create_future()
            self._timer = self._loop.call_later(patience, self._late)
            try:
                await self._ready
            except asyncio.CancelledError:
                self.close()
                raise
        if not body and self._fault is not None:
            raise self._fault
        with memoryview(body) as waiting:
            chunk = bytes(waiting[:_AT_ONCE])
        del body[:_AT_ONCE]
        if self._paused and len(body) < LOW_WATER:
            self._hold(back=False)
        return chunk

    def close(self) -> None:
        """Let go of it: where the answer has not ended, of the connection as well."""
        self.fail(Broken("given up"))

    def fail(self, error: Exception) -> None:
        """End it, and the connection with it; nothing happens where it has ended."""
        if self._connection is not None:
            self._fault = error
            self._over(reusable=False)

    def fed(self, data: bytes) -> None:
        """Take what the server says."""
        reader = self._reader
        try:
            reader.feed(data)
        except (Broken, TooLong) as error:
            self.fail(error)
            return
        if reader.complete:
            self._over(reusable=reader.clean)
        elif reader.streamed and (reader.body or not self._told):
            self._told = True
            self._wake()
            if len(reader.body) > HIGH_WATER and not self._paused:
                self._hold(back=True)

    def ended(self) -> None:
        """The server says no more, which is how some answers end."""
        try:
            self._reader.end()
        except Broken as error:
            self.fail(error)
        else:
            self._over(reusable=False)

    def _over(self, *, reusable: bool) -> None:
        connection, self._connection = self._connection, None
        self._reader.release()
        self._wake()
        if connection is not None:
            connection.over(reusable=reusable)

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._ready.done():
            self._ready.set_result(None)

    def _late(self) -> None:
        self._timer = None
        self.fail(Late())

    def _hold(self, *, back: bool) -> None:
        if self._connection is not None:
            self._paused = back
            self._connection.hold(back=back)


class Connection(asyncio.Protocol):
    """Carries one exchange at a time; `over(self)` is called at the end of each, when it is `open` for another or not.

    It closes itself where the server closes it, speaks unasked, or leaves an answer in doubt: only after an answer that
    ended where it said, with nothing behind it, to a request that had left whole, may another exchange go over it.
    """

    def __init__(self, over: Callable[["Connection"], None]) -> None:
        self._done = over
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._unsent = memoryview(b"")
        self._write_paused = self._reading_paused = False
        self._heard = select.poll()
        self.open = False

    def exchange(self, head: bytes, body: bytes, deadline: float, reader: AnswerReader) -> Exchange:
        """Send a request, and have its answer read; it ends in `Late` at `deadline`, a time of the loop's."""
        assert self._exchange is None  # noqa: S101 - the pool gives it to one at a time
        exchange = self._exchange = Exchange(self, reader, deadline)
        if self._transport is None or not self.open:
            exchange.fail(Broken("the server closed the connection as soon as it was made"))
        elif len(body) <= _AT_ONCE:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
            self._send()
        return exchange

    @property
    def silent(self) -> bool:
        """Whether it is open and nothing waits to be read: what the server sent unasked would pass for an answer.

        The loop may not have come to it yet; hence the question to the kernel.
        """
        return self.open and not self._heard.poll(0)

    def abort(self) -> None:
        """Close at once, without a word; an exchange that is under way ends in `Broken`."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()
        if self._exchange is not None:
            self._exchange.fail(Broken("the connection was closed"))

    def over(self, *, reusable: bool) -> None:
        """Its exchange has ended."""
        self._exchange = None
        if not (reusable and self.open and not self._reading_paused and self._sent()):
            self.abort()
        self._unsent = memoryview(b"")
        self._done(self)

    def hold(self, *, back: bool) -> None:
        """Stop reading from the server, or go on."""
        if self._transport is None or not self.open or self._transport.is_closing():
            return
        self._reading_paused = back
        if back:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._heard.register(transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLRDHUP)
        self.open = True

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.fed(data)
        else:
            self.abort()  # nobody asked

    def eof_received(self) -> bool:
        # Over TLS it is the end that the server signed: uvloop, on which the gateway runs, takes a bare end of TCP,
        # which anyone on the way can send, for a loss. asyncio's own loop does not tell one from the other.
        self.open = False
        if self._exchange is not None:
            self._exchange.ended()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._exchange is not None:
            self._exchange.fail(Broken(f"the connection was lost: {error}" if error else "the connection was lost"))

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._send()

    def _sent(self) -> bool:
        return not self._unsent and self._transport is not None and not self._transport.get_write_buffer_size()

    def _send(self) -> None:
        while self._unsent and self._transport is not None and not self._write_paused:
            part, self._unsent = self._unsent[:_AT_ONCE], self._unsent[_AT_ONCE:]
            self._transport.write(part)
