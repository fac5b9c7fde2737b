"""Finds records of an audit log in SQLite by what their rows repeat of them, in order of time."""

import sqlite3
from typing import Any, Final

import orjson

from app.stores.base import AuditQuery

COLUMNS: Final = ("time", "kind", "request_id", "tenant", "subject", "subject_country", "region", "outcome", "reason")
"""Fields of a record that its row repeats, to be found by."""
_IN_ORDER: Final = frozenset({"tenant"})
"""Those by which an index leads through the records in order of time."""
_DIRECT: Final = frozenset({"request_id"})
"""Those by which an index leads to the few records that match."""

_BY_REQUEST: Final = """
(SELECT bundle AS number FROM bundles UNION ALL SELECT coalesce(max(bundle), -1) + 1 FROM bundles)
CROSS JOIN records INDEXED BY records_request ON bundle = number
"""
"""Where to look for a request's id: in the index's part for each bundle, and for the one that is not complete."""


def page(db: sqlite3.Connection, query: AuditQuery) -> list[tuple[str, int, bytes, str | None]]:
    """Matching records; see `AuditStore.page`."""
    clauses, values = _clauses(query)
    for column, value in query.equal.items():
        if column not in COLUMNS:
            raise ValueError(f"{column!r} is no column to filter by")
        clauses.append(f"{column} = :{column}")
        values[column] = value
    if query.subjects is not None:
        clauses.append("subject IN (SELECT value FROM json_each(:subjects))")
        values["subjects"] = orjson.dumps(sorted(query.subjects)).decode()
    source = _BY_REQUEST if "request_id" in query.equal else "records"
    # Nothing of the caller's is in the text: columns are checked against a constant, values are bound.
    text = f"""
        SELECT time, seq, CAST(record AS BLOB), subject FROM {source}
        WHERE {" AND ".join(clauses)} ORDER BY time, seq LIMIT :limit
    """  # noqa: S608 - see above
    return db.execute(text, {**values, "limit": query.limit}).fetchall()


def stretch(db: sqlite3.Connection, query: AuditQuery, count: int) -> tuple[str, int] | None:
    """Up to where a page would have looked at so many records; see `AuditStore.stretch`."""
    if query.subjects is not None or query.equal.keys() <= _IN_ORDER or query.equal.keys() & _DIRECT:
        return None
    clauses, values = _clauses(query)
    for column in query.equal.keys() & _IN_ORDER:
        clauses.append(f"{column} = :{column}")
        values[column] = query.equal[column]
    text = f"""
        SELECT time, seq FROM records WHERE {" AND ".join(clauses)} ORDER BY time, seq LIMIT 1 OFFSET :looked_at
    """  # noqa: S608 - as above
    found: tuple[str, int] | None = db.execute(text, {**values, "looked_at": count - 1}).fetchone()
    return found


def _clauses(query: AuditQuery) -> tuple[list[str], dict[str, Any]]:
    """Conditions that say between which places records count, and their values."""
    clauses = ["seq <= :bound"]
    values: dict[str, Any] = {"bound": query.bound}
    if query.since is not None:
        clauses.append("time >= :since")
        values["since"] = query.since
    if query.until is not None:
        clauses.append("time < :until")
        values["until"] = query.until
    if query.after is not None:
        clauses.append("time >= :after_time AND (time > :after_time OR seq > :after_seq)")
        values["after_time"], values["after_seq"] = query.after
    if query.upto is not None:
        clauses.append("time <= :upto_time AND (time < :upto_time OR seq <= :upto_seq)")
        values["upto_time"], values["upto_seq"] = query.upto
    return clauses, values
