"""`tidegate audit export`: records as NDJSON, between a manifest and the logs' checkpoints."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click
import orjson

from app.audit.export import export
from app.audit.reader import Filters
from app.commands.audit_options import Where, filtered, located, parameters
from app.commands.audit_remote import Remote, Unanswered


@click.command("export", short_help="Write records as NDJSON, with the checkpoints that cover them.")
@located
@filtered
@click.option(
    "-o", "output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write there, mode 0600."
)
def command(where: Where, filters: Filters, output: Path | None) -> None:
    """Write matching records as lines of JSON, in order of time.

    The first line is a manifest (kind manifest) of what was asked for and of the logs; the last one (kind checkpoint)
    says how many records there are and holds each log's newest checkpoint. A file without it has been cut short. Read
    from files, records name persons where the keys are at hand.
    """
    with destination(output) as target:
        if where.url is not None:
            with Remote(where.url, where.key) as remote:
                _write(remote.lines("/v1/audit/export", parameters(filters)), target)
        else:
            sources = where.sources()
            _write(export(sources, filters, where.pseudonyms(sources, filters)), target)


def _write(lines: Iterator[bytes], target: IO[bytes]) -> None:
    last = b""
    for last in lines:
        target.write(last)
    try:
        complete = orjson.loads(last)["kind"] == "checkpoint"
    except (orjson.JSONDecodeError, KeyError, TypeError):
        complete = False
    if not complete:
        raise Unanswered("the export was cut short: its last line is no checkpoint; ask again")


@contextmanager
def destination(output: Path | None) -> Iterator[IO[bytes]]:
    """Standard output, or a file of its owner's only that appears once it is whole."""
    if output is None:
        yield sys.stdout.buffer
        return
    draft = output.with_name(f".{output.name}.part")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
