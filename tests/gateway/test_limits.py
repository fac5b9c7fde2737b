"""Limits through a real gateway: which apply, what is charged however a request ends, and that each admits its rate."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fleet.servers import Request, cut_at_once, hang, reply, stream, until
from tests.gateway.test_streams import event, paced
from tests.running import HASH, Running, running

SECOND = "second-key"
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
STREAM = {**CHAT, "stream": True}
PROMPT = {False: len(json.dumps(CHAT)), True: len(json.dumps(STREAM))}
DONE = b"data: [DONE]\n\n"
SHOWN = {"per_key": {"tokens": {"amount": 1000, "seconds": 86400, "burst": 1_000_000}}}
"""Enough for every request, so that its headers tell what was charged, and nothing comes back meanwhile."""


@asynccontextmanager
async def limited(directory: Path, limits: dict[str, Any], **changes: Any) -> AsyncIterator[Running]:
    keys = [HASH, "sha256:" + sha256(SECOND.encode()).hexdigest()]
    scopes = ["infer", "audit:admin", "admin"]
    tenant = {"id": "demo", "keys": keys, "scopes": scopes, "subject": "US", "limits": limits}
    async with running(directory, "us-east", tenants=[tenant], **changes) as gateway:
        yield gateway


async def post(gateway: Running, body: dict[str, Any], **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.client.post("/v1/chat/completions", content=json.dumps(body), headers=JSON | named)


JSON = {"Content-Type": "application/json"}


def second() -> dict[str, str]:
    return {"Authorization": f"Bearer {SECOND}"}


def left(answer: httpx.Response, kind: str) -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{kind}"])


async def charged(gateway: Running) -> int:
    """What has been charged until now, by a request that costs nothing: it names an answer that is not kept."""
    answer = await post(gateway, {**CHAT, "seed": 0}, Cache_Control="only-if-cached")
    assert answer.status_code == 504
    return 1_000_000 - left(answer, "tokens")


# --- which apply


async def test_a_key_has_a_limit_of_its_own_and_shares_the_tenants(tmp_path: Path) -> None:
    async with limited(tmp_path, {"requests": "3/hour", "per_key": {"requests": "2/hour"}}) as gateway:
        one = [await gateway.embed(str(number)) for number in range(3)]
        assert [answer.status_code for answer in one] == [200, 200, 429]
        assert one[0].headers["RateLimit-Policy"] == '"requests";q=3;w=3600, "key-requests";q=2;w=3600'
        assert one[0].headers["RateLimit"].startswith('"key-requests";r=1;t=')
        assert one[2].headers["RateLimit"].startswith('"key-requests";r=0;t=')
        assert one[2].headers["x-ratelimit-limit-requests"] == "2"
        other = [await gateway.embed(str(number), **second()) for number in range(2)]
        assert [answer.status_code for answer in other] == [200, 429]
        assert other[1].headers["RateLimit"].startswith('"requests";r=0;t=')
        metrics = (await gateway.client.get("/metrics")).text
        assert 'tidegate_rate_limited_total{limit="key-requests"} 1.0' in metrics
        assert 'tidegate_rate_limited_total{limit="requests"} 1.0' in metrics


async def test_a_model_has_a_limit_for_all_keys_and_what_it_refuses_is_charged_to_none(tmp_path: Path) -> None:
    limits = {"requests": "10/hour", "tokens": "9000/hour", "models": {"chat": {"requests": "1/hour"}}}
    async with limited(tmp_path, limits) as gateway:
        gateway.upstreams["us-east"].answer = reply(200, b'{"usage": {"total_tokens": 1000}}')
        first = await post(gateway, CHAT)
        assert first.headers["RateLimit"].startswith('"model-requests";r=0;t=')
        assert left(first, "tokens") == 8000
        for _ in range(3):
            refused = await post(gateway, CHAT, **second())
            assert (refused.status_code, left(refused, "tokens")) == (429, 8000)
            assert refused.headers["RateLimit"].startswith('"model-requests";r=0;t=')
            assert 3590 <= int(refused.headers["Retry-After"]) <= 3600
            assert int(refused.headers["retry-after-ms"]) <= 3_600_000
        other = await gateway.embed("another model")
        assert (other.status_code, left(other, "requests")) == (200, 8)


async def test_tokens_that_never_fit_are_charged_nowhere(tmp_path: Path) -> None:
    limits = {"requests": "10/hour", "tokens": "9000/hour", "models": {"chat": {"tokens": "100/hour"}}}
    async with limited(tmp_path, limits) as gateway:
        never = await post(gateway, {**CHAT, "max_tokens": 101})
        assert (never.status_code, "Retry-After" in never.headers, "retry-after-ms" in never.headers) == (
            429,
            False,
            False,
        )
        assert never.headers["x-should-retry"] == "false"
        assert (left(never, "requests"), left(never, "tokens")) == (10, 100)
        fits = await post(gateway, {**CHAT, "max_tokens": 20})
        assert (fits.status_code, left(fits, "requests")) == (200, 9)


async def test_an_unknown_model_has_no_limit_and_makes_none(tmp_path: Path) -> None:
    async with limited(tmp_path, {"requests": "10/hour", "models": {"chat": {"requests": "1/hour"}}}) as gateway:
        for number in range(3):
            answer = await gateway.embed(model=f"nobody-{number}")
            assert (answer.status_code, left(answer, "requests")) == (404, 9 - number)


# --- what is charged, however a request ends


Asked = dict[str, Any]
ENDS: dict[str, tuple[Any, Asked, int, int]] = {
    "told": (reply(200, b'{"usage": {"total_tokens": 777}}'), CHAT, 200, 777),
    "not told": (
        reply(200),
        {**CHAT, "max_tokens": 50, "n": 2},
        200,
        (PROMPT[False] + len(', "max_tokens": 50, "n": 2')) // 4 + 100,
    ),
    "refused by the backend": (reply(400), {**CHAT, "max_tokens": 50}, 400, 0),
    "failed": (reply(500), {**CHAT, "max_tokens": 50}, 502, 0),
    "lost": (cut_at_once, CHAT, 502, 0),
    "a stream, told": (stream([event("a"), b'data: {"usage": {"total_tokens": 9}}\n\n', DONE]), STREAM, 200, 9),
    "a stream, not told": (stream([event("a"), event("b"), DONE]), STREAM, 200, PROMPT[True] // 4 + 3),
    "a stream, refused": (reply(429), STREAM, 429, 0),
}


@pytest.mark.parametrize("name", ENDS)
async def test_what_is_charged(tmp_path: Path, name: str) -> None:
    answer, body, status, tokens = ENDS[name]
    retry = {"retry": {"attempts": 2, "base": "1ms"}}
    async with limited(tmp_path, {"concurrency": 1, **SHOWN}, resilience=retry) as gateway:
        gateway.upstreams["us-east"].answer = answer
        assert (await post(gateway, body)).status_code == status
        assert await charged(gateway) == pytest.approx(tokens, abs=1)
        gateway.upstreams["us-east"].answer = reply(200)
        assert (await post(gateway, {**CHAT, "seed": 1})).status_code != 429, "its place is free"


async def test_an_answer_from_the_cache_costs_a_request_and_no_tokens(tmp_path: Path) -> None:
    async with limited(tmp_path, {"concurrency": 1, "requests": "10/hour", **SHOWN}) as gateway:
        gateway.upstreams["us-east"].answer = reply(200, b'{"usage": {"total_tokens": 500}}')
        first = await post(gateway, CHAT)
        again = await post(gateway, CHAT)
        assert (first.headers["X-Cache-Status"], again.headers["X-Cache-Status"]) == ("MISS", "HIT")
        assert (left(first, "tokens"), left(again, "tokens")) == (999_500, 999_500)
        assert (left(first, "requests"), left(again, "requests")) == (9, 8)


async def test_a_refusal_for_concurrency_is_charged_nowhere(tmp_path: Path) -> None:
    limits = {"requests": "10/hour", "models": {"chat": {"concurrency": 1}}, **SHOWN}
    async with limited(tmp_path, limits) as gateway:
        region = gateway.upstreams["us-east"]
        region.answer = hang
        running_one = asyncio.create_task(post(gateway, CHAT))
        await until(lambda: bool(region.posts))
        for _ in range(3):
            refused = await post(gateway, {**CHAT, "seed": 1}, **second())
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
            assert left(refused, "requests") == 9
            assert left(refused, "tokens") == 1_000_000
        region.answer = reply(200)
        assert (await gateway.embed("another model")).status_code == 200
        running_one.cancel()


async def test_a_client_that_leaves_before_its_answer_pays_for_what_it_asked(tmp_path: Path) -> None:
    async with limited(tmp_path, {"concurrency": 1, **SHOWN}) as gateway:
        region = gateway.upstreams["us-east"]
        region.answer = hang
        leaving = asyncio.create_task(post(gateway, {**CHAT, "max_tokens": 5000}))
        await until(lambda: bool(region.posts))
        leaving.cancel()
        region.answer = reply(200, b'{"usage": {"total_tokens": 0}}')
        await free_again(gateway)
        assert await charged(gateway) == pytest.approx(PROMPT[False] // 4 + 5, abs=2)


@pytest.mark.parametrize("left_by", ["client", "backend"])
async def test_a_stream_that_ends_early_pays_for_what_came(tmp_path: Path, left_by: str) -> None:
    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with limited(tmp_path, {"concurrency": 1, **SHOWN}) as gateway:
        region = gateway.upstreams["us-east"]
        events = [event("a"), event("b"), DONE]
        region.answer = paced(events, asyncio.Event()) if left_by == "client" else stream(events[:2], cut)
        body = {**STREAM, "max_tokens": 5000}
        async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert left(answer, "tokens") < 995_000, "while it runs, all that it may use is set aside"
            seen = b""
            try:
                async for part in answer.aiter_raw():
                    seen += part
                    if left_by == "client" and seen.count(b"data:") == 2:
                        break
            except httpx.TransportError:
                assert left_by == "backend"
        region.answer = reply(200, b'{"usage": {"total_tokens": 0}}')
        await free_again(gateway)
        assert await charged(gateway) == pytest.approx(PROMPT[True] // 4 + 5 + 2, abs=3)


async def free_again(gateway: Running) -> None:
    """Until the one place is free: what ran has ended."""
    async with asyncio.timeout(20):
        while (await gateway.embed(str(time.monotonic()))).status_code == 429:  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["answer", "stream"])
async def test_places_are_free_once_clients_are_cut_off(tmp_path: Path, body: Asked) -> None:
    async with limited(tmp_path, {"concurrency": 24}) as gateway:
        region = gateway.upstreams["us-east"]
        region.answer = paced([event("a"), DONE], asyncio.Event()) if body is STREAM else hang
        writers = [await opened(gateway, {**body, "seed": n}) for n in range(24)]  # equal ones would share a place
        await until(lambda: len(region.posts) == 24)
        assert (await gateway.embed("one more")).status_code == 429
        for writer in writers:
            writer.transport.abort()
            writer.close()
        region.answer = slow(0.2)
        answers: list[int] = []
        async with asyncio.timeout(20):
            while answers != [200] * 24:
                found = await asyncio.gather(*(gateway.embed(f"{time.monotonic()}-{n}") for n in range(24)))
                answers = [answer.status_code for answer in found]
        assert (await gateway.embed("and none is free twice")).status_code == 200


def slow(seconds: float) -> Callable[[asyncio.StreamWriter, Request], Any]:
    async def answer(writer: asyncio.StreamWriter, request: Request) -> None:
        await asyncio.sleep(seconds)
        await reply(200)(writer, request)

    return answer


async def opened(gateway: Running, body: dict[str, Any]) -> asyncio.StreamWriter:
    """A connection with a request under way."""
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    content = json.dumps(body).encode()
    head = ("POST /v1/chat/completions HTTP/1.1", "Host: x", f"Content-Length: {len(content)}")
    more = (*JSON_HEAD, "", "")
    writer.write("\r\n".join((*head, *more)).encode() + content)
    return writer


JSON_HEAD = ("Content-Type: application/json", "Authorization: Bearer test-key")


# --- exactness


async def test_a_rate_admits_its_burst_and_what_has_come_back_since_and_no_more(tmp_path: Path) -> None:
    """As many come as can for two seconds; the long form, of a whole minute, is benchmarks/limits.py."""
    burst, per_second = 20, 20
    async with limited(tmp_path, {"requests": {"amount": 600, "seconds": 30, "burst": burst}}) as gateway:
        sent: list[float] = []
        answered: list[float] = []
        admitted = 0

        async def ask() -> bool:
            nonlocal admitted
            sent.append(time.monotonic())
            answer = await gateway.embed(str(len(sent)))
            answered.append(time.monotonic())
            assert answer.status_code in (200, 429)
            admitted += answer.status_code == 200
            return answer.status_code == 200

        async def client() -> None:
            while time.monotonic() < sent[0] + 2:
                await ask()

        await ask()
        await asyncio.gather(*(client() for _ in range(8)))
        while await ask():
            pass  # until one does not fit: nothing is left then
        assert len(sent) > 1.5 * admitted, "more came than fit"
        # The gateway saw the first and the last of them between when each was sent and answered.
        shortest, longest = sent[-1] - answered[0], answered[-1] - sent[0]
        assert burst + per_second * shortest - 1 <= admitted <= burst + per_second * longest
