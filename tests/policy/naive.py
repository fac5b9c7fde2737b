"""The law read word by word from its files for one region and one day: slow and plain, to compare decisions with."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

from app.config import Instrument, Region, Tenant
from app.types import Question

Document = Mapping[str, Any]


def permits(
    region: Region, question: Question, tenant: Tenant, posture: str, disabled: Iterable[str], laws: Sequence[Document]
) -> bool:
    """Whether every law of everybody whom the evidence names lets `region` see the data."""
    protecting = [_protecting(one.code, question.day, laws) for one in question.evidence]
    if not protecting or not all(protecting):
        return False
    known = {name for law in laws for rule in law.get("rules", ()) for name in rule.get("purposes", ())}
    if question.purpose is not None and question.purpose not in known:
        return False
    off = {*disabled, *question.disabled}
    return all(
        _law_permits(law, group, region, question, tenant, posture, off) for found in protecting for law, group in found
    )


def _protecting(code: str, day: date, laws: Sequence[Document]) -> list[tuple[Document, str]]:
    return [
        (law, group["id"])
        for law in laws
        for group in law["members"]
        if _valid(group, day) and {code, code[:2]} & set(group["places"])
    ]


def _valid(part: Document, day: date) -> bool:
    start, end = part["valid"]
    return bool(start <= day and (end is None or day <= end))


def _law_permits(
    law: Document, group: str, region: Region, question: Question, tenant: Tenant, posture: str, off: set[str]
) -> bool:
    day = question.day
    rules = [rule for rule in law.get("rules", ()) if _valid(rule, day) and group in (rule.get("members") or (group,))]
    if any(_forbids(rule, region, question) for rule in rules if rule["kind"] == "forbid"):
        return False
    if law["transfers"] == "open":
        return True
    if region.upstream_scope == "global":
        return False
    homes = {place for members in law["members"] if _valid(members, day) for place in members["places"]}
    if homes & {region.country, region.subdivision}:
        return True
    return posture == "transfer" and any(
        _basis(rule, region, day)
        or any(_instrument(rule, one, region, question) for one in tenant.instruments if one.id not in off)
        for rule in rules
        if rule["id"] not in off
    )


def _forbids(rule: Document, region: Region, question: Question) -> bool:
    return (
        (question.gpc or not rule.get("gpc", False))
        and ("purposes" not in rule or question.purpose in rule["purposes"])
        and ("roles" not in rule or region.operator.role in rule["roles"])
        and ("to" not in rule or region.upstream_scope == "global" or region.country in rule["to"])
    )


def _basis(rule: Document, region: Region, day: date) -> bool:
    there = region.country in rule.get("to", (region.country,))
    if rule["kind"] == "adequacy":
        return there
    if rule["kind"] != "certification":
        return False
    held = {one.id for one in region.operator.certifications if one.valid[0] <= day <= one.valid[1]}
    fits = "roles" not in rule or region.operator.role in rule["roles"]
    return there and fits and held.issuperset(rule["certifications"])


def _instrument(rule: Document, one: Instrument, region: Region, question: Question) -> bool:
    day = question.day
    if one.type != rule["kind"] or (one.law or "gdpr") not in rule["accepts"]:
        return False
    if not one.valid[0] <= day <= one.valid[1]:
        return False
    there = region.country in one.to
    match one.type:
        case "scc":
            return there and one.tia_valid is not None and one.tia_valid[0] <= day <= one.tia_valid[1]
        case "bcr":
            return (there or not one.to) and one.group is not None and one.group == region.operator.group
        case "consent":
            given = all(getattr(one, condition) for condition in rule["conditions"])
            kept = one.withdrawn is None or day < one.withdrawn
            fits = not (rule["occasional"] and one.systematic)
            return there and question.basis == one.id and given and kept and fits
    return there
