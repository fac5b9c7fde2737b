"""What a report is made of: its sections, and those that are counted from the audit records. Pure.

A cell that is None is one that neither records nor configuration can tell: the controller fills it in.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from app.audit.report.tally import Counts, Figures, Flow, Refusal
from app.config import Region, Settings
from app.policy.law import Law
from app.policy.rules import LawBook

Cell = str | int | None
Row = tuple[Cell, ...]

SENT: Final = "Requests whose body may have reached the region; one that was sent to two regions counts for both."
_ENDS: Final = (
    ("served", "answered"),
    ("failed", "failed"),
    ("cancelled", "left by the caller"),
    ("refused", "refused"),
    ("lost", "not known: the gateway was stopped, or could not write"),
)


@dataclass(frozen=True, slots=True)
class Section:
    """One table; `id` is stable, `source` cites who asks for it."""

    id: str
    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogState:
    """A log that was read: the numbers of its records, up to which retention has deleted, its newest checkpoint."""

    label: str
    first: int
    last: int
    floor: int
    size: int | None
    root: str | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to report; `settings` is None where only the trail is at hand."""

    figures: Figures
    laws: tuple[str, ...]
    """Ids of the laws reported on."""
    tenant: str | None
    settings: Settings | None
    logs: tuple[LogState, ...]
    whole: bool
    """Whether all records of these logs were read, and not one tenant's only."""
    owners: Mapping[str, str]
    """The law of each rule, by their ids."""

    @classmethod
    def of(
        cls,
        figures: Figures,
        *,
        laws: Sequence[str],
        tenant: str | None,
        settings: Settings | None,
        book: LawBook,
        logs: Sequence[LogState],
        whole: bool,
    ) -> "Facts":
        """The facts on the first of these laws, and on those others that some request was under."""
        seen = {laws[0], *(law for law, *_ in figures.requests)}
        owners = {rule: law.id for law in book.laws for rule in _rules(law)}
        told = tuple(law for law in laws if law in seen)
        return cls(figures, told, tenant, settings, tuple(logs), whole, owners)

    def region(self, region_id: str) -> Region | None:
        return self.settings.region(region_id) if self.settings else None

    def foreign(self, flow: Flow) -> bool:
        """Whether the record names another law's rule: where several laws apply it names the strictest permission."""
        return self.owners.get(flow.rule.partition(":")[0], flow.law) != flow.law


def subjects(facts: Facts, source: str) -> Section:
    """Whose data it was, by country."""
    totals: dict[tuple[str, str], Counter[str]] = {}
    for (law, country, outcome), times in facts.figures.requests.items():
        totals.setdefault((law, country), Counter())[outcome] += times
    rows = [
        (law, country or None, outcomes["permitted"], outcomes["refused"])
        for (law, country), outcomes in sorted(totals.items())
    ]
    return Section(
        id="subjects",
        title="Requests, by country of the data subject",
        source=source,
        columns=("law", "country", "permitted", "refused"),
        rows=tuple(rows),
        notes=(f"{facts.figures.elsewhere} further requests of the period are under other laws only, or under none.",),
    )


def flows(
    facts: Facts, law: str, place: str, *notes: str, title: str, source: str, bases: Mapping[str, str]
) -> Section:
    """Where data went that `law` protects, `inside` its own places or `outside`; `bases` are its names by reason."""
    everything = sorted((Flow(*key), times) for key, times in facts.figures.flows.items() if key[0] == law)
    found = [(flow, times) for flow, times in everything if (flow.place == "inside") == (place == "inside")]
    told = [SENT, *notes]
    if any(flow.place == "unknown" for flow, _ in found):
        told.append("Without a configuration the country of a region is not known, nor whether it lies abroad.")
    if any(facts.foreign(flow) for flow, _ in found):
        told.append("Where several laws apply, a record names the strictest permission: add the basis under this law.")
    return Section(
        id=f"{place}:{law}",
        title=title,
        source=source,
        columns=("country", "region", "recipient", "role", "basis", "article", "rule and instrument", "requests"),
        rows=tuple(_flow(facts, flow, times, bases) for flow, times in found),
        notes=tuple(told),
    )


def _flow(facts: Facts, flow: Flow, times: int, bases: Mapping[str, str]) -> Row:
    basis = None if facts.foreign(flow) else bases.get(flow.reason)
    return (*destination(facts, flow.region), basis, flow.article, flow.rule, times)


def destination(facts: Facts, region_id: str) -> Row:
    """Country, id, operator and its role; None for what only a configuration tells."""
    region = facts.region(region_id)
    if region is None:
        return None, region_id, None, None
    return region.subdivision or region.country, region_id, region.operator.name, region.operator.role


