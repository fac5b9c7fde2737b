"""The newest records of a running gateway, whose pages run from the oldest on."""

import hashlib
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from app.audit.reader import Filters
from app.audit.record import Record, timestamp
from app.commands.audit_options import parameters
from app.commands.audit_remote import Remote

_WIDER = 8
_PROBES = 64
_SPARE = 1000
"""Records beyond those asked for that are worth reading rather than to look for a better beginning."""
_OVERLAP = timedelta(seconds=10)
"""How much later than its time a record may become readable."""
_REMEMBERED = 50_000
_LIMIT = "1000"
_KEY_ID_LENGTH = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RemoteTail:
    """As `app.audit.tail.Tail`, over the API. Leaves out the records of its own reading, which would never end."""

    def __init__(self, remote: Remote, filters: Filters, key: str) -> None:
        self._remote = remote
        self._filters = filters
        self._own = hashlib.sha256(key.encode()).hexdigest()[:_KEY_ID_LENGTH]
        self._begin = self._latest = _EPOCH
        self._seen: deque[str] = deque(maxlen=_REMEMBERED)

    def newest(self, count: int) -> Sequence[Record]:
        """The last `count` matching records, in order of time.

        Looks for a time from which on there are as many, first further and further back, then in between. Even for
        none it looks for one: the gateway's clock may be another than ours.
        """
        wanted = max(count, 1)
        late = datetime.fromisoformat(self._filters.until) if self._filters.until else datetime.now(UTC)
        lowest = datetime.fromisoformat(self._filters.since) if self._filters.since else _EPOCH
        window, early = _OVERLAP, None
        begin = max(lowest, late - window)
        for _ in range(_PROBES):
            found, complete = self._from(begin, wanted + _SPARE)
            if complete and (len(found) >= wanted or begin == lowest):
                break
            late, early = (begin, early) if complete else (late, begin)
            window *= _WIDER
            begin = early + (late - early) / 2 if early else max(lowest, late - min(window, late - lowest))
        self._begin = begin
        return self._new(found)[max(0, len(found) - count) :]

    def more(self) -> Sequence[Record]:
        """What can be read since, in order of time."""
        return self._new(self._from(max(self._begin, self._latest - _OVERLAP), _REMEMBERED)[0])

    def _from(self, begin: datetime, most: int) -> tuple[list[Record], bool]:
        """Matching records of that time and later, and whether these are all; a few more than `most` at most."""
        asked = {**parameters(self._filters), "from": timestamp(begin), "limit": _LIMIT}
        found: list[Record] = []
        while True:
            page = self._remote.get("/v1/audit/logs", asked)
            found += [each for each in page["records"] if (each["kind"], each["key_id"]) != ("read", self._own)]
            if page["cursor"] is None or len(found) > most:
                return found, page["cursor"] is None
            asked["cursor"] = page["cursor"]

    def _new(self, found: Sequence[Record]) -> Sequence[Record]:
        """Those that have not been told yet."""
        seen = set(self._seen)
        new = [each for each in found if each["id"] not in seen]
        self._seen.extend(each["id"] for each in new)
        self._latest = max([self._latest, *(datetime.fromisoformat(each["time"]) for each in new[-1:])])
        return new
