"""Backends that are broken, slow or hostile: what is taken for an answer, and which connection is used again."""

import asyncio
import tracemalloc
from dataclasses import replace

import pytest

from app.fleet import worker_client
from app.fleet.answer import FIELDS_LIMIT, HEAD_LIMIT, INTERIM_LIMIT
from app.fleet.http1 import HIGH_WATER, LOW_WATER
from app.fleet.worker_client import ANSWER_LIMIT, AttemptFailed
from tests.fleet.peers import CALL, CHUNKED, OK, STREAM, against, body_of, saying, then_closing
from tests.fleet.servers import until

LINE = b"HTTP/1.1 200 OK\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
TRAILED = CHUNKED + b"5\r\nhello\r\n3;x=y\r\n, w\r\n0\r\nX-Sum: 1\r\n\r\n"
READ = 256 << 10
"""The most that a loop reads of a connection at once."""


async def failure(client, call=CALL, **options):
    with pytest.raises(AttemptFailed) as caught:
        await body_of(await client.ask(call, **options))
    return caught.value


# --- an answer in pieces


@pytest.mark.parametrize(("answer", "body"), [(OK, b"ok"), (TRAILED, b"hello, w")])
async def test_an_answer_may_be_cut_anywhere(answer, body):
    async def script(line):
        for cut in range(1, len(answer)):
            await line.request()
            await line.say(answer[:cut], answer[cut:])
        await line.request()
        await line.say(*(answer[i : i + 1] for i in range(len(answer))))
        await line.request()

    async with against(script) as (client, peer):
        for _ in range(len(answer)):
            assert (await client.ask()).body == body
        assert peer.made == 1, "and its connection is as good as before"


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("answer", [OK, TRAILED])
async def test_a_connection_lost_at_any_byte_is_no_answer(call, cut, answer):
    lengths = iter(range(len(answer)))

    async def script(line):
        await then_closing([answer[: next(lengths)]], cut=cut)(line)

    async with against(script) as (client, peer):
        for _ in range(len(answer)):
            error = await failure(client, call)
            assert error.outcome == "reset"
            assert error.retryable is (error.status is None), "until the caller may have had a part of it"
        await until(lambda: peer.open == 0)
        assert peer.made == len(answer)


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize("head", [LINE, b"HTTP/1.0 200 OK\r\n", LINE + b"Connection: keep-alive\r\n"])
async def test_a_body_may_end_with_the_connection(call, head):
    async with against(then_closing([head, b"\r\nall", b" of it"])) as (client, peer):
        for _ in range(2):
            assert await body_of(await client.ask(call)) == b"all of it"
        assert peer.made == 2


async def test_a_body_does_not_end_where_its_connection_is_reset():
    async with against(then_closing([LINE + b"\r\nall", b" of it"], cut=True)) as (client, _):
        assert (await failure(client)).outcome == "reset"


# --- framing that two readers may read in two ways

