"""Reports that an officer files, each law's from what it asks a controller or processor to record. Pure.

GDPR: Regulation (EU) 2016/679. CCPA: Cal. Civ. Code 1798.100 ff. and 11 CCR 7000 ff. PDPA: Singapore's Act of 2012 with
the PDPR 2021; Thailand's B.E. 2562 and Malaysia's of 2010 (Act 709) as well where the records show them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from app.audit.report import standing, tables
from app.audit.report.tables import Facts, Row, Section
from app.audit.report.tally import Flow, Period

Name = Literal["gdpr", "ccpa", "pdpa"]

LAWS: Final[Mapping[Name, tuple[str, ...]]] = MappingProxyType(
    {"gdpr": ("gdpr",), "ccpa": ("us_ca_ccpa",), "pdpa": ("sg_pdpa", "th_pdpa", "my_pdpa")}
)
"""The law files that a report is about."""

_GDPR_BASES: Final = MappingProxyType(
    {
        "ALLOW_INTRA": "within the EEA",
        "ALLOW_ADEQUACY": "adequacy decision, Art. 45",
        "ALLOW_CERT": "adequacy decision for certified recipients, Art. 45",
        "ALLOW_SCC": "standard contractual clauses, Art. 46(2)(c)",
        "ALLOW_BCR": "binding corporate rules, Art. 46(2)(b) and 47",
        "ALLOW_CONTRACT": "contractual clauses, Art. 46(3)(a)",
        "ALLOW_CONSENT": "explicit consent, Art. 49(1)(a)",
    }
)


@dataclass(frozen=True, slots=True)
class _Pdpa:
    country: str
    source: str
    bases: Mapping[str, str]


_PDPA: Final = MappingProxyType(
    {
        "sg_pdpa": _Pdpa(
            "Singapore",
            "PDPA 2012 s.26, PDPR 2021 regs 10 to 12",
            {
                "ALLOW_INTRA": "within Singapore",
                "ALLOW_CERT": "specified certification, reg 12",
                "ALLOW_BCR": "binding corporate rules, reg 11(1)(c)",
                "ALLOW_CONTRACT": "contract, reg 11(1)(b)",
                "ALLOW_CONSENT": "consent, reg 10(2)(a)",
            },
        ),
        "th_pdpa": _Pdpa(
            "Thailand",
            "PDPA B.E. 2562 ss.28 and 29",
            {
                "ALLOW_INTRA": "within Thailand",
                "ALLOW_BCR": "binding corporate rules, s.29",
                "ALLOW_CONTRACT": "appropriate safeguards, s.29",
                "ALLOW_CONSENT": "consent, s.28(2)",
            },
        ),
        "my_pdpa": _Pdpa(
            "Malaysia",
            "PDPA 2010 s.129",
            {
                "ALLOW_INTRA": "within Malaysia",
                "ALLOW_BCR": "precautions and due diligence, s.129(3)(f)",
                "ALLOW_CONTRACT": "precautions and due diligence, s.129(3)(f)",
                "ALLOW_CONSENT": "consent, s.129(3)(a)",
            },
        ),
    }
)
_CONSUMER_RECORDS: Final = 730 * 86400
"""Seconds for which records of consumer requests are to be kept: 24 months (11 CCR 7101(a))."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one law asks for, over a period; `tenant` is None for all of them."""

    law: Name
    title: str
    period: Period
    tenant: str | None
    sections: tuple[Section, ...]


def compiled(law: Name, facts: Facts, period: Period) -> Report:
    """The report of a law; `facts` are of `LAWS[law]`."""
    match law:
        case "gdpr":
            title, sections = "Record of processing activities (GDPR Art. 30)", _gdpr(facts)
        case "ccpa":
            title, sections = "Consumer request metrics and disclosures (CCPA, 11 CCR 7102)", _ccpa(facts)
        case "pdpa":
            title, sections = "Transfers of personal data abroad (PDPA)", _pdpa(facts)
    return Report(law, title, period, facts.tenant, tuple(sections))


def _gdpr(facts: Facts) -> Sequence[Section]:
    articles = {
        "read access": "Art. 15",
        "erasure": "Art. 17",
        "hold": "Art. 17(3)(e)",
        "read": "Art. 32(1)(b)",
        "retention": "Art. 5(1)(e)",
        "rotation": "Art. 32(1)(a)",
    }
    transfers = "GDPR Art. 30(1)(e), 30(2)(c), 44 to 49"
    inside, outside = "Recipients within the EEA", "Transfers to third countries"
    compelling = "No rule rests a transfer on compelling legitimate interests (Art. 49(1), second subparagraph)."
    return (
        standing.controllers(facts, "GDPR Art. 30(1)(a), 30(2)(a)"),
        standing.recipients(facts, "GDPR Art. 30(1)(d), 30(2)(a)"),
        standing.processing(facts, "GDPR Art. 30(1)(b), 30(2)(b)"),
        tables.subjects(facts, "GDPR Art. 30(1)(c)"),
        standing.categories("GDPR Art. 30(1)(c)"),
        tables.flows(facts, "gdpr", "inside", title=inside, source="GDPR Art. 30(1)(d)", bases=_GDPR_BASES),
        tables.flows(facts, "gdpr", "outside", compelling, title=outside, source=transfers, bases=_GDPR_BASES),
        standing.instruments(facts, transfers),
        standing.limits(facts, "GDPR Art. 30(1)(f), 5(1)(e)"),
        standing.security("GDPR Art. 30(1)(g), 30(2)(d), 32(1)"),
        tables.refusals(facts, "GDPR Art. 44, 5(2)"),
        tables.rights(facts, articles, "GDPR Art. 12 to 22"),
        tables.erasures(facts, "GDPR Art. 12(3)"),
        tables.endings(facts, "GDPR Art. 5(2)"),
        tables.logs(facts),
    )


