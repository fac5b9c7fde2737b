import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from app.fleet import worker_client
from app.fleet.registry import Registry
from app.fleet.trust import Trust
from app.fleet.worker_client import AttemptFailed, Connections, UpstreamStream, WorkerClient
from app.types import Call, PermittedRegion
from tests.fleet.servers import (
    cut_at_once,
    cut_in_the_body,
    hang,
    junk,
    reply,
    serving,
    settings_for,
    stream,
    until,
    unused_port,
)

R0 = PermittedRegion("r0")
CALL = Call(
    wire="openai",
    path="/v1/embeddings",
    model="minilm",
    body=b'{"model":"minilm","input":"hello"}',
    headers=(("Content-Type", "application/json"), ("Cookie", "a=b"), ("Authorization", "Bearer client")),
    canonical=b"",
    cacheable=True,
    stream=False,
    tokens=1,
)
STREAM = replace(CALL, stream=True)


@asynccontextmanager
async def client_for(*urls, **backend):
    settings = settings_for(*([{"url": url} | backend] for url in urls))
    registry = Registry(settings, {}, time.monotonic)
    connections = Connections(Trust())
    client = WorkerClient(connections, settings.resilience.health)
    try:
        yield client, registry.backends
    finally:
        connections.close()


async def send(url, call=CALL, headers=None, within=20.0, **backend):
    async with client_for(url, **backend) as (client, backends):
        return await client.send(R0, backends[0], call, headers or {}, within)


async def failure(answer, call=CALL, within=20.0):
    async with serving(answer) as server:
        with pytest.raises(AttemptFailed) as caught:
            await send(server.url, call, within=within)
    return caught.value, server


async def test_an_answer_passes_through_as_it_came():
    body = b'{"data": [1.0e-2]}'
    async with serving(reply(200, body, "X-Model-Version: 3", "Retry-After: 1")) as server:
        answer = await send(server.url)
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers == (("content-type", "application/json"), ("x-model-version", "3"), ("retry-after", "1"))


async def test_what_a_backend_is_sent():
    headers = {"X-Request-Id": "r-1", "traceparent": "00-a", "authorization": "Bearer client", "x-data-subject": "DE"}
    async with serving(reply(200)) as server:
        await send(server.url, replace(CALL, path="/v2/models/a b?c/infer"), headers, within=1.5)
    [request] = server.requests
    assert request.line == "POST /v2/models/a%20b%3Fc/infer HTTP/1.1"
    assert request.body == CALL.body
    assert int(request.headers.pop("x-request-timeout-ms")) == 1500
    assert request.headers == {
        "host": server.url.removeprefix("http://"),
        "user-agent": "tidegate",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(CALL.body)),
        "x-request-id": "r-1",
        "traceparent": "00-a",
    }


async def test_the_backends_own_key_goes_on_and_never_the_clients():
    async with serving(reply(200)) as server:
        await send(server.url, protocol="openai", api_key="backend-key")
    assert server.requests[0].headers["authorization"] == "Bearer backend-key"


async def test_connection_headers_cookies_and_the_gateways_own_words_stay_behind():
    said = ["Connection: x-private", "X-Private: 1", "Set-Cookie: a=b", "Server: s", "Date: d", "Alt-Svc: h3"]
    said += ["X-Served-Region: us-east", "X-Request-Id: other", "x-ratelimit-limit-requests: 1", "RateLimit: r=1"]
    async with serving(reply(200, b"{}", *said, "X-Kept: 1")) as server:
        answer = await send(server.url)
    assert answer.headers == (("content-type", "application/json"), ("x-kept", "1"))


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize("status", [400, 404, 422, 429])
async def test_a_refusal_of_the_request_is_an_answer(call, status):
    async with serving(reply(status, b'{"error": "no"}')) as server:
        answer = await send(server.url, call)
    assert (answer.status, answer.body) == (status, b'{"error": "no"}')


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize(("status", "retryable"), [(500, True), (501, False), (502, True), (503, True), (504, True)])
async def test_a_fault_of_the_backend_is_a_failed_attempt(call, status, retryable):
    error, _ = await failure(reply(status, b"why"), call)
    assert (error.outcome, error.status, error.body, error.retryable) == ("status", status, b"why", retryable)


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(call, status):
    async with serving(reply(200)) as elsewhere:
        error, server = await failure(reply(status, b"", f"Location: {elsewhere.url}/v1/embeddings"), call)
    assert (error.outcome, error.status, error.retryable) == ("redirect", status, True)
    assert len(server.requests) == 1
    assert elsewhere.connections == 0


async def test_nobody_listens():
    with pytest.raises(AttemptFailed) as caught:
        await send(f"http://127.0.0.1:{unused_port()}")
    assert (caught.value.outcome, caught.value.retryable) == ("refused", True)


@pytest.mark.parametrize("answer", [cut_at_once, cut_in_the_body, junk])
async def test_a_lost_or_garbled_connection(answer):
    error, _ = await failure(answer)
    assert (error.outcome, error.status, error.retryable) == ("reset", None, True)


