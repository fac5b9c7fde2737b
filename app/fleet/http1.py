"""One HTTP/1.1 connection to a server that may be broken or hostile; it knows nothing of regions (RFC 9112).

Own code where httpx would do: a request through httpx and httpcore takes about fifty times as much of the processor
(`benchmarks/gateway.py`). Parsing is left to llhttp, strict; what frames a message is looked at once more here, since
two readers that disagree on where an answer ends are how one caller gets another's.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, cast

import httptools

HEAD_LIMIT: Final = 64 << 10
"""Bytes beside its body that an answer may have in heads and trailers; chunk framing may add sixteen times the body."""
INTERIM_LIMIT: Final = 8
"""Interim answers (1xx) before the one that counts."""
HIGH_WATER, LOW_WATER = 256 << 10, 64 << 10
"""Bytes of a stream that wait for their reader: above the first the server is held back, below the second let on."""
_SWITCHING: Final = 101
_BODILESS: Final = frozenset({204, 304})
_REFUSAL: Final = 400

Field = tuple[bytes, bytes]


class Broken(Exception):
    """The connection was lost, or the other side broke the protocol; `str()` says how."""


class TooLong(Exception):
    """The body is longer than whoever asked wants to hold."""


class Answer(NamedTuple):
    """An answer's status, its fields as they came, and its body; None where that is read from the connection."""

    status: int
    fields: list[Field]
    body: bytes | None


class Connection(asyncio.Protocol):
    """Carries one exchange at a time. `ended(self)` is called when one is over, and when the connection is lost.

    `reusable` says then whether the next exchange may go over it: only after an answer that ended where it said, with
    nothing behind it, to a request that had left whole.
    """

    def __init__(self, ended: Callable[["Connection"], None]) -> None:
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._wait: asyncio.Future[None] | None = None
        self._open = False
        self._reset(0, streams=False)
        self._whole = True

    def _reset(self, limit: int, *, streams: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._streams = streams
        self._limit = limit
        self._fields: list[Field] = []
        self._chunks: deque[bytes] = deque()
        self._status = self._waiting = self._held = 0
        self._fed = self._interim = 0
        self._until_close = self._begun = self._headed = self._whole = self._clean = self._paused = False
        self._fault: Exception | None = None

    @property
    def reusable(self) -> bool:
        """Whether another exchange may go over it."""
        return self._open and self._whole and self._clean

    def exchange(self, request: bytes, body: bytes, limit: int, *, streams: bool) -> asyncio.Future[Answer]:
        """Send a request and give its answer, of at most `limit` bytes of body where it is held whole.

        Where it `streams`, an answer below 400 is given at its head, and `read` gives its body. The future ends in
        `Broken` or `TooLong`; whoever gives it up calls `abort`.
        """
        assert self._transport is not None  # noqa: S101 - connected by whoever made it
        self._reset(limit, streams=streams)
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines((request, body))
        return self._answer

    async def read(self) -> bytes:
        """The next part of a stream, b"" at its end; raises `Broken` where it broke off."""
        while not self._chunks:
            if self._whole:
                self._finish()
                return b""
            if self._fault is not None:
                raise self._fault
            self._wait = asyncio.get_running_loop().create_future()
            try:
                await self._wait
            finally:
                self._wait = None
        chunk = self._chunks.popleft()
        self._waiting -= len(chunk)
        if self._paused and self._waiting <= LOW_WATER and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    def close(self) -> None:
        """Let go of a stream: where it has not come to its end, of the connection as well."""
        if self._whole:
            self._finish()
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once; an exchange that is under way ends in `Broken`."""
        if self._transport is not None:
            self._transport.abort()
        self._lost(Broken("given up"))

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._open = True

    def data_received(self, data: bytes) -> None:
        if self._whole or self._fault is not None:  # nobody asked: whatever it is, it is no answer
            self._clean = False
            self.abort()
            return
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
            self._bound()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, Broken) as error:
            self._clean = False  # where the answer is whole by now, something that is none follows
            if not self._has_come():
                # What a callback of ours raises comes wrapped in an error of the parser's.
                cause = error.__context__
                self._fail(cause if isinstance(cause, Broken | TooLong) else Broken(f"no HTTP/1.1 answer: {error}"))
                return
        if self._has_come():
            self._over()

    def _has_come(self) -> bool:
        return self._whole

    def eof_received(self) -> bool:
        if self._until_close and not self._whole:
            self._whole = True
            self._over()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(Broken(f"the connection was lost: {error}" if error else "the server closed the connection"))

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._whole:
            raise Broken("something follows the answer")
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:  # what comes later are trailers, which nobody asked for
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._status = status = self._parser.get_status_code()
        if status == _SWITCHING:
            raise Broken("the server switches to another protocol")
        if status < 200:  # noqa: PLR2004 - interim
            self._interim += 1
            if self._interim > INTERIM_LIMIT:
                raise Broken("too many interim answers")
            return
        self._headed = True
        self._until_close = _framed_by_its_end(status, self._fields, self._parser.get_http_version())
        if self._streams and status < _REFUSAL:
            self._tell(Answer(status, self._fields, None))
        else:
            self._streams = False

    def on_body(self, data: bytes) -> None:
        self._held += len(data)
        self._chunks.append(data)
        if not self._streams:
            if self._held > self._limit:
                raise TooLong
            return
        self._waiting += len(data)
        self._wake()
        if self._waiting > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._headed and not self._whole:
            self._whole = True
            unsent = self._transport is None or self._transport.get_write_buffer_size() > 0
            self._clean = self._parser.should_keep_alive() and not self._until_close and not unsent

    # What follows from it.

    def _bound(self) -> None:
        if self._fed - self._held > HEAD_LIMIT + 16 * self._held:
            raise Broken("too much beside the body")

    def _over(self) -> None:
        """The answer has come whole: what is not streamed is given now; a stream is to be read to its end first."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        if self._streams:
            self._wake()
            return
        body, self._chunks = b"".join(self._chunks), deque()
        self._tell(Answer(self._status, self._fields, body))
        self._finish()

    def _finish(self) -> None:
        if not self.reusable and self._transport is not None:
            self._transport.abort()
        self._chunks = deque()
        self._ended(self)

    def _fail(self, error: Exception) -> None:
        self._fault = error
        if self._transport is not None:
            self._transport.abort()
        self._lost(error)

    def _lost(self, error: Exception) -> None:
        was_open, self._open = self._open, False
        if not self._whole and self._fault is None:
            self._fault = error
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._fault or error)
        self._wake()
        if was_open:
            self._ended(self)

    def _tell(self, answer: Answer) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def _wake(self) -> None:
        if self._wait is not None and not self._wait.done():
            self._wait.set_result(None)


def _framed_by_its_end(status: int, fields: list[Field], version: str) -> bool:
    """Whether the body ends where the connection does; raises `Broken` for framing that may be read in two ways."""
    lengths, codings = [], []
    for name, value in fields:
        match name.lower():
            case b"content-length":
                lengths.append(value.strip())
            case b"transfer-encoding":
                codings.append(value.strip().lower())
    if codings and (codings != [b"chunked"] or lengths or version == "1.0"):
        raise Broken("the answer's transfer coding is not plain chunked")
    if len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
        raise Broken("the answer has no single length")
    return not codings and not lengths and status not in _BODILESS
