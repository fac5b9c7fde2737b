"""Reads one HTTP/1.1 answer from bytes of a server that may be broken or hostile; no input or output (RFC 9112).

llhttp does the parsing, strict: it refuses Content-Length beside Transfer-Encoding, a second or malformed
Content-Length, folded lines, blanks before a colon, control characters in fields, bare CR or LF, and malformed or
oversized chunks. What it lets pass and may be read in two ways is refused here, since two readers that disagree on
where an answer ends are how one caller gets another's: transfer codings other than plain `chunked`, any of them in
HTTP/1.0, other protocols and versions, statuses below 100, NUL in the reason, framing of interim answers, and anything
around the answer.
"""

from collections.abc import Callable
from typing import Final

import httptools

HEAD_LIMIT: Final = 64 << 10
"""Bytes of field lines: of heads, interim ones among them, and trailers together."""
FIELDS_LIMIT: Final = 128
"""Their number; servers that mean well stay below a third of it."""
INTERIM_LIMIT: Final = 8
"""Interim answers (1xx) before the one that counts."""
_FRAMES: Final = 16
"""Times the body's length that chunk framing may add: a chunk of one byte has five more, and room for an extension."""
_FINAL, _FIRST, _SWITCHING = 200, 100, 101
_BODILESS: Final = frozenset({204, 304})
_VERSIONS: Final = frozenset({"1.0", "1.1"})

Field = tuple[bytes, bytes]


class Broken(Exception):
    """The connection was lost, or the other side broke the protocol; `str()` says how."""


class TooLong(Exception):
    """The body is longer than whoever asked wants to hold."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} with a body beyond the limit")
        self.status = status


class AnswerReader:
    """One answer as far as it has come.

    `streams` says of a status whether whoever asked takes its `body` away as it comes; else at most `limit` bytes of
    it are held. `fields` are set once it is `headed`. Once it is `complete`, `clean` says that it ended by its own
    framing, that its sender means to go on, and that nothing stands behind it.
    """

    __slots__ = (
        "_fed",
        "_framed",
        "_got",
        "_heads",
        "_interim",
        "_limit",
        "_lines",
        "_parser",
        "_streams",
        "body",
        "clean",
        "complete",
        "fields",
        "headed",
        "status",
        "streamed",
    )

    def __init__(self, limit: int, streams: Callable[[int], bool]) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._limit = limit
        self._streams = streams
        self._fed = self._got = self._heads = self._lines = self._interim = 0
        self._framed = True
        self.status = 0
        self.fields: list[Field] = []
        self.body = bytearray()
        self.headed = self.streamed = self.complete = self.clean = False

    def feed(self, data: bytes) -> None:
        """What came next. Raises `Broken` and `TooLong`; what came before stays as it was."""
        if not self._fed and data[:1] != b"H":  # llhttp would take RTSP and ICE too, and pass over empty lines
            raise Broken("no HTTP")
        self._fed += len(data)
        try:
            over = self._parsed(memoryview(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            over = self.complete
            if not over:
                cause = error.__context__  # what the callbacks below raise comes wrapped in an error of the parser's
                raise cause if isinstance(cause, Broken | TooLong) else Broken(f"no HTTP/1.1: {error}") from error
        if over:
            self.clean = False
        elif not self.complete and self._fed - self._got > HEAD_LIMIT + _FRAMES * self._got:
            raise Broken("too much beside the body")

    def _parsed(self, data: memoryview) -> bool:
        """Whether the answer was over before its last byte: fed on its own, since the parser does not say where."""
        self._parser.feed_data(data[:-1])
        if self.complete:
            return True
        self._parser.feed_data(data[-1:])
        return False

    def end(self) -> None:
        """Nothing more comes. Raises `Broken` where more was due."""
        if not self.complete and (not self.headed or self._framed):
            raise Broken("the server closed the connection")
        self.complete = True

    def release(self) -> None:
        """Nothing more is fed. Parser and reader hold each other, and with them a body until garbage is looked for."""
        del self._parser

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.complete:
            raise Broken("more than an answer")
        self.fields = []

    def on_status(self, reason: bytes) -> None:
        if b"\0" in reason:
            raise Broken("NUL in the reason")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._heads += len(name) + len(value) + 4
        self._lines += 1
        if self._heads > HEAD_LIMIT or self._lines > FIELDS_LIMIT:
            raise Broken("too many fields")
        if not self.headed:  # what comes later are trailers, which nobody asked for
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        status, version = self._parser.get_status_code(), self._parser.get_http_version()
        if status < _FIRST or status == _SWITCHING or version not in _VERSIONS:
            raise Broken(f"status {status} in HTTP/{version}")
        self._framed = _framed(self.fields, version)
        if status < _FINAL:
            self._interim += 1
            if self._interim > INTERIM_LIMIT or self._framed:
                raise Broken("interim answers without end, or with a body")
            return
        # llhttp leaves the blanks behind a value, which are no part of it (RFC 9110, 5.5).
        self.fields = [(name, value.rstrip(b" \t")) for name, value in self.fields]
        self.status, self.headed = status, True
        self.streamed = self._streams(status)

    def on_body(self, data: bytes) -> None:
        self._got += len(data)
        if not self.streamed and self._got > self._limit:
            raise TooLong(self.status)
        self.body += data

    def on_message_complete(self) -> None:
        if not self.headed:
            return
        self.complete = True
        # A length, but no body: 204 and 304. Nobody knows what the sender makes of it.
        self.clean = self._parser.should_keep_alive() and self._framed != (self.status in _BODILESS)


def _framed(fields: list[Field], version: str) -> bool:
    """Whether the fields say where the body ends, else its connection's end does.

    Raises `Broken` for framing that may be read in two ways.
    """
    lengths, codings = [], []
    for name, value in fields:
        match name.lower():
            case b"content-length":
                lengths.append(value.rstrip(b" \t"))
            case b"transfer-encoding":
                # Exactly what llhttp takes for chunked: with a tab behind it, it would read on to the connection's end.
                codings.append(value.rstrip(b" ").lower())
    if codings and (codings != [b"chunked"] or lengths or version == "1.0"):
        raise Broken("the answer's transfer coding is not plain chunked")
    if len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
        raise Broken("the answer has no single length")
    return bool(codings or lengths)
