"""Checkpoints, proofs and full checks of the trail through a real gateway, verified from what it answers alone."""

import asyncio
import base64
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.audit import checkpoint
from app.audit.checkpoint import Checkpoint, VerifierKey
from app.audit.log import new_id
from app.audit.merkle import Frontier, leaf_hash, verify_consistency, verify_inclusion
from app.audit.record import canonical
from app.audit.seal import closed
from tests.api.trail import get, ids, lay, readings, standing
from tests.running import USUAL, Running

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAST = datetime.now(UTC) - timedelta(days=400)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a trail with 1400 records, of which the first 700 are older than retention."""
    made = tmp_path_factory.mktemp("gateway")
    await lay(made, PAST, 350)
    await lay(made, datetime.now(UTC) - timedelta(days=1), 350)
    return made


@pytest.fixture(scope="module")
def roots(directory: Path) -> dict[int, bytes]:
    """The roots that the log had at some sizes, as of before a gateway deletes anything."""
    with closing(sqlite3.connect(directory / "audit" / "eu-west.db")) as db:
        leaves = [leaf for (leaf,) in db.execute("SELECT leaf FROM records ORDER BY seq")]
    sizes = (0, 256, 512, 513, 700, 768, 1023, 1024, 1279, 1400)
    return {size: Frontier(0, ()).appended(leaves[:size]).root() for size in sizes}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(directory: Path, roots: dict[int, bytes]) -> AsyncIterator[Running]:
    """After retention."""
    assert len(roots) > 1
    async with standing(directory) as found:
        async with asyncio.timeout(30):
            while await ids(found, to=(PAST + timedelta(days=1)).isoformat()):  # noqa: ASYNC110 - another process deletes
                await asyncio.sleep(0.05)
        yield found


def keys(gateway: Running, log: str = "eu-west") -> list[VerifierKey]:
    lines = (gateway.directory / "audit" / f"{log}.pub").read_text().splitlines()
    return [VerifierKey.parse(line) for line in lines]


def signed(note: str, by: list[VerifierKey]) -> Checkpoint:
    return Checkpoint.parse(checkpoint.opened(note, by))


async def grown(gateway: Running, old: int, log: str = "eu-west") -> tuple[list[bytes], Checkpoint]:
    """What a witness reads from the answer (https://c2sp.org/tlog-witness)."""
    answer = await get(gateway, "checkpoint", region=log, old=old)
    assert answer.status_code == 200, answer.text
    head, _, note = answer.text.partition("\n\n")
    first, *lines = head.split("\n")
    assert first == f"old {old}"
    return [base64.b64decode(line, validate=True) for line in lines], signed(note, keys(gateway, log))


async def test_a_checkpoint_needs_no_key(gateway: Running) -> None:
    async with httpx.AsyncClient(base_url=gateway.client.base_url) as stranger:
        for log in (*USUAL, "gateway"):
            answer = await stranger.get("/v1/audit/checkpoint", params={"region": log})
            assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
            found = signed(answer.text, keys(gateway, log))
            assert found.origin == f"tidegate/edge/{log}"
            with closing(sqlite3.connect(gateway.directory / "audit" / f"{log}.db")) as db:
                assert found.size <= (db.execute("SELECT max(seq) FROM records").fetchone()[0] or 0)
        assert (await stranger.get("/v1/audit/checkpoint", headers={"Authorization": "Bearer no"})).status_code == 400
        assert (await stranger.get("/v1/audit/checkpoint/")).status_code == 401


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({}, "invalid_request"),
        ({"region": "mars"}, "unknown_region"),
        ({"region": "../eu-west"}, "unknown_region"),
        ({"region": "eu-west", "old": "-1"}, "invalid_request"),
        ({"region": "eu-west", "old": "01"}, "invalid_request"),
        ({"region": "eu-west", "old": "9" * 30}, "invalid_request"),
        ({"region": "eu-west", "old": str(2**63 - 1)}, "invalid_request"),
        ({"region": "eu-west", "limit": "1"}, "invalid_request"),
    ],
)
async def test_a_checkpoint_that_cannot_be_meant(gateway: Running, query: dict[str, Any], code: str) -> None:
    answer = await get(gateway, "checkpoint", **query)
    assert (answer.status_code, answer.json()["code"]) == (400, code)


async def test_growth_is_proven_from_every_size_that_retention_has_left(
    gateway: Running, roots: dict[int, bytes]
) -> None:
    """The log began with 1400 records, of which 700 are gone: 512 in complete bundles, the rest in one that is not."""
    for old, root in roots.items():
        proof, newest = await grown(gateway, old)
        assert newest.size >= 1401  # the record of retention
        assert verify_consistency(old, root, newest.size, newest.root, proof), old
    proof, same = await grown(gateway, newest.size)
    assert (proof, same) == ([], newest)


async def test_growth_from_where_the_log_never_was_or_no_longer_is(gateway: Running) -> None:
    for old, told in ((10**9, "0.."), (1, "512"), (255, "512"), (511, "256")):
        answer = await get(gateway, "checkpoint", region="eu-west", old=old)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), old
        assert told in answer.json()["detail"]


async def test_a_record_is_proven_by_the_answer_alone(gateway: Running) -> None:
    everything = await ids(gateway, region="eu-west", limit="1000")
    for at, caller in ((0, "demo"), (3, "demo"), (700 - 1, "demo")):
        answer = (await get(gateway, f"records/{everything[at]}/proof", caller)).json()
        assert answer["record"]["id"] == everything[at]
        _check(answer, keys(gateway))


