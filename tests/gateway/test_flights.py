"""Requests for the same answer at the same time, and answers past their time, through a real gateway."""

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx

from tests.fleet.servers import Answer, Request, cut_at_once, reply, stream, until
from tests.running import EMBEDDING, Running, running

CROWD = 1000


def held(gate: asyncio.Event, answer: Answer) -> Answer:
    """Answers once the gate is open."""

    async def waiting(writer: asyncio.StreamWriter, request: Request) -> None:
        await gate.wait()
        await answer(writer, request)

    return waiting


def lasting(control: str) -> Answer:
    return reply(200, EMBEDDING, "Content-Type: application/json", f"Cache-Control: {control}")


def counted(gateway: Running) -> int:
    return len(gateway.upstreams["us-east"].posts)


async def test_a_crowd_asks_once(tmp_path: Path) -> None:
    """One call to the region; every request has its decision and its completion, and the crowd one tenant's place."""
    async with running(tmp_path, "us-east") as gateway:
        gate = asyncio.Event()
        upstream = gateway.upstreams["us-east"]
        upstream.answer = held(gate, upstream.answer)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=gateway.client.base_url, headers=gateway.client.headers, limits=limits, timeout=60
        ) as client:
            body = {"model": "embed", "input": "the same"}
            crowd = [asyncio.ensure_future(client.post("/v1/embeddings", json=body)) for _ in range(CROWD)]
            await until(lambda: counted(gateway) == 1)
            await asyncio.sleep(0.5)
            gate.set()
            answers = await asyncio.gather(*crowd)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert counted(gateway) == 1
        seen = Counter(answer.headers["X-Cache-Status"] for answer in answers)
        assert seen["MISS"] == 1
        assert seen["COALESCED"] > CROWD / 2
        assert seen["MISS"] + seen["COALESCED"] + seen["HIT"] == CROWD
        assert len({answer.headers["X-Audit-Id"] for answer in answers}) == CROWD
        records = [record for record in await gateway.records() if record["kind"] in {"decision", "completion"}]
        assert Counter(record["kind"] for record in records) == {"decision": CROWD, "completion": CROWD}
        assert {record["outcome"] for record in records if record["kind"] == "completion"} == {"served"}


