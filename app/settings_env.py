"""Environment variables laid over the file: `TIDEGATE_SECTION__KEY`, to any depth, list indexes as numbers."""

import copy
import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from ruamel.yaml.error import YAMLError

from app.config import Settings
from app.yaml_source import Document, Key, Problem, TooDeep, dotted, value_of

PREFIX = "TIDEGATE_"
_SEPARATOR = "__"
PLACE = "environment"


@dataclass(frozen=True, slots=True)
class Override:
    """A variable and the key that it sets."""

    name: str
    key: Key


@dataclass(frozen=True, slots=True)
class Source:
    """The data of a file with the environment laid over it, and where each part of it came from."""

    document: Document
    data: Any
    overrides: tuple[Override, ...]

    def problem(self, key: Key, message: str) -> Problem:
        """A problem with `key`, placed at the variable that set it, else at its line of the file."""
        for override in reversed(self.overrides):
            if key[: len(override.key)] == override.key:
                rest = dotted(key[len(override.key) :])
                return Problem(PLACE, None, override.name, f"{rest}: {message}" if rest else message)
        return Problem(self.document.file, self.document.line(key), dotted(key), message)


def overlay(document: Document, environ: Mapping[str, str]) -> tuple[Source, list[Problem]]:
    """The document with the variables of `environ` laid over it, shallow keys first, and what is wrong with those.

    Variables without the prefix or without a double underscore belong to others and are left alone, unless they are
    named as a section is: whoever sets one means us.
    """
    data = copy.deepcopy(document.data)
    overrides: list[Override] = []
    problems = [problem for name in sorted(environ) if (problem := _keyless(name))]
    ours = [name for name in environ if name.startswith(PREFIX) and _SEPARATOR in name[len(PREFIX) :]]
    for name in sorted(ours, key=lambda name: (name.count(_SEPARATOR), name)):
        try:
            key = _key(name, data)
            data = _with(data, key, _value(environ[name]))
        except ValueError as error:
            problems.append(Problem(PLACE, None, name, str(error)))
        else:
            overrides.append(Override(name, key))
    return Source(document, data, tuple(overrides)), problems


def _keyless(name: str) -> Problem | None:
    """What is wrong with a variable that names a section and no key in it; None for any other variable."""
    step = descend(Settings, name.removeprefix(PREFIX).lower()) if name.startswith(PREFIX) else None
    example = name
    while step and (names := names_under(step[1])):
        entry = ["0"] if get_origin(step[1]) is tuple else []
        example = _SEPARATOR.join([example, *entry, names[0].upper()])
        for segment in (*entry, names[0]):
            step = descend(step[1], segment) if step else None
    message = f"names a section, which is set key by key; write such as {example}"
    return None if example == name else Problem(PLACE, None, name, message)


def descend(annotation: Any, segment: str | int) -> tuple[str | int, Any] | None:
    """One step down the settings: the key that `segment` names under `annotation` and that key's own annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return descend(arguments[0], segment)
    if origin in (Union, types.UnionType):
        return next((step for option in arguments if (step := descend(option, segment))), None)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(segment))
        return (str(segment), field.annotation) if field else None
    if origin is tuple and str(segment).isdecimal():
        index = int(segment)
        if arguments[1:] == (...,):
            return index, arguments[0]
        return (index, arguments[index]) if index < len(arguments) else None
    return (str(segment), arguments[1]) if origin is dict else None


def names_under(annotation: Any) -> list[str]:
    """The names that may stand under `annotation`; empty where it is no section."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    return [name for argument in get_args(annotation) for name in names_under(argument)]


def closest(name: str, known: list[str]) -> str:
    """What would be right in place of `name`: the nearest of `known`, else all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(dict.fromkeys(known))}" if known else "nothing may stand here"


def _key(name: str, data: Any) -> Key:
    """The key that a variable sets; raises ValueError, saying what was meant, where there is no such setting."""
    segments = name[len(PREFIX) :].split(_SEPARATOR)
    annotation: Any = Settings
    key: Key = ()
    for segment in segments:
        step = descend(annotation, _spelled(segment, annotation, data))
        if step is None:
            known = [other.upper() for other in names_under(annotation)]
            raise ValueError(f"there is no setting {segment} here; {closest(segment, known)}")
        key, annotation = (*key, step[0]), step[1]
    return key


def _spelled(segment: str, annotation: Any, data: Any) -> str:
    """Variables are upper case; settings are lower case, and where regions or models are names they keep theirs."""
    if get_origin(annotation) is not dict or not isinstance(data, dict):
        return segment.lower()
    return next((name for name in _names(data) if _shell(name) == _shell(segment)), segment.lower())


def _names(data: dict[Any, Any]) -> Iterator[str]:
    """The names that the file gives to regions and models."""
    regions = [region for region in data.get("regions") or () if isinstance(region, dict)]
    yield from (region["id"] for region in regions if isinstance(region.get("id"), str))
    backends = (part for region in regions for part in region.get("backends") or () if isinstance(part, dict))
    yield from (name for part in backends for name in part.get("models") or () if isinstance(name, str))


def _shell(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.upper())


def _value(text: str) -> Any:
    try:
        return value_of(text)
    except TooDeep:
        raise
    except (YAMLError, ValueError) as error:
        raise ValueError("its value is not YAML; put text with special characters in quotes") from error


def _with(data: Any, key: Key, value: Any) -> Any:
    """`data` with `value` at `key`; what stands in the way of a deeper key is replaced."""
    if not key:
        return value
    head, rest = key[0], key[1:]
    if isinstance(head, int):
        items = list(data) if isinstance(data, list) else []
        if head > len(items):
            raise ValueError(f"the list has {len(items)} entries, so the next index is {len(items)}")
        items[head : head + 1] = [_with(items[head] if head < len(items) else None, rest, value)]
        return items
    section = data if isinstance(data, dict) else {}
    return {**section, head: _with(section.get(head), rest, value)}
