"""Settings from one YAML file and the environment, with every problem at once and each at its line.

It owns the way from text to `Settings`: reading, overriding, resolving secrets, checking, and wording the problems.
"""

import glob
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app import settings_checks
from app.config import Settings
from app.settings_env import Source, closest, descend, names_under, overlay
from app.settings_words import words
from app.yaml_source import ConfigInvalid, Document, Key, Problem, parse, read

__all__ = ["ConfigInvalid", "Problem", "documents", "law_files", "load", "load_placed", "load_text"]

_SHIPPED_LAW = Path(__file__).resolve().parents[1] / "configs" / "residency"
_FROM_ENVIRONMENT = "env:"


def load(path: Path, environ: Mapping[str, str], *, secrets: bool = True) -> Settings:
    """The settings in `path`, overridden by `environ`; raises `ConfigInvalid` with everything that is wrong.

    Without `secrets` the backends' keys stay as they are written: whoever sends nothing to them needs none.
    """
    return _settings(read(path), path, environ, secrets=secrets)[0]


def load_placed(path: Path, environ: Mapping[str, str]) -> tuple[Settings, Source]:
    """As `load`, with the source as well, for checks that follow and want to say where a value was set."""
    return _settings(read(path), path, environ, secrets=True)


def load_text(text: str, path: Path, environ: Mapping[str, str], *, secrets: bool = True) -> Settings:
    """As `load`, from text that is about to be written to `path`."""
    return _settings(parse(text, str(path)), path, environ, secrets=secrets)[0]


def law_files(pattern: str, base: Path) -> list[str]:
    """The law files by name: those that ship for `default`, else the matches of a glob relative to `base`."""
    wanted = _SHIPPED_LAW / "*.yaml" if pattern == "default" else base / pattern
    return sorted(glob.glob(str(wanted), recursive=True))  # noqa: PTH207 - the pattern may be absolute


def documents(pattern: str, base: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The law files as (file, content), as `law_files` lists them.

    Empty where no file matches; raises `ConfigInvalid` where one is no YAML mapping.
    """
    problems: list[Problem] = []
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name in law_files(pattern, base):
        try:
            document = read(Path(name))
        except ConfigInvalid as error:
            problems += error.problems
            continue
        problems += document.duplicates
        if isinstance(document.data, dict):
            found.append((name, document.data))
        else:
            problems.append(Problem(name, 1, "", "a mapping is expected"))
    if problems:
        raise ConfigInvalid(problems)
    return found


def _settings(document: Document, path: Path, environ: Mapping[str, str], *, secrets: bool) -> tuple[Settings, Source]:
    source, problems = overlay(document, environ)
    problems = [*document.duplicates, *problems]
    if not isinstance(source.data, dict):
        raise ConfigInvalid([*problems, Problem(document.file, 1, "", "a mapping is expected, from `version: 1` on")])
    if secrets:
        problems += [source.problem(key, message) for key, message in _resolve_secrets(source.data, environ)]
    source.data.setdefault("audit", {})  # pydantic validates no default, and this one is relative to the file
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(source.data, context={"base": path.absolute().parent})
    except ValidationError as error:
        problems += _schema_problems(source, error)
    problems += [source.problem(key, message) for key, message in settings_checks.check(source.data)]
    if problems or settings is None:
        raise ConfigInvalid(sorted(problems, key=_reading_order))
    return settings, source


def _resolve_secrets(data: dict[str, Any], environ: Mapping[str, str]) -> Iterator[tuple[Key, str]]:
    """Puts the values of `api_key: env:NAME` into `data`; yields those whose variable is missing or empty."""
    for region, backend, part in _backends(data):
        value = part.get("api_key")
        if isinstance(value, str) and value.startswith(_FROM_ENVIRONMENT):
            name = value.removeprefix(_FROM_ENVIRONMENT)
            part["api_key"] = environ.get(name, "")
            if not part["api_key"]:
                message = f"the environment variable {name} is not set; set it to the backend's API key"
                yield ("regions", region, "backends", backend, "api_key"), message


def _backends(data: dict[str, Any]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    regions = data.get("regions")
    for index, region in enumerate(regions if isinstance(regions, list) else ()):
        backends = region.get("backends") if isinstance(region, dict) else None
        for position, part in enumerate(backends if isinstance(backends, list) else ()):
            if isinstance(part, dict):
                yield index, position, part


def _schema_problems(source: Source, error: ValidationError) -> Iterator[Problem]:
    """One problem a key: the options of a union each have their say, and only the most telling of them is kept."""
    by_key: dict[Key, list[ErrorDetails]] = defaultdict(list)
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # the entries are there, and each of them has a problem of its own
        by_key[_known_part(detail)].append(detail)
    for key, details in by_key.items():
        yield source.problem(key, words(key, details, _suggestion(key)))


def _known_part(detail: ErrorDetails) -> Key:
    """The location without the tags that pydantic adds for unions and validators."""
    annotation: Any = Settings
    key: Key = ()
    for segment in detail["loc"]:
        step = descend(annotation, segment)
        if step is None:
            return (*key, segment) if detail["type"] == "extra_forbidden" else key
        key, annotation = (*key, step[0]), step[1]
    return key


def _suggestion(key: Key) -> str:
    """What may stand in place of an unknown `key`."""
    annotation: Any = Settings
    for segment in key[:-1]:
        step = descend(annotation, segment)
        annotation = step[1] if step else None
    return closest(str(key[-1]), names_under(annotation)) if key else ""


def _reading_order(problem: Problem) -> tuple[int, int, str]:
    return (problem.line is None, problem.line or 0, problem.key)
