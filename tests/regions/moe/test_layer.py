"""The layer against slow loops, its independence of neighbours, its fallbacks and its figures.

Shapes: T tokens, E experts, D width.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from regions.moe import reference
from regions.moe.config import STEERED, MoEConfig
from regions.moe.flops import feed_forward_flops, router_flops
from regions.moe.layer import MoELayer
from regions.moe.router import RouterError

SMALL = MoEConfig(width=24, hidden=16, experts=6, min_experts=1, max_experts=4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(config: MoEConfig, seed: int = 0) -> MoELayer:
    return MoELayer(config, seeded(seed)).eval().requires_grad_(requires_grad=False)


def tokens(count: int, config: MoEConfig = SMALL, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, config.width, generator=seeded(seed))


RULES = ["complexity_k", "top_k", "top_p", "relative_threshold", "sequence_budget"]


@settings(deadline=None, max_examples=80)
@given(
    count=st.integers(0, 40),
    experts=st.integers(1, 8),
    gate=st.sampled_from(["softmax", "unit"]),
    rule=st.sampled_from(RULES),
    backend=st.sampled_from(["loop", "dense", "grouped_mm", None]),
    budget=st.none() | st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_equals_the_reference(*, count, experts, gate, rule, backend, budget, seed, data):
    highest = data.draw(st.integers(1, experts))
    lowest = data.draw(st.integers(1 if gate == "softmax" else 0, highest))
    config = replace(SMALL, experts=experts, min_experts=lowest, max_experts=highest, gate=gate, rule=rule)
    layer = layer_of(config, seed)
    layer.experts.up_bias_EF.normal_(generator=seeded(seed))
    layer.experts.down_bias_ED.normal_(generator=seeded(seed))
    x_TD = tokens(count, config, seed)
    output = layer(x_TD, None if rule in STEERED else budget, backend=backend)
    expected_TD = reference.mixture(layer.experts, output.routing, x_TD)
    torch.testing.assert_close(output.y_TD, expected_TD, atol=1e-5, rtol=1e-5)
    count_T = output.routing.chosen_TE.sum(dim=1)
    assert bool(((count_T >= lowest) & (count_T <= highest)).all())
    if gate == "softmax" and count:
        torch.testing.assert_close(output.routing.weights_TE.sum(dim=1), torch.ones(count))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backend", ["loop", "dense", "grouped_mm"])
def test_bfloat16_is_close_to_the_reference_in_float32(backend, packed):
    config = replace(SMALL, width=64, hidden=32, gate="unit", rule="sequence_budget", compute_budget=0.5)
    exact = layer_of(config)
    x_TD = tokens(100, config)
    expected_TD = reference.mixture(exact.experts, exact(x_TD).routing, x_TD)
    layer = layer_of(config).to(torch.bfloat16)
    layer.router.float().load_state_dict(exact.router.state_dict())
    if packed:
        layer.experts.pack()
    routing = exact(x_TD).routing
    y_TD = layer.experts(x_TD.to(torch.bfloat16), routing.chosen_TE, None, backend)
    assert y_TD.dtype == torch.bfloat16
    error = (y_TD.float() - expected_TD).norm() / expected_TD.norm()
    assert float(error) < 0.01


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 50), seed=st.integers(0, 1000), budget=st.none() | st.floats(0.1, 1.0))
def test_a_token_does_not_depend_on_its_neighbours(count, seed, budget):
    layer = layer_of(SMALL)
    x_TD = tokens(count, seed=seed)
    together = layer(x_TD, budget)
    place = seed % count
    alone = layer(x_TD[place : place + 1], budget)
    assert torch.equal(alone.routing.chosen_TE[0], together.routing.chosen_TE[place])
    torch.testing.assert_close(alone.y_TD[0], together.y_TD[place], atol=1e-6, rtol=1e-6)
    assert int(alone.flops_T[0]) == int(together.flops_T[place])


def test_eval_forward_changes_nothing_and_repeats():
    layer = layer_of(MoEConfig.for_inference())
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    attributes = {id(module): set(vars(module)) for module in layer.modules()}
    x_TD = tokens(30, layer.config)
    first, second = layer(x_TD), layer(x_TD)
    assert torch.equal(first.y_TD, second.y_TD)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert attributes == {id(module): set(vars(module)) for module in layer.modules()}
    assert first.loss is None


@pytest.mark.parametrize("config", [MoEConfig.for_inference(), MoEConfig.for_training()])
def test_complexity_varies_and_decides_the_count(config):
    routing = layer_of(config)(tokens(300, config)).routing
    complexity_T, count_T = routing.complexity_T, routing.chosen_TE.sum(dim=1)
    assert 0 <= float(complexity_T.min()) <= float(complexity_T.max()) <= 1
    assert float(complexity_T.std()) > 0.05
    assert len(count_T.unique()) >= 3
    order = complexity_T.argsort()
    assert bool((count_T[order].diff() >= 0).all()), "a more complex token never gets fewer experts"


def test_more_budget_never_means_fewer_flops():
    layer = layer_of(replace(SMALL, width=64, hidden=64, max_experts=6))
    x_TD = tokens(400, layer.config)
    layer.router.calibrate(tokens(400, layer.config, seed=2))
    shares = []
    for step in range(4, 11):
        output = layer(x_TD, step / 10)
        shares.append(int(output.flops_T.sum()) / output.dense_flops)
        assert shares[-1] == pytest.approx(step / 10, abs=0.05)
    assert shares == sorted(shares)


@pytest.mark.parametrize(("gate", "weight"), [("softmax", 1 / 6), ("unit", 1.0)])
def test_a_router_full_of_nan_is_stood_in_for_by_the_dense_layer(gate, weight):
    layer = layer_of(replace(SMALL, gate=gate))
    layer.router.weight_ED.fill_(math.nan)
    x_TD = tokens(9)
    output = layer(x_TD)
    torch.testing.assert_close(output.y_TD, reference.dense(layer.experts, weight, x_TD), atol=1e-5, rtol=1e-5)
    assert bool(output.routing.failed_T.all())
    assert output.routing.complexity_T.tolist() == [1.0] * 9
    assert int(output.flops_T.sum()) == output.dense_flops + router_flops(9, 24, 6)


def test_one_bad_token_leaves_the_others_alone():
    layer = layer_of(SMALL)
    x_TD = tokens(20)
    good = layer(x_TD)
    x_TD[3, 0] = math.inf
    output = layer(x_TD)
    assert output.routing.failed_T.nonzero().flatten().tolist() == [3]
    others = torch.arange(20) != 3
    assert torch.equal(output.y_TD[others], good.y_TD[others])


def test_a_router_that_raises_is_stood_in_for():
    layer = layer_of(SMALL)
    layer.router.weight_ED = torch.nn.Parameter(torch.zeros(6, 23))
    assert bool(layer(tokens(4)).routing.failed_T.all())
    layer.config = replace(SMALL, resilience=False)
    with pytest.raises(RouterError, match="the router failed"):
        layer(tokens(4))


def test_fallbacks_choose_as_they_say():
    def chosen(fallback, generator=None):
        layer = layer_of(replace(SMALL, fallback=fallback))
        layer.router.bias_E.fill_(math.inf)
        return layer(tokens(30), generator=generator)

    assert chosen("single_expert").utilisation_E.tolist() == [30, 0, 0, 0, 0, 0]
    assert chosen("load_balance").utilisation_E.tolist() == [10] * 6
    first, same, other = (chosen("random", seeded(seed)).routing.chosen_TE for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert first.sum(dim=1).tolist() == [2] * 30
    with pytest.raises(ValueError, match="generator"):
        chosen("random")


def test_parts_give_what_the_whole_gives():
    for config in (SMALL, replace(SMALL, gate="unit", rule="sequence_budget", compute_budget=0.5)):
        whole, parted = layer_of(config), layer_of(replace(config, batch_threshold=7))
        x_TD = tokens(50)
        for backend in ("loop", "dense", "grouped_mm"):
            expected, actual = (layer(x_TD, lengths=[20, 30], backend=backend) for layer in (whole, parted))
            torch.testing.assert_close(actual.y_TD, expected.y_TD, atol=1e-6, rtol=1e-6)
            assert torch.equal(actual.flops_T, expected.flops_T)


def test_a_part_bounds_what_is_in_flight():
    """The largest tensor that a forward makes does not grow with the batch, but for the result and the routing."""
    layer = layer_of(replace(SMALL, hidden=256, batch_threshold=100))
    with Largest() as small:
        layer(tokens(200), backend="dense")
    with Largest() as large:
        layer(tokens(2000), backend="dense")
    assert small.numel == large.numel == 100 * 6 * 256


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that an operation gave."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_over_its_memory_budget_the_backward_computes_experts_again():
    gradients, kept = [], []
    for budget in (None, 1000):
        layer = layer_of(replace(SMALL, memory_budget=budget)).train().requires_grad_()
        sizes = []
        with saved_tensors_hooks(lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda kept: kept):
            output = layer(tokens(200))
        output.y_TD.square().sum().backward()
        gradients.append([parameter.grad for parameter in layer.parameters()])
        kept.append(sum(sizes))
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)
    assert kept[1] < kept[0] / 2


def test_a_forward_that_takes_too_long_stops():
    layer = layer_of(replace(SMALL, timeout=0.0))
    with pytest.raises(TimeoutError, match=r"more than 0.0 s for 5 tokens"):
        layer(tokens(5))


def test_what_security_keeps_out():
    standard, strict = layer_of(SMALL), layer_of(replace(SMALL, security="strict"))
    for wrong in (tokens(3)[0], tokens(3)[:, :5], tokens(3).long()):
        with pytest.raises(ValueError, match=r"floats \[tokens, 24\] are needed"):
            standard(wrong)
    unknown = tokens(3).index_fill(0, torch.tensor([1]), math.nan)
    assert standard(unknown).routing.failed_T.tolist() == [False, True, False]
    with pytest.raises(ValueError, match="NaN or infinity"):
        strict(unknown)
    with pytest.raises((RuntimeError, IndexError)):
        layer_of(replace(SMALL, security="minimal", resilience=False))(tokens(3)[:, :5])


def test_figures_of_a_forward():
    output = layer_of(replace(SMALL, min_experts=2, max_experts=2))(tokens(40))
    assert output.histogram == [0, 0, 40, 0, 0, 0, 0]
    assert output.share == int(output.flops_T.sum()) / output.dense_flops
    load_E = output.utilisation_E.double()
    assert output.load_variation == pytest.approx(float(load_E.std(correction=0) / load_E.mean()))
    nothing = layer_of(SMALL)(tokens(0))
    assert (nothing.share, nothing.load_variation) == (0.0, 0.0)


def test_without_resilience_a_failed_router_is_an_error():
    layer = layer_of(replace(SMALL, resilience=False))
    layer.router.weight_ED.fill_(math.nan)
    with pytest.raises(RouterError, match="for 5 of 5 tokens"):
        layer(tokens(5))


def test_flops_are_those_of_the_flop_counter():
    """Every expert gets 16 tokens or none, so that no row is added to fill a kernel."""
    layer = layer_of(replace(SMALL, gate="unit", min_experts=0, max_experts=6))
    for counts in ([0, 0, 0, 0, 0, 0], [16, 16, 0, 0, 0, 0], [64, 48, 32, 16, 16, 0], [64] * 6):
        chosen_TE = torch.arange(64)[:, None] < torch.tensor(counts)
        with FlopCounterMode(display=False) as counter:
            layer.router.scores(tokens(64))
            from_router = counter.get_total_flops()
            layer.experts(tokens(64), chosen_TE, backend="loop")
        assert from_router == router_flops(64, 24, 6)
        assert counter.get_total_flops() - from_router == feed_forward_flops(sum(counts), 24, 16)


def test_flops_of_a_whole_forward_are_those_of_the_flop_counter():
    layer = layer_of(SMALL)
    layer.router.weight_ED.zero_()
    layer.router.bias_E.copy_(torch.tensor([9.0, 8, 7, 0, 0, 0]))
    with FlopCounterMode(display=False) as counter:
        output = layer(tokens(32))
    assert set(output.utilisation_E.tolist()) <= {0, 32}
    assert counter.get_total_flops() == int(output.flops_T.sum())
    assert output.dense_flops == feed_forward_flops(32, 24, 96)
