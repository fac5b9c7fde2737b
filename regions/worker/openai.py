"""OpenAI's embeddings API: its request into a job for the engine, and outcomes into its answer."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from regions.models.base import Item, Outcome, ServedModel
from regions.wire import missing, read_object, wrong_type, wrong_value
from regions.worker.budgets import Budget
from regions.worker.jobs import Answer, check_count, details, prepare_texts, read_flag
from regions.worker.serving import Serving


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A request for embeddings, tokenised."""

    model: ServedModel
    items: Sequence[Item]
    dimensions: int | None
    base64: bool
    truncate: bool
    budget: Budget

    def answer(self, outcomes: Sequence[Outcome]) -> Answer:
        data = [
            {"object": "embedding", "index": index, "embedding": self._written(outcome)}
            for index, outcome in enumerate(outcomes)
        ]
        tokens = sum(item.cost for item in self.items)
        usage: dict[str, Any] = {"prompt_tokens": tokens, "total_tokens": tokens}
        figures = details(self.items, outcomes, truncate=self.truncate) | self.budget.details
        usage |= {"details": figures} if figures else {}
        body = {"object": "list", "data": data, "model": self.model.name, "usage": usage}
        headers = {"content-type": "application/json"} | self.budget.headers
        return Answer(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), headers)

    def _written(self, outcome: Outcome) -> Any:
        vector = np.ascontiguousarray(shortened(outcome.arrays["embedding"], self.dimensions), dtype="<f4")
        return base64.b64encode(vector.tobytes()).decode() if self.base64 else vector


def read_embeddings(body: bytes, serving: Serving, left: Callable[[], bool]) -> Embeddings:
    """The request in `body`. Raises InvalidInput, ModelNotFound or Loading, and ClientDisconnect once it has `left`."""
    raw = read_object(body)
    model = _model(raw, serving)
    texts = _texts(raw)
    dimensions = _dimensions(raw.get("dimensions"), model)
    encoding = raw.get("encoding_format", "float")
    if encoding not in ("float", "base64", None):
        raise wrong_value("encoding_format", "float | base64")
    truncate = read_flag(raw.get("truncate"), "truncate")
    budget = serving.budgets.read(raw.get("compute_budget"), "compute_budget", model)
    single = isinstance(raw["input"], str)
    items = prepare_texts(
        texts,
        model,
        param=lambda index: "input" if single else f"input[{index}]",
        truncate=truncate,
        budget=budget.value,
        left=left,
    )
    return Embeddings(model, items, dimensions, encoding == "base64", truncate, budget)


def list_models(serving: Serving) -> bytes:
    """The models that can be asked now, in OpenAI's shape."""
    data = [
        {"id": name, "object": "model", "created": serving.since, "owned_by": "tidegate"} for name in serving.loaded
    ]
    return orjson.dumps({"object": "list", "data": data})


def _model(raw: dict[str, Any], serving: Serving) -> ServedModel:
    name = raw.get("model")
    if name is None:
        raise missing("model")
    if not isinstance(name, str):
        raise wrong_type("model", "string")
    model = serving.model(name)
    if model.takes != "text":
        raise wrong_value("model", ", ".join(other.name for other in serving.loaded.values() if other.takes == "text"))
    return model


def _texts(raw: dict[str, Any]) -> list[str]:
    given = raw.get("input")
    if given is None:
        raise missing("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise wrong_type("input", "string | string[]")
    check_count(len(texts), "input")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong_type(f"input[{index}]", "string")
    return texts


def _dimensions(value: Any, model: ServedModel) -> int | None:
    width = model.metadata()["outputs"][0]["shape"][-1]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= width:
        raise wrong_value("dimensions", f"1..{width}")
    return value


def shortened(vector: npt.NDArray[np.float32], dimensions: int | None) -> npt.NDArray[np.float32]:
    """The first `dimensions` numbers at length 1, as OpenAI shortens embeddings; the whole vector as it is."""
    if dimensions is None or dimensions == len(vector):
        return vector
    kept = vector[:dimensions]
    return kept / max(float(np.linalg.norm(kept)), 1e-12)
