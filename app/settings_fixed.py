"""What a running gateway cannot change, all in one place: a reload that would change it is refused as a whole."""

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import BaseModel

from app.config import Backend, Region, Settings
from app.settings_words import shown
from app.yaml_source import Key

Found = Iterator[tuple[Key, str]]

_FIXED: Final[Mapping[Key, str]] = {
    ("gateway", "listen"): "it listens there",
    ("gateway", "region"): "it stands there",
    ("audit", "path"): "its audit trail is open",
    ("audit", "keys"): "its audit trail is open",
    ("audit", "retention"): "its audit trail is open",
    ("audit", "commit_deadline"): "its audit trail is open",
    ("worker",): "workers read it when they start",
}
"""With these, regions that come or go, as each has an audit log, and managed backends, as each is a process."""


def needs_restart(old: Settings, new: Settings) -> Found:
    """Every setting that differs and cannot, as its key in `new` and why."""
    for key in differences(old, new):
        for fixed, why in _FIXED.items():
            if key[: len(fixed)] == fixed:
                yield key, f"was {_at(old, key)} when this gateway started; a change needs a restart, as {why}"
    yield from _regions(old, new)


def differences(old: BaseModel, new: BaseModel, prefix: Key = ()) -> Iterator[Key]:
    """The keys of all values that differ; a list is one value."""
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, BaseModel) and isinstance(after, BaseModel):
            yield from differences(before, after, (*prefix, name))
        elif before != after:
            yield (*prefix, name)


def _at(settings: Settings, key: Key) -> str:
    value: object = settings
    for name in key:
        value = getattr(value, str(name))
    return shown(key, value if value is None or isinstance(value, int | float) else str(value))


def _regions(old: Settings, new: Settings) -> Found:
    for index, region in enumerate(new.regions):
        before = old.region(region.id)
        if before is None:
            yield ("regions", index), f"region {region.id} is new; that needs a restart, as it has an audit log to open"
        elif _worker(before) != _worker(region):
            why = f"the managed backend of {region.id} is not as it was; that needs a restart, as its worker runs"
            yield ("regions", index, "backends"), why
    for region in old.regions:
        if new.region(region.id) is None:
            yield ("regions",), f"region {region.id} is gone; that needs a restart, as its audit log is open"


def _worker(region: Region) -> tuple[str, ...] | None:
    """The models of a region's worker, if it has one."""
    managed: list[Backend] = [backend for backend in region.backends if backend.managed]
    return managed[0].models if managed else None
