"""The encoder in training: every block learns to do with some of its experts what the dense one does with all.

Which (token, expert) pairs run is decided as in serving; a sigmoid stands in for that step in the backward pass (a
straight-through estimator, Bengio et al. 2013), so the router learns from the embedding what each pair is worth. Only
a part of that gradient counts: it is biased, and with all of it a training moves away from what it is after.

Shapes: B texts of one length, L tokens of each, D width, E experts, F features of one, H = E * F, T = B * L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from regions.models.checkpoint import PAIRS
from regions.models.convert.split import Split
from regions.models.depth import layer_shares
from regions.models.encoder import Block, EncoderConfig, Pair
from regions.moe.flops import feed_forward_flops, router_flops

Selection = Literal["dynamic", "static"]
"""Whose turn it is: the pairs that the router scores highest in each text, or the largest experts for every token."""

SHARPNESS = 4.0
"""Slope of the sigmoid, in scores of the router: logarithms of contributions, which differ by about one."""
PASSED_ON = 0.1
"""Part of the sigmoid's gradient that counts."""
SAMPLED = 4
"""One token in so many tells the router how large contributions really are."""


@dataclass(frozen=True, slots=True)
class Trained:
    """hidden_BLD of the last layer, and how far the routers' scores lie from the contributions (a mean square)."""

    hidden_BLD: Tensor
    router_loss: Tensor


