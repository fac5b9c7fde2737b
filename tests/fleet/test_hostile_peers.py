"""The client of backends against servers that are broken or mean harm: every one ends in an answer or a failed attempt.

A peer here is a script: what it sends once a request has come, and whether it closes then.
"""

import asyncio
import datetime as dt
import itertools
import random
import ssl
import time
import tracemalloc
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.fleet import pool as pools
from app.fleet import worker_client
from app.fleet.registry import Registry
from app.fleet.worker_client import AttemptFailed, Connections, UpstreamStream, WorkerClient
from app.types import Call, PermittedRegion
from tests.fleet.servers import settings_for, until

R0 = PermittedRegion("r0")
CALL = Call(
    wire="openai",
    path="/v1/embeddings",
    model="minilm",
    body=b"{}",
    headers=(("content-type", "application/json"),),
    canonical=b"",
    cacheable=True,
    stream=False,
    tokens=1,
)
STREAM = replace(CALL, stream=True)
OK = b"HTTP/1.1 200 OK\r\n"
PLAIN = OK + b"Content-Length: 5\r\nX-Kept: 1\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Peer:
    """Answers every request by `script(writer)`; counts connections and requests."""

    def __init__(self, script):
        self.script = script
        self.connections = self.requests = self.closed = 0
        self.url = ""
        self.tasks = set()

    async def serve(self, reader, writer):
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))
                self.requests += 1
                if await self.script(writer) == "close":
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.closed += 1
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()


@asynccontextmanager
async def peer(script, tls=None):
    one = Peer(script)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0, ssl=tls)
    scheme = "http" if tls is None else "https"
    one.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()
        for task in one.tasks:
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)


def says(*parts, close=False):
    """A script that sends these parts, each on its own."""

    async def script(writer):
        for part in parts:
            writer.write(part)
            await writer.drain()
            if len(parts) > 1:
                await asyncio.sleep(0)
        return "close" if close else None

    return script


@asynccontextmanager
async def client_of(url):
    settings = settings_for([{"url": url}])
    registry = Registry(settings, {}, time.monotonic)
    connections = Connections()
    client = WorkerClient(connections, settings.resilience.health)

    async def send(call=CALL, within=10.0):
        return await client.send(R0, registry.backends[0], call, {}, within)

    try:
        yield send
    finally:
        connections.close()


async def answered(script, call=CALL, within=10.0):
    async with peer(script) as one, client_of(one.url) as send:
        return await send(call, within), one


async def failed(script, call=CALL, within=10.0):
    with pytest.raises(AttemptFailed) as caught:
        await whole(script, call, within)
    return caught.value.outcome


async def whole(script, call, within):
    async with peer(script) as one, client_of(one.url) as send:
        answer = await send(call, within)
        assert isinstance(answer.body, UpstreamStream), answer
        return [chunk async for chunk in answer.body]