async def test_nobody_waits_longer_than_they_would(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        gate = asyncio.Event()
        upstream = gateway.upstreams["us-east"]
        upstream.answer = held(gate, upstream.answer)
        leader = asyncio.ensure_future(gateway.embed("a"))
        await until(lambda: counted(gateway) == 1)
        hurried = await gateway.embed("a", X_Request_Timeout_Ms="200")
        assert (hurried.status_code, hurried.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert not leader.done()
        gate.set()
        assert (await leader).status_code == 200
        assert counted(gateway) == 1


async def test_the_next_goes_where_the_one_ahead_fails_or_leaves(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        gate = asyncio.Event()
        upstream = gateway.upstreams["us-east"]
        answer = upstream.answer
        upstream.answer = held(gate, answer)
        late = asyncio.ensure_future(gateway.embed("a", X_Request_Timeout_Ms="400"))
        await until(lambda: counted(gateway) == 1)
        leaving = asyncio.ensure_future(gateway.embed("a"))
        assert (await late).status_code == 504
        await until(lambda: counted(gateway) == 2)
        patient = [asyncio.ensure_future(gateway.embed("a")) for _ in range(3)]
        await asyncio.sleep(0.2)
        leaving.cancel()
        await until(lambda: counted(gateway) == 3)
        gate.set()
        answers = await asyncio.gather(*patient)
        assert [each.status_code for each in answers] == [200] * 3
        assert sorted(each.headers["X-Cache-Status"] for each in answers) == ["COALESCED", "COALESCED", "MISS"]
        assert counted(gateway) == 3
        outcomes = [record["outcome"] for record in await gateway.records() if record["kind"] == "completion"]
        assert sorted(outcomes) == ["cancelled", "failed", "served", "served", "served"]


async def test_an_answer_for_one_alone_is_fetched_by_everyone(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        gate = asyncio.Event()
        upstream = gateway.upstreams["us-east"]
        upstream.answer = held(gate, lasting("no-store"))
        crowd = [asyncio.ensure_future(gateway.embed("a")) for _ in range(4)]
        await until(lambda: counted(gateway) == 1)
        await asyncio.sleep(0.2)
        assert counted(gateway) == 1
        gate.set()
        answers = await asyncio.gather(*crowd)
        assert {each.headers["X-Cache-Status"] for each in answers} == {"MISS"}
        assert counted(gateway) == 4


async def test_a_stale_answer_serves_while_another_is_fetched(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        upstream = gateway.upstreams["us-east"]
        upstream.answer = lasting("max-age=1, stale-while-revalidate=60")
        assert (await gateway.embed("a")).headers["X-Cache-Status"] == "MISS"
        await asyncio.sleep(1.1)
        stale = await gateway.embed("a")
        assert (stale.headers["X-Cache-Status"], stale.headers["Age"]) == ("HIT", "1")
        await until(lambda: counted(gateway) == 2)
        await asyncio.sleep(0.2)
        fresh = await gateway.embed("a", Cache_Control="max-age=1")
        assert (fresh.headers["X-Cache-Status"], fresh.headers["Age"]) == ("HIT", "0")
        assert counted(gateway) == 2
        completions = [record for record in await gateway.records() if record["kind"] == "completion"]
        assert sorted(record["cache"] for record in completions) == ["HIT", "HIT", "MISS", "REFRESH"]


async def test_a_kept_answer_stands_in_for_a_region_that_fails(tmp_path: Path) -> None:
    kept = {"ttl": "1s", "stale_if_error": "60s"}
    async with running(tmp_path, "us-east", cache=kept) as gateway:
        upstream = gateway.upstreams["us-east"]
        assert (await gateway.embed("a")).headers["X-Cache-Status"] == "MISS"
        await asyncio.sleep(1.1)
        upstream.answer = cut_at_once
        for _ in range(4):  # the breaker opens on the way: from then on nothing is sent
            rescued = await gateway.embed("a")
            assert (rescued.status_code, rescued.headers["X-Cache-Status"]) == (200, "HIT"), rescued.text
            assert (rescued.content, rescued.headers["X-Served-Region"]) == (EMBEDDING, "us-east")
            assert int(rescued.headers["Age"]) >= 1
        unknown = await gateway.embed("b")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "no_healthy_region")
        assert (await gateway.embed("a", Cache_Control="no-cache")).status_code == 503
        records = await gateway.records()
        decisions = {record["id"] for record in records if record["kind"] == "decision"}
        assert sorted(r["decision_id"] for r in records if r["kind"] == "completion") == sorted(decisions)


async def test_without_leave_nothing_stale_is_served(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east", cache={"ttl": "1s"}) as gateway:
        await gateway.embed("a")
        await asyncio.sleep(1.1)
        gateway.upstreams["us-east"].answer = cut_at_once
        assert (await gateway.embed("a")).status_code == 502


async def test_a_whole_stream_is_kept_and_replayed(tmp_path: Path) -> None:
    events = [b'data: {"n": 1}\n\n', b'data: {"n": 2}\n\n', b"data: [DONE]\n\n"]
    chat = {"model": "chat", "messages": [], "temperature": 0, "stream": True}
    async with running(tmp_path, "us-east") as gateway:
        upstream = gateway.upstreams["us-east"]
        upstream.answer = stream(events[:2], then=_cut)
        for _ in range(2):
            with suppress(httpx.RemoteProtocolError):
                await gateway.client.post("/v1/chat/completions", json=chat)
        assert counted(gateway) == 2, "half of a stream is no answer"
        upstream.answer = stream(events)
        first = await gateway.client.post("/v1/chat/completions", json=chat)
        again = await gateway.client.post("/v1/chat/completions", json=chat)
        assert counted(gateway) == 3
        assert (first.headers["X-Cache-Status"], again.headers["X-Cache-Status"]) == ("MISS", "HIT")
        assert first.content == again.content == b"".join(events)
        assert again.headers["Content-Type"] == first.headers["Content-Type"]
        assert "Content-Length" not in again.headers
        whole = await gateway.client.post("/v1/chat/completions", json={**chat, "stream": False})
        assert whole.headers["X-Cache-Status"] == "MISS", "a stream answers nobody who asked for a whole"


async def _cut(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