class StudentBlock(nn.Module):
    """One layer of the encoder with its neurons ordered by expert; starts as the dense layer."""

    places_E: Tensor
    gram_EFF: Tensor
    lean_EF: Tensor

    def __init__(self, block: Block, split: Split, heads: int, epsilon: float) -> None:
        super().__init__()
        width, hidden, experts = len(block.down[1]), len(block.up[1]), len(split.router_bias_E)
        self.heads, self.epsilon, self.experts = heads, epsilon, experts
        self.weights = nn.ParameterDict()
        for name in ("qkv", "attended", "attention_norm", "output_norm"):
            self._add(name, *getattr(block, name))
        self._add("up", block.up[0][split.order_H], block.up[1][split.order_H])
        self._add("down", block.down[0][:, split.order_H], block.down[1])
        self._add("router", split.router_ED, split.router_bias_E)
        self.weights["skipped"] = nn.Parameter(split.skipped_ED.clone())
        places_E = split.size_E.argsort(descending=True).argsort()
        self.register_buffer("places_E", places_E)
        self.register_buffer("gram_EFF", torch.empty(experts, hidden // experts, hidden // experts), persistent=False)
        self.register_buffer("lean_EF", torch.empty(experts, hidden // experts), persistent=False)
        self.shape = (width, experts, hidden // experts)
        self.refresh()

    def _add(self, name: str, weight: Tensor, bias: Tensor) -> None:
        self.weights[f"{name}_weight"] = nn.Parameter(weight.clone())
        self.weights[f"{name}_bias"] = nn.Parameter(bias.clone())

    def _pair(self, name: str) -> Pair:
        return self.weights[f"{name}_weight"], self.weights[f"{name}_bias"]

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the products of `down` with itself and with what skipped experts stand for up to date."""
        down_DEF = self.weights["down_weight"].view(self.shape)
        self.gram_EFF.copy_(torch.einsum("def,deg->efg", down_DEF, down_DEF))
        self.lean_EF.copy_(torch.einsum("def,ed->ef", down_DEF, self.weights["skipped"]))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of this block, detached, by `part.weight` and `part.bias`."""
        kept = {"skipped": self.weights["skipped"].detach()}
        for part in PAIRS:
            weight, bias = self._pair(part)
            kept |= {f"{part}.weight": weight.detach(), f"{part}.bias": bias.detach()}
        return kept

    def attend(self, x_BLD: Tensor) -> Tensor:
        batch, length, width = x_BLD.shape
        qkv_BLD = functional.linear(x_BLD, *self._pair("qkv"))
        qkv_3BHLC = qkv_BLD.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y_BLD = _attention(*qkv_3BHLC).transpose(1, 2).reshape(x_BLD.shape)
        return self._normalise(x_BLD + functional.linear(y_BLD, *self._pair("attended")), "attention_norm")

    def forward(self, x_BLD: Tensor, share_B: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """(the block's output, the router's loss), at a share of the (token, expert) pairs of each text."""
        x_BLD = self.attend(x_BLD)
        batch, length, _ = x_BLD.shape
        _, experts, inner = self.shape
        scores_BLE = functional.linear(x_BLD.float(), *[part.float() for part in self._pair("router")])
        h_BLH = functional.gelu(functional.linear(x_BLD, *self._pair("up")))
        h_BLEF = h_BLH.view(batch, length, experts, inner)
        if selection == "dynamic":
            gate_BLE = straight_through(scores_BLE, share_B)
            loss = self._router_loss(scores_BLE, h_BLEF)
        else:
            gate_BLE = self.kept(share_B)[:, None].expand_as(scores_BLE).to(scores_BLE.dtype)
            loss = scores_BLE.new_zeros(())
        gated_BLH = (h_BLEF * gate_BLE.to(h_BLH.dtype)[..., None]).view(batch, length, -1)
        y_BLD = functional.linear(gated_BLH, *self._pair("down")) + (1 - gate_BLE) @ self.weights["skipped"]
        return self._normalise(x_BLD + y_BLD, "output_norm"), loss

    def kept(self, share_B: Tensor) -> Tensor:
        """kept_BE: the experts that static pruning leaves at a share, those that contribute most on average."""
        return self.places_E < (share_B[:, None] * self.experts).round()

    def _router_loss(self, scores_BLE: Tensor, h_BLEF: Tensor) -> Tensor:
        """How far scores lie from the logarithm of what skipping an expert changes: |down(h) - skipped|."""
        some_TEF = h_BLEF[:, ::SAMPLED].detach().flatten(0, 1).float()
        square_TE = torch.einsum("tef,efg,teg->te", some_TEF, self.gram_EFF, some_TEF)
        square_TE += self.weights["skipped"].detach().square().sum(dim=1)
        square_TE -= 2 * torch.einsum("tef,ef->te", some_TEF, self.lean_EF)
        return functional.mse_loss(scores_BLE[:, ::SAMPLED].flatten(0, 1), 0.5 * square_TE.clamp_min(1e-8).log())

    def _normalise(self, x_BLD: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x_BLD, x_BLD.shape[-1:], *self._pair(name), self.epsilon)


class Student(nn.Module):
    """All blocks; what embeds the tokens stays the dense encoder's."""

    def __init__(self, config: EncoderConfig, blocks: Sequence[Block], splits: Sequence[Split]) -> None:
        super().__init__()
        parts = zip(blocks, splits, strict=True)
        self.blocks = nn.ModuleList([StudentBlock(block, part, config.heads, config.epsilon) for block, part in parts])
        router = router_flops(1, config.width, len(splits[0].router_bias_E))
        self.router_share = router / feed_forward_flops(1, config.width, config.hidden)

    def pair_shares(self, budget_B: Tensor, emphases: Sequence[float], selection: Selection) -> list[Tensor]:
        """share_B of each layer's (token, expert) pairs; a router is paid for out of the budget."""
        paid = self.router_share if selection == "dynamic" else 0.0
        return [share_B - paid for share_B in layer_shares(budget_B, emphases)]

    def forward(self, x_BLD: Tensor, shares: Sequence[Tensor], selection: Selection = "dynamic") -> Trained:
        """Runs embedded texts, layer by layer at a share of the pairs of each text."""
        losses: list[Tensor] = []
        for block, share_B in zip(self.blocks, shares, strict=True):
            x_BLD, loss = block(x_BLD, share_B, selection)
            losses.append(loss)
        return Trained(x_BLD.float(), torch.stack(losses).mean())

    def refresh(self) -> None:
        """To be called every few steps: brings up to date what blocks keep of their weights."""
        for block in self.layers():
            block.refresh()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by `layers.N.part.weight`."""
        parts = enumerate(self.layers())
        return {f"layers.{layer}.{name}": value for layer, block in parts for name, value in block.tensors().items()}

    def layers(self) -> list[StudentBlock]:
        """The blocks, first layer first."""
        return [block for block in self.blocks if isinstance(block, StudentBlock)]


def _attention(q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor) -> Tensor:
    """As plain products: the backward pass of torch's own attention took a third of a training step on a CPU."""
    weights_BHLL = torch.softmax(q_BHLC * q_BHLC.shape[-1] ** -0.5 @ k_BHLC.transpose(-1, -2), dim=-1)
    return weights_BHLL.to(v_BHLC.dtype) @ v_BHLC


def straight_through(scores_BLE: Tensor, share_B: Tensor) -> Tensor:
    """gate_BLE: 1 for the highest scored share of each text's pairs, 0 for the others, a sigmoid's gradient."""
    scores_BP = scores_BLE.detach().flatten(1)
    pairs = scores_BP.shape[1]
    count_B = (share_B * pairs).floor().long().clamp(1, pairs - 1)
    sorted_BP = scores_BP.sort(dim=1, descending=True).values
    last_B1 = sorted_BP.gather(1, count_B[:, None] - 1)
    middle_B1 = (last_B1 + sorted_BP.gather(1, count_B[:, None])) / 2
    hard_BLE = (scores_BP >= last_B1).view_as(scores_BLE).to(scores_BLE.dtype)
    soft_BLE = PASSED_ON * torch.sigmoid(SHARPNESS * (scores_BLE - middle_B1[:, :, None]))
    return hard_BLE + soft_BLE - soft_BLE.detach()
