"""`tidegate audit erase`: forgets a person in every log of every trail that is named."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import orjson
from rich.text import Text

from app.commands.audit_options import Where, located_at_several
from app.commands.audit_rights import Desk, desks
from app.commands.tables import printable, show, table


@click.command("erase", short_help="Forget a person.")
@click.argument("subject")
@located_at_several
@click.option("--tenant", metavar="T", help="Whose person it is; needed where several tenants have one of that id.")
@click.option("--dry-run", is_flag=True, help="Only say what would be erased.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    subject: str, *, places: Sequence[Where], tenant: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Forget the person whom a tenant's requests named SUBJECT in X-Subject-Id.

    Destroys the key of the person's fields and their pseudonym in the index, in every log that knows them. All records
    stay and still verify, but nobody can say any more whose they were. Where a legal hold keeps any of them, nothing is
    erased. It can be repeated, and then finishes what was broken off.
    """
    with desks(places) as asked:
        planned = [(desk, desk.erase(subject, tenant, dry_run=True)) for desk in asked]
        found = [(desk, plan) for desk, plan in planned if plan["known"]]
        whose = one_tenant(plan["tenant"] for _, plan in found) or tenant
        if found and not dry_run:
            _confirm(sum(plan["records"] for _, plan in found), whose, yes=yes)
            found = [(desk, desk.erase(subject, whose, dry_run=False)) for desk, _ in found]
    _print(found, whose, as_json=as_json, dry_run=dry_run)


def one_tenant(tenants: Iterable[str | None]) -> str | None:
    """The only tenant among these; a usage error where trails answer of different tenants' persons."""
    different = sorted({each for each in tenants if each is not None})
    if len(different) > 1:
        raise click.UsageError(f"several tenants have such a person: {', '.join(different)}; name one with --tenant")
    return different[0] if different else None


def _confirm(records: int, tenant: str | None, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for a confirmation on; give --yes")
    question = f"Erase the person of tenant {tenant} from {records} record{'' if records == 1 else 's'}, for good?"
    click.confirm(question, abort=True, err=True)


def _print(
    found: Sequence[tuple[Desk, Mapping[str, Any]]], tenant: str | None, *, as_json: bool, dry_run: bool
) -> None:
    logs = [{"trail": desk.name, **log} for desk, erasure in found for log in erasure["logs"]]
    records = sum(log["records"] for log in logs)
    if as_json:
        click.echo(orjson.dumps({"known": bool(found), "tenant": tenant, "records": records, "logs": logs}))
        return
    if not found:
        click.echo("Nobody is known by that id: nothing to erase, and nothing recorded.")
        return
    columns = table("trail", "log", "records", "erasure")
    for log in logs:
        columns.add_row(*(Text(printable(str(log[name] or ""))) for name in ("trail", "log", "records", "id")))
    show(columns)
    done = "would be erased from" if dry_run else "is erased from"
    click.echo(f"The person {done} {records} record{'' if records == 1 else 's'} of tenant {tenant}.")