def _check(answer: dict[str, Any], known: list[VerifierKey]) -> None:
    assert [VerifierKey.parse(line) for line in answer["key"].splitlines()] == known
    newest = signed(answer["checkpoint"], known)
    leaf = leaf_hash(canonical(closed(answer["record"])))
    proof = [base64.b64decode(each, validate=True) for each in answer["proof"]]
    assert base64.b64decode(answer["leaf_hash"]) == leaf
    assert (answer["leaf_index"], answer["tree_size"]) == (answer["record"]["seq"] - 1, newest.size)
    assert verify_inclusion(leaf, answer["leaf_index"], newest.size, proof, newest.root)
    altered = leaf_hash(canonical({**closed(answer["record"]), "outcome": "failed"}))
    assert not verify_inclusion(altered, answer["leaf_index"], newest.size, proof, newest.root)


async def test_a_record_is_proven_as_soon_as_it_is_there(gateway: Running) -> None:
    for number in range(5):
        served = await gateway.embed(f"fresh {number}", X_Subject_Id="anna", X_Region="us-east")
        answer = (await get(gateway, f"records/{served.headers['X-Audit-Id']}/proof")).json()
        assert answer["record"]["subject"]
        _check(answer, keys(gateway, "us-east"))
    await get(gateway, "logs", "other")
    of_reading = (await readings(gateway))[-1]["id"]
    _check((await get(gateway, f"records/{of_reading}/proof")).json(), keys(gateway, "gateway"))


async def test_what_retention_has_deleted_is_told_so(gateway: Running) -> None:
    gone = new_id(PAST)
    for path in (f"records/{gone}", f"records/{gone}/proof"):
        answer = await get(gateway, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "retention" in answer.json()["detail"]
        assert gone in answer.json()["detail"]


async def test_checkpoints_are_for_a_few_strangers_at_once(gateway: Running) -> None:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=gateway.client.base_url, limits=limits, timeout=60) as strangers:
        asked = [strangers.get("/v1/audit/checkpoint", params={"region": "eu-west", "old": 512}) for _ in range(200)]
        answers = await asyncio.gather(*asked)
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["code"] == "overloaded"
            assert "Retry-After" in answer.headers
    assert (await get(gateway, "checkpoint", region="eu-west")).status_code == 200


async def test_a_full_check_of_a_living_trail(gateway: Running) -> None:
    """Intact, whatever is being written meanwhile."""
    writing = asyncio.create_task(_write(gateway))
    try:
        for _ in range(3):
            answer = await get(gateway, "verify")
            assert answer.status_code == 200, answer.text
            report = answer.json()
            assert report["result"] == "intact", report
            assert {each["log"] for each in report["logs"]} == {*USUAL, "gateway"}
            of = {each["log"]: each for each in report["logs"]}
            assert of["eu-west"]["first"] == 701
            assert of["eu-west"]["records"] >= 700
            assert report["records"] == sum(each["records"] for each in report["logs"])
    finally:
        writing.cancel()
    noted = (await readings(gateway))[-1]
    assert noted["detail"] == {
        "path": "/v1/audit/verify",
        "filters": {},
        "status": 200,
        "records": report["records"],
    }


async def _write(gateway: Running) -> None:
    for number in range(10_000):
        await gateway.embed(f"more {number}")


async def test_one_full_check_at_a_time(tmp_path: Path) -> None:
    await lay(tmp_path, datetime.now(UTC) - timedelta(days=1), 5000)
    async with standing(tmp_path) as gateway:
        answers = await asyncio.gather(*[get(gateway, "verify") for _ in range(6)])
        assert sorted({answer.status_code for answer in answers}) == [200, 503]
        assert {answer.json()["code"] for answer in answers if answer.status_code == 503} == {"overloaded"}
        await _leave_a_check(gateway)
        async with asyncio.timeout(60):
            while (await get(gateway, "verify")).status_code != 200:  # noqa: ASYNC110 - another process tells
                await asyncio.sleep(0.05)


async def _leave_a_check(gateway: Running) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /v1/audit/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer test-key\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()


def alter(directory: Path, statement: str, values: tuple[Any, ...] = ()) -> None:
    with closing(sqlite3.connect(directory / "audit" / "eu-west.db")) as db, db:
        db.execute(statement, values)


async def test_a_full_check_names_the_altered_record(tmp_path: Path) -> None:
    written = await lay(tmp_path, datetime.now(UTC) - timedelta(days=1), 300)
    async with standing(tmp_path) as gateway:
        alter(tmp_path, "UPDATE records SET record = replace(record, 'DE', 'FR') WHERE seq = 7")
        report = (await get(gateway, "verify")).json()
        assert report["result"] == "tampered"
        of = {each["log"]: each for each in report["logs"]}
        assert (of["eu-west"]["findings"][0]["seq"], of["eu-west"]["findings"][0]["id"]) == (7, written[6]["id"])
        assert of["us-east"]["result"] == "intact"


async def test_a_full_check_misses_what_the_writer_has_written(tmp_path: Path) -> None:
    """Newest records removed together with the checkpoints that covered them: the file alone would not show it."""
    await lay(tmp_path, datetime.now(UTC) - timedelta(days=1), 100)
    with closing(sqlite3.connect(tmp_path / "audit" / "eu-west.db")) as db:
        older = db.execute("SELECT note FROM head").fetchone()
    async with standing(tmp_path) as gateway:
        await gateway.embed("1", X_Region="eu-west")
        await get(gateway, "verify")
        alter(tmp_path, "DELETE FROM records WHERE seq > 200")
        alter(tmp_path, "UPDATE head SET note = ?", older)
        report = (await get(gateway, "verify")).json()
        assert report["result"] == "tampered", report
