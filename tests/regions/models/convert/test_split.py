"""The split: no neuron is lost, experts are of one size, and the router's start knows who contributes.

Shapes: T tokens, D width, H hidden features, E experts.
"""

import torch
from torch.nn import functional

from regions.models.convert.split import balanced_clusters, split
from regions.models.encoder import Block

WIDTH, HIDDEN, EXPERTS = 24, 64, 8


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block():
    none = (torch.zeros(0), torch.zeros(0))
    up = (draw(HIDDEN, WIDTH, seed=1) / WIDTH**0.5, draw(HIDDEN, seed=2))
    down = (draw(WIDTH, HIDDEN, seed=3) / HIDDEN**0.5, draw(WIDTH, seed=4))
    return Block(qkv=none, attended=none, attention_norm=none, up=up, down=down, output_norm=none)


def test_clusters_are_of_one_size():
    owner_H = balanced_clusters(draw(48, 5, seed=0), 4)
    assert torch.bincount(owner_H).tolist() == [12] * 4


def test_clusters_find_what_belongs_together():
    centres = torch.eye(4) * 10
    owner_H = balanced_clusters(centres.repeat(6, 1) + 0.01 * draw(24, 4, seed=5), 4)
    assert all(len(owner_H[start::4].unique()) == 1 for start in range(4))
    assert len(owner_H.unique()) == 4


def test_a_split_reorders_all_neurons_and_repeats():
    x_TD = draw(500, WIDTH, seed=6)
    first, again = split(block(), x_TD, EXPERTS, seed=0), split(block(), x_TD, EXPERTS, seed=0)
    assert first.order_H.sort().values.tolist() == list(range(HIDDEN))
    assert torch.equal(first.order_H, again.order_H)
    assert torch.equal(first.router_ED, again.router_ED)


def test_skipped_experts_stand_for_their_mean_and_the_router_knows_the_large_ones():
    x_TD, layer = draw(2000, WIDTH, seed=7), block()
    part = split(layer, x_TD, EXPERTS, seed=0)
    h_TH = functional.gelu(functional.linear(x_TD, *layer.up))[:, part.order_H]
    down_DH = layer.down[0][:, part.order_H]
    inner = HIDDEN // EXPERTS
    y_ETD = torch.stack(
        [h_TH[:, e * inner :][:, :inner] @ down_DH[:, e * inner :][:, :inner].T for e in range(EXPERTS)]
    )
    torch.testing.assert_close(y_ETD.mean(dim=1), part.skipped_ED, atol=1e-5, rtol=1e-4)
    size_TE = (y_ETD - part.skipped_ED[:, None]).norm(dim=2).T.log()
    scores_TE = functional.linear(x_TD, part.router_ED, part.router_bias_E)
    explained = 1 - (size_TE - scores_TE).square().mean() / (size_TE - size_TE.mean(dim=0)).square().mean()
    assert float(explained) > 0.1
