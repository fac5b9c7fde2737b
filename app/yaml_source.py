"""A YAML file as plain data together with the line of every key, so that each problem is reported where it stands."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.reader import ReaderError

MAX_DEPTH = 64
"""Levels that a document may nest, values included; no configuration or law needs ten, and who reads it recurses."""

Key = tuple[str | int, ...]
"""Where a value stands in a document: the names and list indexes that lead to it from the root."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what it is and what would be right. `line` counts from 1; None where there is none."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ConfigInvalid(Exception):
    """A configuration that cannot be used; `problems` holds everything that is wrong with it, in reading order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


class TooDeep(ValueError):
    """A document that nests deeper than `MAX_DEPTH`; `line` is where."""

    def __init__(self, line: int) -> None:
        super().__init__(f"nests deeper than {MAX_DEPTH} levels; no setting needs ten")
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its plain data, the line of each key, and the keys that it holds twice."""

    file: str
    data: Any
    lines: Mapping[Key, int]
    duplicates: tuple[Problem, ...]

    def line(self, key: Key) -> int:
        """The line of `key`, or of the nearest part above it that the file does hold."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return self.lines[key[:length]]
        return 1


def dotted(key: Key) -> str:
    """`("tenants", 0, "id")` as `tenants.0.id`."""
    return ".".join(map(str, key))


def read(file: Path) -> Document:
    """The document in `file`; raises `ConfigInvalid` where it cannot be read or is not YAML."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid([Problem(str(file), None, "", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigInvalid([Problem(str(file), line, "", "is not UTF-8 text; save it in that encoding")]) from error
    return parse(text, str(file))


def parse(text: str, file: str) -> Document:
    """The document in `text`, by YAML 1.2, where `NO` is Norway; raises `ConfigInvalid` where it is not YAML.

    Read once, as the reader is slow: lines and data both come from the nodes.
    """
    lines: dict[Key, int] = {}
    duplicates: list[Problem] = []
    try:
        yaml, root = _composed(text)
        _walk(root, (), file, lines, duplicates)  # first: making data of the nodes merges keys, and loses their lines
        return Document(file, _data(yaml, root), lines, tuple(duplicates))
    except TooDeep as error:
        raise ConfigInvalid([Problem(file, error.line, "", str(error))]) from error
    except (YAMLError, ValueError) as error:
        # Values out of a type's range, such as the date 2026-02-30, surface as a plain ValueError.
        raise ConfigInvalid([Problem(file, _error_line(error, text), "", f"is not YAML: {_reason(error)}")]) from error


def value_of(text: str) -> Any:
    """Plain data from YAML 1.2 text; raises `YAMLError` or ValueError."""
    return _data(*_composed(text))


def _composed(text: str) -> tuple[YAML, Node | None]:
    """The nodes of the one document in `text`, and what makes data of them; raises `TooDeep` at the level too many."""
    yaml = YAML(typ="safe", pure=True)  # the C loader reads YAML 1.1
    yaml.max_depth = MAX_DEPTH
    yaml.allow_duplicate_keys = True  # reported by our own walk, all of them and with their paths
    try:
        return yaml, yaml.compose(text)
    except MaxDepthExceededError as error:
        raise TooDeep(error.problem_mark.line + 1 if error.problem_mark else 1) from error


def _data(yaml: YAML, root: Node | None) -> Any:
    return None if root is None else yaml.constructor.construct_document(root)


def _walk(root: Node | None, key: Key, file: str, lines: dict[Key, int], duplicates: list[Problem]) -> None:
    """Notes where every key under `root` stands. A node that an alias repeats is walked once, so cycles end."""
    seen: set[int] = set()
    waiting: list[tuple[Node | None, Key]] = [(root, key)]
    while waiting:
        node, at = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                lines[*at, index] = item.start_mark.line + 1
                waiting.append((item, (*at, index)))
        elif isinstance(node, MappingNode):
            _walk_mapping(node, at, file, lines, duplicates)
            waiting.extend((value, (*at, name.value)) for name, value in node.value if isinstance(name.value, str))


def _walk_mapping(node: MappingNode, at: Key, file: str, lines: dict[Key, int], duplicates: list[Problem]) -> None:
    for name, _ in node.value:
        if not isinstance(name.value, str):
            continue
        key, line = (*at, name.value), name.start_mark.line + 1
        if key in lines:
            message = f"stands twice, first in line {lines[key]}; keep one of the two"
            duplicates.append(Problem(file, line, dotted(key), message))
        else:
            lines[key] = line


def _error_line(error: Exception, text: str) -> int:
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return mark.line + 1 if mark else 1
    if isinstance(error, ReaderError):
        return text.count("\n", 0, error.position) + 1
    return 1


def _reason(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError):
        return " ".join(filter(None, (error.context, error.problem)))
    if isinstance(error, ReaderError):
        return f"character {error.character:#04x} is not allowed"
    return str(error)
