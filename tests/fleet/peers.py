"""A raw TCP server on loopback that plays a script, byte for byte as written, and a client to play it against."""

import asyncio
import os
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from app.fleet.registry import Registry
from app.fleet.trust import Trust
from app.fleet.worker_client import Connections, UpstreamReply, WorkerClient
from app.types import Call, PermittedRegion
from tests.fleet.servers import settings_for

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CALL = Call(
    wire="openai",
    path="/v1/embeddings",
    model="minilm",
    body=b'{"model":"minilm","input":"hello"}',
    headers=(("content-type", "application/json"),),
    canonical=b"",
    cacheable=True,
    stream=False,
    tokens=1,
)
STREAM = replace(CALL, stream=True)

Script = Callable[["Line"], Awaitable[None]]


@dataclass(eq=False)
class Line:
    """One connection as the server has it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> bytes:
        """A request whole; raises IncompleteReadError where the client has closed."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await self.reader.readexactly(length)

    async def say(self, *parts: bytes) -> None:
        """Write, and let the client read each part before the next follows."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            for _ in range(3):
                await asyncio.sleep(0)

    def say_now(self, data: bytes) -> None:
        """Into the kernel before any event loop comes to it."""
        os.write(self.writer.get_extra_info("socket").fileno(), data)

    def hang_up_now(self) -> None:
        with socket.socket(fileno=os.dup(self.writer.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Close with a reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Peer:
    url: str = ""
    lines: list[Line] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    open: int = 0
    """Connections that neither side has closed."""
    most: int = 0
    """Of those at once."""

    @property
    def made(self) -> int:
        return len(self.lines)


@asynccontextmanager
async def playing(script: Script, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Peer]:
    """`script` is played on each connection; when it ends the server closes that, as it does when the client does."""
    peer = Peer()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        line = Line(reader, writer)
        peer.lines.append(line)
        peer.open += 1
        peer.most = max(peer.most, peer.open)
        try:
            with suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
                await script(line)
        except asyncio.CancelledError:
            writer.transport.abort()  # a client that does not read would never let it close otherwise
        finally:
            peer.open -= 1
            writer.close()
            try:
                await writer.wait_closed()
            except asyncio.CancelledError:
                writer.transport.abort()
            except (ConnectionError, ssl.SSLError):
                pass

    server = await asyncio.start_server(connected, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    peer.url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        yield peer
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def saying(*answers: bytes) -> Script:
    """An answer to each request of a connection in turn, the last one again and again, until the client closes."""

    async def script(line: Line) -> None:
        for answer in answers:
            await line.request()
            await line.say(answer)
        while True:
            await line.request()
            await line.say(answers[-1])

    return script


def then_closing(parts: Iterable[bytes], *, cut: bool = False) -> Script:
    async def script(line: Line) -> None:
        await line.request()
        await line.say(*parts)
        if cut:
            line.cut()

    return script


class Client:
    """The worker client, asking one backend."""

    def __init__(self, url: str, **settings: object) -> None:
        configured = settings_for([{"url": url}], **settings)
        self.connections = Connections(Trust())
        self._client = WorkerClient(self.connections, configured.resilience.health)
        self.backend = Registry(configured, {}, time.monotonic).backends[0]

    async def ask(self, call: Call = CALL, within: float = 30.0, **headers: str) -> UpstreamReply:
        return await self._client.send(PermittedRegion("r0"), self.backend, call, headers, within)


@asynccontextmanager
async def against(
    script: Script, tls: ssl.SSLContext | None = None, **settings: object
) -> AsyncIterator[tuple[Client, Peer]]:
    async with playing(script, tls) as peer:
        client = Client(peer.url, **settings)
        try:
            yield client, peer
        finally:
            client.connections.close()


async def body_of(reply: UpstreamReply) -> bytes:
    """Whole, streamed or not."""
    return reply.body if isinstance(reply.body, bytes) else b"".join([part async for part in reply.body])
