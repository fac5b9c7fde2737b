"""What an audit log in SQLite has to keep, by legal hold or until it is complete, and what may go."""

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict

from app.stores.base import Hold

_MATCHES = """
(:tenant IS NULL OR tenant = :tenant) AND (:subject IS NULL OR subject = :subject)
AND (:since IS NULL OR time >= :since) AND (:until IS NULL OR time < :until)
"""
"""Whether a record is one that a hold keeps."""


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
    text = """
        SELECT DISTINCT subject FROM records WHERE seq <= :floor AND subject IS NOT NULL
        AND subject NOT IN (SELECT subject FROM records WHERE seq > :floor AND subject IS NOT NULL)
    """
    return [subject for (subject,) in db.execute(text, {"floor": floor})]


def expirable(db: sqlite3.Connection, before: str, limit: int) -> int:
    """Up to which number the oldest records may be deleted, at most `limit` of them; see `AuditStore.expirable`."""
    text = """
        SELECT seq, time, kind, json_extract(record, '$.id'), json_extract(record, '$.decision_id')
        FROM records ORDER BY seq LIMIT ?
    """
    rows: list[tuple[int, str, str, str, str | None]] = []
    for row in db.execute(text, (limit,)):
        if row[1] >= before:
            break
        rows.append(row)
    if rows and (kept := _first_held(db, rows[-1][0])):
        rows = [row for row in rows if row[0] < kept]
    return _last_complete(db, rows, before)


def _first_held(db: sqlite3.Connection, last: int) -> int | None:
    text = f"SELECT min(seq) FROM records WHERE seq <= :last AND {_MATCHES}"  # noqa: S608 - a constant above
    found = [db.execute(text, {**asdict(hold), "last": last}).fetchone()[0] for hold in holds(db)]
    return min((seq for seq in found if seq is not None), default=None)


def _last_complete(db: sqlite3.Connection, rows: Sequence[tuple[int, str, str, str, str | None]], before: str) -> int:
    """The last of these that may go without its decision or completion being left behind."""
    text = """
        SELECT 1 FROM records
        WHERE seq > ? AND time < ? AND kind = 'completion' AND json_extract(record, '$.decision_id') = ?
    """
    completed = {row[4] for row in rows}
    cut = 0
    for seq, _, kind, identity, _ in rows:
        if kind == "decision" and identity not in completed:
            found = db.execute(text, (rows[-1][0], before, identity)).fetchone()
            if found is None:
                break
        cut = seq
    return cut
