"""A configuration as its files hold it: read whole and checked as at a start, and whether the files have changed since.

What is read is everything that a gateway is set up from: the file, the law files that it names, the table of addresses.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from app.caller import Geo
from app.config import Settings
from app.geoip import Database
from app.law import review
from app.policy.ground import Ground
from app.settings_env import Source
from app.settings_file import ConfigInvalid, Problem, law_files, load_placed

_TRIES: Final = 3
"""Readings of files that change while they are read; what is read last counts."""

Print = tuple[int, int, int] | None
"""Modification time (ns), size and inode of a file; None where there is none."""
Stamp = Mapping[Path, Print]


@dataclass(frozen=True, slots=True, eq=False)
class Configuration:
    """Settings, and the law and addresses that they name, checked whole. `overdue` are warnings."""

    settings: Settings
    source: Source
    ground: Ground
    geo: Geo
    geoip: Print
    overdue: tuple[Problem, ...]
    digest: str
    """SHA-256 of the settings, less the backends' keys, and of the law, in one spelling."""

    def says_the_same(self, other: "Configuration") -> bool:
        """Whether nothing would be decided otherwise, comments and order in the files being what they may."""
        return (
            self.settings == other.settings
            and self.ground.book.digest == other.ground.book.digest
            and self.geoip == other.geoip
        )


class ConfigurationFiles:
    """The file of a configuration and all that it leads to, laid over by `environ`. Blocks: not for the event loop."""

    def __init__(self, file: Path, environ: Mapping[str, str]) -> None:
        self._file = file
        self._base = file.absolute().parent
        self._environ = environ
        self._rules: str | None = None
        self._geoip: Path | None = None
        self._read: Stamp = {}

    @property
    def read(self) -> Stamp:
        """How the files were when they were read last, soundly or not."""
        return self._read

    def load(self) -> Configuration:
        """Read and check all of it, again where a file changes meanwhile; raises `ConfigInvalid` with every problem."""
        for _ in range(_TRIES - 1):
            try:
                found = self._load()
            except ConfigInvalid:
                if self.stamp() == self._read:
                    raise
            else:
                if self.stamp() == self._read:
                    return found
        return self._load()

    def stamp(self) -> Stamp:
        """How the files are now: those that were read last, and any law file that has come since."""
        laws = () if self._rules is None else law_files(self._rules, self._base)
        return {path: _print(path) for path in (self._file, *map(Path, laws), *filter(None, [self._geoip]))}

    def _load(self) -> Configuration:
        self._read = first = self.stamp()
        settings, source = load_placed(self._file, self._environ)
        self._rules, self._geoip = settings.residency.rules, settings.gateway.geoip
        self._read = {**self.stamp(), self._file: first[self._file]}  # the law may be elsewhere now
        law, overdue = review(settings, source, self._base, datetime.now(UTC).date())
        return Configuration(
            settings=settings,
            source=source,
            ground=Ground.lay(law, settings.regions),
            geo=Geo(Database(self._geoip).country) if self._geoip else Geo(),
            geoip=self._read[self._geoip] if self._geoip else None,
            overdue=tuple(overdue),
            digest=_digest(settings, law.digest),
        )


def _print(path: Path) -> Print:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _digest(settings: Settings, law: str) -> str:
    content = {"settings": settings.model_dump(mode="json"), "law": law}  # a secret is dumped as asterisks
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
