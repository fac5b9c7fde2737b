"""The breaker around a router: five failures open it, a minute later one attempt decides."""

import math

import torch

from regions.moe.config import MoEConfig
from regions.moe.flops import router_flops
from regions.moe.guard import Breaker, GuardedLayer
from regions.moe.layer import MoELayer

CONFIG = MoEConfig(width=24, hidden=16, experts=6, min_experts=1, max_experts=4)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_through_later():
    clock = Clock()
    breaker = Breaker(clock=clock)
    for _ in range(4):
        breaker.tell(failed=True)
    breaker.tell(failed=False)
    for _ in range(4):
        breaker.tell(failed=True)
    assert breaker.allows()
    breaker.tell(failed=True)
    assert not breaker.allows()
    clock.now += 59.9
    assert not breaker.allows()
    clock.now += 0.1
    assert breaker.allows()
    breaker.tell(failed=True)
    assert not breaker.allows()
    clock.now += 60
    breaker.tell(failed=False)
    assert breaker.allows()


def test_a_router_that_keeps_failing_is_left_alone_until_it_recovers():
    clock = Clock()
    layer = MoELayer(CONFIG, torch.Generator().manual_seed(0)).eval().requires_grad_(requires_grad=False)
    guarded = GuardedLayer(layer, Breaker(clock=clock))
    x_TD = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    weight_ED = layer.router.weight_ED.clone()
    layer.router.weight_ED.fill_(math.nan)
    asked = [guarded(x_TD) for _ in range(5)]
    left_alone = guarded(x_TD)
    assert all(bool(output.routing.failed_T.all()) for output in [*asked, left_alone])
    assert int((asked[0].flops_T - left_alone.flops_T).sum()) == router_flops(8, 24, 6)
    torch.testing.assert_close(asked[0].y_TD, left_alone.y_TD)
    layer.router.weight_ED.copy_(weight_ED)
    assert bool(guarded(x_TD).routing.failed_T.all()), "it is not asked before its time"
    clock.now += 60
    assert not bool(guarded(x_TD).routing.failed_T.any())
    assert not bool(guarded(x_TD).routing.failed_T.any())
