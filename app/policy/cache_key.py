"""The key under which an answer is kept: equal only where tenant, permitted regions and the question are equal."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b

from app.types import Call


def cache_key(tenant: str, permitted: Sequence[str], prefer: Sequence[str], call: Call) -> bytes:
    """32 bytes of BLAKE2b (RFC 7693) over length-prefixed fields, so that no text can move from one into the next.

    The permitted set is part of it: an answer computed in one region never reaches a request that may not go there. So
    is the order of regions that was asked for: who wants another region gets its answer.
    """
    digest = blake2b(digest_size=32, person=b"tidegate-cache-1")
    for field in _fields(tenant, permitted, prefer, call):
        digest.update(len(field).to_bytes(8, "big"))
        digest.update(field)
    return digest.digest()


def _fields(tenant: str, permitted: Sequence[str], prefer: Sequence[str], call: Call) -> Iterator[bytes]:
    regions = sorted(set(permitted))
    yield _utf8(tenant)
    yield len(regions).to_bytes(8, "big")
    yield from map(_utf8, regions)
    yield len(prefer).to_bytes(8, "big")
    yield from map(_utf8, prefer)
    yield _utf8(call.wire)
    yield _utf8(call.path)
    yield _utf8(call.model)
    yield b"stream" if call.stream else b"whole"
    yield call.canonical


def _utf8(text: str) -> bytes:
    """Surrogates, which JSON can smuggle into a model's name, must neither fail nor collide."""
    return text.encode("utf-8", "surrogatepass")