@pytest.mark.parametrize("whole", [PLAIN, CHUNKED + b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n"])
async def test_an_answer_that_is_split_anywhere(whole):
    for place in range(1, len(whole)):
        answer, _ = await answered(says(whole[:place], whole[place:]))
        assert (answer.status, answer.body) == (200, b"hello"), place


async def test_an_answer_byte_by_byte():
    answer, _ = await answered(says(*(bytes([byte]) for byte in PLAIN)))
    assert (answer.body, answer.headers) == (b"hello", (("X-Kept", "1"),))


@pytest.mark.parametrize(
    "after",
    [b"x", PLAIN, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", bytes(5000)],
)
@pytest.mark.parametrize("later", [False, True])
async def test_what_follows_an_answer_reaches_nobody_and_ends_the_connection(after, later):
    count = itertools.count()

    async def script(writer):
        if next(count):
            writer.write(PLAIN)
        elif later:
            writer.write(PLAIN)
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(after)
        else:
            writer.write(PLAIN + after)

    async with peer(script) as one, client_of(one.url) as send:
        assert (await send()).body == b"hello"
        await asyncio.sleep(0.15)
        assert (await send()).body == b"hello"
        assert one.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"Content-Length: 5, 5\r\n\r\nhello",
        OK + b"Content-Length: +5\r\n\r\nhello",
        OK + b"Content-Length: -5\r\n\r\nhello",
        OK + b"Content-Length: 0x5\r\n\r\nhello",
        OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
        OK + b"Transfer-Encoding: identity\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        OK + b"Content-Length : 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"-1\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"fffffffffffffffff\r\nhello",
        CHUNKED + b"5\r\nhelloX\r\n0\r\n\r\n",
        OK + b"X: a\x00b\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"X y: 1\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
        b"HTTP/1.1 999999 Odd\r\n\r\n",
        b"HTTP/9.9 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + PLAIN,
    ],
)
@pytest.mark.parametrize("call", [CALL, STREAM])
async def test_framing_that_could_be_read_in_two_ways_is_no_answer(answer, call):
    assert await failed(says(answer, close=True), call) == "reset"


@pytest.mark.parametrize("cut", range(1, len(PLAIN), 7))
async def test_an_early_close_is_no_answer(cut):
    assert await failed(says(PLAIN[:cut], close=True)) == "reset"


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize("said", [b"5\r\nhel", b"5\r\nhello\r\n", b"5\r\nhello\r\n0\r\n"])
async def test_a_chunked_answer_that_stops_short_is_none(said, call):
    assert await failed(says(CHUNKED + said, close=True), call) == "reset"


async def test_interim_answers_are_passed_over():
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    answer, _ = await answered(says(interim * 4 + PLAIN))
    assert (answer.status, answer.headers, answer.body) == (200, (("X-Kept", "1"),), b"hello")


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n\r\n", OK + b"\r\n", OK + b"Connection: close\r\n\r\n"])
@pytest.mark.parametrize("call", [CALL, STREAM])
async def test_a_body_that_ends_with_the_connection(head, call):
    async with peer(says(head, b"hel", b"lo", close=True)) as one, client_of(one.url) as send:
        answer = await send(call)
        body = answer.body if call is CALL else b"".join([chunk async for chunk in answer.body])
        assert body == b"hello"


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body(status):
    script = says(b"HTTP/1.1 %d Said\r\nX: 1\r\n\r\n" % status)
    async with peer(script) as one, client_of(one.url) as send:
        for _ in range(2):
            with suppress(AttemptFailed):  # a 3xx is never an answer here
                assert (await send()).body == b""
        assert one.requests == 2


@pytest.mark.parametrize("field", [b"X-%d: 1\r\n", b"X-%d: " + b"y" * 5000 + b"\r\n"])
async def test_a_head_without_end_is_cut_off(field):
    async def script(writer):
        writer.write(OK)
        for number in range(100_000):
            writer.write(field % number)
            await writer.drain()

    assert await failed(script) == "reset"


async def test_trailers_without_end_are_cut_off():
    async def script(writer):
        writer.write(CHUNKED + b"5\r\nhello\r\n0\r\n")
        for number in range(100_000):
            writer.write(b"X-%d: 1\r\n" % number)
            await writer.drain()

    assert await failed(script) == "reset"


@pytest.mark.parametrize("call", [CALL, STREAM])
async def test_a_drip_is_left_at_the_deadline(call):
    async def script(writer):
        for byte in OK + b"X: " + b"y" * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)

    assert await failed(script, call, within=0.3) == "timeout"


async def test_an_answer_of_a_gigabyte_is_cut_off_at_the_limit(monkeypatch):
    monkeypatch.setattr(worker_client, "ANSWER_LIMIT", 8 << 20)
    sent = 0

    async def script(writer):
        nonlocal sent
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % (1 << 30))
        for _ in range(1 << 10):
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1

    assert await failed(script) == "reset"
    assert sent < 64


async def test_a_stream_is_held_back_where_its_reader_is_slow():
    sent = 0

    async def script(writer):
        nonlocal sent
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % (256 << 20))
        for _ in range(256):
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1

    async with peer(script) as one, client_of(one.url) as send:
        answer = await send(STREAM)
        tracemalloc.start()
        await anext(answer.body)
        await asyncio.sleep(0.5)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sent < 32, "the peer may fill buffers of the kernel's, and no more"
        assert held < 8 << 20
        await answer.body.aclose()
        await until(lambda: one.closed)


