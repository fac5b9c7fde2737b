"""Which kept answer a request may have, and which answers are kept, for how long."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

from app.batch import Batch, Wanted
from app.config import CacheSettings
from app.exchange import Exchange
from app.flights import Flights
from app.policy.cache_control import CacheControl, age, lifetime
from app.policy.items import split
from app.stores.base import CacheStore
from app.telemetry.metrics import Metrics
from app.types import CacheEntry, Call, PermittedRegion, Reply

STREAM_LIMIT: Final = 1 << 20
"""Bytes of a stream that are held to be kept after its end; a longer one is passed on and forgotten."""

CacheStatus = Literal["HIT", "MISS", "BYPASS", "REFRESH", "COALESCED"]
COALESCED: Final[CacheStatus] = "COALESCED"
HeaderFields = Sequence[tuple[str, str]]
"""The fields of an answer's head, by names in lower case."""


def streamed(headers: HeaderFields) -> bool:
    """Whether an answer with these fields is a stream of events."""
    return any(name == "content-type" and value.startswith("text/event-stream") for name, value in headers)


class Caching:
    """The answers that are kept, by key, and those under way."""

    def __init__(self, store: CacheStore, flights: Flights, settings: CacheSettings, metrics: Metrics) -> None:
        self.flights = flights
        self._store = store
        self._settings = settings
        self._metrics = metrics

    def find(self, wanted: Wanted, control: CacheControl) -> tuple[CacheEntry | None, CacheStatus]:
        """The kept answer that the caller accepts; where it is no longer `fresh`, it is to be renewed meanwhile.

        REFRESH says that there is one, but too old, for this caller or for all.
        """
        if wanted.key is None:
            return None, "BYPASS"
        if wanted.batch and (entry := wanted.batch.entry()):
            return entry, "HIT"
        now = time.monotonic()
        entry = wanted.whole(self._store.get(wanted.key, now))
        if entry is None:
            return None, "MISS"
        if now < entry.renewing and control.accepts(now - entry.stored):
            return entry, "HIT"
        return None, "REFRESH"

    def rescue(self, wanted: Wanted, control: CacheControl) -> CacheEntry | None:
        """The kept answer for a caller whom no region could answer, where it may be given out then (RFC 5861)."""
        if wanted.key is None:
            return None
        if wanted.batch:
            kept = tuple(self._rescuing(key, control) for key in wanted.batch.keys)
            if entry := replace(wanted.batch, kept=kept).entry():
                return entry
        return wanted.whole(self._rescuing(wanted.key, control))

    def _rescuing(self, key: bytes, control: CacheControl) -> CacheEntry | None:
        now = time.monotonic()
        entry = self._store.get(key, now)
        held = entry is not None and now < entry.rescuing and control.accepts(now - entry.stored)
        return entry if held else None

    def batch(self, call: Call, keys: Sequence[bytes], control: CacheControl) -> Batch:
        """What is known of each of the call's texts, and fresh; all of it is from one region."""
        now = time.monotonic()
        found = [self._store.get(key, now) for key in keys]
        fresh = [one if one and now < one.fresh and control.accepts(now - one.stored) else None for one in found]
        region = next((one.region for one in fresh if one), None)
        return Batch(call, tuple(keys), tuple(one if one and one.region == region else None for one in fresh))

    def tell(self, exchange: Exchange, status: CacheStatus, entry: CacheEntry | None = None) -> None:
        """Say what part the cache had in an answer, and how old it is where it is a kept one."""
        exchange.headers["X-Cache-Status"] = status
        self._metrics.cache(status)
        if entry is not None:
            exchange.headers["Age"] = str(int(time.monotonic() - entry.stored))

    def keep(
        self, key: bytes, region: PermittedRegion, said: HeaderFields, answer: Reply, batch: Batch | None = None
    ) -> None:
        """Keep a good answer as long as it may be, and give it to all who wait for it; `said` is its whole head.

        The answer to the unknown texts of a `batch` is kept text by text, where it can be taken apart.
        One that came as a stream is not renewed: whoever wants it after its time fetches it anew.
        """
        assert isinstance(answer.body, bytes)  # noqa: S101 - the whole of a stream by now, too
        old = age([value for name, value in said if name == "age"])
        control = [value for name, value in said if name == "cache-control"]
        settings = self._settings
        lasts = lifetime(control, old, settings.ttl, settings.stale_while_revalidate, settings.stale_if_error)
        if lasts is None:
            return
        now = time.monotonic()
        entry = CacheEntry(
            region=region,
            status=answer.status,
            headers=answer.headers,
            body=answer.body,
            stored=now - old,
            fresh=now + lasts.fresh,
            renewing=now + (lasts.fresh if streamed(answer.headers) else lasts.renewing),
            rescuing=now + lasts.rescuing,
        )
        unknown = batch.unknown if batch else []
        parts = split(answer.body, [text for text, _ in unknown]) if unknown else None
        if parts:
            for (_, each), body in zip(unknown, parts, strict=True):
                self._store.put(each, replace(entry, body=body), now)
        else:
            self._store.put(key, entry, now)
        self.flights.land(key, entry)
