"""What a request to a backend costs in the client: ours, httpx, and aiohttp where it is installed.

The server is a constant one in another process; only this process's processor time is counted, so what the server
takes is not in it, and what else runs on the machine hardly. The clients take turns, round by round, so that a drift of
the machine's speed meets all of them. Requests have 300 bytes of body, answers 600; connections are kept; the event
loop is uvloop. Prints medians of the rounds, the ratio taken within each round.

    python benchmarks/upstream_client.py [--requests 500] [--rounds 5] [--concurrency 1 64]

`tidegate` is `WorkerClient.send` whole: choosing headers, connecting within a deadline, filtering the answer's fields.
`httpx transport` is httpx without its client (no cookies, redirects, decoding), which is what `WorkerClient` used. Its
pool walks over all connections whenever a request comes or goes.

Two shared cores, Python 3.11, microseconds a request, one and 64 at once: tidegate 48 and 28, aiohttp 89 and 53 (1.9
times), httpx transport 300 and 4,860 (6 and 170 times), httpx 442 and 4,998.
"""

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Final

import httpx
import uvloop

from app.config import Settings
from app.fleet.registry import Registry
from app.fleet.worker_client import Connections, WorkerClient
from app.types import Call, PermittedRegion

PATH: Final = "/v1/chat/completions"
BODY: Final = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 240 + b'"}]}'
ANSWER: Final = b'{"choices":[{"message":{"role":"assistant","content":"' + b"y" * 540 + b'"}}]}'
SAID: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
KIND: Final = "application/json"

Ask = Callable[[], Awaitable[bytes]]


@dataclass
class Found:
    """Of one client and concurrency: microseconds of processor time a request, and requests a second, by round."""

    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


class Constant(asyncio.Protocol):
    """Gives the same answer to each request, once its body has come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._came = b""

    def data_received(self, data: bytes) -> None:
        self._came += data
        while True:
            head, found, rest = self._came.partition(b"\r\n\r\n")
            if not found or len(rest) < (length := int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])):
                return
            self._came = rest[length:]
            self._transport.write(SAID)


def serve(listener: socket.socket) -> None:
    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(Constant, sock=listener)
        await server.serve_forever()

    asyncio.run(forever())


@contextmanager
def serving() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(listener,), daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.terminate()
            process.join()


@asynccontextmanager
async def tidegate(url: str) -> AsyncIterator[Ask]:
    region = {"id": "r", "country": "IE", "latitude": 53.3, "longitude": -6.3, "operator": {"name": "o"}}
    region["backends"] = [{"url": url, "models": ["m"], "protocol": "openai"}]
    settings = Settings.model_validate({"version": 1, "regions": [region], "tenants": [{"id": "t"}]})
    backend = Registry(settings, {}, time.monotonic).backends[0]
    connections = Connections()
    client = WorkerClient(connections, settings.resilience.health)
    call = Call(
        wire="openai",
        path=PATH,
        model="m",
        body=BODY,
        headers=(("content-type", KIND),),
        canonical=b"",
        cacheable=False,
        stream=False,
        tokens=1,
    )

    async def ask() -> bytes:
        reply = await client.send(PermittedRegion("r"), backend, call, {"x-request-id": "r-1"}, 30.0)
        assert isinstance(reply.body, bytes)
        return reply.body

    yield ask
    connections.close()


@asynccontextmanager
async def httpx_transport(url: str) -> AsyncIterator[Ask]:
    limits = httpx.Limits(max_connections=1024, max_keepalive_connections=64)
    async with httpx.AsyncHTTPTransport(trust_env=False, limits=limits) as transport:

        async def ask() -> bytes:
            request = httpx.Request("POST", url + PATH, content=BODY, headers={"content-type": KIND})
            response = await transport.handle_async_request(request)
            try:
                return await response.aread()
            finally:
                await response.aclose()

        yield ask


@asynccontextmanager
async def httpx_client(url: str) -> AsyncIterator[Ask]:
    limits = httpx.Limits(max_connections=1024, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=url, trust_env=False, limits=limits, timeout=30) as client:

        async def ask() -> bytes:
            return (await client.post(PATH, content=BODY, headers={"content-type": KIND})).content

        yield ask


@asynccontextmanager
async def aiohttp(url: str) -> AsyncIterator[Ask]:
    from aiohttp import ClientSession, TCPConnector  # noqa: PLC0415 - may be missing

    async with ClientSession(connector=TCPConnector(limit=1024)) as session:

        async def ask() -> bytes:
            async with session.post(url + PATH, data=BODY, headers={"content-type": KIND}) as response:
                return await response.read()

        yield ask


async def measured(ask: Ask, concurrency: int, requests: int) -> tuple[float, float]:
    """Microseconds of processor time a request, and requests a second; the first of each client are not counted."""

    async def some(count: int) -> None:
        for _ in range(count):
            if await ask() != ANSWER:
                raise AssertionError("another answer")

    await asyncio.gather(*(some(3) for _ in range(concurrency)))
    share = -(-requests // concurrency)
    spent, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(some(share) for _ in range(concurrency)))
    spent, took = time.process_time() - spent, time.perf_counter() - began
    return spent / (share * concurrency) * 1e6, share * concurrency / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="of each client, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 64], help="requests at once")
    options = parser.parse_args()
    clients = {"tidegate": tidegate, "httpx transport": httpx_transport, "httpx": httpx_client}
    if find_spec("aiohttp"):
        clients["aiohttp"] = aiohttp
    print(f"{'at once':>7}  {'client':<16} {'CPU us':>8} {'requests/s':>11}  times tidegate's CPU")
    with serving() as url:

        async def turn(name: str, concurrency: int) -> tuple[float, float]:
            async with clients[name](url) as ask:
                return await measured(ask, concurrency, options.requests)

        for concurrency in options.concurrency:
            found = {name: Found() for name in clients}
            for _ in range(options.rounds):
                for name in clients:
                    cpu, rate = uvloop.run(turn(name, concurrency))
                    found[name].cpu.append(cpu)
                    found[name].rate.append(rate)
            for name, each in found.items():
                ratios = [theirs / ours for theirs, ours in zip(each.cpu, found["tidegate"].cpu, strict=True)]
                cpu, rate, ratio = (statistics.median(figures) for figures in (each.cpu, each.rate, ratios))
                print(f"{concurrency:>7}  {name:<16} {cpu:>8,.0f} {rate:>11,.0f}  {ratio:.1f}", flush=True)


if __name__ == "__main__":
    main()
