"""`tidegate audit hold`: legal holds, which keep records from erasure and retention."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import orjson
from rich.text import Text

from app.commands.audit_options import Moment, Where, located_at_several
from app.commands.audit_remote import Unanswered
from app.commands.audit_rights import Desk, desks
from app.commands.tables import printable, show, table

_NOT_FOUND = 404
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("hold", short_help="Keep records from erasure and retention.")
def command() -> None:
    """Place, list and release legal holds. What a hold matches is neither erased nor deleted by retention."""


@command.command("place", short_help="Place a hold.")
@located_at_several
@click.option("--note", required=True, metavar="TEXT", help="Why. It is deleted with the hold; name nobody in it.")
@click.option("--tenant", metavar="T", help="Records of that tenant.")
@click.option("--subject", metavar="S", help="Records of the person whom the tenant calls so.")
@click.option("--from", "since", type=Moment(), help="Records of that time and later.")
@click.option("--to", "until", type=Moment(), help="Records from before that time.")
@_as_json
def place(
    *,
    places: Sequence[Where],
    note: str,
    tenant: str | None,
    subject: str | None,
    since: str | None,
    until: str | None,
    as_json: bool,
) -> None:
    """Hold the records that all options match; without any, every record.

    A hold on a person stands in the logs that know the person now. It keeps their records there from retention, and
    all of their records from erasure.
    """
    hold = {"note": note, "tenant": tenant, "subject": subject, "from": since, "to": until}
    with desks(places) as asked:
        if subject is not None and tenant is None and len(asked) > 1:
            hold["tenant"] = _only_tenant(places[0])
        placed = _where_found(asked, lambda desk: desk.place(hold))
    _print(placed, as_json=as_json)


@command.command("list", short_help="List the holds in force.")
@located_at_several
@_as_json
def list_(places: Sequence[Where], as_json: bool) -> None:
    """List the holds in force, the oldest first."""
    with desks(places) as asked:
        holds = [{"trail": desk.name, **hold} for desk in asked for hold in desk.holds()]
    _print(holds, as_json=as_json)


@command.command("release", short_help="End a hold.")
@click.argument("hold_id", metavar="ID")
@located_at_several
@_as_json
def release(hold_id: str, places: Sequence[Where], as_json: bool) -> None:
    """End the hold ID in every log that has it."""
    with desks(places) as asked:
        released = _where_found(asked, lambda desk: desk.release(hold_id))
    _print(released, as_json=as_json)


def _only_tenant(where: Where) -> str:
    if len(where.tenants) == 1:
        return where.tenants[0]
    raise click.UsageError("--subject needs --tenant where several trails are asked: the same id may be someone else's")


def _where_found(asked: Sequence[Desk], work: Callable[[Desk], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the trails answer that know what it is about; the first one's refusal where none does."""
    done: list[dict[str, Any]] = []
    refusals: list[Unanswered] = []
    for desk in asked:
        try:
            done.append({"trail": desk.name, **work(desk)})
        except Unanswered as error:
            if error.status != _NOT_FOUND:
                raise
            refusals.append(error)
    if not done:
        raise refusals[0]
    return done


def _print(holds: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        click.echo(orjson.dumps({"holds": holds}))
        return
    columns = table("trail", "id", "placed", "tenant", "person", "from", "to", "logs", "note")
    for hold in holds:
        person = "yes" if any(log["subject"] for log in hold["logs"]) else ""
        logs = ", ".join(log["log"] for log in hold["logs"])
        values = (*(hold[name] for name in ("trail", "id", "placed", "tenant")), person, hold["from"], hold["to"], logs)
        columns.add_row(*(Text(printable(str(value or ""))) for value in (*values, hold["note"])))
    show(columns)
