"""The audit records: what one holds, how it is spelt, and its canonical bytes. Pure; bodies never enter here.

Every field is a string, an integer, a boolean, null, or a list or object of those: without floats, and with ASCII keys
in code point order, `orjson` writes the canonical form of RFC 8785 byte for byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson

from app.types import Decision, Question, Verdict

Record = dict[str, Any]
DecisionOutcome = Literal["permitted", "refused"]
EventKind = Literal["read", "erasure", "hold", "retention", "rotation"]
CompletionOutcome = Literal["served", "failed", "cancelled", "refused", "lost"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VERSION_7 = 7
_COPIED = (
    "request_id",
    "tenant",
    "key_id",
    "subject",
    "subject_country",
    "jurisdictions",
    "requested_region",
    "region",
    "reason",
    "rule",
    "law",
    "basis",
    "policy_digest",
    "model",
    "trace_id",
)
"""What a completion says again, so that each record can be filtered and read without its decision."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request sent to a region; `status` is the backend's HTTP status, or None where none came."""

    region: str
    outcome: str
    status: int | None


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: of fixed width until the year 9999, so that text order is time order."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def canonical(record: Mapping[str, Any]) -> bytes:
    """Canonical bytes of a record (RFC 8785). Raises TypeError for a value that has none, such as an integer > 2^53."""
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER)