@pytest.mark.parametrize("call", [CALL, STREAM])
async def test_a_backend_that_hangs_is_left_at_the_deadline(call):
    async with serving(hang) as server:
        with pytest.raises(AttemptFailed) as caught:
            await send(server.url, call, within=0.2)
        assert (caught.value.outcome, caught.value.retryable) == ("timeout", False)
        await asyncio.wait_for(server.gone.wait(), 10)


async def test_a_body_that_drips_is_left_at_the_deadline():
    async def drip(writer, _):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x")
            await asyncio.sleep(0.02)

    error, _ = await failure(drip, within=0.3)
    assert error.outcome == "timeout"


async def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(worker_client, "ANSWER_LIMIT", 1000)
    error, _ = await failure(reply(200, bytes(1001)))
    assert (error.outcome, error.retryable) == ("reset", False)


async def test_a_stream_arrives_chunk_by_chunk():
    proceed = asyncio.Event()

    async def wait(writer):
        await proceed.wait()
        writer.write(b"3\r\ntwo\r\n")

    async with serving(stream([b"one"], wait)) as server, client_for(server.url) as (client, backends):
        answer = await client.send(R0, backends[0], STREAM, {}, 20.0)
        assert isinstance(answer.body, UpstreamStream)
        assert await anext(answer.body) == b"one", "before the backend has said the rest"
        proceed.set()
        assert [chunk async for chunk in answer.body] == [b"two"]
        with pytest.raises(StopAsyncIteration):
            await anext(answer.body)


@pytest.mark.parametrize("started", [False, True])
async def test_closing_a_stream_closes_the_connection(started):
    async def wait(_):
        await asyncio.sleep(3600)

    async with serving(stream([b"one"], wait)) as server, client_for(server.url) as (client, backends):
        answer = await client.send(R0, backends[0], STREAM, {}, 20.0)
        if started:
            assert await anext(answer.body) == b"one"
        assert not server.gone.is_set()
        await answer.body.aclose()
        await asyncio.wait_for(server.gone.wait(), 10)


async def test_a_stream_that_breaks_off_says_so():
    async def abort(writer):
        writer.transport.abort()

    async with serving(stream([b"one"], abort)) as server, client_for(server.url) as (client, backends):
        answer = await client.send(R0, backends[0], STREAM, {}, 20.0)
        with pytest.raises(AttemptFailed) as caught:
            [chunk async for chunk in answer.body]
        await answer.body.aclose()
    assert (caught.value.outcome, caught.value.status, caught.value.retryable) == ("reset", 200, False)


async def test_a_stream_that_falls_silent_is_left():
    async def wait(_):
        await asyncio.sleep(3600)

    async with serving(stream([b"one"], wait)) as server, client_for(server.url) as (client, backends):
        answer = await client.send(R0, backends[0], STREAM, {}, 0.5)
        assert await anext(answer.body) == b"one"
        with pytest.raises(AttemptFailed, match="timeout"):
            await anext(answer.body)
        await answer.body.aclose()


async def test_cancelling_closes_the_connection():
    async with serving(hang) as server, client_for(server.url) as (client, backends):
        attempt = asyncio.create_task(client.send(R0, backends[0], CALL, {}, 20.0))
        await until(lambda: server.requests)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await asyncio.wait_for(server.gone.wait(), 10)


async def test_a_connection_is_kept_for_the_next_request():
    async with serving(reply(200)) as server, client_for(server.url) as (client, backends):
        for _ in range(3):
            await client.send(R0, backends[0], CALL, {}, 20.0)
    assert (server.connections, len(server.requests)) == (1, 3)


async def test_many_at_once_and_again_over_the_same_connections():
    async with serving(reply(200, b"ok")) as server, client_for(server.url) as (client, backends):
        backend = backends[0]

        async def one():
            backend.condition.in_flight += 1
            try:
                return await client.send(R0, backend, CALL, {}, 60.0)
            finally:
                backend.condition.in_flight -= 1

        for _ in range(2):
            answers = await asyncio.gather(*(one() for _ in range(100)))
            assert [answer.body for answer in answers] == [b"ok"] * 100
        assert len(server.requests) == 200
        assert server.connections < 200


async def test_a_request_leaves_for_no_other_region_than_its_permitted_one():
    async with serving(reply(200)) as one, serving(reply(200)) as other:
        async with client_for(one.url, other.url) as (client, backends):
            with pytest.raises(AssertionError, match="permitted in r0"):
                await client.send(R0, backends[1], CALL, {}, 20.0)
        assert one.connections == other.connections == 0


async def test_the_environments_proxy_is_not_asked(monkeypatch):
    async with serving(reply(200)) as proxy, serving(reply(200)) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        await send(server.url)
        assert (proxy.connections, server.connections) == (0, 1)


async def test_connections_to_backends_that_went_are_closed_and_others_kept():
    async with (
        serving(reply(200)) as gone,
        serving(reply(200)) as kept,
        client_for(gone.url, kept.url) as (client, backends),
    ):
        await client.send(R0, backends[0], CALL, {}, 20.0)
        await client.send(PermittedRegion("r1"), backends[1], CALL, {}, 20.0)
        client._connections.keep([backends[1]])
        await asyncio.wait_for(gone.gone.wait(), 10)
        await client.send(PermittedRegion("r1"), backends[1], CALL, {}, 20.0)
        assert (kept.connections, kept.gone.is_set()) == (1, False)
