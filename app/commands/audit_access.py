"""`tidegate audit access`: everything that the trails hold about one person, for the answer to their request."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import click
import orjson
from rich.text import Text

from app.commands.audit_erase import one_tenant
from app.commands.audit_export import destination
from app.commands.audit_options import Where, located_at_several
from app.commands.audit_remote import Unanswered
from app.commands.audit_rights import desks
from app.commands.tables import printable, show, table

_DAY = 86400


@click.command("access", short_help="Everything about a person.")
@click.argument("subject")
@located_at_several
@click.option("--tenant", metavar="T", help="Whose person it is; needed where several tenants have one of that id.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: everything, or with -o the summaries.")
def command(subject: str, *, places: Sequence[Where], tenant: str | None, output: Path | None, as_json: bool) -> None:
    """Everything about the person whom a tenant's requests named SUBJECT in X-Subject-Id.

    Prints a summary: where records lie and for how long, for which purposes data was processed, who received it and on
    which basis. With -o, FILE gets for each trail the summary and then every record, a JSON object a line.
    """
    with desks(places) as asked:
        answers = [(desk.name, desk.access(subject, tenant)) for desk in asked]
        summaries = [_summary(name, lines) for name, lines in answers]
        one_tenant(summary["tenant"] for summary in summaries)
        if output or as_json:
            with destination(output) as target:
                for summary, (_, lines) in zip(summaries, answers, strict=True):
                    target.writelines(chain([_line(summary)], lines))
    if not as_json:
        _print(summaries)
    elif output:
        click.echo(b"".join(map(_line, summaries)), nl=False)


def _line(content: Mapping[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


def _summary(name: str, lines: Iterator[bytes]) -> dict[str, Any]:
    try:
        return {"trail": name, **orjson.loads(next(lines, b""))}
    except orjson.JSONDecodeError as error:
        raise Unanswered(f"{name} answered something else than lines of JSON") from error


def _print(summaries: Sequence[Mapping[str, Any]]) -> None:
    known = [summary for summary in summaries if summary["known"]]
    if not known:
        click.echo("Nobody is known by that id.")
        return
    logs = table("trail", "log", "records", "oldest", "newest", "kept for", "holds")
    recipients = table("trail", "recipient", "operator", "country", "requests", "reason", "rule", "law", "basis")
    for summary in known:
        kept = "" if summary["retention_s"] is None else f"{summary['retention_s'] / _DAY:g} d"
        for log in summary["logs"]:
            cells = (log["log"], log["records"], log["oldest"], log["newest"], kept, ", ".join(log["holds"]))
            logs.add_row(*(Text(printable(str(cell or ""))) for cell in (summary["trail"], *cells)))
        for each in summary["recipients"]:
            names = ("region", "operator", "country", "requests", "reason", "rule", "law", "basis")
            recipients.add_row(
                *(Text(printable(str(cell or ""))) for cell in (summary["trail"], *(each[name] for name in names)))
            )
    show(logs)
    click.echo()
    show(recipients)
