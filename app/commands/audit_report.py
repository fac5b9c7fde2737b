"""`tidegate audit report`: what an officer files under a law, computed from the audit trail and the configuration."""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import click
import orjson

from app.audit.checkpoint import Checkpoint, NoteError, claimed
from app.audit.export import export
from app.audit.reader import Filters
from app.audit.record import Record
from app.audit.report.document import LAWS, Name, Report, compiled
from app.audit.report.form import as_csv, as_json, markdown
from app.audit.report.tables import Facts, LogState
from app.audit.report.tally import Period, tally
from app.commands.audit_options import Where, located, parameters
from app.commands.audit_remote import Remote, Unanswered
from app.config import Settings, environment
from app.law import load_law
from app.policy.rules import LawBook
from app.settings_file import documents, load
from app.stores.base import StoreError

_FORMS: Final[Mapping[str, Callable[[Report], str]]] = MappingProxyType(
    {"md": markdown, "json": as_json, "csv": as_csv}
)
_DAY = click.DateTime(["%Y-%m-%d"])


@click.command("report", short_help="Write what an officer files under a law.")
@located
@click.option("--law", required=True, type=click.Choice(list(LAWS)), help="Whose record or metrics to write.")
@click.option("--from", "first", required=True, type=_DAY, metavar="DATE", help="The first day, UTC.")
@click.option("--to", "last", required=True, type=_DAY, metavar="DATE", help="The last day, UTC; included.")
@click.option("--tenant", metavar="T", help="Only that tenant's requests; else all that the key may see.")
@click.option(
    "--format", "form", type=click.Choice(list(_FORMS)), default="md", show_default=True, help="How it is written."
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write to a file."
)
def command(
    *, where: Where, law: Name, first: datetime, last: datetime, tenant: str | None, form: str, output: Path | None
) -> None:
    """Write the record of processing activities (GDPR Art. 30), the request metrics (CCPA, 11 CCR 7102) or the
    transfers abroad (PDPA of Singapore, Thailand and Malaysia) of a period.

    Figures are computed from the records alone; names of operators and time limits come from the configuration, where
    one is given. What neither can know is marked for the controller to fill in.
    """  # noqa: D205 - click shows the first paragraph as it stands
    period = Period(first.date(), last.date())
    if period.last < period.first:
        raise click.UsageError(f"--to {period.last} is before --from {period.first}")
    known = _configured(where)
    try:
        with ExitStack() as held:
            lines = _asked(where, period, held) if where.url is not None else _read(where, period)
            report = _report(law, period, tenant, known, _Export(lines))
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    except orjson.JSONDecodeError as error:
        raise click.ClickException("a record cannot be read; `tidegate audit verify` says which") from error
    text = _FORMS[form](report)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def _configured(where: Where) -> tuple[Settings | None, LawBook]:
    """The configuration where one is known, and its law; else the law that ships."""
    if where.config is None:
        return None, LawBook.build(documents("default", Path()))
    settings = load(where.config, environment(), secrets=False)
    return settings, load_law(settings, where.config.absolute().parent)


def _asked(where: Where, period: Period, held: ExitStack) -> Iterator[bytes]:
    remote = held.enter_context(Remote(str(where.url), where.key))
    return remote.lines("/v1/audit/export", parameters(Filters(since=period.since, until=period.ended)))


def _read(where: Where, period: Period) -> Iterator[bytes]:
    return export(where.sources(), Filters(since=period.since, until=period.ended), None)


class _Export:
    """The records of an export, between its manifest and its checkpoints. Raises `Unanswered` where it breaks off."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self.manifest: Mapping[str, Any] = self._next("manifest")
        self.end: Mapping[str, Any] = {}

    def __iter__(self) -> Iterator[Record]:
        count = 0
        for line in self._lines:
            record: Record = orjson.loads(line)
            if record["kind"] == "checkpoint":
                self.end = record
                break
            count += 1
            yield record
        if self.end.get("records") != count:
            raise Unanswered("the export broke off before its end; try again")

    def _next(self, kind: str) -> Record:
        line = next(self._lines, b"null")
        found: Record | None = orjson.loads(line)
        if found is None or found.get("kind") != kind:
            raise Unanswered(f"the export does not begin with its {kind}")
        return found

    def logs(self) -> Iterator[LogState]:
        """The logs that were read, once they have been."""
        for label, span in sorted(self.manifest["logs"].items()):
            signed = _signed(self.end["checkpoints"].get(label))
            root = base64.b64encode(signed.root).decode() if signed else None
            yield LogState(label, span["first"], span["last"], span["floor"], signed.size if signed else None, root)


def _signed(note: str | None) -> Checkpoint | None:
    """What a note says; whether it is signed is for `tidegate audit verify` to find out."""
    try:
        return claimed(note) if note else None
    except NoteError:
        return None


def _report(
    law: Name, period: Period, tenant: str | None, known: tuple[Settings | None, LawBook], records: _Export
) -> Report:
    settings, book = known
    shown: str | None = records.manifest["filters"].get("tenant")  # a key without audit:admin sees its own tenant's
    figures = tally(
        records,
        laws=[one for one in book.laws if one.id in LAWS[law]],
        period=period,
        tenant=tenant,
        regions=settings.regions if settings else (),
    )
    if settings and tenant and not settings.tenant(tenant) and not (figures.requests or figures.elsewhere):
        known_tenants = ", ".join(one.id for one in settings.tenants)
        raise click.UsageError(f"there is no tenant {tenant!r}, nor a request of theirs; configured: {known_tenants}")
    facts = Facts.of(
        figures,
        laws=LAWS[law],
        tenant=tenant or shown,
        settings=settings,
        book=book,
        logs=tuple(records.logs()),
        whole=shown is None,
    )
    return compiled(law, facts, period)
