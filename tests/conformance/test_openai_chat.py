"""Chat and completions through the unmodified `openai` SDK, a gateway, and a real server of protocol openai."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.fleet.servers import Answer, Request, hang, reply, stream, until
from tests.running import KEY, Running, Upstream, running

pytestmark = [pytest.mark.xdist_group("chat"), pytest.mark.asyncio(loop_scope="module")]

HELLO = [{"role": "user", "content": "hello"}]
WORDS = ("The ", "tide ", "turns", ".")
DONE = b"data: [DONE]\n\n"
CUT = b""
USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


def chunk(text: str, *, chat: bool = True) -> bytes:
    """One server-sent event of a streamed answer."""
    choice = {"index": 0, "finish_reason": None} | ({"delta": {"content": text}} if chat else {"text": text})
    kind = "chat.completion.chunk" if chat else "text_completion"
    return (
        b"data: "
        + json.dumps({"id": "c", "object": kind, "created": 1, "model": "chat", "choices": [choice]}).encode()
        + b"\n\n"
    )


def whole(*, chat: bool = True) -> bytes:
    text = "".join(WORDS)
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    kind = "chat.completion" if chat else "text_completion"
    choice = {"index": 0, "finish_reason": "stop", **said}
    return json.dumps(
        {"id": "c", "object": kind, "created": 1, "model": "chat", "choices": [choice], "usage": USAGE}
    ).encode()


class Paced:
    """An answer whose events leave one by one, each when it is called for; `CUT` breaks the connection off."""

    def __init__(self, *events: bytes) -> None:
        self.events = events
        self.calls: asyncio.Queue[None] = asyncio.Queue()
        self.left = asyncio.Event()
        """Set once the client has gone while events were still to come."""

    def go(self) -> None:
        self.calls.put_nowait(None)

    async def __call__(self, writer: asyncio.StreamWriter, _: Request) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for event in self.events:
                await self.calls.get()
                if event == CUT:
                    writer.transport.abort()
                    return
                writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
                await writer.drain()
        except asyncio.CancelledError:
            self.left.set()
            raise
        writer.write(b"0\r\n\r\n")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("chat"), "us-east") as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def upstream(gateway: Running, answer: Answer) -> Upstream:
    """The region's server, from now on with this answer and no memory."""
    found = gateway.upstreams["us-east"]
    found.server.requests.clear()
    found.answer = answer
    return found


async def ended(gateway: Running, request_id: str) -> dict[str, Any]:
    """The one completion of a request, once it is there."""
    async with asyncio.timeout(20):
        while len(records := await gateway.records(request_id=request_id)) < 2:  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(0.05)
    decision, completion = records
    assert (decision["outcome"], completion["decision_id"]) == ("permitted", decision["id"])
    return completion


async def idle(gateway: Running) -> bool:
    return (await gateway.client.get("/v1/regions")).json()["data"][0]["in_flight"] == 0


async def test_a_chat(gateway: Running, sdk: openai.AsyncOpenAI) -> None:
    region = upstream(gateway, reply(200, whole()))
    raw = await sdk.chat.completions.with_raw_response.create(
        model="chat", messages=HELLO, extra_headers={"X-Request-Id": "whole"}
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "The tide turns."
    assert answer.usage.total_tokens == 9
    assert (raw.headers["x-served-region"], raw.headers["x-cache-status"]) == ("us-east", "BYPASS")
    [post] = region.posts
    assert json.loads(post.body) == {"model": "chat", "messages": HELLO}
    assert post.headers["x-request-id"] == "whole"
    assert "authorization" not in post.headers
    assert (await ended(gateway, "whole"))["outcome"] == "served"


async def test_the_synchronous_client(gateway: Running) -> None:
    upstream(gateway, stream([*map(chunk, WORDS), DONE]))

    def ask() -> list[str | None]:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key=KEY, max_retries=0) as client:
            chunks = client.chat.completions.create(model="chat", messages=HELLO, stream=True)
            return [each.choices[0].delta.content for each in chunks]

    assert await asyncio.to_thread(ask) == list(WORDS)


async def test_a_settled_answer_is_computed_once(gateway: Running, sdk: openai.AsyncOpenAI) -> None:
    region = upstream(gateway, reply(200, whole()))
    for status in ("MISS", "HIT"):
        raw = await sdk.chat.completions.with_raw_response.create(model="chat", messages=HELLO, temperature=0)
        assert raw.headers["x-cache-status"] == status
        assert raw.parse().choices[0].message.content == "The tide turns."
    assert len(region.posts) == 1


@pytest.mark.parametrize("chat", [True, False])
async def test_chunks_arrive_one_by_one(gateway: Running, sdk: openai.AsyncOpenAI, chat: bool) -> None:
    """None is sent before its forerunner has been read, so that a gateway which gathers them would hang here."""
    answer = Paced(*(chunk(word, chat=chat) for word in WORDS), DONE)
    region = upstream(gateway, answer)
    headers = {"X-Request-Id": f"paced-{chat}"}
    async with asyncio.timeout(30):
        chunks: Any
        if chat:
            chunks = await sdk.chat.completions.create(model="chat", messages=HELLO, stream=True, extra_headers=headers)
        else:
            chunks = await sdk.completions.create(model="chat", prompt="hello", stream=True, extra_headers=headers)
        assert chunks.response.headers["content-type"].startswith("text/event-stream")
        assert chunks.response.headers["x-served-region"] == "us-east"
        for word in WORDS:
            answer.go()
            choice = (await anext(chunks)).choices[0]
            assert (choice.delta.content if chat else choice.text) == word
        answer.go()
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
    assert region.posts[0].line.split()[1] == ("/v1/chat/completions" if chat else "/v1/completions")
    completion = await ended(gateway, f"paced-{chat}")
    assert (completion["outcome"], completion["status"], completion["region"]) == ("served", 200, "us-east")
    assert completion["bytes_out"] == sum(len(event) for event in answer.events)


