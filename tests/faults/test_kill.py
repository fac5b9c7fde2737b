"""kill -9 of a gateway under load, again and again: what a client received in full is in the trail, and that is intact.

FAULT_KILLS sets how often: `make faults` kills 200 times.
"""

import asyncio
import json
import os
import random
import subprocess
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from app.stores.sqlite import SqliteAuditStore
from tests.fleet.servers import Request, reply, serving, stream
from tests.running import EMBEDDING, TIDEGATE, USUAL, Running, Upstream, configuration, gateway

KILLS = int(os.environ.get("FAULT_KILLS", "6"))
CLIENTS = 8
SUBJECTS = ("US", "DE", "SG", "FR", "GB")
LOGS = (*USUAL, "gateway")


async def well(writer: asyncio.StreamWriter, request: Request) -> None:
    if b'"stream": true' in request.body or b'"stream":true' in request.body:
        await stream([b'data: {"choices": []}\n\n', b"data: [DONE]\n\n"])(writer, request)
    else:
        await reply(200, EMBEDDING)(writer, request)


async def ask(running: Running, draw: random.Random, received: dict[str, int], seen: Counter[str]) -> None:
    """One client: notes the audit id and status of each answer that came whole, until the gateway is gone."""
    for number in range(100_000):
        headers = {"X-Data-Subject": draw.choice(SUBJECTS), "X-Subject-Id": f"person-{draw.randrange(200)}"}
        if draw.random() < 0.3:
            del headers["X-Subject-Id"]
        body = {"model": "chat", "messages": [{"role": "user", "content": str(number)}], "stream": draw.random() < 0.5}
        try:
            if draw.random() < 0.4:
                answer = await running.client.post("/v1/chat/completions", json=body, headers=headers)
            else:
                text = f"{draw.random()}" if draw.random() < 0.7 else "again"
                answer = await running.client.post(
                    "/v1/embeddings", json={"model": "embed", "input": text}, headers=headers
                )
        except (httpx.TransportError, httpx.StreamError):
            seen["cut"] += 1
            if running.process.poll() is not None:
                return
            continue
        seen[str(answer.status_code)] += 1
        if "X-Audit-Id" in answer.headers:
            received[answer.headers["X-Audit-Id"]] = answer.status_code


def verified(path: Path) -> tuple[int, str]:
    done = subprocess.run(
        [TIDEGATE, "audit", "verify", "--path", str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


def written(path: Path) -> tuple[dict[str, str], Counter[str]]:
    """Every decision's outcome, and how many completions each has."""
    decisions: dict[str, str] = {}
    completions: Counter[str] = Counter()
    for log in LOGS:
        store = SqliteAuditStore(path / f"{log}.db", readonly=True)
        for row in store.rows(1, 10**9):
            record = json.loads(row.canonical)
            if record["kind"] == "decision":
                decisions[record["id"]] = record["outcome"]
            elif record["kind"] == "completion":
                completions[record["decision_id"]] += 1
        store.close()
    return decisions, completions


@pytest.mark.timeout(120 + 20 * KILLS)
async def test_no_answer_is_without_its_records_however_the_gateway_dies(tmp_path: Path) -> None:
    draw = random.Random(7)
    received: dict[str, int] = {}
    seen: Counter[str] = Counter()
    upstreams = {name: Upstream() for name in USUAL}
    file, audit = tmp_path / "tidegate.yaml", tmp_path / "audit"
    async with AsyncExitStack() as stack:
        for upstream in upstreams.values():
            upstream.answer = well
            upstream.server = await stack.enter_async_context(serving(upstream.respond))
        file.write_text(json.dumps(configuration(upstreams, {})))
        for kill in range(KILLS + 1):
            async with gateway(tmp_path, file) as running:
                # A start completes what the kill left open and signs it, before it takes a request.
                code, output = await asyncio.to_thread(verified, audit)
                assert code == 0, f"after {kill} kills: {output}"
                if kill < KILLS:
                    clients = [asyncio.create_task(ask(running, draw, received, seen)) for _ in range(CLIENTS)]
                    await asyncio.sleep(draw.uniform(0.01, 0.6))
                    running.process.kill()
                    await asyncio.to_thread(running.process.wait, 30)
                    await asyncio.wait_for(asyncio.gather(*clients), 60)
    decisions, completions = written(audit)
    assert not received.keys() - decisions.keys()
    assert set(completions.values()) == {1}
    assert completions.keys() == decisions.keys()
    assert seen["200"] > KILLS
    figures = {**seen, "lost": len(decisions) - len(received)}
    print(f"\n{KILLS} kills, {len(received)} answers received in full, each with decision and completion: {figures}")
