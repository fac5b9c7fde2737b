"""Exports of the trail through a real gateway: complete, covered by their checkpoints, no faster than they are read."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.audit import checkpoint
from app.audit.checkpoint import Checkpoint, VerifierKey
from app.audit.merkle import Frontier, leaf_hash
from app.audit.record import canonical
from app.audit.seal import closed
from tests.api.trail import LOGS, get, lay, standing
from tests.running import Running

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAIRS = 8000
"""Of about 1.2 kB a pair: more than sockets buffer."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    directory = tmp_path_factory.mktemp("gateway")
    await lay(directory, datetime.now(UTC) - timedelta(days=1), PAIRS)
    async with standing(directory) as found:
        yield found


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def newest(gateway: Running, log: str, note: str) -> Checkpoint:
    keys = (gateway.directory / "audit" / f"{log}.pub").read_text().splitlines()
    return Checkpoint.parse(checkpoint.opened(note, [VerifierKey.parse(line) for line in keys]))


async def test_an_export_is_complete_and_covered(gateway: Running) -> None:
    """Its checkpoints cover exactly what is in it, though records are being written: the roots come out of these."""
    writing = asyncio.create_task(_write(gateway))
    answer = await get(gateway, "export")
    writing.cancel()
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["content-disposition"] == 'attachment; filename="audit.ndjson"'
    assert answer.headers["cache-control"] == "no-store"
    manifest, *records, last = lines(answer)
    assert (manifest["kind"], last["kind"], last["records"]) == ("manifest", "checkpoint", len(records))
    assert [each["time"] for each in records] == sorted(each["time"] for each in records)
    assert len(records) >= 2 * PAIRS
    for log in LOGS:
        leaves = [leaf_hash(canonical(closed(each))) for each in records if each["log"] == log]
        covered = newest(gateway, log, last["checkpoints"][log])
        assert (covered.size, covered.root) == (len(leaves), Frontier(0, ()).appended(leaves).root()), log


async def _write(gateway: Running) -> None:
    for number in range(10_000):
        await gateway.embed(f"more {number}", X_Subject_Id="anna")


async def test_an_export_takes_the_filters_of_pages(gateway: Running) -> None:
    manifest, *records, last = lines(await get(gateway, "export", subject="p7"))
    assert [each["request_id"] for each in records] == ["r7", "r7"]
    assert last["records"] == 2
    assert "p7" not in json.dumps(manifest)
    since = records[1]["time"]
    query = {"from": since, "outcome": "served", "region": "eu-west"}
    manifest, *records, _ = lines(await get(gateway, "export", **query))
    assert len(records) >= PAIRS - 7
    assert {each["outcome"] for each in records} == {"served"}
    assert manifest["filters"] == query
    for query in ({"limit": "1"}, {"cursor": "x"}, {"region": "mars"}):
        assert (await get(gateway, "export", **query)).status_code == 400


async def test_a_reader_exports_its_own_tenant_only(gateway: Running) -> None:
    await gateway.embed("mine", Authorization="Bearer other-key", X_Request_Id="of-other")
    manifest, *records, _ = lines(await get(gateway, "export", "other", request_id="of-other"))
    assert [each["tenant"] for each in records] == ["other", "other"]
    assert manifest["filters"] == {"tenant": "other", "request_id": "of-other"}
    assert (await get(gateway, "export", "other", tenant="demo")).status_code == 403


async def test_clients_that_do_not_read_cost_no_memory_and_make_room_when_they_leave(gateway: Running) -> None:
    await get(gateway, "export")
    before = _memory(gateway)
    async with AsyncExitStack() as stalled:
        for _ in range(4):
            await stalled.enter_async_context(gateway.client.stream("GET", "/v1/audit/export"))
        await asyncio.sleep(0.5)
        refused = await get(gateway, "export")
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert "Retry-After" in refused.headers
        assert (await gateway.embed("meanwhile")).status_code == 200
        assert (await get(gateway, "logs", limit=1)).status_code == 200
        assert _memory(gateway) - before < 4 * 10
    async with asyncio.timeout(30):
        while (answer := await get(gateway, "export", request_id="r1")).status_code != 200:  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(0.05)
    assert lines(answer)[-1]["records"] == 2


def _memory(gateway: Running) -> float:
    """MiB that the gateway's process holds."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


async def test_a_slow_reader_gets_everything(gateway: Running) -> None:
    parts = []
    async with gateway.client.stream("GET", "/v1/audit/export", params={"to": datetime.now(UTC).isoformat()}) as answer:
        async for part in answer.aiter_bytes():
            if len(parts) < 5:
                await asyncio.sleep(0.1)
            parts.append(part)
    last = json.loads(b"".join(parts).splitlines()[-1])
    assert last["kind"] == "checkpoint"
    assert last["records"] >= 2 * PAIRS


async def test_an_export_from_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    async with standing(tmp_path) as gateway:
        (tmp_path / "audit" / "us-east.db").unlink()
        answer = await get(gateway, "export")
        assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable")
