"""What the commands of `tidegate audit` have in common: where the trail is, and which of its records are asked for."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from app.audit.check.verify import logs_in
from app.audit.export import Source
from app.audit.keys import FileKeys
from app.audit.pseudonym import Pseudonyms, is_pseudonym
from app.audit.reader import Filters
from app.audit.record import timestamp
from app.config import DEMO_KEY, environment
from app.settings_file import load
from app.stores.base import StoreError

_DEFAULT = Path("configs/local.yaml")
_LOCATING = (
    click.option(
        "--config", type=click.Path(path_type=Path), metavar="FILE", help=f"The configuration; else {_DEFAULT}."
    ),
    click.option("--path", type=click.Path(path_type=Path), metavar="DIR", help="The directory; else as configured."),
    click.option("--url", metavar="URL", help="Ask the gateway there instead of reading files."),
    click.option("--key", metavar="KEY", help="The API key for it; else $TIDEGATE_KEY, else the demo key."),
)


class Moment(click.ParamType[str]):
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
    click.option("--from", "since", type=Moment(), help="Records of that time and later."),
    click.option("--to", "until", type=Moment(), help="Records from before that time."),
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
        """The directory, for what needs files; a usage error where there is none."""
        if self.url is not None:
            raise click.UsageError("this needs the trail's files; leave out --url")
        if self.directory is None:
            raise click.UsageError("say where the trail is: --path DIR, --config FILE or --url URL")
        if not self.directory.is_dir():
            raise click.UsageError(f"there is no directory {self.directory}")
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
        if subject is None:
            return None
        itself = frozenset([subject] if is_pseudonym(subject) else [])
        tenants = [filters.tenant] if filters.tenant else self.tenants
        if not tenants and not itself:
            raise click.UsageError("--subject with a person's id needs --tenant, whose person it is, or --config")
        known = (Pseudonyms(each.keys).known([each.log], tenants, subject) for each in sources if tenants)
        found = itself.union(*known)
        if not found:
            raise click.UsageError(
                f"--subject with a person's id needs the keys of pseudonyms; none are in {self.keys}"
            )
        return found


def located(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say where the trail is; the command gets them as `where`.

    A `StoreError` of the command ends it in one line.
    """

    @functools.wraps(command)
    def run(*args: Any, config: Path | None, path: Path | None, url: str | None, key: str | None, **rest: Any) -> Any:
        _check_text(click.get_current_context())
        try:
            return command(*args, where=_where(config, path, url, key), **rest)
        except StoreError as error:
            raise click.ClickException(str(error)) from error

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_LOCATING), run)


def located_at_several(command: Callable[..., Any]) -> Callable[..., Any]:
    """As `located`, for regional gateways as well: `--url` may be repeated, and the command gets `places`, a list."""

    @functools.wraps(command)
    def run(
        *args: Any, config: Path | None, path: Path | None, url: tuple[str, ...], key: str | None, **rest: Any
    ) -> Any:
        _check_text(click.get_current_context())
        return command(*args, places=[_where(config, path, each, key) for each in url or [None]], **rest)

    several = click.option("--url", multiple=True, metavar="URL", help="Ask the gateway there; may be repeated.")
    options = [*_LOCATING[:2], several, *_LOCATING[3:]]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), run)


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


def _check_text(context: click.Context) -> None:
    """Refuse text that is not UTF-8: neither a record nor a request can hold it. A path may be any bytes."""
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if isinstance(value, str) and not isinstance(parameter.type, click.Path):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise click.BadParameter("this is no UTF-8 text", context, parameter) from None


def _where(config: Path | None, path: Path | None, url: str | None, key: str | None) -> Where:
    if url is not None and path is not None:
        raise click.UsageError("--url asks a gateway, --path reads files; give one of both")
    environ = environment()
    if config is None and path is None and url is None and _DEFAULT.exists():
        config = _DEFAULT
    settings = load(config, environ, secrets=False) if config is not None else None
    return Where(
        config=config,
        directory=path or (settings.audit.path if settings and url is None else None),
        keys=settings.audit.key_directory if settings else (path or Path()).resolve().parent / "keys",
        tenants=tuple(tenant.id for tenant in settings.tenants) if settings else (),
        url=url,
        key=key or environ.get("TIDEGATE_KEY") or DEMO_KEY,
    )
