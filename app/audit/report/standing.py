"""The sections of a report that the configuration and the construction of the gateway answer, not the records. Pure."""

from typing import Final

from app.audit.report.tables import Facts, Row, Section

_DAY: Final = 86400.0
_MEASURES: Final = (
    (
        "pseudonymisation",
        "A person's id is recorded only as HMAC-SHA256 of tenant and id, under a key of each region's own.",
    ),
    (
        "encryption",
        (
            "In records that name a person, that pseudonym, the request's id and its trace are sealed with AES-256-GCM;"
            " the columns to search by hold the first two beside the record until an erasure empties them."
        ),
    ),
    (
        "erasure",
        "Each person's records have a key of their own, kept encrypted: once it is destroyed, nothing opens them.",
    ),
    ("confidentiality", "A request is sent to no region that a rule of law does not permit."),
    (
        "access control",
        "API keys with scopes, stored as SHA-256 only; files of the trail and its keys are their owner's only.",
    ),
    (
        "data minimisation",
        "Bodies of requests and answers are never recorded; answers kept for repetition lie in memory.",
    ),
    (
        "integrity",
        "Records are leaves of a hash tree (RFC 6962) with signed roots (Ed25519): alteration and removal show.",
    ),
    (
        "accountability",
        "Decisions are on disk before a region gets a body, endings before the answer ends, or the request fails.",
    ),
    ("accountability", "Whoever reads the audit trail through the API is recorded."),
    ("availability", "Health checks, circuit breakers and retries, among permitted regions only."),
)
_ROLES: Final = ("joint controller", "operator of the gateway", "representative", "data protection officer")
_OWED: Final = (
    "encryption in transit, and at rest outside of the audit trail",
    "restoring after an incident; backups",
    "regular testing of the measures",
    "organisational measures; physical security",
)


def recipients(facts: Facts, source: str) -> Section:
    """Who runs the regions."""
    rows: list[Row] = [
        (region.operator.name, region.operator.role, region.id, region.subdivision or region.country, None)
        for region in (facts.settings.regions if facts.settings else ())
    ]
    return Section(
        id="recipients",
        title="Operators of the regions: processors and other recipients",
        source=source,
        columns=("name", "role", "region", "country", "contact"),
        rows=tuple(rows) or ((None,) * 5,),
        notes=("As configured when the report was made.",),
    )


def controllers(facts: Facts, source: str) -> Section:
    """On whose behalf requests were answered."""
    tenants = {tenant for tenant, _ in facts.figures.models} | ({facts.tenant} if facts.tenant else set())
    rows: list[Row] = [("controller", tenant, None, None) for tenant in sorted(tenants)]
    rows += [(role, None, None, None) for role in _ROLES]
    return Section(
        id="controllers",
        title="Controllers, and who acts for them",
        source=source,
        columns=("function", "tenant", "name", "contact"),
        rows=tuple(rows),
        notes=("A tenant is whom an API key belongs to: here those whose requests were answered in the period.",),
    )


def processing(facts: Facts, source: str) -> Section:
    """What was done, for whom; why, only the controller knows."""
    rows = [
        (tenant, "inference", model, None, times) for (tenant, model), times in sorted(facts.figures.models.items())
    ]
    return Section(
        id="processing",
        title="Categories of processing, and their purposes",
        source=source,
        columns=("tenant", "processing", "model", "purpose", "answered requests"),
        rows=tuple(rows),
    )


def categories(source: str) -> Section:
    """Of whom, and of what: bodies are never recorded, so what they hold only the controller knows."""
    rows: list[Row] = [
        ("bodies of requests and answers", None, None),
        (
            "audit records",
            "the persons above",
            "a pseudonym, the request's id and trace, the person's country, and what was decided about the request",
        ),
    ]
    return Section(
        id="categories",
        title="Categories of data subjects and of personal data",
        source=source,
        columns=("where", "data subjects", "personal data"),
        rows=tuple(rows),
    )


def instruments(facts: Facts, source: str) -> Section:
    """What tenants have registered to rest transfers on; where it is used, the name follows a rule's colon."""
    rows: list[Row] = []
    for tenant in facts.settings.tenants if facts.settings else ():
        if facts.tenant not in (None, tenant.id):
            continue
        for one in tenant.instruments:
            assessed = f"{one.tia_valid[0]} to {one.tia_valid[1]}" if one.tia_valid else ""
            valid = f"{one.valid[0]} to {one.valid[1]}"
            rows.append((tenant.id, one.id, one.type, one.law or "gdpr", " ".join(one.to), valid, assessed, None))
    return Section(
        id="instruments",
        title="Registered instruments and consents",
        source=source,
        columns=("tenant", "id", "type", "law", "countries", "valid", "impact assessment", "document"),
        rows=tuple(rows) if facts.settings else ((None,) * 8,),
        notes=("As configured when the report was made.",),
    )


def limits(facts: Facts, source: str, *notes: str) -> Section:
    """How long what is kept."""
    retention = _time(facts.settings.audit.retention) if facts.settings else None
    kept = _time(facts.settings.cache.ttl) if facts.settings else None
    rows: list[Row] = [
        ("audit records", retention, "then deleted by the gateway, unless a legal hold keeps them"),
        ("pseudonym, request id and trace in them", retention, "at once where the person is erased"),
        ("answers kept in memory for repetition", kept, "at the latest when the gateway stops"),
        ("bodies of requests", "while they are served", "the gateway writes none to disk"),
        ("what operators of regions keep", None, None),
    ]
    return Section(
        id="limits",
        title="Time limits for erasure",
        source=source,
        columns=("data", "kept", "erased"),
        rows=tuple(rows),
        notes=notes,
    )


def security(source: str) -> Section:
    """What the gateway does for the security of processing, in general terms."""
    owed = [(measure, None) for measure in _OWED]
    return Section(
        id="security",
        title="Technical and organisational security measures",
        source=source,
        columns=("measure", "description"),
        rows=(*_MEASURES, *owed),
    )


def _time(seconds: float) -> str:
    return f"{seconds / _DAY:g} days" if seconds >= _DAY else f"{seconds:g} seconds"
