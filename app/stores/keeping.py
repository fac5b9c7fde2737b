"""What an audit log in SQLite has to keep, by legal hold or until it is complete, and what may go."""

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

from app.stores.base import Hold

_MATCHES = """
(:tenant IS NULL OR tenant = :tenant) AND (:subject IS NULL OR subject = :subject)
AND (:since IS NULL OR time >= :since) AND (:until IS NULL OR time < :until)
"""
"""Whether a record is one that a hold keeps."""
_LOOK_AHEAD = 10_000
"""Records in which the completion of an old decision is looked for; where it is further off, both wait for it."""


class _Old(NamedTuple):
    seq: int
    time: str
    kind: str
    id: str
    decision: str | None


def holds(db: sqlite3.Connection) -> list[Hold]:
    """The legal holds in force."""
    text = "SELECT id, placed, note, tenant, subject, since, until FROM holds ORDER BY placed, id"
    return [Hold(*row) for row in db.execute(text)]


def held(db: sqlite3.Connection, subject: str) -> list[str]:
    """Ids of the holds that keep this pseudonym from being erased."""
    text = f"SELECT 1 FROM records WHERE {_MATCHES} AND subject = :of LIMIT 1"  # noqa: S608 - a constant above
    return [
        hold.id
        for hold in holds(db)
        if hold.subject == subject or db.execute(text, {**asdict(hold), "of": subject}).fetchone()
    ]


def last_of(db: sqlite3.Connection, floor: int) -> list[str]:
    """The pseudonyms that only records numbered up to `floor` have."""
    # NOT INDEXED: the few records up to the floor, not every entry of the subjects' index.
    text = """
        SELECT DISTINCT subject FROM records AS old NOT INDEXED WHERE seq <= :floor AND subject IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM records WHERE subject = old.subject AND seq > :floor)
    """
    return [subject for (subject,) in db.execute(text, {"floor": floor})]


def expirable(db: sqlite3.Connection, before: str, limit: int) -> int:
    """Up to which number the oldest records may be deleted, at most `limit` of them; see `AuditStore.expirable`."""
    text = """
        SELECT seq, time, kind, json_extract(record, '$.id'), json_extract(record, '$.decision_id')
        FROM records ORDER BY seq LIMIT ?
    """
    rows: list[_Old] = []
    for row in map(_Old._make, db.execute(text, (limit,))):
        if row.time >= before:
            break
        rows.append(row)
    if rows and (kept := _first_held(db, rows[-1].seq)):
        rows = [row for row in rows if row.seq < kept]
    return _last_complete(db, rows, before)


def _first_held(db: sqlite3.Connection, last: int) -> int | None:
    text = f"SELECT min(seq) FROM records WHERE seq <= :last AND {_MATCHES}"  # noqa: S608 - a constant above
    found = [db.execute(text, {**asdict(hold), "last": last}).fetchone()[0] for hold in holds(db)]
    return min((seq for seq in found if seq is not None), default=None)


def _last_complete(db: sqlite3.Connection, rows: Sequence[_Old], before: str) -> int:
    """The last of these that may go without its decision or completion being left behind."""
    completed = {row.decision for row in rows}
    cut = 0
    for row in rows:
        if row.kind == "decision" and row.id not in completed and not _completed(db, row, rows[-1].seq, before):
            break
        cut = row.seq
    return cut


def _completed(db: sqlite3.Connection, decision: _Old, after: int, before: str) -> bool:
    """Whether a decision has its completion among the next records, and that is old enough to go as well."""
    if db.execute("SELECT 1 FROM pending WHERE decision = ?", (decision.id,)).fetchone():
        return False
    text = """
        SELECT time < :before FROM (SELECT time, kind, record FROM records WHERE seq > :after ORDER BY seq LIMIT :most)
        WHERE kind = 'completion' AND json_extract(record, '$.decision_id') = :decision
    """
    values = {"before": before, "after": after, "most": _LOOK_AHEAD, "decision": decision.id}
    found = db.execute(text, values).fetchone()
    return bool(found and found[0])
