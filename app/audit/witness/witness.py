"""Witnesses the logs of the other regions' gateways: asks for their checkpoints, of which only roots cross a border.

A log that has only grown has its newest checkpoint cosigned and kept. One that was rewritten, forked, or set back to
an older copy contradicts what was kept, and that is told, for as long as it lasts.

The key that signs a log is pinned at first sight. Another one takes its place under one condition, the same that every
checkpoint has to meet: the tree that it signs is proven to extend the one witnessed, so whoever holds it may have
added records, but has changed and removed none. That the gateway lists the old key beside the new one would add
nothing: nobody signs that list. Who answers in a peer's place, past TLS, could thus lead the witness on from the true
tree; the peer's own next checkpoint then contradicts what was witnessed.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain
from typing import Any, Final, Protocol, TypeVar

import httpx
import structlog

from app.audit.checkpoint import MAX_NOTE_BYTES, NoteError
from app.audit.place import EDGE
from app.audit.witness.extension import (
    KEYS_HEADER,
    Conflict,
    Extension,
    nothing_of,
    require_extension,
    signed,
    verifier_keys,
)
from app.audit.witness.notebook import Notebook
from app.config import WITNESS, Settings
from app.stores.base import StoreError

_PATH: Final = "/v1/audit/checkpoint"
_TIMEOUT: Final = 5.0
_JITTER: Final = 0.1
_CONTRADICTS: Final = "a peer's audit log contradicts what was witnessed"
_NOT_KEPT: Final = "cannot keep what is witnessed of an audit log"
_BUSY: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})

_T = TypeVar("_T")

log = structlog.get_logger("tidegate.witness")


class Observer(Protocol):
    """Who is told what was found of a peer's log."""

    def witnessed(self, peer: str, log: str, moment: float) -> None:
        """It was found good, at that Unix time; 0 where it never was."""

    def conflicted(self, peer: str, log: str) -> None:
        """It contradicts what was witnessed."""


class _Unreachable(Exception):
    pass


@dataclass(slots=True)
class _Subject:
    """A log of a peer; `told` is what has been logged of it since it was last found good."""

    peer: str
    log: str
    url: str
    told: set[str] = field(default_factory=set)

    @property
    def origin(self) -> str:
        return f"tidegate/{self.peer}/{self.log}"


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    text: str
    keys: str


