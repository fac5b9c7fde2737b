"""`tidegate audit verify`: whether the trail is as it was written, with an exit code for each answer."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from app.audit.check.findings import Result
from app.audit.check.saved import Saved
from app.audit.check.verify import Observe, logs_in, verify
from app.audit.checkpoint import NoteError
from app.commands.audit_options import Where, located
from app.commands.audit_remote import Remote, Unanswered
from app.commands.tables import printable
from app.yaml_source import ConfigInvalid


class _Unreadable(click.ClickException):
    exit_code = Result.INCOMPLETE


class _Misused(click.UsageError):
    exit_code = 3


class _Verify(click.Command):
    """Usage errors have a code of their own: 2 means that the trail is incomplete."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _misused():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _misused():
            return super().invoke(ctx)


@click.command("verify", cls=_Verify, short_help="Check every record, hash and signature.")
@located
@click.option(
    "--checkpoint",
    "notes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help="A checkpoint saved earlier, or one that another gateway keeps; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, where: Where, notes: tuple[Path, ...], as_json: bool) -> None:
    """Check every record, hash and signature of the trail; needs only its directory, no private key.

    A checkpoint that was saved elsewhere shows also what nothing inside the directory can: newest records removed
    together with their checkpoints, or everything written anew under another key.

    Exit 0 intact; 1 tampered: a record is altered, or records that a checkpoint covers are missing; 2 incomplete:
    something cannot be read, or no checkpoint covers the newest records yet; 3 wrong usage.
    """
    started = time.monotonic()
    found = _asked(where, notes) if where.url is not None else _read(where.files, notes)
    found["records_per_second"] = int(found["records"] / max(time.monotonic() - started, 1e-3))
    if as_json:
        click.echo(orjson.dumps(found))
    else:
        for line in _as_text(found):
            click.echo(printable(line))
    ctx.exit(Result[found["result"].upper()])


def _asked(where: Where, notes: tuple[Path, ...]) -> dict[str, Any]:
    if notes:
        raise click.UsageError("--checkpoint is compared with the trail's files; leave out --url")
    try:
        with Remote(str(where.url), where.key) as remote:
            report: dict[str, Any] = remote.get("/v1/audit/verify")
    except Unanswered as error:
        raise _Unreadable(str(error)) from error
    return report


def _read(directory: Path, notes: tuple[Path, ...]) -> dict[str, Any]:
    try:
        saved = [Saved.read(file) for file in notes]
    except (NoteError, OSError) as error:
        raise click.UsageError(str(error)) from error
    try:
        if not logs_in(directory) and not saved:
            raise click.UsageError(f"there is no audit log in {directory}")
        with _progress() as observe:
            return verify(directory, saved, observe).as_json()
    except OSError as error:
        raise _Unreadable(str(error)) from error


@contextmanager
def _progress() -> Iterator[Observe]:
    """A bar for each log, where there is a terminal to draw it on."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def observe(log: str, seq: int, last: int) -> None:
            if log not in tasks:
                tasks[log] = progress.add_task(log, total=last)
            progress.update(tasks[log], completed=seq)

        yield observe


@contextmanager
def _misused() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        raise _Misused(error.format_message(), error.ctx) from error
    except ConfigInvalid as error:
        click.echo(error, err=True)
        raise click.exceptions.Exit(_Misused.exit_code) from error


def _as_text(found: Mapping[str, Any]) -> Iterator[str]:
    for log in found["logs"]:
        covered = "no checkpoint" if log["checkpoint"] is None else f"checkpoint at {log['checkpoint']}"
        still = f", {log['open_decisions']} decisions still open" if log["open_decisions"] else ""
        records = f"records {log['first']} to {log['last']}" if log["last"] >= log["first"] else "no records"
        yield f"{log['log']}: {log['result']}, {records}, {covered}{still}"
        for each in log["findings"]:
            record = f" (id {each['id']})" if each["id"] else ""
            place = "" if each["seq"] is None else f"record {each['seq']}{record}: "
            yield f"  {each['result']}: {log['log']}: {place}{each['what']}"
        if log["untold"]:
            yield f"  and {log['untold']} more"
        for remark in log["remarks"]:
            yield f"  note: {remark}"
    yield f"{found['result']}: {found['records']} records read, {found['records_per_second']} records/s"