def new_id(time: datetime, draw: int) -> str:
    """An id for a record of that time: UUIDv7 in hex (RFC 9562, section 5.7), `draw` being 62 random bits.

    Its `rand_a` holds the fraction of the millisecond (section 6.2, method 3), so that `time_of` finds the record's
    time again, and with it the record, without an index of ids.
    """
    microseconds = _microseconds(time)
    milliseconds, rest = divmod(microseconds, 1000)
    fraction = -(-rest * 4096 // 1000)  # rounded up, so that rounding down gives it back
    return f"{milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | draw:032x}"


def time_of(record_id: str) -> str | None:
    """The `time` of the record with that id; None where `new_id` has not made it."""
    try:
        number = int(record_id, 16)
        microseconds = (number >> 80) * 1000 + (number >> 64 & 0xFFF) * 1000 // 4096
        made = _EPOCH + timedelta(microseconds=microseconds)
    except (ValueError, OverflowError):
        return None
    return timestamp(made) if record_id == f"{number:032x}" and number >> 76 & 0xF == _VERSION_7 else None


def _microseconds(time: datetime) -> int:
    return max(0, (time - _EPOCH) // timedelta(microseconds=1))  # a clock that has lost its battery says 1969


def numbered(record: Mapping[str, Any], log: str, seq: int) -> Record:
    """The record in its place: the `seq`-th (from 1) of `log`."""
    return {**record, "log": log, "seq": seq}


def decision(
    *,
    id: str,  # noqa: A002 - the field's name in the contract
    time: datetime,
    request_id: str | None,
    outcome: DecisionOutcome,
    tenant: str | None,
    key_id: str | None,
    question: Question | None = None,
    decided: Decision | None = None,
    verdict: Verdict | None = None,
    reason: str | None = None,
    code: str | None = None,
    region: str | None = None,
    subject: str | None = None,
    subject_country: str | None = None,
    model: str | None = None,
    status: int | None = None,
    policy_digest: str | None = None,
    trace_id: str | None = None,
    bytes_in: int = 0,
    ignored_hints: Sequence[str] = (),
) -> Record:
    """A decision, without `log` and `seq`, which the writer adds.

    `region` is the one chosen, None on refusal; `verdict` is that region's, and its rule, law and reason then stand for
    the decision's own. `reason` overrides both (`NO_COMPLIANT_HEALTHY`) and is None where nothing was decided. `code`
    is the error's on refusal. `subject` is a pseudonym, never the caller's id. `status` is the HTTP status of a
    refusal; None when permitted.
    """
    return {
        "kind": "decision",
        "id": id,
        "time": timestamp(time),
        "request_id": request_id,
        "outcome": outcome,
        "tenant": tenant,
        "key_id": key_id,
        "subject": subject,
        "subject_country": subject_country or (decided.subject_country if decided else None),
        "jurisdictions": list(decided.jurisdictions) if decided else [],
        "evidence": [{"source": sign.source, "code": sign.code} for sign in question.evidence] if question else [],
        "requested_region": question.requested if question else None,
        "candidates": [_candidate(each) for each in decided.verdicts] if decided else [],
        "region": region,
        "basis": question.basis if question else None,
        "policy_digest": policy_digest,
        "model": model,
        "status": status,
        "code": code,
        "bytes_in": bytes_in,
        "trace_id": trace_id,
        "ignored_hints": list(ignored_hints),
        "personal": None,
        **_why(decided, verdict, reason),
    }


def completion(
    *,
    id: str,  # noqa: A002 - the field's name in the contract
    time: datetime,
    decision: Mapping[str, Any],
    outcome: CompletionOutcome,
    status: int | None,
    region: str | None = None,
    reason: str | None = None,
    code: str | None = None,
    cache: str | None = None,
    attempts: Sequence[Attempt] = (),
    bytes_in: int = 0,
    bytes_out: int = 0,
    duration_us: int = 0,
    timings_us: Mapping[str, int] | None = None,
    body_may_have_arrived: bool = False,
) -> Record:
    """The end of the request whose `decision` record is given; `region` and `reason` override the decision's.

    `body_may_have_arrived` says whether any byte of the body may have reached a region. Durations in microseconds,
    `timings_us` those of the stages that Server-Timing names; sizes in bytes of body; `status` is the one sent to the
    client, None where none was or none is known.
    """
    return {
        **{name: decision[name] for name in _COPIED},
        "kind": "completion",
        "id": id,
        "decision_id": decision["id"],
        "time": timestamp(time),
        "outcome": outcome,
        "status": status,
        "region": region or decision["region"],
        "reason": str(reason) if reason else decision["reason"],
        "code": code,
        "cache": cache,
        "attempts": [{"region": each.region, "outcome": each.outcome, "status": each.status} for each in attempts],
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
        "duration_us": duration_us,
        "timings_us": dict(timings_us or {}),
        "body_may_have_arrived": body_may_have_arrived,
        "personal": None,
    }


def lost(*, id: str, time: datetime, decision: Mapping[str, Any], body_may_have_arrived: bool) -> Record:  # noqa: A002 - as above
    """The completion that the writer adds where the gateway cannot say how a permitted request ended."""
    return completion(
        id=id,
        time=time,
        decision=decision,
        outcome="lost",
        status=None,
        body_may_have_arrived=body_may_have_arrived,
    )


def event(
    *,
    kind: EventKind,
    id: str,  # noqa: A002 - as above
    time: datetime,
    outcome: str,
    detail: Mapping[str, Any],
    request_id: str | None = None,
    tenant: str | None = None,
    key_id: str | None = None,
    subject: str | None = None,
) -> Record:
    """What was done to the trail itself, or read from it, and by whom; `detail` says what, by `kind`.

    `tenant` and `key_id` are those of the key used, both None for a command at the machine and for the writer's own.
    """
    return {
        **dict.fromkeys(_COPIED),
        "jurisdictions": [],
        "kind": kind,
        "id": id,
        "time": timestamp(time),
        "outcome": outcome,
        "status": None,
        "request_id": request_id,
        "tenant": tenant,
        "key_id": key_id,
        "subject": subject,
        "detail": dict(detail),
        "personal": None,
    }


def _candidate(verdict: Verdict) -> Record:
    return {
        "region": verdict.region,
        "permitted": verdict.permitted,
        "reason": verdict.reason.value,
        "rule": verdict.rule,
        "law": verdict.law,
    }


def _why(decided: Decision | None, verdict: Verdict | None, reason: str | None) -> Record:
    source = verdict or decided
    if source is None:
        return {"reason": str(reason) if reason else None, "rule": None, "law": None}
    return {"reason": str(reason or source.reason), "rule": source.rule, "law": source.law}
