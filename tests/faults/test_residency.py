"""No request ever reaches a region outside its permitted set, whatever the regions do meanwhile.

Every region has a listener that keeps what it was sent, while a storm kills it, revives it, hangs it, slows it, makes
it fail, redirect to another region, cut its answers, or talk nonsense. FAULT_REQUESTS sets how many requests there are:
`make faults` sends 10,000.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.audit.check.findings import Result
from app.audit.check.verify import verify
from app.audit.keys import FileKeys
from app.audit.pseudonym import Pseudonyms
from tests.fleet.servers import Answer, Request, cut_at_once, cut_in_the_body, hang, junk, reply, stream
from tests.running import EMBEDDING, REGIONS, Running, Upstream, configuration, gateway, running

REQUESTS = int(os.environ.get("FAULT_REQUESTS", "800"))
CLIENTS = 24
EU = {"eu-west", "eu-central"}
PERMITTED = {"DE": EU, "FR": EU, "NO": EU, "SG": {"ap-southeast"}, "GB": set(), "US": set(REGIONS), "GL": set()}
OUTCOMES = {200, 421, 422, 451, 502, 503, 504}
PEOPLE = 40


async def slow(writer: asyncio.StreamWriter, request: Request) -> None:
    await asyncio.sleep(0.05)
    await well(writer, request)


async def well(writer: asyncio.StreamWriter, request: Request) -> None:
    """What the path asks for: an embedding, a tensor or a stream of events."""
    if b'"stream": true' in request.body or b'"stream":true' in request.body:
        await stream([b'data: {"choices": []}\n\n', b"data: [DONE]\n\n"])(writer, request)
    else:
        await reply(200, EMBEDDING)(writer, request)


async def half_a_stream(writer: asyncio.StreamWriter, request: Request) -> None:
    async def cut(to: asyncio.StreamWriter) -> None:
        to.transport.abort()

    await stream([b'data: {"choices": []}\n\n'], cut)(writer, request)


def faults(upstreams: dict[str, Upstream], draw: random.Random) -> list[Answer]:
    elsewhere = draw.choice(list(upstreams.values())).server.url
    redirects = [reply(status, b"", f"Location: {elsewhere}/v1/embeddings") for status in (301, 302, 307, 308)]
    return [
        well,
        well,
        slow,
        hang,
        reply(500),
        reply(503),
        cut_at_once,
        cut_in_the_body,
        half_a_stream,
        junk,
        *redirects,
    ]


async def storm(
    upstreams: dict[str, Upstream], over: asyncio.Event, draw: random.Random, answered: Counter[int]
) -> Counter[str]:
    """Change one region after another until it is over, and leave all of them well.

    The next change waits for some requests, or a fifth of a second where they hang: paced by the clock alone, a faster
    gateway would see less of it.
    """
    seen: Counter[str] = Counter()
    dead: set[str] = set()
    while not over.is_set():
        name = draw.choice(list(upstreams))
        region = upstreams[name]
        if name in dead:
            dead.discard(name)
            await region.server.revive()
        elif draw.random() < 0.2:
            dead.add(name)
            region.server.die()
            seen["killed"] += 1
        else:
            region.answer = draw.choice(faults(upstreams, draw))
            seen[getattr(region.answer, "__name__", "answer")] += 1
        due = answered.total() + draw.randrange(1, 8)
        for _ in range(20):
            await asyncio.sleep(0.01)
            if over.is_set() or answered.total() >= due:
                break
    for name in dead:
        await upstreams[name].server.revive()
    return seen


def requests(draw: random.Random) -> Callable[[int], tuple[str, dict[str, Any], dict[str, str]]]:
    """Requests of every kind; the body names its subject, so that a listener's copy can be judged by itself."""

    def make(number: int) -> tuple[str, dict[str, Any], dict[str, str]]:
        subject = draw.choice(list(PERMITTED))
        mark = f"subject={subject};number={number}"
        headers = {
            "X-Data-Subject": subject,
            "X-Subject-Id": f"person {number % PEOPLE} of {subject}",
            "X-Request-Timeout-Ms": "400",
            "X-Request-Id": f"storm-{number}",
        }
        if draw.random() < 0.3:
            headers["X-Region"] = draw.choice(list(REGIONS))
        if draw.random() < 0.3:
            headers["X-Region-Prefer"] = ", ".join(draw.sample(list(REGIONS), 2))
        kind = draw.randrange(3)
        if kind == 0:
            return "/v1/embeddings", {"model": "embed", "input": mark}, headers
        if kind == 1:
            message = {"role": "user", "content": mark}
            return "/v1/chat/completions", {"model": "chat", "stream": True, "messages": [message]}, headers
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [mark]}
        return "/v2/models/tensors/infer", {"inputs": [tensor]}, headers

    return make


