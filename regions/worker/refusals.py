"""Every failure of a worker as one HTTP answer: the status and the fault in its body."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from regions.engine.scheduler import Overloaded
from regions.wire import Fault, InvalidInput

HUNG_UP = 499
"""The status that is counted, never read, for a client that left before its answer (nginx's convention)."""


class Refused(Exception):
    """A request that this worker does not serve, with the answer that says so."""

    def __init__(self, status: int, code: str, message: str, **values: Any) -> None:
        super().__init__(message)
        self.status = status
        self.fault = Fault(code, message, values=values)


class ModelNotFound(Refused):
    """No model, or version, of that name is served here."""

    def __init__(self, name: str) -> None:
        super().__init__(404, "model_not_found", f"There is no model {name} here", model=name)


class Loading(Refused):
    """The model is on its way."""

    def __init__(self) -> None:
        super().__init__(503, "overloaded", "The model is still loading")


class BodyTooLarge(Refused):
    """The body exceeds `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, "payload_too_large", f"The body is larger than {limit} bytes", limit=limit)


def status_and_fault(error: Exception, *, limit: float | None = None) -> tuple[int, Fault]:
    """How a failure is told; `limit` is the request's deadline in seconds."""
    match error:
        case Refused():
            answer = error.status, error.fault
        case InvalidInput():
            answer = 400, Fault.of(error)
        case ClientDisconnect():
            answer = HUNG_UP, Fault("invalid_request", "The client hung up")
        case Overloaded():
            answer = 503, Fault("overloaded", "The queue of this worker is full")
        case TimeoutError():
            message = "The request did not finish before its deadline"
            answer = 504, Fault("deadline_exceeded", message, values={"limit": limit})
        case HTTPException(status_code=404):
            answer = 404, Fault("not_found", "There is nothing at this path")
        case HTTPException(status_code=405):
            answer = 405, Fault("method_not_allowed", "This path does not take this method")
        case _:
            answer = 500, Fault("internal_error", "Something failed inside the worker")
    return answer
