"""Which configuration answers requests: one at a time for new ones, each to its end for those that began under it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.failures import Failures
from app.pipeline import Gateway
from app.views import Views


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """One configuration at work: all by which requests that begin under it are decided and answered."""

    gateway: Gateway
    views: Views
    failures: Failures


@dataclass(slots=True, eq=False)
class _Term:
    serving: Serving
    running: int = 0


class Current:
    """Hands out what is in force. `ended` is called when one that was replaced has answered its last request."""

    def __init__(self, first: Serving, ended: Callable[[], None]) -> None:
        self._terms = [_Term(first)]
        self._ended = ended

    @property
    def serving(self) -> Serving:
        return self._terms[-1].serving

    @property
    def all(self) -> list[Serving]:
        """What is in force, and what still has requests to answer."""
        return [term.serving for term in self._terms]

    @contextmanager
    def request(self) -> Iterator[Serving]:
        """What a request is answered by from its head to its end, whatever takes force meanwhile."""
        term = self._terms[-1]
        term.running += 1
        try:
            yield term.serving
        finally:
            term.running -= 1
            self._end(term)

    def replace(self, serving: Serving) -> None:
        """From now on, requests that begin are answered by this."""
        before = self._terms[-1]
        self._terms.append(_Term(serving))
        self._end(before)

    def _end(self, term: _Term) -> None:
        if term.running == 0 and term is not self._terms[-1]:
            self._terms.remove(term)
            self._ended()
