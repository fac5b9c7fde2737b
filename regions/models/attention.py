"""Attention of many short texts, over scratch memory that is reused.

`functional.scaled_dot_product_attention` spends most of its time on starting: for sentences, plain products of batches
take 0.6 of its time.

Shapes: B texts of one length, L tokens of each, H heads, C width of a head, D = H * C, N = B * H.
"""

import torch
from torch import Tensor

from regions.models.buffers import Buffers

SHORT = 64
"""Below this length float32 is faster than bfloat16: oneDNN takes longer to start than MKL takes to multiply."""


def attention(qkv_TD3: Tensor, out_TD: Tensor, texts: tuple[int, int, int], heads: int, buffers: Buffers) -> None:
    """Writes softmax(q k^T) v of the texts (first row, number, length) into their rows of `out_TD`; q is scaled."""
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
        torch.softmax(weights_NLL, dim=-1, out=weights_NLL)
        torch.bmm(weights_NLL, qkv_3NLC[2], out=y_NLC)
        y_BHLC = y_NLC.view(count, heads, length, width)
        out_TD[rows].view(count, length, heads, width).copy_(y_BHLC.transpose(1, 2))
