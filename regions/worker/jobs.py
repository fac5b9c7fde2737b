"""What the two APIs of a worker have in common: a job for the engine, its options, and the figures of its answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import ClientDisconnect

from regions.models.base import Item, Outcome, ServedModel
from regions.wire import refusal, wrong_type, wrong_value

MAX_TEXTS = 2048
"""Texts in one request, as in OpenAI's API."""


@dataclass(frozen=True, slots=True)
class Answer:
    body: bytes
    headers: Mapping[str, str]


class Job(Protocol):
    """A request that was read: what to compute, and how to write the answer."""

    @property
    def model(self) -> ServedModel: ...

    @property
    def items(self) -> Sequence[Item]: ...

    def answer(self, outcomes: Sequence[Outcome]) -> Answer:
        """The answer, from outcomes in the order of the items."""
        ...


def read_flag(value: Any, param: str) -> bool:
    """A boolean that may be left out. Raises InvalidInput."""
    if not isinstance(value, bool | None):
        raise wrong_type(param, "boolean")
    return bool(value)


def check_count(count: int, param: str) -> None:
    """Refuses more texts than one request may hold, and none."""
    if count == 0:
        raise wrong_value(param, f"1..{MAX_TEXTS}")
    if count > MAX_TEXTS:
        text = "The request holds {n} inputs; at most {limit} are allowed"
        raise refusal(text, "batch_too_large", param, n=count, limit=MAX_TEXTS)


def prepare_texts(
    texts: Sequence[str],
    model: ServedModel,
    *,
    param: Callable[[int], str],
    truncate: bool,
    budget: float | None,
    left: Callable[[], bool],
) -> list[Item]:
    """An item for each text, as long as its client has not `left`; `param` names the field of each.

    Raises InvalidInput, and ClientDisconnect where nobody waits for the rest.
    """
    items = []
    for index, text in enumerate(texts):
        if left():
            raise ClientDisconnect
        items.append(model.prepare_text(text, param=param(index), truncate=truncate, budget=budget))
    return items


def details(items: Sequence[Item], outcomes: Sequence[Outcome], *, truncate: bool) -> dict[str, float]:
    """The figures of an answer: the model's own, averaged over the tokens, and how many texts were cut where asked."""
    figures = {name: _mean(name, items, outcomes) for name in outcomes[0].details}
    return figures | ({"truncated": sum(item.truncated for item in items)} if truncate else {})


def _mean(name: str, items: Sequence[Item], outcomes: Sequence[Outcome]) -> float:
    values = [outcome.details[name] for outcome in outcomes]
    if min(values) == max(values):  # a sum would round what is the same for all
        return values[0]
    weighted = sum(value * item.cost for value, item in zip(values, items, strict=True))
    return weighted / sum(item.cost for item in items)
