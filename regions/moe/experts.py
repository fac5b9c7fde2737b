"""The experts: E small feed-forward networks of one shape, each run on the tokens that were dispatched to it.

Shapes: N (token, expert) pairs sorted by expert, E experts, D width, F inner width of an expert.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

STEADY_ROWS = 16
"""From this many rows on, CPU matrix kernels give each row the same bits however many rows stand beside it."""


def steady_linear(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """A linear map whose rows do not depend on how many there are.

    Kernels for a few rows sum in another order than those for many. The last bit of a score can decide which expert
    serves a token, so a text alone must get the same bits as a text in a batch: few rows are filled up with zeros.
    """
    rows = x_TD.shape[0]
    if rows >= STEADY_ROWS:
        return functional.linear(x_TD, weight_OD, bias_O)
    filled = functional.pad(x_TD, (0, 0, 0, STEADY_ROWS - rows))
    return functional.linear(filled, weight_OD, bias_O)[:rows]


class Experts(nn.Module):
    """`down(gelu(up(x)))` for each of E experts."""

    def __init__(self, experts: int, width: int, hidden: int, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights from `generator` (torch's own unless given); biases start at 0."""
        super().__init__()
        up_EFD = torch.empty(experts, hidden, width).normal_(std=width**-0.5, generator=generator)
        down_EDF = torch.empty(experts, width, hidden).normal_(std=hidden**-0.5, generator=generator)
        self.up_EFD = nn.Parameter(up_EFD)
        self.up_bias_EF = nn.Parameter(torch.zeros(experts, hidden))
        self.down_EDF = nn.Parameter(down_EDF)
        self.down_bias_ED = nn.Parameter(torch.zeros(experts, width))

    def one(self, expert: int, x_ND: Tensor, less_ED: Tensor | None = None) -> Tensor:
        """What one expert makes of its tokens, less its row of `less_ED` (taken off its bias, which costs nothing)."""
        bias_D = self.down_bias_ED[expert] if less_ED is None else self.down_bias_ED[expert] - less_ED[expert]
        inner_NF = functional.gelu(steady_linear(x_ND, self.up_EFD[expert], self.up_bias_EF[expert]))
        return steady_linear(inner_NF, self.down_EDF[expert], bias_D)

    def forward(self, x_ND: Tensor, counts: list[int], less_ED: Tensor | None = None) -> Tensor:
        """y_ND for tokens sorted by expert, `counts[e]` of them for expert e."""
        runs = enumerate(torch.split(x_ND, counts))
        parts = [self.one(expert, run_ND, less_ED) for expert, run_ND in runs if len(run_ND)]
        return torch.cat(parts) if parts else torch.zeros_like(x_ND)
