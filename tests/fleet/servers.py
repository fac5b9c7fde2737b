"""Small HTTP/1.1 servers on loopback that answer well, badly or not at all, and remember what they were sent."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from app.config import Settings


@dataclass
class Request:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    url: str
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a client has closed its connection."""
    die: Callable[[], None] = lambda: None
    """Close the port and every connection at once, as a killed process does."""
    revive: Callable[[], Awaitable[None]] | None = None
    """Listen on the same port again."""


Answer = Callable[[asyncio.StreamWriter, Request], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Server]:
    server = Server("")
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        server.connections += 1
        try:
            while (request := await read(reader)) is not None:
                server.requests.append(request)
                await unless_gone(reader, answer(writer, request))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            server.gone.set()
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    listeners = [await asyncio.start_server(connected, "127.0.0.1", 0)]
    host, port = listeners[0].sockets[0].getsockname()
    server.url = f"http://{host}:{port}"

    def die() -> None:
        listeners.pop().close()
        for task in tasks:
            task.cancel()

    async def revive() -> None:
        listeners.append(await asyncio.start_server(connected, "127.0.0.1", port))

    server.die, server.revive = die, revive
    try:
        yield server
    finally:
        if listeners:
            die()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(reader: asyncio.StreamReader, answering: Awaitable[None]) -> None:
    """Answer, but no longer than the client stays: clients here do not send ahead, so a read ends when they leave."""
    answer, leave = asyncio.ensure_future(answering), asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({answer, leave}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ConnectionResetError
        await answer
    finally:
        answer.cancel()
        leave.cancel()
        await asyncio.gather(answer, leave, return_exceptions=True)


async def read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    line, *fields = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in fields)}
    return Request(line, headers, await reader.readexactly(int(headers.get("content-length", 0))))


def reply(status: int, body: bytes = b"{}", *headers: str) -> Answer:
    fields = "".join(f"{each}\r\n" for each in ("Content-Type: application/json", *headers))

    async def answer(writer: asyncio.StreamWriter, _: Request) -> None:
        writer.write(f"HTTP/1.1 {status} Said\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    return answer


async def hang(_writer: asyncio.StreamWriter, _: Request) -> None:
    await asyncio.sleep(3600)


async def cut_at_once(writer: asyncio.StreamWriter, _: Request) -> None:
    writer.transport.abort()


async def cut_in_the_body(writer: asyncio.StreamWriter, _: Request) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()
    writer.close()


async def junk(writer: asyncio.StreamWriter, _: Request) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


def stream(chunks: list[bytes], then: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None) -> Answer:
    """Chunks in chunked coding; `then` runs before the final chunk is due (to wait, or to break off)."""

    async def answer(writer: asyncio.StreamWriter, _: Request) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for chunk in chunks:
            writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            await writer.drain()
        if then is not None:
            await then(writer)
        writer.write(b"0\r\n\r\n")

    return answer


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that other tasks, or the other side of a socket, bring about."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event to set
            await asyncio.sleep(0.01)


def unused_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings_for(*regions: list[dict[str, object]], **changes: object) -> Settings:
    """Settings with one region for each list of backends: r0, r1, ..."""
    return Settings.model_validate(
        {
            "version": 1,
            "regions": [
                {
                    "id": f"r{number}",
                    "country": "IE",
                    "latitude": 53.3,
                    "longitude": -6.3,
                    "operator": {"name": "acme"},
                    "backends": [{"models": ["minilm"]} | backend for backend in backends],
                }
                for number, backends in enumerate(regions)
            ],
            "tenants": [{"id": "demo"}],
        }
        | changes
    )
