"""The losses: their known values, and gradients that reach the router through the layer in training."""

from dataclasses import replace

import torch

from regions.moe.config import MoEConfig
from regions.moe.layer import MoELayer
from regions.moe.losses import load_balance_loss, router_z_loss


def test_load_balance_loss_is_one_when_even_and_experts_when_not():
    even_TE, all_one_TE = torch.eye(4), torch.zeros(4, 4)
    all_one_TE[:, 0] = 1
    assert float(load_balance_loss(torch.full((4, 4), 0.25), even_TE.bool())) == 1.0
    assert float(load_balance_loss(all_one_TE, all_one_TE.bool())) == 4.0


def test_router_z_loss_is_the_square_of_the_log_sum_exp():
    torch.testing.assert_close(router_z_loss(torch.zeros(3, 8)), torch.tensor(8.0).log() ** 2)


def test_training_moves_router_and_experts_and_evens_the_load():
    generator = torch.Generator().manual_seed(0)
    layer = MoELayer(MoEConfig.for_training(), generator).train()
    x_TD = torch.randn(64, 1024, generator=generator)
    output = layer(x_TD)
    assert output.loss is not None
    (output.y_TD.square().mean() + output.loss).backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
    assert float(layer.router.weight_ED.grad.abs().sum()) > 0


def test_the_loss_alone_reaches_the_router():
    layer = MoELayer(MoEConfig.for_training(), torch.Generator().manual_seed(0)).train()
    loss = layer(torch.randn(64, 1024, generator=torch.Generator().manual_seed(1))).loss
    loss.backward()
    assert float(layer.router.weight_ED.grad.abs().sum()) > 0
    assert layer.experts.up_EFD.grad is None


def test_the_bias_evens_the_load_without_a_loss_and_leaves_the_weights_alone():
    """All tokens lean to a few experts; the bias alone brings the busiest of 16 near the mean."""
    generator = torch.Generator().manual_seed(0)
    layer = MoELayer(replace(MoEConfig.for_training(), width=64), generator).eval().requires_grad_(requires_grad=False)
    x_TD = torch.randn(512, 64, generator=generator) + torch.randn(64, generator=generator)
    before = layer(x_TD)
    for _ in range(400):
        layer.router.rebalance(layer(x_TD).utilisation_E)
    after = layer(x_TD)
    assert float(before.load_variation) > 0.5
    assert float(after.load_variation) < 0.1
    logits_TE = after.routing.scores_TE.masked_fill(~after.routing.chosen_TE, -torch.inf)
    torch.testing.assert_close(after.routing.weights_TE, logits_TE.softmax(dim=1))
    torch.testing.assert_close(after.routing.scores_TE, before.routing.scores_TE)
