"""Forwards of one model that run at once: each gives what it gives alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from regions.models.base import Item, ServedModel
from regions.models.load import load
from regions.settings import WorkerSettings

TEXTS = ["The tide turns at noon.", "Salt.", "A lamp stood on the pier all night, and nobody had lit it."]


def items(model: ServedModel, number: int) -> list[Item]:
    if model.takes == "text":
        texts = [TEXTS[(number + place) % 3] + f" {number}" for place in range(1 + number % 4)]
        return [model.prepare_text(text, param="x", truncate=False, budget=0.4) for text in texts]
    values = np.random.default_rng(number % 7).standard_normal((5, 768), dtype=np.float32)
    return [model.prepare_tensor(values, name="x", budget=None)]


@pytest.mark.parametrize("name", ["minilm", "minilm-moe", "dynamic-moe"])
def test_forwards_at_once_do_not_disturb_each_other(name):
    model = load(name, WorkerSettings(precision="fp32"))
    batches = [items(model, number) for number in range(12)]
    alone = [model.forward(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(model.forward, batches * 2))
    for expected, found in zip(alone * 2, at_once, strict=True):
        assert len(found.outcomes) == len(expected.outcomes)
        for one, other in zip(expected.outcomes, found.outcomes, strict=True):
            for key, array in one.arrays.items():
                np.testing.assert_allclose(other.arrays[key], array, atol=1e-6)