async def send(gateway: Running, path: str, body: dict[str, Any], headers: dict[str, str]) -> int:
    try:
        return (await gateway.client.post(path, json=body, headers=headers)).status_code
    except httpx.RemoteProtocolError:
        return 200  # a stream that its region cut in the middle


def strays(upstreams: dict[str, Upstream]) -> list[tuple[str, str]]:
    """Every (region, line of the request) whose body says that it should not be there."""
    found = []
    for name, upstream in upstreams.items():
        for post in upstream.server.requests:
            if post.line.startswith("GET"):
                assert not post.body  # a probe carries nothing of anyone's
                continue
            subject = post.body.partition(b"subject=")[2].partition(b";")[0].decode()
            if name not in PERMITTED[subject]:
                found.append((name, post.line))
    return found


async def complete(gateway: Running) -> int:
    """Check that each decision has one completion, and names no region but those permitted; how many decisions."""
    records = [record for record in await gateway.records() if record["kind"] in {"decision", "completion"}]
    decisions = {record["id"] for record in records if record["kind"] == "decision"}
    completions = Counter(record["decision_id"] for record in records if record["kind"] == "completion")
    assert set(completions) == decisions
    assert set(completions.values()) == {1}
    for record in records:
        regions = {record["region"], *(attempt["region"] for attempt in record.get("attempts", ()))} - {None}
        assert regions <= PERMITTED[record["subject_country"]], record
    return len(decisions)


def traces(directory: Path, people: set[str]) -> set[tuple[str, str]]:
    """Files of a gateway's trail and keys that hold an id of these people, or a pseudonym by any of its keys."""
    names = Pseudonyms(FileKeys(directory / "keys"))
    marks = set(people)
    for person in people:
        marks |= names.known(REGIONS, ["demo"], person)
    files = [*(directory / "audit").rglob("*"), *(directory / "keys").rglob("*")]
    found = set()
    for file in files:
        if file.is_file():
            content = file.read_bytes()
            found |= {(file.name, mark) for mark in marks if mark.encode() in content}
    return found


@pytest.mark.timeout(1800)
async def test_no_request_strays(tmp_path: Path) -> None:
    """Through a gateway on the neutral edge, one that stands in the US and one in the EU, before the same regions."""
    draw = random.Random(20_261_122)
    resilience = {"breaker": {"recovery": "1s"}, "health": {"interval": "300ms", "timeout": "1s"}}
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(running(tmp_path, *REGIONS, resilience=resilience))
        gateways = [edge]
        for standing in ("us-east", "eu-west"):
            (tmp_path / standing).mkdir()
            changes = {"gateway": {"region": standing}, "resilience": resilience}
            file = tmp_path / standing / "tidegate.yaml"
            file.write_text(json.dumps(configuration(edge.upstreams, changes)))
            gateways.append(await stack.enter_async_context(gateway(tmp_path / standing, file)))
        make, statuses = requests(draw), Counter[int]()

        async def client(numbers: Iterator[int]) -> None:
            for number in numbers:
                statuses[await send(gateways[number % 4 % 3], *make(number))] += 1

        calm, rest = iter(range(REQUESTS // 10)), iter(range(REQUESTS // 10, REQUESTS))
        await asyncio.gather(*(client(calm) for _ in range(CLIENTS)))  # so that every region has been reached once
        over = asyncio.Event()
        weather = asyncio.create_task(storm(edge.upstreams, over, draw, statuses))
        await asyncio.gather(*(client(rest) for _ in range(CLIENTS)))
        over.set()
        seen = await weather
        posts = {name: len(upstream.posts) for name, upstream in edge.upstreams.items()}
        print(f"\n{REQUESTS} requests: {dict(statuses)}; reached {posts}; weather {dict(seen)}")
        assert strays(edge.upstreams) == []
        assert set(statuses) <= OUTCOMES
        assert statuses[200] > REQUESTS // 20
        assert statuses[421] > REQUESTS // 20
        assert all(posts.values())
        assert seen["killed"] > 3
        assert sum([await complete(each) for each in gateways]) == REQUESTS
    europeans = {f"person {number} of {code}" for code in ("DE", "FR", "NO") for number in range(PEOPLE)}
    for directory, lawful in ((tmp_path, EU), (tmp_path / "us-east", set()), (tmp_path / "eu-west", EU)):
        found = traces(directory, europeans)
        assert {file.partition(".")[0] for file, _ in found} == lawful
        assert not {mark for _, mark in found} & europeans
        assert verify(directory / "audit").result is Result.INTACT
