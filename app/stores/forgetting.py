"""Takes the names of erased persons out of an audit log in SQLite: a part at a time, to the last byte.

What is still to do is noted in the commit that begins it, so that an erasure which breaks off is gone on with.
"""

import sqlite3
from typing import Final

_AT_ONCE: Final = 2000
"""Records whose names are taken out within a commit (about 0.1 s): nothing else is written meanwhile."""
_REBUILT_AT_ONCE: Final = 50_000
"""Records of a log whose indexes are made anew within a commit (about 0.15 s): others wait for the next start."""


def begin(db: sqlite3.Connection, subject: str) -> None:
    """Forget whose records those of this pseudonym are that are there now; the first of them at once."""
    text = """
        INSERT INTO erasing SELECT ?, coalesce(max(seq), 0) FROM records WHERE true
        ON CONFLICT (subject) DO UPDATE SET last = excluded.last
    """
    db.execute(text, (subject,))
    go_on(db)


def is_due(db: sqlite3.Connection) -> bool:
    """Whether there is anything to go on with."""
    return db.execute("SELECT 1 FROM erasing").fetchone() is not None


def go_on(db: sqlite3.Connection) -> None:
    """Take the name of one person out of some more records."""
    subject, last = db.execute("SELECT subject, last FROM erasing").fetchone()
    text = """
        UPDATE records SET subject = NULL, request_id = NULL
        WHERE seq IN (SELECT seq FROM records WHERE subject = ? AND seq <= ? LIMIT ?)
    """
    if db.execute(text, (subject, last, _AT_ONCE)).rowcount < _AT_ONCE:
        db.execute("DELETE FROM erasing WHERE subject = ?", (subject,))
        rebuild_later(db)
        rebuild(db, _REBUILT_AT_ONCE)


def count(db: sqlite3.Connection, subject: str) -> int:
    """Records of this pseudonym, without those that are being forgotten."""
    text = """
        SELECT count(*) FROM records
        WHERE subject = :of AND seq > coalesce((SELECT last FROM erasing WHERE subject = :of), 0)
    """
    (found,) = db.execute(text, {"of": subject}).fetchone()
    return int(found)


def rebuild_later(db: sqlite3.Connection) -> None:
    """Note that names have been taken out of the indexes, which may have copies of them left."""
    db.execute("INSERT OR IGNORE INTO rebuild VALUES (1)")


def rebuild(db: sqlite3.Connection, limit: int) -> None:
    """Make the indexes of names anew where that is due and they have up to `limit` entries.

    Entries that SQLite has moved between pages leave copies behind in the unused part of those pages, which
    secure_delete does not reach; a rebuilt index has none, and the pages of the old one are zeroed.
    """
    due = db.execute("SELECT 1 FROM rebuild WHERE (SELECT count(*) FROM records) <= ?", (limit,)).fetchone()
    if due:
        db.execute("REINDEX records_subject")
        db.execute("REINDEX records_request")
        db.execute("DELETE FROM rebuild")