SMUGGLING = {
    "length and coding": LINE + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    "coding and length": LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + HELLO,
    "two lengths": LINE + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "one length twice": LINE + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": LINE + b"Content-Length: 5, 5\r\n\r\nhello",
    "a length with a sign": LINE + b"Content-Length: +5\r\n\r\nhello",
    "a length below zero": LINE + b"Content-Length: -5\r\n\r\nhello",
    "a hexadecimal length": LINE + b"Content-Length: 0x5\r\n\r\nhello",
    "no length in its field": LINE + b"Content-Length: \r\n\r\nhello",
    "a length beyond 64 bits": LINE + b"Content-Length: 18446744073709551621\r\n\r\nhello",
    "codings behind chunked": LINE + b"Transfer-Encoding: chunked, identity\r\n\r\n" + HELLO,
    "codings before chunked": LINE + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + HELLO,
    "chunked twice": LINE + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    "identity": LINE + b"Transfer-Encoding: identity\r\n\r\nhello",
    "a coding that only resembles chunked": LINE + b"Transfer-Encoding: xchunked\r\n\r\n" + HELLO,
    "a vertical tab before chunked": LINE + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + HELLO,
    "a tab behind chunked": LINE + b"Transfer-Encoding: chunked\t\r\n\r\n" + HELLO,
    "a comma behind chunked": LINE + b"Transfer-Encoding: chunked,\r\n\r\n" + HELLO,
    "a comma before chunked": LINE + b"Transfer-Encoding: ,chunked\r\n\r\n" + HELLO,
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    "a blank before the colon": LINE + b"Content-Length : 5\r\n\r\nhello",
    "a folded line": LINE + b"X-A: 1\r\n b\r\nContent-Length: 5\r\n\r\nhello",
    "a folded coding": LINE + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + HELLO,
    "a blank before the first field": LINE + b" X-A: 1\r\nContent-Length: 5\r\n\r\nhello",
    "NUL in a value": LINE + b"X-A: a\0b\r\nContent-Length: 5\r\n\r\nhello",
    "NUL in a name": LINE + b"X\0A: b\r\nContent-Length: 5\r\n\r\nhello",
    "NUL in the reason": b"HTTP/1.1 200 O\0K\r\nContent-Length: 5\r\n\r\nhello",
    "a field without colon": LINE + b"foo\r\nContent-Length: 5\r\n\r\nhello",
    "a field without name": LINE + b": b\r\nContent-Length: 5\r\n\r\nhello",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "bare LF in a field": LINE + b"X-A: 1\nContent-Length: 5\r\n\r\nhello",
    "bare CR in a field": LINE + b"X-A: 1\rContent-Length: 5\r\n\r\nhello",
    "bare LF before the body": LINE + b"Content-Length: 5\r\n\nhello",
    "bare LF in chunks": CHUNKED + b"5\nhello\n0\n\n",
    "a chunk size with a prefix": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a sign": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a blank": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "no chunk size": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
    "a chunk that is shorter than it says": CHUNKED + b"5\r\nhell\r\n0\r\n\r\n",
    "LF in a chunk extension": CHUNKED + b"5;a\nhello\r\n0\r\n\r\n",
    "CR in a chunk extension": CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a line's end in a quoted extension": CHUNKED + b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n',
    "a length among the trailers": CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n",
    "an interim answer with a length": b"HTTP/1.1 103 Hints\r\nContent-Length: 43\r\n\r\n" + OK,
    "an interim answer in chunks": b"HTTP/1.1 103 Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + OK,
    "an empty line before the answer": b"\r\n" + OK,
    "another protocol": b"ICE/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/0.9": b"<html>",
    "HTTP/2 in the status line": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "a status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "a status below 100": b"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
    "a switch of protocols": b"HTTP/1.1 101 Sw\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + OK,
    "a switch to nothing": b"HTTP/1.1 101 Sw\r\n\r\n" + OK,
}


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize("name", SMUGGLING)
async def test_framing_that_may_be_read_in_two_ways_is_no_answer(name, call):
    async with against(saying(SMUGGLING[name], OK)) as (client, peer):
        error = await failure(client, call)
        assert error.outcome == "reset"
        await until(lambda: peer.open == 0)
        assert (await failure(client, call)).outcome == "reset", "a new connection has the first answer again"
        assert peer.made == 2


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + b'5;a;b=c;d="e"\r\nhello\r\n0\r\n\r\n',
        CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nContent-Type: x\r\n\r\n",
        LINE + b"content-length:5\t\r\nX-A: \xff\t\xe9 \r\n\r\nhello",
        b"HTTP/1.1 200\r\nContent-Length: 005 \r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\n" + LINE + b"Content-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" * INTERIM_LIMIT + LINE + b"Content-Length: 5\r\n\r\nhello",
    ],
)
async def test_what_is_unusual_and_clear_is_an_answer_like_any(answer):
    async with against(saying(answer)) as (client, peer):
        for _ in range(2):
            reply = await client.ask()
            assert (reply.status, reply.body) == (200, b"hello")
            assert {name.lower() for name, _ in reply.headers} <= {"x-a"}, "nothing of an interim answer or a trailer"
        assert peer.made == 1


