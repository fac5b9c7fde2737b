"""Which configuration answers requests: one at a time for new ones, each to its end for those that began under it."""

from collections.abc import Callable
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
class Term:
    """A configuration's time in force, and how many requests that began in it are being answered."""

    serving: Serving
    running: int = 0


class Current:
    """Hands out what is in force. `ended` is called when one that was replaced has answered its last request."""

    def __init__(self, first: Serving, ended: Callable[[], None]) -> None:
        self._terms = [Term(first)]
        self._ended = ended

    @property
    def serving(self) -> Serving:
        return self._terms[-1].serving

    @property
    def all(self) -> list[Serving]:
        """What is in force, and what still has requests to answer."""
        return [term.serving for term in self._terms]

    def begin(self) -> Term:
        """What a request is answered by until `end`, whatever takes force meanwhile."""
        term = self._terms[-1]
        term.running += 1
        return term

    def end(self, term: Term) -> None:
        """A request that began in this term has been answered."""
        term.running -= 1
        self._end(term)

    def replace(self, serving: Serving) -> None:
        """From now on, requests that begin are answered by this."""
        before = self._terms[-1]
        self._terms.append(Term(serving))
        self._end(before)

    def _end(self, term: Term) -> None:
        if term.running == 0 and term is not self._terms[-1]:
            self._terms.remove(term)
            self._ended()
