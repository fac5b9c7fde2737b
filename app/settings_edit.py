"""Edits of the configuration file that keep its comments, and that either happen whole or not at all."""

import fcntl
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from app.settings_file import load_text
from app.yaml_source import value_of

_FLUSH_LIST = re.compile(r"^(?:regions|tenants):[^\n]*\n(?:\s*#[^\n]*\n|\s*\n)*- ", re.MULTILINE)
"""A list whose dashes stand under the first letter of its name, rather than two columns further in."""


class _Representer(RoundTripRepresenter):
    """Writes null as it is usually written by hand; ruamel would leave the value out."""

    def represent_null(self, _value: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_null)


def edit(file: Path, environ: Mapping[str, str], change: Callable[[Any], None]) -> None:
    """Applies `change` to the data of `file`, checks the result as a configuration and replaces the file by it.

    Raises `ConfigInvalid`, leaving the file as it was, where the result would not be sound; the backends' secrets need
    not be in `environ` for that. One edit at a time: others wait for a lock on the directory.
    """
    file = file.resolve()
    with _locked(file.parent):
        text = changed(file.read_text(encoding="utf-8"), change)
        load_text(text, file, environ, secrets=False)
        _replace(file, text)


def lay(template: Path, file: Path, environ: Mapping[str, str]) -> None:
    """Writes `file` from `template`, with the keys that `file` holds for tenants that the template still has.

    A file that holds just that stays untouched. Raises `ConfigInvalid` as `edit` does, naming the template's lines.
    """
    file = file.resolve()
    with _locked(file.parent):
        before = file.read_text(encoding="utf-8") if file.exists() else None
        wanted = template.read_text(encoding="utf-8")
        load_text(wanted, template, environ, secrets=False)
        kept = {each["id"]: each.get("keys") or [] for each in value_of(before)["tenants"]} if before else {}
        text = changed(wanted, lambda data: _keep(data, kept))
        if text != before:
            load_text(text, file, environ, secrets=False)
            _replace(file, text)


def changed(text: str, change: Callable[[Any], None]) -> str:
    """`text` after `change`, its comments, quotes and order kept."""
    yaml = YAML(typ="rt", pure=True)
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 4096  # never folds a line that its author did not
    offset = 0 if _FLUSH_LIST.search(text) else 2
    yaml.indent(mapping=2, sequence=2 + offset, offset=offset)
    data = yaml.load(text)
    change(data)
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def add_key(data: Any, tenant: str, key: str) -> None:
    """Adds the hash of a key to a tenant's."""
    section = _tenant(data, tenant)
    if not section.get("keys"):
        section["keys"] = []
    section["keys"].append(key)


def remove_key(data: Any, tenant: str, key: str) -> None:
    """Takes the hash of a key from a tenant's."""
    _tenant(data, tenant)["keys"].remove(key)


def _keep(data: Any, kept: Mapping[str, list[str]]) -> None:
    for section in data["tenants"]:
        for key in kept.get(section["id"], []):
            if key not in (section.get("keys") or []):
                add_key(data, section["id"], key)


def _tenant(data: Any, tenant: str) -> Any:
    return next(section for section in data["tenants"] if section["id"] == tenant)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with the files of a directory, and what was renamed there is durable afterwards."""
    directory = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
        os.fsync(directory)
    finally:
        os.close(directory)


def _replace(file: Path, text: str) -> None:
    mode = file.stat().st_mode & 0o7777 if file.exists() else 0o600
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fchmod(handle, mode)
            os.fsync(handle)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
