"""What the process is doing: how many requests it is answering, and whether it has been asked to end."""

from dataclasses import dataclass


@dataclass(slots=True)
class Activity:
    """Shared by the gate, which counts, readiness, which tells, and the server, which waits for the last answer."""

    running: int = 0
    draining: bool = False
    failure: str | None = None
    """Why the gateway could not start, in one line."""