def _ccpa(facts: Facts) -> Sequence[Section]:
    articles = {"read access": "Cal. Civ. Code 1798.110", "erasure": "Cal. Civ. Code 1798.105"}
    short = facts.settings is not None and facts.settings.audit.retention < _CONSUMER_RECORDS
    kept = (
        ["Records of consumer requests are owed for 24 months, longer than the trail keeps its own."] if short else []
    )
    return (
        _metrics(facts),
        tables.erasures(facts, "11 CCR 7102(a)(1)(F), 7021"),
        standing.recipients(facts, "Cal. Civ. Code 1798.140(ag) and (ai)"),
        tables.subjects(facts, "Cal. Civ. Code 1798.140(i)"),
        _disclosures(facts),
        _signals(facts),
        tables.refusals(facts, "Cal. Civ. Code 1798.120, 11 CCR 7025"),
        standing.limits(facts, "Cal. Civ. Code 1798.100(a)(3), 11 CCR 7101(a)", *kept),
        tables.rights(facts, articles, "Cal. Civ. Code 1798.105 to 1798.121"),
        tables.endings(facts, "11 CCR 7101"),
        tables.logs(facts),
    )


def _metrics(facts: Facts) -> Section:
    events, signals = facts.figures.events, facts.figures.signals
    known: tuple[tuple[str, str, int | None], ...] = (
        ("requests to delete", "(A)", events["erasure", "erased"]),
        ("requests to correct", "(B)", None),
        ("requests to know", "(C)", events["read", "access"]),
        ("requests to opt out of sale/sharing", "(D)", sum(signals.values())),
        ("requests to limit", "(E)", None),
    )
    return Section(
        id="metrics",
        title="Consumer requests",
        source="11 CCR 7102(a)(1)",
        columns=("request", "point", "recorded here", "received", "complied with", "denied", "median days"),
        rows=tuple((request, point, recorded, *[None] * 4) for request, point, recorded in known),
        notes=(
            "Owed by a business that handles the data of 10,000,000 or more consumers in a calendar year, by July 1.",
            "Recorded here, under any law: (A) erasures that found records; (C) reports of all records of one person.",
            "(D) inference requests in which an opt-out preference signal (GPC) kept data from a third party.",
            "What else consumers asked for, and when, the trail does not know.",
        ),
    )


def _disclosures(facts: Facts) -> Section:
    merged: dict[str, int] = {}
    for key, times in sorted(facts.figures.flows.items()):
        region = Flow(*key).region
        merged[region] = merged.get(region, 0) + times
    return Section(
        id="disclosures",
        title="Disclosures, by destination",
        source="Cal. Civ. Code 1798.130(a)(5)(C)",
        columns=("country", "region", "recipient", "role", "business purpose", "requests"),
        rows=tuple((*tables.destination(facts, region), None, times) for region, times in merged.items()),
        notes=(tables.SENT, "Whether data was sold or shared with a third party is for the controller to say."),
    )


def _signals(facts: Facts) -> Section:
    rows: list[Row] = [
        (words, facts.figures.signals[law, outcome])
        for law in facts.laws
        for outcome, words in (("refused", "refused"), ("permitted", "served in other regions, where one answered"))
    ]
    return Section(
        id="signals",
        title="Opt-out preference signals that kept data from a third party",
        source="11 CCR 7025(c)",
        columns=("the request was", "requests"),
        rows=tuple(rows),
        notes=("A signal that changes nothing, as no third party runs a region, is honoured but not recorded.",),
    )


def _pdpa(facts: Facts) -> Sequence[Section]:
    kept = "PDPA 2012 s.25; PDPA B.E. 2562 s.37(3); PDPA 2010 s.10"
    articles = {
        "read access": "PDPA 2012 s.21; PDPA B.E. 2562 s.30; PDPA 2010 s.30",
        "erasure": "PDPA 2012 s.25; PDPA B.E. 2562 s.33; PDPA 2010 s.10",
        "retention": kept,
    }
    flows = []
    for law in facts.laws:
        own = _PDPA[law]
        for place, title in (("inside", "Processing within"), ("outside", "Transfers out of")):
            named = f"{title} {own.country}"
            flows.append(tables.flows(facts, law, place, title=named, source=own.source, bases=own.bases))
    return (
        standing.recipients(facts, "PDPA 2012 s.4(2); PDPA B.E. 2562 s.40; PDPA 2010 s.4"),
        tables.subjects(facts, "PDPA 2012 s.26; PDPA B.E. 2562 s.39; PDPA 2010 s.44"),
        *flows,
        standing.instruments(facts, "PDPR 2021 regs 10 and 11; PDPA B.E. 2562 ss.28 and 29; PDPA 2010 s.129(3)"),
        tables.refusals(facts, "PDPA 2012 s.26; PDPA B.E. 2562 s.28; PDPA 2010 s.129"),
        standing.limits(facts, kept),
        standing.security("PDPA 2012 s.24; PDPA B.E. 2562 s.37(1); PDPA 2010 s.9"),
        tables.rights(facts, articles, "PDPA 2012 ss.16, 21 and 25; PDPA B.E. 2562 ss.30 to 36; PDPA 2010 ss.30 to 44"),
        tables.erasures(facts, "PDPA 2012 s.25; PDPA B.E. 2562 s.33; PDPA 2010 s.10"),
        tables.endings(facts, "PDPA 2012 ss.11 and 12; PDPA B.E. 2562 s.39; PDPA 2010 s.44"),
        tables.logs(facts),
    )
