"""Small served models that compute for real with numpy alone, and observers, for tests of the engine and the worker."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regions.engine.runner import Step
from regions.models.base import Batch, Item, Outcome
from regions.refusals import refusal, wrong_datatype, wrong_shape

LONGEST = 16


async def until(condition: Callable[[], Any]) -> None:
    """Waits for what another task brings about, at most 20 seconds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the code under test announces none of these moments
            await asyncio.sleep(0.001)


class LetterCounts:
    """A text model: the embedding of a text is how often each letter from a to z occurs in it.

    It takes 16 words; texts with different budgets never share a forward; the text "poison" makes a forward fail.
    While `gate` is clear, forwards wait, and while `may_read` is, so does whoever prepares a text.
    """

    name = "letters"
    takes = "text"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.read: list[str] = []
        self.may_read = threading.Event()
        self.may_read.set()

    def metadata(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "versions": ["1"],
            "platform": "numpy",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 26]}],
        }

    def prepare_text(self, text: str, *, param: str, truncate: bool, budget: float | None) -> Item:
        self.read.append(text)
        assert self.may_read.wait(timeout=20)
        words = text.split()
        if not words:
            raise refusal("The text in {param} is empty", "empty_text", param)
        if len(words) > LONGEST and not truncate:
            raise refusal(
                "The text in {param} has {n} tokens; {limit} fit", "text_too_long", param, n=len(words), limit=LONGEST
            )
        kept = words[:LONGEST]
        return Item((" ".join(kept), budget), len(kept), budget, truncated=len(words) > LONGEST)

    def prepare_tensor(self, values: Any, *, name: str, budget: float | None) -> Item:
        raise NotImplementedError

    def forward(self, items: Sequence[Item]) -> Batch:
        self.entered.release()
        assert self.gate.wait(timeout=20)
        texts = [item.payload[0] for item in items]
        self.batches.append(texts)
        if "poison" in texts:
            raise ArithmeticError("poison")
        counts = [[text.lower().count(chr(code)) for code in range(97, 123)] for text in texts]
        details = [{} if item.payload[1] is None else {"compute_budget": item.payload[1]} for item in items]
        outcomes = [
            Outcome({"embedding": np.array(row, dtype=np.float32)}, detail)
            for row, detail in zip(counts, details, strict=True)
        ]
        return Batch(outcomes, flops=26 * len(items), dense_flops=52 * len(items))


class Doubler:
    """A tensor model with two experts: `double` is twice its input of width 4, `total` the sum of each row."""

    name = "doubler"
    takes = "tensor"

    def metadata(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "versions": ["1"],
            "platform": "numpy",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [
                {"name": "double", "datatype": "FP32", "shape": [-1, 4]},
                {"name": "total", "datatype": "FP32", "shape": [-1]},
            ],
        }

    def prepare_text(self, text: str, *, param: str, truncate: bool, budget: float | None) -> Item:
        raise NotImplementedError

    def prepare_tensor(self, values: Any, *, name: str, budget: float | None) -> Item:
        if values.dtype != np.float32:
            raise wrong_datatype(name, str(values.dtype), "FP32")
        if values.ndim != 2 or values.shape[1] != 4:
            raise wrong_shape(name, values.shape, "[n, 4]")
        if not np.isfinite(values).all():
            raise refusal("The tensor {name} holds NaN or infinity", "tensor_not_finite", name=name)
        return Item(values, len(values), budget)

    def forward(self, items: Sequence[Item]) -> Batch:
        outcomes = [Outcome({"double": 2 * item.payload, "total": item.payload.sum(axis=1)}, {}) for item in items]
        tokens = sum(item.cost for item in items)
        return Batch(outcomes, flops=8 * tokens, dense_flops=16 * tokens, utilisation=(tokens, 0))


@dataclass
class Record:
    """An observer that remembers what it was told."""

    batches: list[tuple[str, int, int]] = field(default_factory=list)

    def batch_ran(self, model: str, *, tokens: int, queued: Sequence[float], step: Step) -> None:
        assert step.seconds >= 0
        assert all(seconds >= 0 for seconds in queued)
        self.batches.append((model, len(queued), tokens))
