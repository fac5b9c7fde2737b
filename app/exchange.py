"""One request being answered: what is known of it so far, from its first header to its last byte."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from app.access import Principal
from app.audit.record import Attempt, Record
from app.policy.bill import Bill
from app.types import Caller, Decision, Head, PermittedRegion, Question, Wire

CLIENT_CLOSED = 499
"""The status recorded where the client left before its answer (nginx's convention)."""
DEFAULT_DEADLINE = 120.0
"""Seconds that a request may take where its caller names no deadline."""


@dataclass(slots=True)
class Exchange:
    """State of one request. Only the gate and the pipeline write to it; what it says goes to audit and headers."""

    head: Head
    request_id: str
    traceparent: str | None
    wire: Wire
    language: str
    received: datetime
    started: float = field(default_factory=time.monotonic)
    timeout: float = DEFAULT_DEADLINE
    """Seconds after `started` by which the caller wants its answer."""
    bounds_stream: bool = False
    """Whether a streamed answer, too, has to be whole by then; else the time is for each part of it."""
    inference: bool = False
    """Whether this is a request for inference: one that is decided about, and recorded."""
    principal: Principal | None = None
    caller: Caller | None = None
    bill: Bill | None = None
    """What the limits were charged; None before any was looked at."""
    question: Question | None = None
    prefer: tuple[str, ...] = ()
    subject_id: str | None = None
    decision: Decision | None = None
    ranked: Sequence[PermittedRegion] = ()
    """The permitted regions that were up at `ranked_at`, best first."""
    ranked_at: float = -math.inf
    model: str | None = None
    bytes_in: int = 0
    body_read: bool = False
    """Whether the last byte of the request's body has arrived."""
    record: Record | None = None
    """The audit decision once it is durable; its completion is owed from then on."""
    audit_log: str | None = None
    completed: bool = False
    cut: bool = False
    """Whether a stream broke off after its answer had begun: the client sees its connection end."""
    attempts: list[Attempt] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with whatever answer leaves, refusals included."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, for Server-Timing."""

    @property
    def audit_id(self) -> str | None:
        return self.record["id"] if self.record else None

    def left(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.started + self.timeout - time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def again(self) -> "Exchange":
        """A new one, of now, that asks the same for the same caller and has been decided alike."""
        return Exchange(
            head=self.head,
            request_id=self.request_id,
            traceparent=self.traceparent,
            wire=self.wire,
            language=self.language,
            received=datetime.now(UTC),
            inference=True,
            principal=self.principal,
            caller=self.caller,
            question=self.question,
            prefer=self.prefer,
            subject_id=self.subject_id,
            decision=self.decision,
            model=self.model,
            bytes_in=self.bytes_in,
            body_read=True,
        )

    def spent(self, stage: str, since: float) -> None:
        """Add the time from `since` (of `time.monotonic`) to a stage's."""
        self.timings[stage] = self.timings.get(stage, 0.0) + time.monotonic() - since

    def server_timing(self) -> str:
        """Server-Timing header: https://www.w3.org/TR/server-timing/, durations in milliseconds."""
        stages = {**self.timings, "total": self.elapsed()}
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items())
