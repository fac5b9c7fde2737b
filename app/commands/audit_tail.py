"""`tidegate audit tail`: the newest records, one a line, and those that come."""

import time

import click
import orjson

from app.audit.reader import Filters
from app.audit.record import Record
from app.audit.tail import Tail
from app.commands.audit_options import Where, filtered, located
from app.commands.audit_remote import Remote
from app.commands.audit_remote_tail import RemoteTail
from app.commands.tables import printable

_PAUSE, _REMOTE_PAUSE = 0.5, 2.0
"""Seconds between looks while following."""


@click.command("tail", short_help="Show the newest records.")
@located
@filtered
@click.option("-n", "count", type=click.IntRange(0, 100_000), default=20, show_default=True, help="How many records.")
@click.option("-f", "follow", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print each record as JSON.")
def command(where: Where, filters: Filters, count: int, follow: bool, as_json: bool) -> None:
    """Show the newest records in order of time, a line each.

    Read from files, they name persons where the keys are at hand. Over --url each look is a read that is recorded
    itself; records of those are left out.
    """
    if where.url is not None:
        with Remote(where.url, where.key) as remote:
            _show(RemoteTail(remote, filters, where.key), count, _REMOTE_PAUSE if follow else None, as_json=as_json)
    else:
        sources = where.sources()
        tail = Tail(sources, filters, where.pseudonyms(sources, filters))
        _show(tail, count, _PAUSE if follow else None, as_json=as_json)


def _show(tail: Tail | RemoteTail, count: int, pause: float | None, *, as_json: bool) -> None:
    records = tail.newest(count)
    while True:
        for record in records:
            click.echo(orjson.dumps(record) if as_json else _line(record))
        if pause is None:
            return
        time.sleep(pause)
        records = tail.more()


def _line(record: Record) -> str:
    """Time, log and number, kind, outcome and status, tenant, from where to where and why, model, id."""
    to = f"{record['subject_country'] or '-'} -> {record['region'] or '-'}"
    what = " ".join(str(record[name]) for name in ("kind", "outcome", "status") if record[name])
    parts = (
        record["time"],
        f"{record['log']}:{record['seq']}",
        what,
        record["tenant"],
        to,
        record["reason"],
        record.get("model"),
        record["id"],
    )
    return "  ".join(printable(str(part)) for part in parts if part)
