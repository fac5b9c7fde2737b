"""Streams through a real gateway: events at once, the closing one only after the audit has the completion."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.fleet.servers import Answer, Request, stream, until
from tests.running import HASH, Running, running

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "stream": True}


def event(text: str) -> bytes:
    return b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % text.encode()


def paced(chunks: list[bytes], gate: asyncio.Event) -> Answer:
    """The first chunks at once, the last only when the gate opens."""

    async def answer(writer: asyncio.StreamWriter, _: Request) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number, chunk in enumerate(chunks):
            if number == len(chunks) - 1:
                await gate.wait()
            writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    return answer


async def chat(gateway: Running, **headers: str) -> AsyncIterator[bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with gateway.client.stream("POST", "/v1/chat/completions", json=CHAT, headers=named) as answer:
        assert answer.status_code == 200
        async for part in answer.aiter_raw():
            yield part


async def test_events_arrive_as_they_are_made(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        more = asyncio.Event()
        marker = event("say data: [DONE] now")
        chunks = [event("one"), marker, event("two"), b"data: [DO", b"NE]\n\n"]
        gateway.upstreams["us-east"].answer = paced(chunks, more)
        seen = b""
        async for part in chat(gateway):
            seen += part
            if event("two") in seen and not more.is_set():
                assert seen == event("one") + marker + event("two")
                more.set()
        assert seen == b"".join(chunks)
        _, completion = await gateway.records()
        assert (completion["outcome"], completion["bytes_out"]) == ("served", len(seen))


async def test_the_end_comes_after_the_completion_and_without_waiting_for_a_slow_close(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:

        async def linger(_writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(30)

        gateway.upstreams["us-east"].answer = stream([event("one"), b"data: [DONE]\n\n"], linger)
        began = time.monotonic()
        async for part in chat(gateway):
            if b"[DONE]" in part:
                assert [record["kind"] for record in await gateway.records()] == ["decision", "completion"]
        assert time.monotonic() - began < 20


async def test_a_stream_that_breaks_off_is_seen_and_recorded(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:

        async def cut(writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        gateway.upstreams["us-east"].answer = stream([event("one")], cut)
        with pytest.raises(httpx.TransportError):
            async for _ in chat(gateway):
                pass
        _, completion = await gateway.records()
        assert completion["outcome"] == "failed"
        assert len(gateway.upstreams["us-east"].posts) == 1  # nothing is repeated once something has been sent


async def test_a_client_that_leaves_ends_the_stream_everywhere(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        region = gateway.upstreams["us-east"]
        region.answer = paced([event("one"), event("two")], asyncio.Event())
        parts = chat(gateway)
        assert await anext(parts) == event("one")
        await parts.aclose()
        await asyncio.wait_for(region.server.gone.wait(), 20)
        async with asyncio.timeout(20):
            while len(records := await gateway.records()) < 2:  # noqa: ASYNC110 - another process tells
                await asyncio.sleep(0.05)
        assert records[1]["outcome"] == "cancelled"


async def test_a_deadline_bounds_the_whole_stream(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        gateway.upstreams["us-east"].answer = paced([event("one"), event("two")], asyncio.Event())
        with pytest.raises(httpx.TransportError):
            async for _ in chat(gateway, X_Request_Timeout_Ms="700"):
                pass
        _, completion = await gateway.records()
        assert completion["outcome"] == "failed"


async def test_a_streams_usage_is_charged(tmp_path: Path) -> None:
    limits = {"tokens": "10000/hour"}
    tenant = {"id": "demo", "keys": [HASH], "scopes": ["infer"], "subject": "US", "limits": limits}
    async with running(tmp_path, tenants=[tenant]) as gateway:
        usage = b'data: {"choices": [], "usage": {"total_tokens": 6000}}\n\n'
        gateway.upstreams["us-east"].answer = stream([event("one"), usage, b"data: [DONE]\n\n"])
        async for _ in chat(gateway):
            pass
        answer = await gateway.client.post("/v1/chat/completions", json={**CHAT, "stream": False})
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 4000


async def test_whoever_prefers_another_region_gets_its_answer(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        assert (await gateway.embed("same")).headers["X-Cache-Status"] == "MISS"
        again = await gateway.embed("same")
        assert (again.headers["X-Cache-Status"], again.headers["Age"]) == ("HIT", "0")
        other = await gateway.embed("same", X_Region_Prefer="eu-west")
        assert (other.headers["X-Served-Region"], other.headers["X-Cache-Status"]) == ("eu-west", "MISS")
        decisions = [record for record in await gateway.records() if record["kind"] == "decision"]
        assert len(decisions) == 3


async def test_a_slash_too_many_is_not_redirected(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        answer = await gateway.client.post("/v1/embeddings/", json={}, headers={"Host": "evil.example"})
        assert (answer.status_code, "Location" in answer.headers) == (404, False)
        await until(lambda: "/v1/embeddings/" in gateway.log)