# --- bounds


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 103 Hints\r\n\r\n" * (INTERIM_LIMIT + 1) + OK,
        LINE + b"X-A: b\r\n" * FIELDS_LIMIT + b"Content-Length: 2\r\n\r\nok",
        LINE + b"X-A: " + bytes([98]) * HEAD_LIMIT + b"\r\nContent-Length: 2\r\n\r\nok",
        LINE + bytes([98]) * (2 * HEAD_LIMIT),
        b"HTTP/1.1 200 " + bytes([98]) * (2 * HEAD_LIMIT),
        CHUNKED + b"5\r\nhello\r\n0\r\n" + b"X-A: b\r\n" * FIELDS_LIMIT + b"\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\nX-A: " + bytes([98]) * HEAD_LIMIT + b"\r\n\r\n",
        CHUNKED + b"5;" + bytes([98]) * (2 * HEAD_LIMIT),
        CHUNKED + b"0" * (2 * HEAD_LIMIT) + b"5\r\nhello\r\n0\r\n\r\n",
    ],
    ids=["interim", "fields", "field", "name", "reason", "trailers", "trailer", "extension", "size"],
)
async def test_what_is_beside_the_body_is_bounded(answer, call):
    async with against(saying(answer)) as (client, peer):
        assert (await failure(client, call)).outcome == "reset"
        await until(lambda: peer.open == 0)


def endless(sent, gigabyte=1 << 30):
    """A body of a gigabyte, which nobody should wait for; `sent` counts what left."""
    part = b"10000\r\n" + bytes(1 << 16) + b"\r\n"

    async def script(line):
        await line.request()
        line.writer.write(CHUNKED)
        for _ in range(gigabyte >> 16):
            line.writer.write(part)
            sent[0] += 1 << 16
            await line.writer.drain()

    return script


async def test_an_answer_without_end_is_held_up_to_its_limit():
    sent = [0]
    async with against(endless(sent)) as (client, peer):
        tracemalloc.start()
        try:
            error = await failure(client)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (error.outcome, error.status, error.retryable) == ("reset", 200, False)
        await until(lambda: peer.open == 0)
    assert peak < ANSWER_LIMIT * 5 // 4, "a growing buffer reserves an eighth beforehand"
    assert ANSWER_LIMIT <= sent[0] < ANSWER_LIMIT + (32 << 20), "what systems buffer between two sockets"


async def test_a_body_in_the_smallest_chunks_is_held_at_its_size(monkeypatch):
    monkeypatch.setattr(worker_client, "ANSWER_LIMIT", 1 << 20)
    chunks = b"1\r\nx\r\n" * 1000
    async with against(then_closing([CHUNKED, *[chunks] * 1100])) as (client, _):
        tracemalloc.start()
        try:
            error = await failure(client)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (error.outcome, error.retryable) == ("reset", False)
    assert peak < 4 << 20


async def test_a_server_is_held_back_while_a_stream_is_not_read():
    sent = [0]
    async with against(endless(sent)) as (client, peer):
        reply = await client.ask(STREAM)
        held = reply.body._exchange._reader.body
        read = 0
        for _ in range(4):
            before = -1
            while before != sent[0]:  # until nothing moves any more
                before = sent[0]
                await asyncio.sleep(0.05)
            assert LOW_WATER <= len(held) <= HIGH_WATER + READ
            assert sent[0] - read < 32 << 20, "the rest waits at the server's side"
            wanted = read + (8 << 20)
            while read < wanted:
                read += len(await anext(reply.body))
                assert len(held) <= HIGH_WATER + READ
        await reply.body.aclose()
        await until(lambda: peer.open == 0)
    assert sent[0] < 1 << 30


