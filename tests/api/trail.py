"""A gateway with tenants of several scopes, in front of a trail that may have a past."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from app.audit import record
from app.audit.keys import FileKeys
from app.audit.log import new_id
from app.audit.pseudonym import Pseudonyms
from app.audit.record import Record
from app.audit.writer import Trail
from app.config import RESERVED_LOG, AuditSettings
from tests.running import HASH, USUAL, Running, running

LOGS = (*USUAL, RESERVED_LOG)
_GROUP = 64


def _tenant(name: str, *scopes: str) -> dict[str, Any]:
    key = "sha256:" + hashlib.sha256(f"{name}-key".encode()).hexdigest()
    return {"id": name, "keys": [key], "scopes": ["infer", *scopes], "subject": "DE"}


TENANTS = [
    {"id": "demo", "keys": [HASH], "scopes": ["infer", "audit:admin"], "subject": "US"},
    _tenant("other", "audit:read"),
    _tenant("blind"),
]
"""`demo` sees all; `other` its own; `blind` nothing. The key is the name and `-key`, but for demo's."""


@asynccontextmanager
async def standing(directory: Path, **audit: Any) -> AsyncIterator[Running]:
    async with running(directory, tenants=TENANTS, audit={"path": "audit", "commit_deadline": "10s", **audit}) as found:
        yield found


async def get(gateway: Running, path: str, caller: str = "demo", **query: Any) -> httpx.Response:
    key = {} if caller == "demo" else {"Authorization": f"Bearer {caller}-key"}
    return await gateway.client.get(f"/v1/audit/{path}", params=query, headers=key)


async def ids(gateway: Running, caller: str = "demo", **query: Any) -> list[str]:
    answer = await get(gateway, "logs", caller, **query)
    assert answer.status_code == 200, answer.text
    return [each["id"] for each in answer.json()["records"]]


async def readings(gateway: Running) -> list[Record]:
    """The records of readings so far, the oldest first."""
    found = (await get(gateway, "logs", limit="1000")).json()["records"]
    return [each for each in found if each["kind"] == "read"]


async def lay(directory: Path, start: datetime, count: int, log: str = "eu-west") -> list[Record]:
    """Write the past of a trail: pairs of decision and completion a second apart, each pair of another person."""
    settings = AuditSettings(path=directory / "audit", retention=36_500 * 86_400.0, commit_deadline=60.0)
    trail = Trail(settings, LOGS)
    await trail.start()
    pseudonyms = Pseudonyms(FileKeys(settings.key_directory))
    written: list[Record] = []
    for first in range(0, count, _GROUP):
        group: list[Record] = []
        for number in range(first, min(first + _GROUP, count)):
            group += _pair(start + timedelta(seconds=number), number, await pseudonyms.of(log, "demo", f"p{number}"))
        await trail.append(log, group, 60)
        written += group
    await trail.close()
    return written


def _pair(time: datetime, number: int, subject: str | None) -> tuple[Record, Record]:
    decision = record.decision(
        id=new_id(time),
        time=time,
        request_id=f"r{number}",
        outcome="permitted",
        tenant="demo",
        key_id="0",
        region="eu-west",
        subject=subject,
        subject_country="DE",
    )
    ended = time + timedelta(milliseconds=1)
    return decision, record.completion(id=new_id(ended), time=ended, decision=decision, outcome="served", status=200)
