"""A client and a server of HTTP/1.1 that do no more than is needed to ask and answer on loopback."""

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

CHUNKED = b"transfer-encoding: chunked"


class Answer(NamedTuple):
    """What came back; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One kept connection, asked one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, port: int) -> Self:
        """Connect to a port on loopback."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Ask, and read the answer whole; raises ConnectionError or IncompleteReadError where it breaks off."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        self._writer.write(f"{head}{fields}\r\n".encode() + body)
        return await self._read()

    async def _read(self) -> Answer:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        if "content-length" in headers:
            body = await self._reader.readexactly(int(headers["content-length"]))
        else:
            body = await self._chunks()
        return Answer(int(line.split(" ", 2)[1]), headers, body)

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append((await self._reader.readexactly(size + 2))[:-2])
        await self._reader.readexactly(2)
        return b"".join(parts)

    def close(self) -> None:
        """Let go of it."""
        self._writer.close()


class Upstream(asyncio.Protocol):
    """A server's end of a connection; `answer` makes an answer, head and body, of a request's body."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self._waiting = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        while True:
            head, end, rest = self._waiting.partition(b"\r\n\r\n")
            if not end:
                return
            length = _length(head)
            if len(rest) < length:
                return
            self._waiting = rest[length:]
            self._transport.write(self._answer(rest[:length]))


def _length(head: bytes) -> int:
    """Of a request's body; backends are probed with a GET, which has none."""
    _, found, value = head.lower().partition(b"content-length:")
    return int(value.partition(b"\r\n")[0]) if found else 0


async def listening(answer: Callable[[bytes], bytes]) -> tuple[asyncio.Server, int]:
    """A server on loopback and its port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(answer), "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]
