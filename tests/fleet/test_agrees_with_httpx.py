"""Well-formed answers of every shape: our client reads each as httpx does, which has another parser (h11)."""

import random
from dataclasses import dataclass

import httpx
import pytest

from app.fleet.worker_client import AttemptFailed, _filtered
from tests.fleet.peers import CALL, STREAM, Client, body_of, playing

SEEDS, EACH = 10, 100
"""A thousand exchanges on each event loop."""
TOKEN = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TEXT = bytes([*range(0x21, 0x7F), *range(0x80, 0x100)])
STATUSES = (
    200,
    200,
    200,
    201,
    202,
    203,
    204,
    206,
    226,
    299,
    302,
    304,
    307,
    400,
    404,
    413,
    422,
    429,
    500,
    502,
    503,
    599,
)
BODILESS = (204, 304)
FIELDS = ("Content-Type", "x-request-id", "Retry-After", "Set-Cookie", "Connection", "Cache-Control", "Age", "VIA")


@dataclass(frozen=True)
class Exchange:
    parts: list[bytes]
    """The answer as the server writes it."""
    closes: bool


def exchange(chance: random.Random) -> Exchange:
    status = chance.choice(STATUSES)
    old = chance.random() < 0.15
    framing = "none" if status in BODILESS else chance.choice(("length", "chunked", "close"))
    if old and framing == "chunked":
        framing = "close"
    closes = old or framing == "close" or chance.random() < 0.1
    body = (
        b"" if framing == "none" else chance.randbytes(chance.choice((0, 1, 2, 300, 5000, chance.randrange(100_000))))
    )
    fields = [field(chance) for _ in range(chance.choice((0, 1, 5, 30)))]
    if closes and not old:
        fields.append(line(chance, "Connection", b"close"))
    if framing == "length":
        fields.append(line(chance, "Content-Length", b"%d" % len(body)))
    elif framing == "chunked":
        fields.append(line(chance, "Transfer-Encoding", chance.choice((b"chunked", b"Chunked"))))
        body = chunked(chance, body)
    chance.shuffle(fields)
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * (chance.random() < 0.1) * chance.randrange(1, 4)
    head = b"HTTP/1.%d %d%s\r\n" % (not old, status, chance.choice((b" OK", b" ", b" Not  At\tAll", b" \xe9t\xe9")))
    return Exchange(cut(chance, interim + head + b"".join(fields) + b"\r\n" + body), closes)


def field(chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        name = "X-" + "".join(chance.choices(TOKEN, k=chance.randrange(1, 30)))
    else:
        name = chance.choice(FIELDS)
    words = [bytes(chance.choices(TEXT, k=chance.randrange(1, 20))) for _ in range(chance.randrange(4))]
    value = chance.choice((b" ", b"\t", b"  ", b", ")).join(words)
    return line(chance, name, b"x-dropped" if name == "Connection" else value)


def line(chance: random.Random, name: str, value: bytes) -> bytes:
    spelt = chance.choice((str, str.lower, str.upper))(name).encode()
    before, after = chance.choice((b"", b" ", b" ", b" \t ")), chance.choice((b"", b"", b" ", b"\t"))
    if name == "Transfer-Encoding":
        after = after.replace(b"\t", b"  ")  # a tab is refused there, see test_hostile_peers.py
    return spelt + b":" + before + value + after + b"\r\n"


def chunked(chance: random.Random, body: bytes) -> bytes:
    framed = bytearray()
    while body:
        size = chance.choice((1, chance.randrange(1, 100), chance.randrange(1, 100_000)))
        if len(framed) > 200_000:
            size = len(body)
        chunk, body = body[:size], body[size:]
        framed += chance.choice((b"%x", b"%X", b"00%x")) % len(chunk) + chance.choice(
            (b"", b"", b";a=b", b';a;b="c d"')
        )
        framed += b"\r\n" + chunk + b"\r\n"
    return bytes(framed) + b"0\r\n" + chance.choice((b"", b"", b"X-Sum: 1\r\nX-More:\r\n")) + b"\r\n"


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    if len(data) < 400 and chance.random() < 0.2:
        return [data[i : i + 1] for i in range(len(data))]
    ends = sorted({chance.randrange(1, len(data)) for _ in range(chance.randrange(6))} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


async def by_httpx(transport: httpx.AsyncHTTPTransport, url: str) -> tuple[object, ...]:
    """Below its client, which would keep cookies."""
    request = httpx.Request("POST", url + "/v1/embeddings", content=CALL.body)
    response = await transport.handle_async_request(request)
    try:
        body = b"".join([part async for part in response.aiter_raw()])
    finally:
        await response.aclose()
    return response.status_code, _filtered(response.headers.raw), body


async def by_ours(client: Client, *, streams: bool) -> tuple[object, ...]:
    try:
        reply = await client.ask(STREAM if streams else CALL)
    except AttemptFailed as error:
        return error.status, None, error.body
    return reply.status, reply.headers, await body_of(reply)


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_both_read_the_same_status_fields_and_body(seed: int) -> None:
    chance = random.Random(seed)
    now: list[Exchange] = []

    async def script(server) -> None:
        while True:
            await server.request()
            await server.say(*now[0].parts)
            if now[0].closes:
                return

    async with playing(script) as peer, httpx.AsyncHTTPTransport(trust_env=False) as theirs:
        ours = Client(peer.url)
        for number in range(EACH):
            now[:] = [exchange(chance)]
            status, fields, body = await by_httpx(theirs, peer.url)
            got = await by_ours(ours, streams=chance.random() < 0.5)
            expected = (status, None if status // 100 in {3, 5} else fields, None if status // 100 == 3 else body)
            assert got == expected, (number, now[0].parts[:20])
        ours.connections.close()
        assert peer.made < 2 * EACH, "some connections were kept"
