"""From an exchange to its two audit records: which log they belong in, and that there are exactly two."""

import asyncio
import time
from datetime import UTC, datetime

from app.audit.log import new_id
from app.audit.pseudonym import Pseudonyms, holds_id
from app.audit.record import CompletionOutcome, Record, completion, decision
from app.audit.writer import Trail
from app.config import RESERVED_LOG
from app.errors import AuditUnavailable, GatewayError, InvalidRequest, Misdirected
from app.exchange import CLIENT_CLOSED, Exchange
from app.types import Decision, Verdict

_HURRY = 0.25
"""Seconds that a record may wait for its commit even where the request's own deadline is nearer, or has passed: a
caller in a hurry is told that its time is up, not that the audit trail is broken."""


class Recorder:
    """Writes the decision before any byte leaves for a region, and the completion before the answer's last byte."""

    def __init__(self, trail: Trail, pseudonyms: Pseudonyms, policy_digest: str, gateway_region: str | None) -> None:
        self._trail = trail
        self._pseudonyms = pseudonyms
        self._policy_digest = policy_digest
        self._gateway_region = gateway_region

    async def permitted(self, exchange: Exchange, region: str) -> None:
        """Make the decision to serve in `region` durable; raises `AuditUnavailable`."""
        record = await self._decision(exchange, region, region=region)
        try:
            await self._append(exchange, region, [record])
        except asyncio.CancelledError:
            exchange.record = record  # it is durable, and its completion is owed
            raise
        exchange.record = record

    async def abandoned(self, exchange: Exchange) -> None:
        """Make durable that a client left before its body was whole; nothing had been decided to be sent."""
        log = self._log_of_refusal(exchange, None)
        record = await self._decision(exchange, log, refused=True)
        end = self._completion(exchange, record, "cancelled", CLIENT_CLOSED)
        await self._append(exchange, log, [record, end])
        exchange.record, exchange.completed = record, True

    async def refused(self, exchange: Exchange, error: GatewayError) -> None:
        """Make a refusal durable, its decision and completion in one commit; raises `AuditUnavailable`."""
        log = self._log_of_refusal(exchange, error)
        record = await self._decision(exchange, log, error=error)
        end = self._completion(exchange, record, "refused", error.status, error=error)
        await self._append(exchange, log, [record, end])
        exchange.record, exchange.completed = record, True

    async def hit(self, exchange: Exchange, region: str, status: int, size: int) -> None:
        """Make decision and completion of an answer from the cache durable in one commit."""
        record = await self._decision(exchange, region, region=region)
        end = self._completion(
            exchange, record, "served", status, cache=exchange.headers.get("X-Cache-Status"), bytes_out=size
        )
        await self._append(exchange, region, [record, end])
        exchange.record, exchange.completed = record, True

    async def completed(
        self,
        exchange: Exchange,
        outcome: CompletionOutcome,
        status: int | None,
        *,
        region: str | None = None,
        size: int = 0,
        error: GatewayError | None = None,
    ) -> None:
        """Make the completion that is owed durable; does nothing where none is. Raises `AuditUnavailable`."""
        if exchange.record is None or exchange.completed or exchange.audit_log is None:
            return
        exchange.completed = True
        end = self._completion(
            exchange,
            exchange.record,
            outcome,
            status,
            region=region,
            cache=exchange.headers.get("X-Cache-Status"),
            bytes_out=size,
            error=error,
        )
        try:
            await self._append(exchange, exchange.audit_log, [end])
        except AuditUnavailable as unavailable:
            # By now something may have been forwarded, and the caller is not to be told otherwise.
            raise AuditUnavailable("answer", retry_after=unavailable.values["retry_after"]) from unavailable

    async def _append(self, exchange: Exchange, log: str, records: list[Record]) -> None:
        began = time.monotonic()
        exchange.audit_log = log
        try:
            await self._trail.append(log, records, max(exchange.left(), _HURRY))
        finally:
            exchange.spent("audit", began)
        exchange.headers.setdefault("X-Audit-Id", records[0]["id"])

    def _log_of_refusal(self, exchange: Exchange, error: GatewayError | None) -> str:
        """The log of a region that this subject's data may enter; the gateway's own where there is none.

        A gateway standing where the data may not enter keeps nothing of the person, whichever region's log it could
        write; nor is a request that could not be read attributed to anyone.
        """
        decided = exchange.decision
        if decided is None or isinstance(error, InvalidRequest):
            return RESERVED_LOG
        lawful = [verdict.region for verdict in decided.verdicts if verdict.permitted]
        if not lawful or self._gateway_region not in (None, *lawful):
            return RESERVED_LOG
        return lawful[0]

    async def _decision(
        self,
        exchange: Exchange,
        log: str,
        *,
        region: str | None = None,
        error: GatewayError | None = None,
        refused: bool = False,
    ) -> Record:
        decided = exchange.decision
        principal = exchange.principal
        return decision(
            id=new_id(exchange.received),
            time=exchange.received,
            # Where a subject has a pseudonym, the request's id is sealed with it; elsewhere it must not name them.
            request_id=_silent(exchange, exchange.request_id) if log == RESERVED_LOG else exchange.request_id,
            outcome="refused" if error or refused else "permitted",
            tenant=principal.tenant.id if principal else None,
            key_id=principal.key_id if principal else None,
            question=exchange.question,
            decided=decided,
            verdict=_verdict(decided, region),
            reason=_reason(exchange, error),
            region=region,
            subject=await self._subject(exchange, log),
            model=_silent(exchange, exchange.model),
            status=error.status if error else None,
            code=error.code if error else None,
            policy_digest=self._policy_digest,
            trace_id=exchange.traceparent.split("-")[1] if exchange.traceparent else None,
            bytes_in=exchange.bytes_in,
            ignored_hints=exchange.caller.ignored_hints if exchange.caller else (),
        )

    async def _subject(self, exchange: Exchange, log: str) -> str | None:
        tenant = exchange.principal.tenant.id if exchange.principal else None
        return None if log == RESERVED_LOG else await self._pseudonyms.of(log, tenant, exchange.subject_id)

    def _completion(
        self,
        exchange: Exchange,
        record: Record,
        outcome: CompletionOutcome,
        status: int | None,
        *,
        region: str | None = None,
        cache: str | None = None,
        bytes_out: int = 0,
        error: GatewayError | None = None,
    ) -> Record:
        now = datetime.now(UTC)
        return completion(
            id=new_id(now),
            time=now,
            decision=record,
            outcome=outcome,
            status=status,
            region=region,
            reason=error.reason if error else None,
            code=error.code if error else None,
            cache=cache,
            attempts=exchange.attempts,
            bytes_in=exchange.bytes_in,
            bytes_out=bytes_out,
            duration_us=_microseconds(exchange.elapsed()),
            timings_us={stage: _microseconds(seconds) for stage, seconds in exchange.timings.items()},
            body_may_have_arrived=(
                isinstance(error, Misdirected) and _body_under_way(exchange)
                if not exchange.attempts
                else any(attempt.outcome != "refused" for attempt in exchange.attempts)
            ),
        )


def _silent(exchange: Exchange, text: str | None) -> str | None:
    """A text of the caller's, unless it holds the person's id: what stands in a record cannot be taken back."""
    for each in exchange.head.headers.getlist("x-subject-id"):
        if holds_id(text, each):
            return None
    return text


def _microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _body_under_way(exchange: Exchange) -> bool:
    """Whether a client may have sent its body before it heard that this is no place for it: unless it asked first."""
    headers = exchange.head.headers
    announced = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    return announced and "expect" not in headers


def _verdict(decided: Decision | None, region: str | None) -> Verdict | None:
    if decided is None or region is None:
        return None
    for verdict in decided.verdicts:
        if verdict.region == region:
            return verdict
    raise AssertionError(f"nothing was decided about {region}")


def _reason(exchange: Exchange, error: GatewayError | None) -> str | None:
    decided = exchange.decision.reason if exchange.decision else None
    return (error.reason if error else None) or decided
