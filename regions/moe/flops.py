"""FLOPs of a mixture-of-experts layer, from the shapes that were executed.

A multiply-add counts two, as in `torch.utils.flop_counter`; biases, activations and the zero rows that
`steady_linear` adds to a few tokens count for nothing.
"""


def linear_flops(rows: int, inputs: int, outputs: int) -> int:
    """FLOPs of one matrix product of [rows, inputs] with [inputs, outputs]."""
    return 2 * rows * inputs * outputs


def router_flops(tokens: int, width: int, experts: int) -> int:
    """FLOPs of scoring every expert for every token."""
    return linear_flops(tokens, width, experts)


def feed_forward_flops(tokens: int, width: int, hidden: int) -> int:
    """FLOPs of two matrices with `hidden` features between them: an expert, or the dense layer."""
    return linear_flops(tokens, width, hidden) + linear_flops(tokens, hidden, width)
