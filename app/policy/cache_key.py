"""The key under which an answer is kept: equal only where tenant, permitted regions and the question are equal."""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import orjson

from app.types import Call

_PERSON: Final = b"tidegate-cache-1"


def cache_key(tenant: str, permitted: Sequence[str], prefer: Sequence[str], call: Call) -> bytes:
    """32 bytes of BLAKE2b (RFC 7693) over length-prefixed fields, so that no text can move from one into the next.

    The permitted set is part of it: an answer computed in one region never reaches a request that may not go there. So
    is the order of regions that was asked for: who wants another region gets its answer.
    """
    digest = _begun(tenant, permitted, prefer, call)
    digest.update(_prefixed((call.canonical,)))
    return digest.digest()


def item_keys(tenant: str, permitted: Sequence[str], prefer: Sequence[str], call: Call) -> tuple[bytes, ...]:
    """For each of the call's texts the key that a call for it alone has."""
    begun = _begun(tenant, permitted, prefer, call)
    keys = []
    for text in call.texts:
        digest = begun.copy()
        digest.update(_prefixed((call.base + orjson.dumps(text),)))
        keys.append(digest.digest())
    return tuple(keys)


def _begun(tenant: str, permitted: Sequence[str], prefer: Sequence[str], call: Call) -> blake2b:
    digest = blake2b(_who(tenant, tuple(permitted), tuple(prefer), call.wire), digest_size=32, person=_PERSON)
    digest.update(_prefixed((_utf8(call.path), _utf8(call.model), b"stream" if call.stream else b"whole")))
    return digest


@lru_cache(maxsize=1024)
def _who(tenant: str, permitted: tuple[str, ...], prefer: tuple[str, ...], wire: str) -> bytes:
    """The fields that many requests share; all of them are bounded by the configuration."""
    regions = sorted(set(permitted))
    counted = (len(regions).to_bytes(8, "big"), *map(_utf8, regions), len(prefer).to_bytes(8, "big"))
    return _prefixed((_utf8(tenant), *counted, *map(_utf8, prefer), _utf8(wire)))


def _prefixed(fields: Sequence[bytes]) -> bytes:
    return b"".join([part for field in fields for part in (len(field).to_bytes(8, "big"), field)])


def _utf8(text: str) -> bytes:
    """Surrogates, which JSON can smuggle into a model's name, must neither fail nor collide."""
    return text.encode("utf-8", "surrogatepass")
