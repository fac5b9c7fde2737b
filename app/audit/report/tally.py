"""Counts what a report needs of the audit records, one record at a time and in bounded memory. Pure.

A request counts in the period in which it was decided. Its end is looked for up to `AFTERMATH` later; what is not found
by then has no end in these figures. Events, such as erasures, count by their own time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final, NamedTuple

from app.audit.record import timestamp
from app.config import Region
from app.policy.law import Law
from app.types import Reason

AFTERMATH: Final = timedelta(days=1)
"""The longest deadline that a caller may set."""
_ACCESS: Final = ("/v1/audit/access", "access")
"""The endpoint and the command that tell everything about one person."""
MANY: Final = 10_000
"""Lines of one table, and requests under way at once, that are told apart; more of them are counted together."""
OTHER: Final = "(other)"

Counts = Counter[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Period:
    """From the first moment of the first day to the last of the last one, in UTC."""

    first: date
    last: date

    @property
    def since(self) -> str:
        return _midnight(self.first)

    @property
    def until(self) -> str:
        """The first moment that is no longer of it."""
        return _midnight(_later(self.last, timedelta(days=1)))

    @property
    def ended(self) -> str:
        """Until when the ends of its requests are looked for."""
        return _midnight(_later(self.last, timedelta(days=1) + AFTERMATH))


class Flow(NamedTuple):
    """Where the data of people whom `law` (its id) protects went, and what the decision says of that region."""

    law: str
    place: str
    """`inside` or `outside` of where data move freely under that law; `unknown` without a configuration."""
    region: str
    reason: str
    rule: str
    article: str


class Refusal(NamedTuple):
    """Why requests for people whom `law` protects were refused."""

    law: str
    code: str
    reason: str
    rule: str
    article: str
    arrived: str
    """Whether the body may have reached a gateway, or a region, before: `yes` or `no`."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The counts. Those whose keys begin with the id of a law count a request once for each of the laws it is under."""

    records: int
    """Of the period, of every kind"""
    oldest: Mapping[str, int]
    """The lowest number among them, by log"""
    requests: Counts
    """(law, country of the person or "", outcome of the decision)"""
    flows: Counts
    """`Flow`; a request that was sent to two regions counts in both, one whose connection was refused in none."""
    unsent: Counts
    """(law, region whose kept answer was served)"""
    models: Counts
    """(tenant, model) of what was served"""
    refusals: Counts
    """`Refusal`"""
    ends: Counts
    """(law, outcome of the completion, code of the error or "")"""
    lost: Counts
    """(law, region chosen, whether the body may have arrived: yes or no)"""
    open: Counts
    """(law,) of requests without an end"""
    signals: Counts
    """(law, outcome) of requests that Global Privacy Control kept from a region"""
    elsewhere: int
    """Requests under none of the laws"""
    events: Counts
    """(kind of event, outcome)"""
    days: Counts
    """(kind of event, day)"""
    erased: int
    """Records that erasures have made anonymous"""
    deleted: int
    """Records that retention has deleted"""


def tally(
    records: Iterable[Mapping[str, Any]],
    *,
    laws: Sequence[Law],
    period: Period,
    tenant: str | None,
    regions: Sequence[Region],
) -> Figures:
    """The figures of a period, for one tenant or all (None), from records in ascending order of time, opened or not.

    `regions` as configured, to say what lies within a law's own places; empty where no configuration is known.
    """
    count = _Count(laws, period, tenant, {region.id: region for region in regions})
    for record in records:
        count.take(record)
    return count.figures()


class _Open(NamedTuple):
    laws: tuple[Law, ...]
    decision: Mapping[str, Any]


