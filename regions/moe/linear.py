"""Linear maps for inference on a CPU, whose rows do not depend on how many there are.

Shapes: T rows, D features in, O features out.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

STEADY_ROWS = 16
"""From this many rows on, CPU matrix kernels give each row the same bits however many rows stand beside it."""

FINE, COARSE = 16, 32
"""What numbers of rows are filled up to a multiple of; COARSE from 512 on."""

Linear = Callable[[Tensor], Tensor]
"""Maps x_TD to y_TO."""


def steady_linear(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """A linear map whose rows do not depend on how many there are.

    Kernels for a few rows sum in another order than those for many. The last bit of a score can decide which expert
    serves a token, so a text alone must get the same bits as a text in a batch: few rows are filled up with zeros.
    """
    rows = x_TD.shape[0]
    if rows >= STEADY_ROWS:
        return functional.linear(x_TD, weight_OD, bias_O)
    with_zeros_TD = functional.pad(x_TD, (0, 0, 0, STEADY_ROWS - rows))
    return functional.linear(with_zeros_TD, weight_OD, bias_O)[:rows]


def packed_linear(weight_OD: Tensor, bias_O: Tensor, *, gelu: bool = False) -> Linear:
    """The map with its weights laid out once for the kernel, and GELU done as it writes its result; no gradients.

    In bfloat16 oneDNN runs it, a tenth faster than the plain map. Other types have nothing to gain from it: the plain
    map, rows steady, is what they get.
    """
    if weight_OD.dtype != torch.bfloat16 or not torch.backends.mkldnn.enabled:
        if gelu:
            return lambda x_TD: functional.gelu(steady_linear(x_TD, weight_OD, bias_O))
        return lambda x_TD: steady_linear(x_TD, weight_OD, bias_O)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OD.detach().contiguous(), None)  # noqa: SLF001 - torch is pinned
    after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    run = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - as above
    bias_O = bias_O.detach().contiguous()

    def packed_map(x_TD: Tensor) -> Tensor:
        if not len(x_TD):
            return x_TD.new_empty(0, len(bias_O))
        y_TO: Tensor = run(x_TD, packed, bias_O, *after)
        return y_TO

    return packed_map


def filled(rows: int) -> int:
    """The number of rows to run in place of `rows`: a few more, that kernels are more likely to have seen.

    A matrix kernel for a number of rows that it has not seen lately costs more to make than to run: 1.2 against 0.1 ms
    in bfloat16 for 500 rows. So few different numbers are kept, and with them rows get the same bits whatever is beside
    them.
    """
    step = FINE if rows <= FINE * COARSE else COARSE
    return -(-rows // step) * step
