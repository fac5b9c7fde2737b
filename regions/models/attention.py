"""Attention of many short texts, over scratch memory that is reused.

`functional.scaled_dot_product_attention` spends most of its time on starting: for sentences, plain products of batches
take 0.6 of its time.

Shapes: B texts of one length, L tokens of each, H heads, C width of a head, D = H * C, N = B * H.
"""

import torch
from torch import Tensor

from regions.models.buffers import Buffers

SHORT = 40
"""Below this length float32 is faster than bfloat16: oneDNN takes longer to start than MKL takes to multiply."""
LARGEST = 80.0
"""Scores are held between this and its negative: exp() of so much, 512 times over, still fits bfloat16."""


def attention(qkv_TD3: Tensor, out_TD: Tensor, texts: tuple[int, int, int], heads: int, buffers: Buffers) -> None:
    """Writes softmax(q k^T) v of the texts (first row, number, length) into their rows of `out_TD`; q is scaled.

    In bfloat16 the division by a row's sum comes last, and no largest score is taken off before exp(): torch's softmax
    takes up to ten times as long as exp() there. Scores are bounded instead, far above what trained encoders have.
    """
    start, count, length = texts
    rows = slice(start, start + count * length)
    width = out_TD.shape[1] // heads
    dtype = torch.float32 if length < SHORT else qkv_TD3.dtype
    sizes = (3, count * heads, length, width)
    with (
        buffers.lend(sizes, dtype) as qkv_3NLC,
        buffers.lend((count * heads, length, length), dtype) as weights_NLL,
        buffers.lend(sizes[1:], dtype) as y_NLC,
    ):
        qkv_3BHLC = qkv_TD3[rows].view(count, length, 3, heads, width).permute(2, 0, 3, 1, 4)
        qkv_3NLC.view(qkv_3BHLC.shape).copy_(qkv_3BHLC)
        torch.bmm(qkv_3NLC[0], qkv_3NLC[1].transpose(1, 2), out=weights_NLL)
        out_BHLC = out_TD[rows].view(count, length, heads, width).transpose(1, 2)
        if dtype == torch.bfloat16:
            weights_NLL.clamp_(-LARGEST, LARGEST).exp_()
            torch.bmm(weights_NLL, qkv_3NLC[2], out=y_NLC)
            sums_BHL1 = weights_NLL.sum(dim=-1).view(count, heads, length, 1)
            torch.div(y_NLC.view(out_BHLC.shape), sums_BHL1, out=out_BHLC)
        else:
            torch.softmax(weights_NLL, dim=-1, out=weights_NLL)
            torch.bmm(weights_NLL, qkv_3NLC[2], out=y_NLC)
            out_BHLC.copy_(y_NLC.view(out_BHLC.shape))