class _Count:
    """The figures while they grow."""

    def __init__(self, laws: Sequence[Law], period: Period, tenant: str | None, regions: Mapping[str, Region]) -> None:
        self._laws = laws
        self._since, self._until, self._ended = period.since, period.until, period.ended
        self._tenant = tenant
        self._regions = regions
        self._open: dict[str, _Open] = {}
        self._oldest: dict[str, int] = {}
        self._counts: dict[str, Counts] = {name: Counter() for name in _COUNTED}
        self._records = self._elsewhere = self._erased = self._deleted = 0
        self._deeds: set[tuple[str, ...]] = set()

    def take(self, record: Mapping[str, Any]) -> None:
        when, kind = record["time"], record["kind"]
        if not self._since <= when < self._ended:
            return
        within = when < self._until
        if within:
            self._note(record["log"], record["seq"])
        if kind == "completion":
            self._end(record)
        elif within and kind != "decision":
            self._event(record)
        elif within and self._tenant in (None, record["tenant"]):
            self._begin(record)

    def figures(self) -> Figures:
        for under_way in self._open.values():
            self._unended(under_way)
        self._open.clear()
        return Figures(
            records=self._records,
            oldest=self._oldest,
            elsewhere=self._elsewhere,
            erased=self._erased,
            deleted=self._deleted,
            **self._counts,
        )

    def _note(self, log: str, seq: int) -> None:
        self._records += 1
        self._oldest[log] = min(seq, self._oldest.get(log, seq))

    def _add(self, name: str, key: tuple[str, ...], times: int = 1) -> None:
        counts = self._counts[name]
        if key not in counts and len(counts) >= MANY:
            key = (key[0], *[OTHER] * (len(key) - 1))
        counts[key] += times

    def _begin(self, record: Mapping[str, Any]) -> None:
        laws = self._applicable(record)
        if not laws:
            self._elsewhere += 1
            return
        signalled = any(one["reason"] == Reason.DENY_GPC for one in record["candidates"])
        for law in laws:
            self._add("requests", (law.id, record["subject_country"] or "", record["outcome"]))
            if signalled:
                self._add("signals", (law.id, record["outcome"]))
        if len(self._open) >= MANY:
            self._unended(self._open.pop(next(iter(self._open))))
        self._open[record["id"]] = _Open(laws, record)

    def _applicable(self, record: Mapping[str, Any]) -> tuple[Law, ...]:
        day = date.fromisoformat(record["time"][:10])
        places = {place for code in record["jurisdictions"] for place in (code, code[:2])}
        return tuple(law for law in self._laws if any(law.group(place, day) for place in places))

    def _end(self, record: Mapping[str, Any]) -> None:
        under_way = self._open.pop(record["decision_id"], None)
        if under_way is None:
            return
        arrived = "yes" if record["body_may_have_arrived"] else "no"
        for law in under_way.laws:
            self._add("ends", (law.id, record["outcome"], record["code"] or ""))
            if record["outcome"] == "lost":
                self._add("lost", (law.id, record["region"] or "", arrived))
            elif under_way.decision["outcome"] == "refused":
                self._add("refusals", _refusal(law, under_way.decision, arrived))
            else:
                self._sent(law, under_way.decision, record)
        if record["outcome"] == "served":
            self._add("models", (record["tenant"] or "", record["model"] or ""))

    def _sent(self, law: Law, decision: Mapping[str, Any], completion: Mapping[str, Any]) -> None:
        reached = {one["region"]: None for one in completion["attempts"] if one["outcome"] != "refused"}
        said = {one["region"]: one for one in decision["candidates"]}
        for region in reached:
            why = said.get(region, decision)
            place = self._place(law, region, why["reason"], decision["time"])
            self._add("flows", Flow(law.id, place, region, why["reason"] or "", why["rule"] or "", why["law"] or ""))
        if not reached and completion["outcome"] == "served":
            self._add("unsent", (law.id, completion["region"] or ""))

    def _place(self, law: Law, region_id: str, reason: str, when: str) -> str:
        region = self._regions.get(region_id)
        if region is None:
            return "inside" if reason == Reason.ALLOW_INTRA else "unknown"
        if region.upstream_scope == "global":
            return "outside"
        day = date.fromisoformat(when[:10])
        at_home = any(law.group(place, day) for place in (region.country, region.subdivision or region.country))
        return "inside" if at_home else "outside"

    def _is_first(self, deed: tuple[str, ...]) -> bool:
        """Whether this is the first of the records that several logs have of one deed."""
        if deed in self._deeds:
            return False
        if len(self._deeds) < MANY:
            self._deeds.add(deed)
        return True

    def _unended(self, under_way: _Open) -> None:
        for law in under_way.laws:
            self._add("open", (law.id,))

    def _event(self, record: Mapping[str, Any]) -> None:
        kind, detail = record["kind"], record["detail"]
        whose = detail.get("tenant", record["tenant"])  # of the persons; else of the key, none for what concerns all
        if self._tenant not in (None, whose) and (whose is not None or kind == "read"):
            return
        if kind == "erasure":
            self._erased += detail.get("records", 0)
        read = detail.get("path") or detail.get("command")
        outcome = "access" if read in _ACCESS and record["outcome"] == "served" else record["outcome"]
        deed = detail.get("erasure") or detail.get("hold")
        if deed is None or self._is_first((kind, outcome, deed)):
            self._add("events", (kind, outcome or ""))
            self._add("days", (kind, record["time"][:10]))
        if kind == "retention":
            self._deleted += detail.get("records", 0)


_COUNTED: Final = (
    "requests",
    "flows",
    "unsent",
    "models",
    "refusals",
    "ends",
    "lost",
    "open",
    "signals",
    "events",
    "days",
)


def _refusal(law: Law, decision: Mapping[str, Any], arrived: str) -> Refusal:
    code, reason, rule, article = (decision[name] or "" for name in ("code", "reason", "rule", "law"))
    return Refusal(law.id, code, reason, rule, article, arrived)


def _later(day: date, time: timedelta) -> date:
    return date.fromordinal(min(day.toordinal() + time.days, date.max.toordinal()))


def _midnight(day: date) -> str:
    return timestamp(datetime.fromisoformat(f"{day.isoformat()}T00:00:00+00:00"))
