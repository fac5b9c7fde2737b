"""What a verification of audit logs has found: what is wrong with which record, and what that makes of the whole."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

MAX_FINDINGS: Final = 20
"""Findings of one log that are told in words; the others are counted."""


class Result(IntEnum):
    """The exit codes of `tidegate audit verify`, but the one for wrong usage."""

    INTACT = 0
    TAMPERED = 1
    """A record is altered, or records that a checkpoint covers are missing."""
    INCOMPLETE = 2
    """Something cannot be read, or no checkpoint covers it yet."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; `seq` and `id` name the record that it begins with, None where it is about none."""

    result: Result
    what: str
    seq: int | None = None
    id: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"result": self.result.name.lower(), "seq": self.seq, "id": self.id, "what": self.what}


@dataclass(frozen=True, slots=True)
class LogReport:
    """One log: the file's name below the directory, without its ending; the records read; and what is wrong with it.

    `first` and `last` are the numbers of the records that it should hold, `checkpoint` how many of them its newest
    checkpoint covers (None where it has none). `open_decisions` have no completion yet. `remarks` are no faults.
    """

    log: str
    records: int = 0
    first: int = 1
    last: int = 0
    checkpoint: int | None = None
    open_decisions: int = 0
    findings: Sequence[Finding] = ()
    untold: int = 0
    """Further findings, of which none is told in words."""
    remarks: Sequence[str] = ()

    @property
    def result(self) -> Result:
        return _worst(each.result for each in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {
            "log": self.log,
            "result": self.result.name.lower(),
            "records": self.records,
            "first": self.first,
            "last": self.last,
            "checkpoint": self.checkpoint,
            "open_decisions": self.open_decisions,
            "findings": [each.as_json() for each in self.findings],
            "untold": self.untold,
            "remarks": list(self.remarks),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All logs of a directory."""

    logs: Sequence[LogReport]

    @property
    def result(self) -> Result:
        return _worst(each.result for each in self.logs)

    @property
    def records(self) -> int:
        return sum(each.records for each in self.logs)

    def as_json(self) -> dict[str, Any]:
        return {
            "result": self.result.name.lower(),
            "records": self.records,
            "logs": [each.as_json() for each in self.logs],
        }


def _worst(results: Iterable[Result]) -> Result:
    """Altered beats unreadable: who damages a file as well must not make an alteration look like a bad disk."""
    found = set(results)
    return next((each for each in (Result.TAMPERED, Result.INCOMPLETE) if each in found), Result.INTACT)
