"""Trails on the disk that no gateway has open: found in a directory, opened for a command at the machine, new keys."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.audit.check.log import LogFiles
from app.audit.check.verify import logs_in
from app.audit.checkpoint import VerifierKey
from app.audit.keys import FileKeys
from app.audit.place import Place
from app.audit.rights.officer import Actor, event
from app.audit.writer import Trail, TrailError
from app.config import RESERVED_LOG, WITNESS, AuditSettings
from app.stores.base import StoreError

_NEVER: Final = 200 * 365 * 86400.0
_DEADLINE: Final = 30.0
"""Seconds that a commit may take: nobody waits for it but the command."""


@dataclass(frozen=True, slots=True)
class Site:
    """One gateway's trail: its files, and in which place that gateway stands. `label` is empty, or a subdirectory's."""

    label: str
    audit: AuditSettings
    standing: str
    logs: tuple[str, ...]

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Trail]:
        """The trail, open for writing, which no gateway can be then; raises `TrailError`.

        Retention is the gateway's to enforce, by its own settings: nothing is deleted here.
        """
        trail = Trail(self.audit, self.logs, self.standing)
        await trail.start()
        try:
            yield trail
        finally:
            await trail.close()


def sites(directory: Path, keys: Path) -> list[Site]:
    """The trail in a directory and those of regional gateways one level below, each with its keys.

    Raises `TrailError` where a log's private keys are not in `keys` (or below it), or its public ones not in order, and
    OSError where the directory cannot be read.
    """
    found: dict[Path, list[LogFiles]] = {}
    for each in logs_in(directory):
        found.setdefault(each.place.directory, []).append(each)
    return [_site(place, logs, keys, "" if place == directory else place.name) for place, logs in found.items()]


def _site(directory: Path, logs: list[LogFiles], keys: Path, label: str) -> Site:
    own = keys / label
    for each in logs:
        if each.fault:
            raise TrailError(f"audit log {each.place.file}: {each.fault}")
        if not each.place.file.exists():
            raise TrailError(
                f"audit log {each.place.file}: missing, though its keys are there; restore it from a backup"
            )
        _check_signing_key(each, own)
    if RESERVED_LOG not in {each.place.log for each in logs}:
        raise TrailError(f"audit directory {directory}: its {RESERVED_LOG}.db is missing; restore it from a backup")
    audit = AuditSettings(path=directory, keys=own, retention=_NEVER, commit_deadline=_DEADLINE)
    return Site(label, audit, logs[0].place.standing, tuple(each.place.log for each in logs))


def _check_signing_key(files: LogFiles, keys: Path) -> None:
    """Refuse other keys than the log's own: under them nobody in it would be known, and its checkpoints foreign."""
    log = files.place.log
    if not (keys / f"{log}.ed25519").exists() or _public(keys, files.place) not in files.keys:
        raise TrailError(
            f"audit log {files.place.file}: its private keys are not in {keys}; give the --config of its gateway"
        )


async def rotate(site: Site) -> Mapping[str, str]:
    """New signing and wrapping keys for every log of a trail, each recorded there; the new public keys by log.

    The key of its cosignatures is renewed as well where there is one, and that recorded in the gateway's own log.

    Raises `TrailError`, `StoreError` and `AuditUnavailable`; whatever broke off, all keys are usable, and doing it
    again rotates them again.
    """
    async with site.opened():  # nobody else writes meanwhile, and the old keys are good
        places = [Place(site.audit.path, log, site.standing) for log in site.logs]
        if FileKeys(site.audit.key_directory).has_signing_key(WITNESS):
            places.append(Place(site.audit.path / WITNESS, WITNESS, site.standing))
        renewed = {place.log: await asyncio.to_thread(_renew, site, place) for place in places}
    async with site.opened() as trail:  # the new keys are good
        for log, line in renewed.items():
            told = log if log in site.logs else RESERVED_LOG
            await trail.append(told, [event("rotation", "rotated", {"key": line}, Actor())], _DEADLINE)
    return renewed


def _renew(site: Site, place: Place) -> str:
    FileKeys(site.audit.key_directory).rotate(place.log)
    key = _public(site.audit.key_directory, place)
    place.publish(key)
    return key.line()


def _public(keys: Path, place: Place) -> VerifierKey:
    try:
        signer = FileKeys(keys).signing_key(place.log)
    except StoreError as error:
        raise TrailError(str(error)) from error
    return VerifierKey(place.origin, signer.public_key().public_bytes_raw())
