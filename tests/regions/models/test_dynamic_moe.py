"""The layer that serves tensors: its outputs, its figures, and the tensors that it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from regions.models.dynamic_moe import CACHE_BYTES, DynamicMoE
from regions.models.load import load
from regions.moe import reference
from regions.moe.config import MoEConfig
from regions.settings import WorkerSettings
from regions.wire import InvalidInput


@pytest.fixture(scope="module")
def model():
    return load("dynamic-moe", WorkerSettings())


def values(count, width=768, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)


def run(model, *tensors, budget=None):
    return model.forward([model.prepare_tensor(tensor, name="hidden_states", budget=budget) for tensor in tensors])


def test_outputs_are_those_of_the_metadata_and_of_the_reference(model):
    x = values(50)
    arrays = run(model, x).outcomes[0].arrays
    declared = model.metadata()["outputs"]
    assert list(arrays) == [output["name"] for output in declared]
    datatypes = {"FP32": np.float32, "INT64": np.int64}
    for output, array in zip(declared, arrays.values(), strict=True):
        assert array.dtype == datatypes[output["datatype"]]
        assert array.ndim == len(output["shape"])
        assert len(array) == 50
    assert arrays["experts"].shape == arrays["weights"].shape == (50, 3)
    output = model.layer(torch.from_numpy(x))
    expected = reference.mixture(model.layer.experts, output.routing, torch.from_numpy(x))
    np.testing.assert_allclose(arrays["hidden_states"], expected.numpy(), atol=1e-5)


def test_unused_places_are_marked_and_weights_sum_to_one(model):
    arrays = run(model, values(200)).outcomes[0].arrays
    experts, weights = arrays["experts"], arrays["weights"]
    assert set(np.unique((experts >= 0).sum(axis=1))) == {1, 2, 3}
    assert bool((weights[experts < 0] == 0).all())
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert bool((np.diff(weights, axis=1) <= 0).all())
    assert arrays["complexity"].std() > 0.05
    used = (experts >= 0).sum(axis=1)
    assert arrays["flops"].tolist() == (2 * 768 * 8 + used * 4 * 768 * 384).tolist()


def test_items_of_a_batch_do_not_touch_each_other(model):
    first, second = values(1, seed=1), values(70, seed=2)
    together = run(model, first, second)
    for place, alone in enumerate((run(model, first), run(model, second))):
        for name, array in alone.outcomes[0].arrays.items():
            np.testing.assert_allclose(together.outcomes[place].arrays[name], array, atol=1e-6)
    flops = [outcome.arrays["flops"].sum() for outcome in together.outcomes]
    assert together.flops == sum(flops)
    assert together.flops < together.dense_flops == 71 * 4 * 768 * 384 * 8
    assert sum(together.utilisation) == sum((outcome.arrays["experts"] >= 0).sum() for outcome in together.outcomes)


def test_a_tensor_that_comes_again_is_not_computed_again():
    model = load("dynamic-moe", WorkerSettings())
    first = run(model, values(3), values(2, seed=1))
    again = run(model, values(4, seed=2), values(3))
    assert again.flops == again.outcomes[0].arrays["flops"].sum()
    for name, array in first.outcomes[0].arrays.items():
        assert np.array_equal(again.outcomes[1].arrays[name], array)
    assert run(model, values(3)).flops == 0
    assert run(model, values(3), budget=0.2).flops > 0, "another budget is another question"
    twins = run(model, values(1, seed=9), values(1, seed=9))
    assert twins.flops == twins.outcomes[0].arrays["flops"].sum() == twins.outcomes[1].arrays["flops"].sum()


def test_what_is_kept_of_one_owner_answers_no_other(model):
    def flops(owner):
        item = model.prepare_tensor(values(3, seed=7), name="hidden_states", budget=None)
        return model.forward([replace(item, owner=owner)]).flops

    assert flops("a") > 0
    assert flops("a") == 0
    assert flops("b") > 0


def test_kept_answers_are_bounded_in_number_and_size():
    config = replace(MoEConfig.for_inference(), cache_entries=2)
    model = DynamicMoE(config)
    for seed in (1, 2, 3):
        run(model, values(1, seed=seed))
    assert run(model, values(1, seed=3)).flops == 0
    assert run(model, values(1, seed=1)).flops > 0
    large = DynamicMoE(replace(config, width=64, cache_entries=200_000))
    for _ in range(2):
        assert run(large, values(CACHE_BYTES // 256, 64)).flops > 0


def test_without_a_cache_everything_is_computed():
    model = DynamicMoE(replace(MoEConfig.for_inference(), cache_entries=0))
    assert run(model, values(3)).flops == run(model, values(3)).flops > 0


def test_what_the_fallback_gave_is_not_kept():
    model = load("dynamic-moe", WorkerSettings())
    weight_ED = model.layer.router.weight_ED.clone()
    model.layer.router.weight_ED.fill_(float("nan"))
    assert run(model, values(3)).unrouted == 3
    model.layer.router.weight_ED.copy_(weight_ED)
    assert run(model, values(3)).unrouted == 0


def test_every_worker_serves_the_same_function(model):
    other = load("dynamic-moe", WorkerSettings())
    x = values(5)
    assert np.array_equal(
        run(model, x).outcomes[0].arrays["hidden_states"], run(other, x).outcomes[0].arrays["hidden_states"]
    )


def test_the_training_profile_is_wider():
    model = load("dynamic-moe", WorkerSettings(profile="training"))
    arrays = run(model, values(20, 1024)).outcomes[0].arrays
    assert arrays["hidden_states"].shape == (20, 1024)
    assert arrays["experts"].shape == (20, 8)


@pytest.mark.parametrize("fallback", ["dense", "load_balance", "single_expert", "random"])
def test_huge_values_fail_the_router_alone_and_the_fallback_answers(fallback):
    model = load("dynamic-moe", WorkerSettings(fallback=fallback))
    model.layer.router.weight_ED.fill_(float("nan"))
    first, again = (run(model, values(8)).outcomes[0].arrays for _ in range(2))
    assert np.isfinite(first["hidden_states"]).all()
    assert np.array_equal(first["experts"], again["experts"])
    expected = {"dense": 8, "load_balance": 2, "single_expert": 1, "random": 2}[fallback]
    assert set((first["experts"] >= 0).sum(axis=1)) == {expected}


@pytest.mark.parametrize(
    ("tensor", "detail", "filled"),
    [
        (values(2, 767), "tensor_shape", {"shape": "[2, 767]", "expected": "[n, 768]"}),
        (values(1)[0], "tensor_shape", {"shape": "[768]", "expected": "[n, 768]"}),
        (values(0), "tensor_shape", {"shape": "[0, 768]", "expected": "[n, 768]"}),
        (values(2).astype(np.float64), "tensor_datatype", {"datatype": "FP64", "expected": "FP32"}),
        (values(2).astype(np.int32), "tensor_datatype", {"datatype": "INT32", "expected": "FP32"}),
        (np.full((1, 768), np.nan, np.float32), "tensor_not_finite", {}),
        (np.full((1, 768), -np.inf, np.float32), "tensor_not_finite", {}),
    ],
)
def test_wrong_tensors_are_refused(model, tensor, detail, filled):
    with pytest.raises(InvalidInput) as caught:
        model.prepare_tensor(tensor, name="hidden_states", budget=None)
    assert caught.value.detail == detail
    assert caught.value.values == {"name": "hidden_states"} | filled


def test_text_is_refused(model):
    with pytest.raises(InvalidInput) as caught:
        model.prepare_text("a", param="input", truncate=False, budget=None)
    assert caught.value.detail == "tensor_datatype"