async def test_what_was_held_back_arrives_whole():
    part = bytes(range(256)) * 256
    script = then_closing([LINE + b"Content-Length: 8388608\r\n\r\n", *[part] * 128])
    async with against(script) as (client, _):
        reply = await client.ask(STREAM)
        got = bytearray()
        async for chunk in reply.body:
            got += chunk
            await asyncio.sleep(0)
        assert got == part * 128


@pytest.mark.parametrize(
    "drip",
    [LINE + b"X-A: " + b"b" * 2000, CHUNKED + b"5;" + b"b" * 2000, OK[:-2] + b"o"],
    ids=["head", "framing", "body"],
)
async def test_a_head_or_a_body_that_drips_is_left_at_the_deadline(drip):
    async def script(line):
        await line.request()
        for i in range(len(drip)):
            await line.say(drip[i : i + 1])
            await asyncio.sleep(0.01 if i > 40 else 0)
        await line.request()

    async with against(script) as (client, peer):
        error = await failure(client, within=0.3)
        assert (error.outcome, error.retryable) == ("timeout", False)
        await until(lambda: peer.open == 0)


async def test_framing_without_content_does_not_keep_a_stream_alive():
    async def script(line):
        await line.request()
        await line.say(CHUNKED + b"3\r\none\r\n")
        for _ in range(1000):
            await line.say(b"000")
            await asyncio.sleep(0.01)

    async with against(script) as (client, peer):
        reply = await client.ask(STREAM, within=0.3)
        assert await anext(reply.body) == b"one"
        with pytest.raises(AttemptFailed, match="timeout"):
            await anext(reply.body)
        await until(lambda: peer.open == 0)


# --- an answer before the request has left

LARGE = replace(CALL, body=bytes(range(256)) * (1 << 15))


@pytest.mark.parametrize("call", [LARGE, replace(LARGE, stream=True)])
async def test_an_early_answer_is_taken_and_its_connection_closed(call):
    async def script(line):
        await line.reader.readuntil(b"\r\n\r\n")
        await line.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(0.2)  # it does not read on, and does not close either
        while await line.reader.read(1 << 20):
            pass

    async with against(script) as (client, peer):
        for made in (1, 2):
            reply = await client.ask(call)
            assert (reply.status, reply.body) == (413, b"no")
            assert peer.made == made
        await until(lambda: peer.open == 0)


async def test_a_large_request_arrives_whole_at_a_slow_server_and_does_not_pile_up_before_it():
    async with against(saying(OK)) as (client, peer):
        for _ in range(2):
            assert (await client.ask(LARGE)).body == b"ok"
        assert peer.made == 1
    waiting = []

    async def slow(line):
        head = await line.reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 8388608\r\n" in head
        got = bytearray()
        while len(got) < len(LARGE.body):
            got += await line.reader.read(1 << 16)
            waiting.append(connection._transport.get_write_buffer_size())
            await asyncio.sleep(0)
        assert got == LARGE.body
        await line.say(OK)
        await line.request()

    async with against(slow) as (client, _):
        connection = await client.connections.pool(client.backend).connection(30)
        client.connections.pool(client.backend)._over(connection)  # idle, so the next request goes over it
        assert (await client.ask(LARGE)).body == b"ok"
    assert max(waiting) <= 256 << 10


# --- what may not be sent


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nb", "a\rb", "a\0b", "\u20ac"])
async def test_a_header_that_would_be_two_is_never_sent(value):
    async with against(saying(OK)) as (client, peer):
        with pytest.raises(AssertionError, match="header"):
            await client.ask(traceparent=value)
        with pytest.raises(AssertionError, match="header"):
            await client.ask(replace(CALL, headers=(("content-type", value),)))
        await client.ask(replace(CALL, path=f"/v1/{value}"))
        assert peer.made == 1, "in a path it is escaped"
