"""The law files of a configuration, read, compiled into a book and checked against the settings that name its rules."""

from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

from app.config import Settings
from app.policy.lawfile import LawInvalid
from app.policy.rules import LawBook
from app.settings_env import Source
from app.settings_file import ConfigInvalid, Problem, documents, load_placed
from app.yaml_source import Key, dotted

Place = Callable[[Key, str], Problem]


def _unplaced(key: Key, message: str) -> Problem:
    return Problem("", None, dotted(key), message)


def load_law(settings: Settings, base: Path, place: Place = _unplaced) -> LawBook:
    """The book behind `residency.rules`; `base` is the directory of the configuration file.

    Raises `ConfigInvalid` with every problem of the law files, or of the settings' references to them; `place` says
    where a setting stands.
    """
    found = documents(settings.residency.rules, base)
    if not found:
        message = f"no file matches {settings.residency.rules!r}; write `default`, or a glob relative to the file"
        raise ConfigInvalid([place(("residency", "rules"), message)])
    try:
        book = LawBook.build(found)
    except LawInvalid as error:
        raise ConfigInvalid(Problem(file, None, "", message) for file, message in error.problems) from error
    if problems := book.check(settings):
        raise ConfigInvalid(place(key, message) for key, message in problems)
    return book


def review(settings: Settings, source: Source, base: Path, today: date) -> tuple[LawBook, list[Problem]]:
    """As `load_law`, for what is to serve requests; with a warning for each law whose review has run out.

    Raises `ConfigInvalid` with these where `gateway.security` is strict.
    """
    book = load_law(settings, base, source.problem)
    overdue = [
        source.problem(
            ("residency", "rules"),
            f"the review of law {law.id} ran out on {law.reviewed_until}; read the law again and date its file anew",
        )
        for law in book.stale(today)
    ]
    if overdue and settings.gateway.security == "strict":
        raise ConfigInvalid(overdue)
    return book, overdue


def load_reviewed(file: Path, environ: Mapping[str, str], today: date) -> tuple[Settings, LawBook, list[Problem]]:
    """The settings in `file`, their law and the warnings of `review`."""
    settings, source = load_placed(file, environ)
    return settings, *review(settings, source, file.absolute().parent, today)


def load_all(file: Path, environ: Mapping[str, str]) -> tuple[Settings, LawBook]:
    """The settings in `file` and their law; raises `ConfigInvalid`, each problem at its line."""
    settings, source = load_placed(file, environ)
    return settings, load_law(settings, file.absolute().parent, source.problem)
