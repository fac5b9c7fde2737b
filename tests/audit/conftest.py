"""Helpers of the audit tests: a fresh directory, records to append, and the file as SQLite itself sees it."""

import asyncio
import itertools
import json
import sqlite3
from collections import Counter
from datetime import UTC, datetime

import pytest

from app.audit import record
from app.audit.writer import Trail
from app.config import AuditSettings
from app.errors import AuditUnavailable

LOGS = ("eu-west", "us-east", "gateway")


@pytest.fixture
def audit(tmp_path):
    return AuditSettings(path=tmp_path / "var" / "audit", commit_deadline=10.0)


@pytest.fixture
async def trail(audit):
    opened = Trail(audit, LOGS)
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def pair():
    """Makes a decision and its completion, with ids of their own."""
    numbers = itertools.count(1)

    def make(outcome="served", **fields):
        number = next(numbers)
        given = {"time": datetime.now(UTC), "request_id": f"r{number}", "tenant": "demo", "region": "eu-west"}
        decision = record.decision(
            id=f"d{number}", outcome="permitted", key_id="00000000", model="minilm", **{**given, **fields}
        )
        ended = record.completion(
            id=f"c{number}", time=datetime.now(UTC), decision=decision, outcome=outcome, status=200
        )
        return decision, ended

    return make


@pytest.fixture
def stored(audit):
    """Reads a log's records from its file, and checks that numbers are unbroken and columns repeat the record."""

    def read(log="eu-west"):
        db = sqlite3.connect(audit.path / f"{log}.db")
        rows = db.execute("SELECT seq, request_id, outcome, record FROM records ORDER BY seq").fetchall()
        db.close()
        records = [json.loads(row[3]) for row in rows]
        for row, each in zip(rows, records, strict=True):
            assert (each["seq"], each["request_id"], each["outcome"], each["log"]) == (*row[:3], log)
        assert [row[0] for row in rows] == list(range(rows[0][0], rows[0][0] + len(rows))) if rows else True
        return records

    return read


@pytest.fixture
def ends(stored):
    """The outcomes of all completions by decision; fails where one has two, or one comes without its decision."""

    def read(log="eu-west"):
        records = stored(log)
        decisions = {each["id"] for each in records if each["kind"] == "decision"}
        completions = [each for each in records if each["kind"] == "completion"]
        assert set(Counter(each["decision_id"] for each in completions).values()) <= {1}
        assert {each["decision_id"] for each in completions} <= decisions
        outcomes = {each["decision_id"]: each["outcome"] for each in completions}
        return {each: outcomes.get(each) for each in decisions}

    return read


@pytest.fixture
def healed(pair):
    """Appends until it succeeds again; fails after a bounded number of attempts."""

    async def wait(trail, log="eu-west"):
        for _ in range(400):
            try:
                await trail.append(log, pair("refused"), 10)
            except AuditUnavailable:
                await asyncio.sleep(0.025)
            else:
                return
        pytest.fail("the log did not heal")

    return wait
