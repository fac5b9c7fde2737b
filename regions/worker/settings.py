"""What a worker is told: its section of the configuration file, laid over by the environment, and its models.

Of the file it reads `worker` and its own region's managed backends; the gateway and `tidegate check` judge the rest.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from regions.settings import MODELS, WorkerSettings

PREFIX = "TIDEGATE_WORKER__"
_TOO_DEEP = "nests too deep to be read; no setting needs ten levels"


class ConfigError(Exception):
    """What is wrong with the configuration, in one line: the place, the key, and what would be right."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Everything that one worker runs by."""

    region: str
    models: tuple[str, ...]
    settings: WorkerSettings


def from_environment(region: str, file: Path | None, models: Sequence[str] | None) -> WorkerConfig:
    """The worker's configuration under this process's environment. Raises ConfigError."""
    return read_config(region, file, models, os.environ)


def read_config(
    region: str, file: Path | None, models: Sequence[str] | None, environ: Mapping[str, str]
) -> WorkerConfig:
    """The configuration of the worker of `region`. Without a file every setting has its default. Raises ConfigError.

    `models` names what to serve; None takes what the region's managed backends list, all without a file.
    """
    document = CommentedMap() if file is None else _document(file)
    listed = MODELS if file is None else _listed(document, file, region, needed=models is None)
    chosen = tuple(dict.fromkeys(listed if models is None else models))
    for name in chosen:
        if name not in MODELS:
            place = "--models" if models is not None else f"{file}: regions.{region}.backends.models"
            raise ConfigError(f"{place}: there is no model {name!r}; choose of {', '.join(MODELS)}")
    if not chosen:
        raise ConfigError(f"--models: no model is named; choose of {', '.join(MODELS)}")
    return WorkerConfig(region, chosen, _settings(document, file, environ))


def _document(file: Path) -> CommentedMap:
    try:
        document = YAML(typ="rt").load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}); name a file that this process may read"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8; save it as UTF-8") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{file}:{line}: is not YAML: {error.problem}; correct this line") from error
    except YAMLError as error:
        raise ConfigError(f"{file}: is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: {_TOO_DEEP}") from error
    if not isinstance(document, CommentedMap):
        raise ConfigError(f"{file}: holds no settings; it should be a mapping such as `worker: {{...}}`")
    return document


def _listed(document: CommentedMap, file: Path, region: str, *, needed: bool) -> list[str]:
    """The models of the region's managed backends, in their order."""
    regions = document.get("regions")
    entries = [entry for entry in regions if isinstance(entry, dict)] if isinstance(regions, list) else []
    own = next((entry for entry in entries if entry.get("id") == region), None)
    if own is None:
        known = ", ".join(str(entry.get("id")) for entry in entries) or "none"
        raise ConfigError(f"{file}: regions: there is no region {region!r}; configured: {known}")
    backends = own.get("backends")
    managed = [b for b in backends if isinstance(b, dict) and b.get("managed")] if isinstance(backends, list) else []
    models = [str(name) for backend in managed for name in backend.get("models") or ()]
    if needed and not models:
        raise ConfigError(
            f"{file}: regions.{region}.backends: no managed backend lists models;"
            f" add {{managed: true, models: [{', '.join(MODELS)}]}} or pass --models"
        )
    return models


def _settings(document: CommentedMap, file: Path | None, environ: Mapping[str, str]) -> WorkerSettings:
    section = document.get("worker")
    if section is not None and not isinstance(section, dict):
        raise ConfigError(f"{file}: worker: is not a mapping; write such as `worker: {{batch: {{window: 5ms}}}}`")
    data, variables = _overlaid(_plain(section or {}), environ)
    try:
        settings = WorkerSettings.model_validate(data, context={"file": True})
    except ValidationError as error:
        raise ConfigError(_told(error, document, file, variables)) from error
    home = file.parent if file else Path()
    update: dict[str, str] = {}
    if settings.text_model and (home / settings.text_model).is_dir():  # what is no directory is a hub id
        update["text_model"] = str(home / settings.text_model)
    if settings.moe_model:
        update["moe_model"] = str(home / settings.moe_model)
    return settings.model_copy(update=update)


def _overlaid(data: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """`data` with the environment over it, and which variable set which key."""
    section_alone = PREFIX.removesuffix("__")
    if section_alone in environ:
        raise ConfigError(f"{section_alone}: names a section, which is set key by key; write such as {PREFIX}THREADS")
    variables: dict[tuple[str, ...], str] = {}
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        key = tuple(name[len(PREFIX) :].lower().split("__"))
        try:
            value = YAML(typ="safe", pure=True).load(environ[name])
        except RecursionError as error:
            raise ConfigError(f"{name}: {_TOO_DEEP}") from error
        except YAMLError as error:
            raise ConfigError(f"{name}: is not a YAML value; put text with special characters in quotes") from error
        section = data
        for part in key[:-1]:
            inner = section.get(part)
            section[part] = section = inner if isinstance(inner, dict) else {}
        section[key[-1]] = value
        variables[key] = name
    return data, variables


def _plain(value: Any) -> Any:
    """A copy without the file's marks."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _told(
    error: ValidationError, document: CommentedMap, file: Path | None, variables: Mapping[tuple[str, ...], str]
) -> str:
    """The first problem, placed at the variable that set it, else at its line of the file."""
    first = error.errors(include_url=False)[0]
    key = tuple(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"there is no such setting; known here: {', '.join(_known(key[:-1]))}"
    for length in range(len(key), 0, -1):
        if key[:length] in variables:
            return f"{variables[key[:length]]}: {message}"
    return f"{file}:{_line(document, ('worker', *key))}: {'.'.join(('worker', *key))}: {message}"


def _known(path: tuple[str, ...]) -> list[str]:
    section: Any = WorkerSettings
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


def _line(document: CommentedMap, key: tuple[str, ...]) -> int:
    """The line of `key` in the file, or of the nearest mapping around it."""
    node: Any = document
    line = 1
    for part in key:
        if not isinstance(node, CommentedMap) or part not in node:
            break
        line = node.lc.key(part)[0] + 1
        node = node[part]
    return line
