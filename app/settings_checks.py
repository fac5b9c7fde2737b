"""What one section says of another: references, duplicates and the rules about loopback.

The checks read the raw data, so that a problem elsewhere in the file hides none of theirs; whatever has the wrong form
is passed over here and reported by the schema.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, Final

from pydantic import ValidationError

from app.config import DEMO_KEY, DEMO_KEY_HASH, GatewaySettings
from app.settings_env import closest
from app.yaml_source import Key
from regions.settings import MODELS

Found = Iterator[tuple[Key, str]]

_VERSIONS: Final[Mapping[str, tuple[str, ...]]] = {"openai": ("v1",), "kserve": ("v2",), "tidegate": ("v1", "v2")}
"""First parts of the paths that each protocol is asked for."""


def check(data: Any) -> Found:
    """Every problem between sections, as its key and what would be right."""
    return chain.from_iterable(one(data) for one in _CHECKS)


def _duplicate_ids(data: Any) -> Found:
    for section in ("regions", "tenants"):
        yield from _repeated((((section, index, "id"), part.get("id")) for index, part in _parts(data, section)), "id")
    for index, tenant in _parts(data, "tenants"):
        at = ("tenants", index, "instruments")
        yield from _repeated((((*at, n, "id"), part.get("id")) for n, part in _parts(tenant, "instruments")), "id")


def _duplicate_keys(data: Any) -> Found:
    yield from _repeated(_key_hashes(data), "key hash")


def _repeated(values: Iterator[tuple[Key, Any]], what: str) -> Found:
    first: dict[str, Key] = {}
    for key, value in values:
        if not isinstance(value, str):
            continue
        if value in first:
            yield key, f"the {what} stands already at {'.'.join(map(str, first[value]))}; it may stand once only"
        else:
            first[value] = key


def _unknown_regions(data: Any) -> Found:
    known = [part["id"] for _, part in _parts(data, "regions") if isinstance(part.get("id"), str)]
    for key, name in _region_names(data):
        if isinstance(name, str) and name not in known:
            yield key, f"there is no region {name!r}; {closest(name, known)}"


def _region_names(data: Any) -> Iterator[tuple[Key, Any]]:
    gateway = _section(data, "gateway")
    yield ("gateway", "region"), gateway.get("region")
    for name in _section(gateway, "public_urls"):
        yield ("gateway", "public_urls", name), name
    for name in _section(_section(data, "audit"), "peers"):
        yield ("audit", "peers", name), name
    for index, tenant in _parts(data, "tenants"):
        for position, name in enumerate(_list(tenant, "allow_regions")):
            yield ("tenants", index, "allow_regions", position), name


def _only_on_loopback(data: Any) -> Found:
    gateway = _section(data, "gateway")
    listen = gateway.get("listen", GatewaySettings().listen)
    try:
        if GatewaySettings(listen=listen).on_loopback:
            return
    except ValidationError:
        return
    if gateway.get("region") is None:
        yield (
            ("gateway", "region"),
            f"a gateway that listens on {listen} must stand in a region; write its id, or listen on 127.0.0.1",
        )
    for key, value in _key_hashes(data):
        if value == DEMO_KEY_HASH:
            yield key, f"the key {DEMO_KEY!r} is public; make another with `tidegate keys new`, or listen on 127.0.0.1"


def _unknown_models(data: Any) -> Found:
    for index, region in _parts(data, "regions"):
        for position, backend in _parts(region, "backends"):
            for place, name in enumerate(_list(backend, "models") if backend.get("managed") is True else ()):
                if isinstance(name, str) and name not in MODELS:
                    key = ("regions", index, "backends", position, "models", place)
                    yield key, f"a managed worker has no model {name!r}; {closest(name, list(MODELS))}"


def _limits_of_no_model(data: Any) -> Found:
    """A limit of a model that no backend serves limits nothing: most likely its name is misspelt."""
    backends = [part for _, region in _parts(data, "regions") for _, part in _parts(region, "backends")]
    known = [name for part in backends for name in _list(part, "models") if isinstance(name, str)]
    for index, tenant in _parts(data, "tenants"):
        for name in _section(_section(tenant, "limits"), "models"):
            if isinstance(name, str) and name not in known:
                key = ("tenants", index, "limits", "models", name)
                yield key, f"no backend serves a model {name!r}; {closest(name, known)}"


def _version_in_urls(data: Any) -> Found:
    """Paths such as /v1/embeddings are appended to a backend's URL, which SDKs want with the version in it."""
    for index, region in _parts(data, "regions"):
        for position, backend in _parts(region, "backends"):
            url = backend.get("url")
            version = isinstance(url, str) and re.search(r"/(v[12])/*$", url)
            if version and version[1] in _VERSIONS.get(str(backend.get("protocol", "tidegate")), ()):
                key = ("regions", index, "backends", position, "url")
                yield key, f"ends in /{version[1]}, which is added to each request; leave /{version[1]} out"


def _key_hashes(data: Any) -> Iterator[tuple[Key, Any]]:
    for index, tenant in _parts(data, "tenants"):
        for position, value in enumerate(_list(tenant, "keys")):
            yield ("tenants", index, "keys", position), value


def _section(data: Any, name: str) -> Mapping[Any, Any]:
    part = data.get(name) if isinstance(data, dict) else None
    return part if isinstance(part, dict) else {}


def _list(data: Any, name: str) -> list[Any]:
    part = data.get(name) if isinstance(data, dict) else None
    return part if isinstance(part, list) else []


def _parts(data: Any, name: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    return ((index, part) for index, part in enumerate(_list(data, name)) if isinstance(part, dict))


_CHECKS: tuple[Callable[[Any], Found], ...] = (
    _duplicate_ids,
    _duplicate_keys,
    _unknown_regions,
    _only_on_loopback,
    _unknown_models,
    _limits_of_no_model,
    _version_in_urls,
)
