"""Places in the order of all records, (time, log, seq), and the cursors that carry them between two pages."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from app.audit.record import canonical
from app.errors import InvalidRequest

_MAX_SEQ = 2**53 - 1
_MAX_CURSOR = 16_384
_TIME_LENGTH = len("2026-01-01T00:00:00.000000Z")


@dataclass(frozen=True, slots=True)
class Place:
    """A place behind which a page begins; `bounds` are the logs' last numbers as of the first page."""

    bounds: dict[str, int]
    time: str = ""
    log: str = ""
    seq: int = 0

    def after(self, log: str) -> tuple[str, int] | None:
        """Where that log goes on, as (time, seq)."""
        if not self.time:
            return None
        if log == self.log:
            return self.time, self.seq
        return self.time, _MAX_SEQ if log < self.log else 0


def encode(place: Place, digest: str) -> str:
    """The cursor of a place among records that filters of this digest leave."""
    content = {"b": place.bounds, "f": digest, "l": place.log, "s": place.seq, "t": place.time}
    return base64.urlsafe_b64encode(canonical(content)).rstrip(b"=").decode()


def decode(cursor: str, digest: str, logs: Sequence[str]) -> Place:
    """Read a cursor; `InvalidRequest` for one that was not given out for these filters.

    It is not secret and not signed: filters and scope are checked anew with every page.
    """
    if len(cursor) > _MAX_CURSOR:
        raise InvalidRequest("cursor", param="cursor")
    try:
        content = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise InvalidRequest("cursor", param="cursor") from None
    if not _is_sound(content, logs) or content["f"] != digest:
        raise InvalidRequest("cursor", param="cursor")
    return Place(content["b"], content["t"], content["l"], content["s"])


def _is_sound(content: Any, logs: Sequence[str]) -> bool:
    if not isinstance(content, dict) or content.keys() != {"b", "f", "l", "s", "t"}:
        return False
    bounds, log, seq, time = content["b"], content["l"], content["s"], content["t"]
    return (
        isinstance(bounds, dict)
        and all(each in logs and _is_number(bound) for each, bound in bounds.items())
        and isinstance(log, str)
        and log in logs
        and _is_number(seq)
        and isinstance(time, str)
        and len(time) == _TIME_LENGTH
    )


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SEQ