def refusals(facts: Facts, source: str) -> Section:
    """Requests that were refused, by reason."""
    merged: dict[Row, list[int]] = {}
    for key, times in sorted(facts.figures.refusals.items()):
        refusal = Refusal(*key)
        counts = merged.setdefault(key[:-1], [0, 0])
        counts[0] += times
        counts[1] += times if refusal.arrived == "yes" else 0
    return Section(
        id="refusals",
        title="Refused requests, by reason",
        source=source,
        columns=("law", "error", "reason", "rule", "article", "requests", "body may have arrived"),
        rows=tuple((*key, *counts) for key, counts in merged.items()),
        notes=(
            "Reason, rule and article are the residency decision's; an error such as rate_limited has another cause.",
            "No error: the caller left before its body was whole.",
        ),
    )


def endings(facts: Facts, source: str) -> Section:
    """How requests ended, and of how many the trail cannot say."""
    rows: list[Row] = []
    for law in facts.laws:
        ends = _of(law, facts.figures.ends)
        lost = _of(law, facts.figures.lost)
        rows += [(law, words, sum(n for (how, _), n in ends.items() if how == end)) for end, words in _ENDS]
        rows += [
            (law, "of these, body may have arrived", sum(n for (_, arrived), n in lost.items() if arrived == "yes")),
            (law, "answered from memory, nothing sent", sum(_of(law, facts.figures.unsent).values())),
            (law, "no end within a day of the period", facts.figures.open[law,]),
        ]
    return Section(
        id="ends",
        title="How the requests ended",
        source=source,
        columns=("law", "end", "requests"),
        rows=tuple(rows),
    )


def rights(facts: Facts, articles: Mapping[str, str], source: str) -> Section:
    """What was done to the trail for data subjects, or in its care; `articles` are by event, or event and outcome."""
    rows = [
        (kind, outcome, articles.get(f"{kind} {outcome}", articles.get(kind, "")), times)
        for (kind, outcome), times in sorted(facts.figures.events.items())
    ]
    return Section(
        id="rights",
        title="Rights and duties exercised on the audit trail",
        source=source,
        columns=("event", "outcome", "article", "records"),
        rows=tuple(rows),
        notes=(
            "The trail does not say under which law a person asked: these are the events of the period under any law.",
            f"Erasures made {facts.figures.erased} records anonymous, retention deleted {facts.figures.deleted}.",
        ),
    )


def erasures(facts: Facts, source: str) -> Section:
    """The days on which erasures took effect."""
    rows = [(day, times) for (kind, day), times in sorted(facts.figures.days.items()) if kind == "erasure"]
    return Section(
        id="erasures",
        title="Erasures, by the day on which they took effect",
        source=source,
        columns=("day", "records"),
        rows=tuple(rows),
        notes=("An erasure takes effect with its record. When the person asked, the controller's own register says.",),
    )


def logs(facts: Facts) -> Section:
    """What the figures were computed from, so that they can be checked, and computed again."""
    notes = [f"{facts.figures.records} records of the period were read."]
    if gone := [log.label for log in facts.logs if _may_lack(facts, log)]:
        notes.append(f"Of the period, retention may have deleted records of: {', '.join(gone)}.")
    return Section(
        id="logs",
        title="What this was computed from",
        source="`tidegate audit verify` shows whether these records are unaltered and complete",
        columns=("log", "first number", "last number", "deleted up to", "signed size", "signed root"),
        rows=tuple((log.label, log.first, log.last, log.floor, log.size or 0, log.root or "") for log in facts.logs),
        notes=tuple(notes),
    )


def _may_lack(facts: Facts, log: LogState) -> bool:
    """Unless a record that is older than the period is still there, some of the period may have gone as well."""
    name = log.label.rpartition("/")[2]
    alone = sum(other.label.rpartition("/")[2] == name for other in facts.logs) == 1
    oldest = facts.figures.oldest.get(name)
    kept = oldest is not None and oldest > log.floor + 1 and alone and facts.whole
    return log.floor > 0 and not kept


def _of(law: str, counts: Counts) -> Counts:
    """The counts that are about one law, without its id."""
    return Counter({key[1:]: times for key, times in counts.items() if key[0] == law})


def _rules(law: Law) -> set[str]:
    """The ids by which its permissions go."""
    groups = {group.id for found in law.groups.values() for group in found}
    bases = {basis.id for found in (*law.to.values(), law.anywhere) for basis in found}
    return groups | bases | {one.id for one in law.safeguards}
