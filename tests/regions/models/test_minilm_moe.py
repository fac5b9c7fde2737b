"""The converted encoder: the dense one at full budget, within its budget below, and better with more of it."""

import numpy as np
import pytest
import torch

from regions.models.load import load
from regions.settings import WorkerSettings
from regions.wire import InvalidInput
from tests.regions import prose

PROSE = prose.PROSE[:8]


def run(model, texts, budget):
    return model.forward([model.prepare_text(text, param="input", truncate=False, budget=budget) for text in texts])


def rows(batch):
    return np.stack([outcome.arrays["embedding"] for outcome in batch.outcomes])


def test_full_budget_equals_the_dense_encoder(minilm, minilm_moe, texts):
    batch = run(minilm_moe, texts, 1.0)
    np.testing.assert_allclose(rows(batch), rows(run(minilm, texts, None)), atol=1e-5)
    assert {outcome.details["flops_share"] for outcome in batch.outcomes} == {1.0}
    assert batch.flops == batch.dense_flops
    assert len(batch.utilisation) == 8


def test_share_of_flops_is_the_budget_and_quality_grows_with_it(minilm, minilm_moe):
    dense = rows(run(minilm, PROSE, None))
    cosines = []
    for budget in (0.1, 0.25, 0.5, 0.75, 0.9):
        batch = run(minilm_moe, PROSE, budget)
        details = [outcome.details for outcome in batch.outcomes]
        assert {figures["compute_budget"] for figures in details} == {budget}
        for figures in details:
            assert figures["flops_share"] == pytest.approx(budget, abs=0.005)
            assert figures["flops_share"] <= budget
        cosines.append(float((rows(batch) * dense).sum(axis=1).mean()))
    assert cosines[:4] == sorted(cosines[:4])
    assert cosines[1] > 0.90
    assert cosines[2] > 0.95


def test_short_texts_keep_to_the_budget(minilm_moe):
    for budget in (0.1, 0.25, 0.5, 0.9):
        for outcome in run(minilm_moe, ["a", "of", "a b"], budget).outcomes:
            assert budget - 0.03 <= outcome.details["flops_share"] <= budget


def test_nothing_depends_on_the_neighbours(minilm_moe, texts):
    for budget in (0.25, 0.5, 0.8):
        together = run(minilm_moe, texts[:60], budget)
        for place in range(0, 60, 4):
            alone = run(minilm_moe, [texts[place]], budget)
            np.testing.assert_allclose(rows(alone)[0], rows(together)[place], atol=1e-6)
            assert alone.outcomes[0].details == together.outcomes[place].details


def test_utilisation_counts_what_the_flops_say(minilm_moe):
    batch = run(minilm_moe, PROSE, 0.5)
    tokens = batch.dense_flops // (6 * 4 * 384 * 1536)
    assert batch.flops == sum(batch.utilisation) * 4 * 384 * 192 + 6 * tokens * 2 * 384 * 8


def test_forward_changes_no_weight(minilm_moe):
    before = [{name: value.clone() for name, value in layer.state_dict().items()} for layer in minilm_moe.layers]
    run(minilm_moe, PROSE, 0.4)
    for layer, state in zip(minilm_moe.layers, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())


def test_budgets_make_groups_and_the_default_comes_from_the_settings(minilm_moe):
    def group(budget):
        return minilm_moe.prepare_text("a", param="input", truncate=False, budget=budget).group

    assert group(None) == group(WorkerSettings().compute_budget)
    assert group(0.3) != group(0.4)


def test_one_failed_router_is_stood_in_for_by_all_of_its_experts(minilm, shared, exact):
    model = load("minilm-moe", exact, shared)
    model.layers[2].router.weight_ED.fill_(float("nan"))
    batch = run(model, PROSE, 0.5)
    cosines = (rows(batch) * rows(run(minilm, PROSE, None))).sum(axis=1)
    assert float(cosines.mean()) > 0.93
    assert all(outcome.details["flops_share"] > 0.55 for outcome in batch.outcomes)


def test_loading_shares_the_weights_and_names_what_it_knows(minilm, shared, exact):
    assert load("minilm", exact, shared) is minilm
    with pytest.raises(ValueError, match="there is no model 'gpt'; known are minilm, minilm-moe, dynamic-moe"):
        load("gpt", exact)


@pytest.mark.parametrize("name", ["minilm", "minilm-moe"])
def test_bfloat16_is_close_to_float32_and_independent_of_neighbours(name, shared, exact, texts):
    if name == "minilm-moe":
        texts = PROSE
    wide, narrow = load(name, exact, shared), load(name, WorkerSettings(precision="bf16"), shared)
    together = rows(run(narrow, texts, 0.5))
    assert float((together * rows(run(wide, texts, 0.5))).sum(axis=1).min()) > 0.99
    for place in range(0, len(texts), 7):
        alone = rows(run(narrow, [texts[place]], 0.5))[0]
        np.testing.assert_allclose(alone, together[place], atol=2e-3)


def test_tensors_are_refused(minilm_moe):
    with pytest.raises(InvalidInput):
        minilm_moe.prepare_tensor(np.zeros((1, 384), np.float32), name="text", budget=None)