async def test_a_stream_that_was_held_back_comes_whole():
    body = random.Random(1).randbytes(3 << 20)
    script = says(OK + b"Content-Length: %d\r\n\r\n" % len(body), body)
    async with peer(script) as one, client_of(one.url) as send:
        answer = await send(STREAM)
        await asyncio.sleep(0.2)
        assert b"".join([chunk async for chunk in answer.body]) == body
        assert (await send()).status == 200
        assert one.connections == 1


async def test_an_answer_before_the_request_has_left_ends_the_connection():
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await asyncio.sleep(1)  # with most of the body unread
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with client_of(url) as send:
        answer = await send(replace(CALL, body=bytes(16 << 20)))
        assert (answer.status, answer.body) == (413, b"no")
    server.close()


async def test_connections_are_reused_only_after_a_clean_end():
    closing = PLAIN.replace(b"X-Kept", b"Connection: close\r\nX-Kept")
    for script, connections in ((says(PLAIN), 1), (says(closing), 3), (says(OK + b"\r\nhello", close=True), 3)):
        async with peer(script) as one, client_of(one.url) as send:
            for _ in range(3):
                await send()
            assert one.connections == connections


async def test_a_connection_that_the_peer_closed_is_not_used_again():
    async def script(writer):
        writer.write(PLAIN)
        await writer.drain()
        asyncio.get_running_loop().call_later(0.05, writer.close)

    async with peer(script) as one, client_of(one.url) as send:
        for _ in range(3):
            assert (await send()).body == b"hello"
            await asyncio.sleep(0.15)
        assert one.connections == 3


async def test_idle_connections_are_closed_in_time(monkeypatch):
    monkeypatch.setattr(pools, "KEEP_ALIVE", 0.1)
    async with peer(says(PLAIN)) as one, client_of(one.url) as send:
        await asyncio.gather(*(send() for _ in range(5)))
        await until(lambda: one.closed == one.connections)
        await send()
        assert one.connections > 1


async def test_idle_connections_are_few_and_requests_wait_for_one_of_many(monkeypatch):
    monkeypatch.setattr(pools, "SIZE", 4)
    monkeypatch.setattr(pools, "IDLE", 2)

    async def script(writer):
        await asyncio.sleep(0.02)
        writer.write(PLAIN)

    async with peer(script) as one, client_of(one.url) as send:
        answers = await asyncio.gather(*(send() for _ in range(20)))
        assert [answer.body for answer in answers] == [b"hello"] * 20
        assert one.connections <= 4 + 20
        await until(lambda: one.connections - one.closed <= 2)


async def test_where_all_connections_hang_a_request_does_not_wait_forever(monkeypatch):
    monkeypatch.setattr(pools, "SIZE", 1)

    async def script(_):
        await asyncio.sleep(3600)

    async with peer(script) as one, client_of(one.url) as send:
        first = asyncio.ensure_future(send(within=3.0))
        await until(lambda: one.requests)
        with pytest.raises(AttemptFailed, match="timeout"):
            await send(within=0.2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_a_stream_left_in_the_middle_is_not_the_next_ones():
    async def script(writer):
        writer.write(CHUNKED + b"5\r\nfirst\r\n")

    async with peer(script) as one, client_of(one.url) as send:
        for _ in range(3):
            answer = await send(STREAM)
            assert await anext(answer.body) == b"first"
            await answer.body.aclose()
        await until(lambda: one.closed == 3)
        assert one.connections == 3


async def test_a_stream_whose_end_has_come_keeps_its_rest_while_others_are_served():
    body = b"".join(b"5\r\n%05d\r\n" % number for number in range(50)) + b"0\r\n\r\n"
    async with peer(says(CHUNKED + body)) as one, client_of(one.url) as send:
        slow = await send(STREAM)
        await asyncio.sleep(0.05)
        others = [await send(STREAM) for _ in range(3)]
        for answer in (*others, slow):
            assert b"".join([chunk async for chunk in answer.body]) == b"".join(b"%05d" % n for n in range(50))
        assert one.connections == 4
        await send()
        assert one.connections == 4


def certificate(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elsewhere.test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "pair.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    async with peer(says(PLAIN), certificate(tmp_path)) as one, client_of(one.url) as send:
        with pytest.raises(AttemptFailed, match="refused"):
            await send()
        assert one.requests == 0
