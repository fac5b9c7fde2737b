"""Verifies an audit directory from its files alone: which logs belong there, and which checkpoints speak of which."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from app.audit.check.findings import Finding, LogReport, Report, Result
from app.audit.check.log import LogFiles, verify_log
from app.audit.check.saved import Saved
from app.audit.checkpoint import NoteError
from app.config import WITNESS

Observe = Callable[[str, int, int], None]
"""Told, as it goes on, up to which record a log has been read, and with which it ends."""


def logs_in(directory: Path) -> list[LogFiles]:
    """The logs of a directory, and those of regional gateways one level below; a file or the keys of one may be gone.

    Raises OSError where the directory cannot be read.
    """
    found = []
    for place in _directories(directory):
        names = {file.stem for file in place.iterdir() if file.suffix in {".db", ".pub"}}
        label = f"{place.name}/" if place != directory else ""
        found += [LogFiles.found(place, name, label + name) for name in sorted(names)]
    return found


def verify(
    directory: Path, saved: Sequence[Saved] = (), observe: Observe | None = None, *, live: Collection[str] = ()
) -> Report:
    """Verify every log of a directory, each in one read snapshot, with constant memory.

    `saved` are checkpoints that someone kept elsewhere; those that the directory's gateways keep of each other count
    as well. `live` are the labels of logs whose writer is at work: what has come since their newest checkpoint is no
    fault. Raises OSError where the directory itself cannot be read.
    """
    logs = logs_in(directory)
    witnessed, unreadable = _witnessed(directory)
    reports = []
    for files in logs:
        own = {each.note: each for each in [*witnessed, *saved] if _belongs(each, files, logs)}
        progress = partial(observe or _unobserved, files.label)
        reports.append(verify_log(files, list(own.values()), progress, live=files.label in live))
    for each in saved:
        if not any(_belongs(each, files, logs) for files in logs):
            what = f"{each.source} covers {each.checkpoint.size} records of {each.checkpoint.origin}, which is not here"
            reports.append(LogReport(each.log, findings=[Finding(Result.TAMPERED, what)]))
    reports += unreadable
    return Report(reports)


def _unobserved(_log: str, _seq: int, _last: int) -> None:
    pass


def _belongs(saved: Saved, files: LogFiles, logs: Sequence[LogFiles]) -> bool:
    """Whether a checkpoint is about that log: by its origin, and by the log's name alone where the keys are gone."""
    origin = saved.checkpoint.origin
    if any(each.place.origin == origin for each in logs if each.keys):
        return bool(files.keys) and files.place.origin == origin
    return not files.keys and files.place.log == saved.log


def _witnessed(directory: Path) -> tuple[list[Saved], list[LogReport]]:
    """The checkpoints that the gateways here keep of others' logs, and those of them that cannot be read."""
    found, unreadable = [], []
    for place in _directories(directory):
        for file in sorted((place / WITNESS).glob("*/*.note")):
            try:
                found.append(Saved.read(file))
            except (NoteError, OSError) as error:
                label = str(file.relative_to(directory).with_suffix(""))
                unreadable.append(LogReport(label, findings=[Finding(Result.INCOMPLETE, str(error))]))
    return found, unreadable


def _directories(directory: Path) -> Iterator[Path]:
    yield directory
    yield from sorted(each for each in directory.iterdir() if each.is_dir() and each.name != WITNESS)
