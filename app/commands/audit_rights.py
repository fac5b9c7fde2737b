"""Whom the commands for rights and duties ask: running gateways by their URLs, or the trail's files where none runs."""

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import click

from app.audit.rights.officer import Access, Actor, event
from app.audit.rights.offline import Site, sites
from app.audit.rights.rights import Rights
from app.audit.writer import Trail, TrailError, TrailInUse
from app.commands.audit_options import Where
from app.commands.audit_remote import Remote, Unanswered
from app.config import RESERVED_LOG, Settings, environment
from app.errors import GatewayError
from app.i18n import LOCALES, Translator
from app.settings_file import load
from app.stores.base import StoreError
from app.telemetry import logging

_PATIENCE = 30.0
_Result = TypeVar("_Result")


class Desk(Protocol):
    """One trail, by whatever way it is reached; every method may raise `Unanswered`, answers are those of the API."""

    @property
    def name(self) -> str:
        """The trail's name in what is printed."""

    def erase(self, subject: str, tenant: str | None, *, dry_run: bool) -> Mapping[str, Any]:
        """Forget a person."""

    def access(self, subject: str, tenant: str | None) -> Iterator[bytes]:
        """Everything about a person, in lines."""

    def place(self, hold: Mapping[str, str | None]) -> Mapping[str, Any]:
        """Place a legal hold."""

    def holds(self) -> Sequence[Mapping[str, Any]]:
        """The legal holds."""

    def release(self, hold_id: str) -> Mapping[str, Any]:
        """End a legal hold."""


@contextmanager
def desks(places: Sequence[Where]) -> Iterator[list[Desk]]:
    """The trails at these places, all of them open or none; raises click's errors."""
    with ExitStack() as stack:
        if places[0].url is not None:
            asked = [(str(where.url), stack.enter_context(Remote(str(where.url), where.key))) for where in places]
            yield [_Gateway(url, remote) for url, remote in asked]
            return
        logging.configure("error")  # what a writer logs would stand between the lines that are printed
        runner = stack.enter_context(asyncio.Runner())
        settings = configured(places[0])
        yield [_Files(site, stack.enter_context(_opened(site, runner)), runner, settings) for site in found(places[0])]


def configured(where: Where) -> Settings | None:
    """The configuration, where one is known."""
    return load(where.config, environment(), secrets=False) if where.config else None


def found(where: Where) -> list[Site]:
    """The trails whose files lie there; raises click's errors."""
    with told():
        if not (there := sites(where.files, where.keys)):
            raise click.UsageError(f"there is no audit log in {where.files}")
    return there


@contextmanager
def told() -> Iterator[None]:
    """Failures of the trail inside become one line."""
    try:
        yield
    except GatewayError as error:
        values = {**error.values, "param": error.param}
        raise Unanswered(Translator(LOCALES).message(error.message_id, "en", values), error.status) from error
    except TrailInUse as error:
        raise click.ClickException(f"{error}; use --url where one runs") from error
    except (TrailError, StoreError) as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _opened(site: Site, runner: asyncio.Runner) -> Iterator[Trail]:
    opening = site.opened()
    with told():
        trail: Trail = runner.run(_awaited(opening.__aenter__()))
    try:
        yield trail
    finally:
        runner.run(_awaited(opening.__aexit__(None, None, None)))


async def _awaited(what: Awaitable[_Result]) -> _Result:
    return await what


class _Gateway:
    """A running gateway."""

    def __init__(self, url: str, remote: Remote) -> None:
        self.name = url
        self._remote = remote

    def erase(self, subject: str, tenant: str | None, *, dry_run: bool) -> Mapping[str, Any]:
        asked = {"subject": subject, "tenant": tenant, "dry_run": dry_run}
        answer: dict[str, Any] = self._remote.post("/v1/audit/erasures", asked)
        return answer

    def access(self, subject: str, tenant: str | None) -> Iterator[bytes]:
        return self._remote.posted_lines("/v1/audit/access", {"subject": subject, "tenant": tenant})

    def place(self, hold: Mapping[str, str | None]) -> Mapping[str, Any]:
        answer: dict[str, Any] = self._remote.post("/v1/audit/holds", hold)
        return answer

    def holds(self) -> Sequence[Mapping[str, Any]]:
        answer: list[dict[str, Any]] = self._remote.get("/v1/audit/holds")["holds"]
        return answer

    def release(self, hold_id: str) -> Mapping[str, Any]:
        answer: dict[str, Any] = self._remote.delete(f"/v1/audit/holds/{quote(hold_id, safe='')}")
        return answer


class _Files:
    """A trail that this process has open."""

    def __init__(self, site: Site, trail: Trail, runner: asyncio.Runner, settings: Settings | None) -> None:
        self.name = str(site.audit.path)
        self._trail = trail
        self._runner = runner
        self._rights = Rights(trail, site.audit, lambda: settings)
        self._configured = settings is not None

    def erase(self, subject: str, tenant: str | None, *, dry_run: bool) -> Mapping[str, Any]:
        self._check(tenant)
        return self._run(self._rights.erase(subject, tenant, Actor(), dry_run=dry_run)).as_json()

    def access(self, subject: str, tenant: str | None) -> Iterator[bytes]:
        self._check(tenant)
        parts = self._run(self._read(subject, tenant)).parts
        while part := self._run(anext(parts, b"")):
            yield from part.splitlines(keepends=True)

    def place(self, hold: Mapping[str, str | None]) -> Mapping[str, Any]:
        if hold["subject"] is not None:
            self._check(hold["tenant"])
        placed = self._rights.hold(
            hold["note"] or "",
            Actor(),
            tenant=hold["tenant"],
            subject_id=hold["subject"],
            since=hold["from"],
            until=hold["to"],
        )
        return self._run(placed).as_json()

    def holds(self) -> Sequence[Mapping[str, Any]]:
        return [each.as_json() for each in self._run(self._rights.holds())]

    def release(self, hold_id: str) -> Mapping[str, Any]:
        return self._run(self._rights.release(hold_id, Actor())).as_json()

    async def _read(self, subject: str, tenant: str | None) -> Access:
        found = await self._rights.access(subject, tenant)
        detail = {"command": "access", "filters": found.asked, "records": found.records}
        await self._trail.append(RESERVED_LOG, [event("read", "served", detail, Actor())], _PATIENCE)
        return found

    def _check(self, tenant: str | None) -> None:
        if tenant is None and not self._configured:
            raise click.UsageError("a person's id needs --tenant, whose person it is, or --config, which knows tenants")

    def _run(self, work: Awaitable[_Result]) -> _Result:
        with told():
            return self._runner.run(_awaited(work))