class Witness:
    """Polls every log (those named) of every peer (`settings.peers`) each `audit.witness` seconds."""

    def __init__(self, settings: Settings, logs: Sequence[str], observer: Observer) -> None:
        self._settings = settings
        self._observer = observer
        self._peers: Mapping[str, Sequence[_Subject]] = {
            peer: [_Subject(peer, log, url) for log in logs] for peer, url in settings.peers.items()
        }

    async def run(self) -> None:
        """Witness until cancelled; return at once where that is switched off, or there are no peers."""
        interval = self._settings.audit.witness
        if interval is None or not self._peers:
            return
        for subject in chain.from_iterable(self._peers.values()):
            self._observer.witnessed(subject.peer, subject.log, 0)
        notebook = await self._notebook(interval)
        async with (
            httpx.AsyncClient(
                verify=ssl.create_default_context(),
                timeout=_TIMEOUT,
                follow_redirects=False,
                trust_env=False,
                headers={"user-agent": "tidegate-witness", "accept-encoding": "identity"},
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            visit = _Visit(client, notebook, self._observer)
            for peer, subjects in self._peers.items():
                group.create_task(_watch(visit, subjects, interval), name=f"witness {peer}")

    async def _notebook(self, pause: float) -> Notebook:
        """What was witnessed before; tries until it can be had."""
        own = _Subject(self._settings.gateway.region or EDGE, WITNESS, "")
        while True:
            try:
                return await _to_the_end(asyncio.to_thread(Notebook, self._settings.audit, own.peer))
            except StoreError as error:
                _say(log.error, _NOT_KEPT, own, error)
            await asyncio.sleep(pause)


async def _watch(visit: "_Visit", subjects: Sequence[_Subject], interval: float) -> None:
    for subject in subjects:
        await visit.begin(subject)
    pause = interval * random.random()  # noqa: S311 - spreads requests, guards nothing
    while True:
        await asyncio.sleep(pause)
        for subject in subjects:  # one after the other: a peer has one request of ours at a time
            await visit.look(subject)
        pause = interval * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - as above


@dataclass(frozen=True, slots=True)
class _Visit:
    """What it takes to look at a log."""

    client: httpx.AsyncClient
    notebook: Notebook
    observer: Observer

    async def begin(self, subject: _Subject) -> None:
        """Say when the log was witnessed last, by a process before this one."""
        with _told(subject):
            last = await asyncio.to_thread(self.notebook.last, subject.peer, subject.log)
            if last:
                self.observer.witnessed(subject.peer, subject.log, last.seconds)

    async def look(self, subject: _Subject) -> None:
        """Ask for the log's newest checkpoint, and keep it where it extends the last one."""
        with _told(subject):
            try:
                await self._verify(subject)
            except Conflict as conflict:
                self.observer.conflicted(subject.peer, subject.log)
                self._tell(subject, conflict)
                kept = asyncio.to_thread(self.notebook.keep_conflict, subject.peer, subject.log, conflict.note)
                await _to_the_end(kept)
                return
            self.observer.witnessed(subject.peer, subject.log, time.time())
            if _CONTRADICTS in subject.told:
                log.info("a peer's audit log extends again what was witnessed", peer=subject.peer, log=subject.log)
            subject.told.clear()

    async def _verify(self, subject: _Subject) -> None:
        """Raises `Conflict`, NoteError for an answer that is none, `_Unreachable`, `StoreError`."""
        last = await asyncio.to_thread(self.notebook.last, subject.peer, subject.log)
        seen = last.checkpoint if last else nothing_of(subject.origin)
        pinned = [last.key] if last and last.key else []
        extension, listed = await self._ask(subject, seen.size)
        offered = verifier_keys(listed, subject.origin)
        new, key = signed(extension.note, subject.origin, [*pinned, *reversed(offered)])
        require_extension(seen, extension, new, key)
        if pinned and key not in pinned:
            log.warning("a peer's audit log has another key", peer=subject.peer, log=subject.log, verifier=key.line())
        if last is None or new != last.checkpoint or key not in pinned:
            seconds = int(time.time())
            kept = asyncio.to_thread(self.notebook.keep, subject.peer, subject.log, extension.note, key, seconds)
            await _to_the_end(kept)

    def _tell(self, subject: _Subject, conflict: Conflict) -> None:
        files = {
            "witnessed": str(self.notebook.file(subject.peer, subject.log)),
            "conflict": str(self.notebook.conflict_file(subject.peer, subject.log)),
        }
        _say(log.error, _CONTRADICTS, subject, conflict, verifier=conflict.key.line(), **files)

    async def _ask(self, subject: _Subject, old: int) -> tuple[Extension, str]:
        """The newest checkpoint with its proof, and the keys listed; without a proof where the peer refuses one."""
        answer = await self._get(subject, {"region": subject.log, "old": str(old)})
        if httpx.codes.is_client_error(answer.status) and answer.status not in _BUSY:
            answer = await self._get(subject, {"region": subject.log})
            return Extension(_good(answer)), answer.keys
        return Extension.parse(_good(answer), old), answer.keys

    async def _get(self, subject: _Subject, parameters: Mapping[str, str]) -> _Answer:
        body = bytearray()
        try:
            async with (
                asyncio.timeout(_TIMEOUT),
                self.client.stream("GET", subject.url + _PATH, params=parameters) as response,
            ):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > MAX_NOTE_BYTES:
                        raise NoteError(f"it has more than {MAX_NOTE_BYTES} bytes")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise _Unreachable(f"{type(error).__name__} {error}".rstrip()) from error
        try:
            return _Answer(response.status_code, body.decode(), response.headers.get(KEYS_HEADER, ""))
        except UnicodeDecodeError as error:
            raise NoteError("it is no text") from error


async def _to_the_end(writing: Coroutine[Any, Any, _T]) -> _T:
    """Wait for a thread that writes, where this is cancelled as well: who comes next writes the same files."""
    task = asyncio.create_task(writing)
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.gather(task, return_exceptions=True)


def _good(answer: _Answer) -> str:
    if answer.status == HTTPStatus.OK:
        return answer.text
    if answer.status in _BUSY or httpx.codes.is_server_error(answer.status):
        raise _Unreachable(f"status {answer.status}")
    raise NoteError(f"its gateway answers with status {answer.status}")


@contextmanager
def _told(subject: _Subject) -> Iterator[None]:
    """Whatever keeps a log from being witnessed ends here, as a line in our log."""
    try:
        yield
    except _Unreachable as error:
        log.debug("a peer's audit log cannot be reached", peer=subject.peer, log=subject.log, problem=str(error))
    except NoteError as error:
        _say(log.warning, "a peer's checkpoint is unusable", subject, error)
    except StoreError as error:
        _say(log.error, _NOT_KEPT, subject, error)


def _say(level: Callable[..., None], what: str, subject: _Subject, problem: Exception, **more: str) -> None:
    """Log a line, once until the subject is found good again."""
    if what not in subject.told:
        subject.told.add(what)
        level(what, peer=subject.peer, log=subject.log, problem=str(problem), **more)