async def test_a_completion(gateway: Running, sdk: openai.AsyncOpenAI) -> None:
    region = upstream(gateway, reply(200, whole(chat=False)))
    answer = await sdk.completions.create(model="chat", prompt="hello")
    assert answer.choices[0].text == "The tide turns."
    assert region.posts[0].line.startswith("POST /v1/completions ")


async def test_done_comes_last_and_after_the_record(gateway: Running) -> None:
    upstream(gateway, stream([*map(chunk, WORDS), DONE]))
    body = {"model": "chat", "messages": HELLO, "stream": True}
    answer = await gateway.client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "recorded"})
    assert answer.content == b"".join(map(chunk, WORDS)) + DONE
    assert len(await gateway.records(request_id="recorded")) == 2  # no waiting: the last byte came after it


async def test_a_stream_cut_in_the_middle(gateway: Running, sdk: openai.AsyncOpenAI) -> None:
    answer = Paced(chunk("The "), chunk("tide "), CUT)
    region = upstream(gateway, answer)
    chunks = await sdk.chat.completions.create(
        model="chat", messages=HELLO, stream=True, extra_headers={"X-Request-Id": "cut"}
    )
    for word in ("The ", "tide "):
        answer.go()
        assert (await anext(chunks)).choices[0].delta.content == word
    answer.go()
    with pytest.raises(openai.APIConnectionError):
        await anext(chunks)
    assert len(region.posts) == 1  # bytes had reached the client: no second attempt may follow
    completion = await ended(gateway, "cut")
    assert (completion["outcome"], completion["body_may_have_arrived"]) == ("failed", True)
    assert await idle(gateway)


async def test_a_client_that_leaves_mid_stream(gateway: Running, sdk: openai.AsyncOpenAI) -> None:
    answer = Paced(*map(chunk, WORDS), DONE)
    upstream(gateway, answer)
    chunks = await sdk.chat.completions.create(
        model="chat", messages=HELLO, stream=True, extra_headers={"X-Request-Id": "left"}
    )
    answer.go()
    assert (await anext(chunks)).choices[0].delta.content == "The "
    assert not answer.left.is_set()
    await chunks.close()
    await asyncio.wait_for(answer.left.wait(), 20)
    completion = await ended(gateway, "left")
    assert (completion["outcome"], completion["region"]) == ("cancelled", "us-east")
    assert await idle(gateway)


async def test_a_client_that_leaves_before_the_first_chunk(gateway: Running, sdk: openai.AsyncOpenAI) -> None:
    region = upstream(gateway, hang)
    asking = asyncio.create_task(
        sdk.chat.completions.create(model="chat", messages=HELLO, extra_headers={"X-Request-Id": "early"})
    )
    await until(lambda: bool(region.posts))
    asking.cancel()
    completion = await ended(gateway, "early")
    assert (completion["outcome"], completion["status"]) == ("cancelled", 499)


async def test_a_refusal_of_the_backend_passes_through(gateway: Running, sdk: openai.AsyncOpenAI) -> None:
    error = {"message": "no such tool", "type": "invalid_request_error", "param": "tools", "code": "unknown_tool"}
    upstream(gateway, reply(400, json.dumps({"error": error}).encode()))
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(model="chat", messages=HELLO, stream=True)
    assert (refused.value.code, refused.value.param) == ("unknown_tool", "tools")


async def test_the_callers_deadline(gateway: Running, sdk: openai.AsyncOpenAI) -> None:
    region = upstream(gateway, hang)
    with pytest.raises(openai.InternalServerError) as late:
        await sdk.chat.completions.create(
            model="chat", messages=HELLO, extra_headers={"X-Request-Timeout-Ms": "300", "Accept-Language": "ja"}
        )
    assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
    assert late.value.response.headers["content-language"] == "ja"
    assert 0 < int(region.posts[0].headers["x-request-timeout-ms"]) <= 300


async def test_the_sdks_own_timeout_travels_on(gateway: Running, sdk: openai.AsyncOpenAI) -> None:
    region = upstream(gateway, reply(200, whole()))
    await sdk.chat.completions.create(model="chat", messages=HELLO, timeout=7)
    assert 0 < int(region.posts[0].headers["x-request-timeout-ms"]) <= 7000


async def test_a_backend_that_comes_back_is_found_by_the_sdks_retry(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east", resilience={"retry": {"attempts": 1}}) as gateway:
        failed = False

        async def once(writer: asyncio.StreamWriter, request: Request) -> None:
            nonlocal failed
            answer = reply(200, whole()) if failed else reply(500)
            failed = True
            await answer(writer, request)

        upstream(gateway, once)
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key=KEY) as client:
            answer = await client.chat.completions.create(model="chat", messages=HELLO)
        assert answer.choices[0].message.content == "The tide turns."
        statuses = [each["status"] for each in await gateway.records() if each["kind"] == "completion"]
        assert statuses == [502, 200]
