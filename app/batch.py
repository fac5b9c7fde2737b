"""A request for the embeddings of several texts of which some are known: what is kept, and what is to fetch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import cast

import orjson

from app.policy.items import merged, split
from app.types import CacheEntry, Call, PermittedRegion


@dataclass(frozen=True, slots=True)
class Batch:
    """A call for several texts, their keys, and the kept answer of each, as if it had been asked for alone."""

    call: Call
    keys: tuple[bytes, ...]
    kept: tuple[CacheEntry | None, ...]

    @property
    def unknown(self) -> list[tuple[str, bytes]]:
        """The texts to fetch, with their keys."""
        return [each[:2] for each in zip(self.call.texts, self.keys, self.kept, strict=True) if each[2] is None]

    @property
    def partly_known(self) -> bool:
        return any(self.kept) and not all(self.kept)

    def entry(self) -> CacheEntry | None:
        """The answer out of kept ones alone, as old as the oldest; None where one is missing, or they do not agree."""
        entries = [entry for entry in self.kept if entry is not None]
        if len(entries) < len(self.kept) or len({entry.region for entry in entries}) > 1:
            return None
        body = merged([entry.body for entry in entries])
        if body is None:
            return None
        return replace(
            entries[0],
            body=body,
            stored=min(entry.stored for entry in entries),
            fresh=min(entry.fresh for entry in entries),
            renewing=min(entry.renewing for entry in entries),
            rescuing=min(entry.rescuing for entry in entries),
        )

    def rest(self) -> Call:
        """The call for the unknown texts alone."""
        texts = [text for text, _ in self.unknown]
        body = orjson.dumps({**orjson.loads(self.call.body), "input": texts})
        asked = orjson.dumps(texts if len(texts) > 1 else texts[0])
        return replace(self.call, body=body, texts=tuple(texts), canonical=self.call.base + asked)

    def whole(self, fetched: bytes) -> bytes | None:
        """The answer out of what was kept and what has been fetched for the unknown; None where they do not agree."""
        if not any(self.kept):
            return fetched
        answers = split(fetched, [text for text, _ in self.unknown])
        if answers is None:
            return None
        new = iter(answers)
        return merged([next(new) if entry is None else entry.body for entry in self.kept])

    def anew(self) -> "Batch":
        """The same with nothing known."""
        return replace(self, kept=(None,) * len(self.kept))


@dataclass(frozen=True, slots=True)
class Wanted:
    """An answer to fetch: the regions to try, best first, and all that may and can give it, up or not.

    Where some texts of a `batch` are known, the call is for the others.
    """

    call: Call
    key: bytes | None
    ranked: Sequence[PermittedRegion]
    able: Sequence[PermittedRegion]
    batch: Batch | None = None

    def whole(self, entry: CacheEntry | None) -> CacheEntry | None:
        """An answer to the call, made one to all texts; None where it does not go with what is known."""
        if entry is None or self.batch is None or not self.batch.partly_known:
            return entry
        body = self.batch.whole(entry.body)
        return None if body is None else replace(entry, body=body)

    def fits(self, status: int, body: object) -> bool:
        """Whether an answer to the call goes with what is known; a refusal does not, as it counts other texts."""
        if self.batch is None or not self.batch.partly_known:
            return True
        good = status < HTTPStatus.BAD_REQUEST and isinstance(body, bytes)
        return good and self.batch.whole(cast("bytes", body)) is not None

    def anew(self) -> "Wanted":
        """The whole, with nothing known."""
        if self.batch is None:
            return self
        return replace(self, call=self.batch.call, batch=self.batch.anew())
