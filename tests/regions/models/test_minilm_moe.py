"""The split encoder: equal to the dense one at full budget, close to its budget below, and better with more of it."""

import numpy as np
import pytest
import torch

from regions.models.convert import balanced_clusters
from regions.models.load import load
from regions.models.minilm_moe import calibration_inputs
from regions.settings import WorkerSettings
from regions.wire import InvalidInput

PROSE = [
    "The ferry to the island was cancelled because of the storm, so we stayed another night in the small hotel.",
    "Researchers have found a protein that helps plants to survive long periods without any rain.",
    "How can I change the delivery address of an order that has already been shipped?",
    "The jury found the former treasurer guilty of fraud and sentenced him to four years in prison.",
    "A hash table offers constant time lookups on average, but its worst case is linear.",
    "Add the chopped onions and fry them gently until they are soft, then pour in the stock.",
    "The striker limped off after twenty minutes, and the home side never recovered.",
    "Interest rates are expected to remain unchanged until the spring, according to most economists.",
]


def run(model, texts, budget):
    return model.forward([model.prepare_text(text, param="input", truncate=False, budget=budget) for text in texts])


def rows(batch):
    return np.stack([outcome.arrays["embedding"] for outcome in batch.outcomes])


def test_full_budget_equals_the_dense_encoder(minilm, minilm_moe, texts):
    batch = run(minilm_moe, texts, 1.0)
    np.testing.assert_allclose(rows(batch), rows(run(minilm, texts, None)), atol=1e-5)
    assert {outcome.details["flops_share"] for outcome in batch.outcomes} == {1.0}
    assert batch.flops == batch.dense_flops
    assert len(batch.utilisation) == 16


def test_every_expert_together_equals_the_dense_layer(minilm, minilm_moe):
    """So the split loses no neuron; the router's fallback `dense` gives exactly the dense layer."""
    for number, (part, all_TD) in enumerate(zip(minilm_moe.layers, calibration_inputs(minilm), strict=True)):
        x_TD = all_TD[:400:10]
        whole_TD = sum(part.layer.experts.one(expert, x_TD) for expert in range(16)) + part.bias_D
        torch.testing.assert_close(whole_TD, minilm.encoder.dense(number, x_TD), atol=1e-5, rtol=1e-5)


def test_share_of_flops_is_close_to_the_budget_and_quality_grows_with_it(minilm, minilm_moe):
    dense = rows(run(minilm, PROSE, None))
    shares, cosines = [], []
    for budget in (0.1, 0.25, 0.5, 0.75, 0.9):
        batch = run(minilm_moe, PROSE, budget)
        details = [outcome.details for outcome in batch.outcomes]
        assert {figures["compute_budget"] for figures in details} == {budget}
        for figures in details:
            assert figures["flops_share"] == pytest.approx(budget, abs=0.05)
        shares.append(batch.flops / batch.dense_flops)
        cosines.append(float((rows(batch) * dense).sum(axis=1).mean()))
        assert shares[-1] == pytest.approx(budget, abs=0.05)
    assert shares == sorted(shares)
    assert cosines == sorted(cosines)
    assert cosines[2] > 0.85
    assert cosines[4] > 0.97


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
    assert batch.flops == sum(batch.utilisation) * 4 * 384 * 96 + 6 * tokens * 2 * 384 * 16


def test_complexity_varies_on_real_text(minilm, minilm_moe):
    for part, x_TD in zip(minilm_moe.layers, calibration_inputs(minilm), strict=True):
        assert float(part.layer.router(x_TD, 0.5).complexity_T.std()) > 0.05


def test_forward_changes_no_weight(minilm_moe):
    before = [{name: value.clone() for name, value in part.layer.state_dict().items()} for part in minilm_moe.layers]
    run(minilm_moe, PROSE, 0.4)
    for part, state in zip(minilm_moe.layers, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in part.layer.state_dict().items())


def test_budgets_make_groups_and_the_default_comes_from_the_settings(minilm_moe):
    def group(budget):
        return minilm_moe.prepare_text("a", param="input", truncate=False, budget=budget).group

    assert group(None) == group(WorkerSettings().compute_budget)
    assert group(0.3) != group(0.4)


def test_a_failed_router_is_stood_in_for_by_the_dense_encoder(minilm, shared):
    model = load("minilm-moe", WorkerSettings(fallback="dense"), shared)
    for part in model.layers:
        part.layer.router.weight_ED.fill_(float("nan"))
    np.testing.assert_allclose(rows(run(model, PROSE, 0.5)), rows(run(minilm, PROSE, None)), atol=1e-5)


def test_loading_shares_the_weights_repeats_and_names_what_it_knows(minilm, minilm_moe, shared):
    assert load("minilm", WorkerSettings(), shared) is minilm
    again = load("minilm-moe", WorkerSettings(), shared)
    for one, other in zip(minilm_moe.layers, again.layers, strict=True):
        torch.testing.assert_close(one.layer.router.weight_ED, other.layer.router.weight_ED)
        assert torch.equal(one.layer.experts.up_EFD, other.layer.experts.up_EFD)
    with pytest.raises(ValueError, match="there is no model 'gpt'; known are minilm, minilm-moe, dynamic-moe"):
        load("gpt", WorkerSettings())


def test_tensors_are_refused(minilm_moe):
    with pytest.raises(InvalidInput):
        minilm_moe.prepare_tensor(np.zeros((1, 384), np.float32), name="text", budget=None)


def test_clusters_are_of_one_size():
    features = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
    owner = balanced_clusters(features, 4)
    assert torch.bincount(owner).tolist() == [12] * 4
