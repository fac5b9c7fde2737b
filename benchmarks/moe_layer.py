"""Time of a mixture-of-experts layer over that of all its experts, beside the executed share of their FLOPs, the ideal.

Each row is a layer at a budget: `share` is what it executed, router included; then come its times, router, choice,
experts and sum, over the time of all experts as two matrix products without a router. `layer` is what is served: the
back end that `experts.py` picks, on weights laid out by `pack`. A time at the share is ideal, over 1 is not worth it.

The ways take turns, round by round, so that a drift of the machine's speed meets all of them; medians count. With
`--threads 1` it is processor time that counts, which other processes on the machine hardly touch.

    python benchmarks/moe_layer.py [--shapes NAME...] [--tokens N...] [--dtypes NAME...] [--rounds 15] [--threads N]

What `layer` took on one thread of a shared AVX-512 machine with bfloat16 instructions, torch 2.13:

    layer, tokens      share  fp32   bf16      layer, tokens            share  fp32   bf16
    768/8, 128         0.13   0.38   0.87      1024/16, 1024            0.13   0.17   0.26
    768/8, 128         0.38   0.63   1.18      1024/16, 1024            0.50   0.66   0.74
    768/8, 1024        0.13   0.18   0.31      384/8/encoder, 1024      0.25   0.31   0.47
    768/8, 1024        0.25   0.32   0.44      384/8/encoder, 1024      0.50   0.62   0.77
    768/8, 1024        0.38   0.48   0.64      384/8/encoder, 4096      0.25   0.30   0.40

With 16 tokens all experts at once are faster. In bfloat16 the products are so fast that the rest shows: of the 15.3 ms
of 384/8/encoder at 4,096 tokens and 0.50, products take 12.5 (192 features run within a tenth of the dense layer's
rate), scores and choice 0.9, the gathering, joining and summing of rows 0.8. With 16 experts of 96 features products
run at 80% of the dense rate, and rows take 20% of the time. At 4,096 tokens and 0.50 the layer needs memory that malloc
does not hand back in between, else fresh pages add a fifth. Tried, and no gain: experts side by side on threads, one
matrix product into a shared result, parts of 512 tokens, dense products with a mask between.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, get_args

import torch
from torch import Tensor
from torch.nn import functional

from regions.moe.config import MoEConfig
from regions.moe.experts import Backend
from regions.moe.layer import MoELayer
from regions.moe.linear import packed_linear
from regions.moe.selection import affordable

Run = Callable[[], object]
DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS: Final = 0.02
"""Each timing repeats a way for at least so long."""


@dataclass(frozen=True)
class Shape:
    """A configuration, and the budgets at which it is timed: shares of FLOPs."""

    config: MoEConfig
    budgets: Sequence[float]


def budget_for(config: MoEConfig, count: float) -> float:
    """The share that so many experts a token take with the router."""
    full = affordable(config, 1.0)
    return 1 - (full - count) / config.experts


INFERENCE, TRAINING = MoEConfig.for_inference(), MoEConfig.for_training()
ENCODER = MoEConfig(
    width=384,
    hidden=192,
    experts=8,
    min_experts=0,
    max_experts=8,
    gate="unit",
    scorer="norm",
    rule="sequence_budget",
)
SHAPES: Final = {
    "768/8/1-3": Shape(INFERENCE, [budget_for(INFERENCE, count) for count in (1, 2, 3)]),
    "1024/16/2-8": Shape(TRAINING, [budget_for(TRAINING, count) for count in (2, 4, 8)]),
    "384/8/encoder": Shape(ENCODER, [0.25, 0.5]),
}


def dense_of(layer: MoELayer) -> Callable[[Tensor], Tensor]:
    """All experts as one feed-forward layer, packed like them; what their gate would weigh is left out."""
    experts = layer.experts
    up = packed_linear(experts.up_EFD.flatten(0, 1), experts.up_bias_EF.flatten(), gelu=True)
    down = packed_linear(experts.down_EDF.transpose(0, 1).flatten(1), experts.down_bias_ED.sum(dim=0))
    return lambda x_TD: down(up(x_TD))


def ready(config: MoEConfig, dtype: torch.dtype) -> MoELayer:
    """A seeded layer as a server would hold it."""
    generator = torch.Generator().manual_seed(0)
    layer = MoELayer(config, generator).eval().requires_grad_(requires_grad=False)
    layer.router.calibrate(torch.randn(2048, config.width, generator=generator))
    layer.experts.to(dtype).pack()
    return layer


def texts(tokens: int) -> list[int]:
    """Lengths of texts of 32 tokens, and what is left."""
    return [32] * (tokens // 32) + ([tokens % 32] if tokens % 32 else [])


def medians(ways: dict[str, Run], rounds: int) -> dict[str, float]:
    """Seconds of each way: the median over the rounds, in each of which every way has a turn."""
    repeats = {name: max(1, round(SECONDS / max(timed(run, 1), 1e-6))) for name, run in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            taken[name].append(timed(run, repeats[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def timed(run: Run, repeats: int) -> float:
    """Seconds of one call."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def rows(shape: Shape, dtype: torch.dtype, tokens: int, rounds: int) -> list[tuple[float, dict[str, float]]]:
    """(executed share, seconds of each way) for each budget; the way `all` is what all experts take."""
    layer = ready(shape.config, dtype)
    dense = dense_of(layer)
    x_TD = functional.layer_norm(
        torch.randn(tokens, shape.config.width, generator=torch.Generator().manual_seed(1)), (shape.config.width,)
    ).to(dtype)
    lengths = texts(tokens)

    def way(budget: float, backend: Backend | None) -> Run:
        return lambda: layer(x_TD, budget, lengths=lengths, backend=backend)

    found = []
    for budget in shape.budgets:
        ways: dict[str, Run] = {"all": lambda: dense(x_TD), "layer": way(budget, None)}
        ways |= {name: way(budget, name) for name in get_args(Backend)}
        ways["router"] = lambda budget=budget: layer.router(x_TD, budget, lengths)  # type: ignore[misc]
        found.append((layer(x_TD, budget, lengths=lengths).share, medians(ways, rounds)))
    return found


def main(arguments: Sequence[str]) -> int:
    """Prints the table."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="layers to time")
    parser.add_argument("--tokens", nargs="+", type=int, default=[16, 128, 1024, 4096], help="tokens of a forward")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of tokens and experts")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each way (default 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: its own)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    names = ["layer", *get_args(Backend), "router"]
    print(f"{torch.get_num_threads()} threads, medians of {options.rounds}; times over that of all experts")
    print(f"{'layer':15}{'type':>5}{'tokens':>7}{'all, ms':>9}{'share':>7}" + "".join(f"{name:>11}" for name in names))
    with torch.inference_mode():
        for name in options.shapes:
            for dtype in options.dtypes:
                for tokens in options.tokens:
                    for share, seconds in rows(SHAPES[name], DTYPES[dtype], tokens, options.rounds):
                        times = "".join(f"{seconds[way] / seconds['all']:11.2f}" for way in names)
                        head = f"{name:15}{dtype:>5}{tokens:7}{seconds['all'] * 1000:9.2f}{share:7.2f}"
                        print(head + times, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
