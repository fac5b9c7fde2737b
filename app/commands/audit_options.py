"""What the commands of `tidegate audit` have in common: where the trail is, and which of its records are asked for."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from app.audit.export import Source
from app.audit.keys import FileKeys
from app.audit.pseudonym import Pseudonyms, is_pseudonym
from app.audit.reader import Filters
from app.audit.record import timestamp
from app.audit.verify import logs_in
from app.config import DEMO_KEY, AuditSettings, environment
from app.settings_file import load

_DEFAULT = Path("configs/local.yaml")
Locate = Callable[[], "Where"]
"""Says where the trail is; raises a usage error, or `ConfigInvalid`, where the options do not."""

_LOCATING = (
    click.option(
        "--config", type=click.Path(path_type=Path), metavar="FILE", help=f"The configuration; else {_DEFAULT}."
    ),
    click.option("--path", type=click.Path(path_type=Path), metavar="DIR", help="The directory; else as configured."),
    click.option("--url", metavar="URL", help="Ask the gateway there instead of reading files."),
    click.option("--key", metavar="KEY", help="The API key for it; else $TIDEGATE_KEY, else the demo key."),
)


class _Moment(click.ParamType[str]):
    """A point in time, as records write it."""

    name = "TIME"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is None or (moment.tzinfo is None and len(value) > len("2026-01-31")):
            self.fail(f"{value!r} is no time; write 2026-01-31 (UTC) or 2026-01-31T12:00:00Z", param, ctx)
        return timestamp(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


_FILTERING = (
    click.option("--from", "since", type=_Moment(), help="Records of that time and later."),
    click.option("--to", "until", type=_Moment(), help="Records from before that time."),
    click.option("--region", metavar="R", help="Records of that region."),
    click.option("--tenant", metavar="T", help="Records of that tenant."),
    click.option("--subject", metavar="S", help="Records of that person: id at the caller, or pseudonym."),
    click.option("--subject-country", metavar="C", help="Records of people there, an ISO 3166 code."),
    click.option("--outcome", metavar="O", help="Records with that outcome."),
    click.option("--reason", metavar="R", help="Records with that reason."),
    click.option("--request-id", metavar="ID", help="Records of that request."),
)


@dataclass(frozen=True, slots=True)
class Where:
    """Where the trail is: files in `directory`, or a gateway's `url` to ask with `key`; exactly one of both.

    `keys` is the directory of private keys that belongs to the files, whether or not there is one. `config` is the
    configuration's file where one is known.
    """

    directory: Path | None
    keys: Path
    tenants: Sequence[str]
    url: str | None
    key: str
    config: Path | None

    @property
    def files(self) -> Path:
        """The directory, for a command that needs files; a usage error where there is none."""
        if self.directory is None:
            raise click.UsageError("this needs the trail's files; leave out --url")
        return self.directory

    def sources(self) -> list[Source]:
        """The logs in the directory, those of regional gateways below it as well; a usage error where there are none.

        Raises OSError where the directory cannot be read.
        """
        found = []
        for each in logs_in(self.files):
            place = each.place
            below = Path() if place.directory == self.files else Path(place.directory.name)
            if place.file.exists():
                found.append(Source(each.label, place.log, place.file, FileKeys(self.keys / below)))
        if not found:
            raise click.UsageError(f"there is no audit log in {self.files}")
        return found

    def pseudonyms(self, sources: Sequence[Source], filters: Filters) -> frozenset[str] | None:
        """The pseudonyms that the filter's subject stands for in these logs; None where it asks for nobody."""
        subject = filters.subject
        if subject is None or is_pseudonym(subject):
            return None if subject is None else frozenset([subject])
        tenants = [filters.tenant] if filters.tenant else self.tenants
        if not tenants:
            raise click.UsageError("--subject with a person's id needs --tenant, whose person it is, or --config")
        known = (Pseudonyms(each.keys).known([each.log], tenants, subject) for each in sources)
        found: frozenset[str] = frozenset().union(*known)
        if not found:
            raise click.UsageError(
                f"--subject with a person's id needs the keys of pseudonyms; none are in {self.keys}"
            )
        return found


def located(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say where the trail is; the command gets a function `where`, which reads them."""

    @functools.wraps(command)
    def run(*args: Any, config: Path | None, path: Path | None, url: str | None, key: str | None, **rest: Any) -> Any:
        return command(*args, where=functools.partial(_where, config, path, url, key), **rest)

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_LOCATING), run)


def filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say which records; the command gets them as `filters`."""
    names = ("since", "until", "region", "tenant", "subject", "subject_country", "outcome", "reason", "request_id")

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        asked = {name: given.pop(name) for name in names}
        return command(*args, filters=Filters(**asked, subject_is_id=True), **given)

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_FILTERING), run)


def parameters(filters: Filters) -> dict[str, str]:
    """The filters as parameters of the API."""
    asked = {"from": filters.since, "to": filters.until, "subject": filters.subject, **filters.equal()}
    return {name: value for name, value in asked.items() if value is not None}


def _where(config: Path | None, path: Path | None, url: str | None, key: str | None) -> Where:
    if url is not None and path is not None:
        raise click.UsageError("--url asks a gateway, --path reads files; give one of both")
    environ = environment()
    key = key or environ.get("TIDEGATE_KEY") or DEMO_KEY
    if config is None and path is None and url is None:
        if not _DEFAULT.exists():
            raise click.UsageError(
                f"say where the trail is: --path DIR, --config FILE or --url URL; no {_DEFAULT} here"
            )
        config = _DEFAULT
    settings = load(config, environ, secrets=False) if config is not None else None
    tenants = tuple(tenant.id for tenant in settings.tenants) if settings else ()
    audit = settings.audit if settings else AuditSettings(path=path or Path())
    directory = None if url is not None else path or audit.path
    if directory is not None and not directory.is_dir():
        raise click.UsageError(f"there is no directory {directory}")
    return Where(directory, audit.key_directory, tenants, url, key, config)
