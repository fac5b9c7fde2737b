"""What dynamic experts cost and keep: `minilm-moe` at each budget against the dense encoder, in one run.

Quality is judged on 500 held-out texts and on word pairs rated by people. Time is that of a forward over the same real
texts: dense in float32 and in bfloat16, and static pruning, a dense layer cut to the budget's share of neurons (its
time only: what it keeps after the same training stands in the model card). The candidates take turns, so that a drift
of the machine's speed meets all of them; ratios of medians are what to quote.

With one thread a forward, as workers run them, minilm-moe is 1.38 times as fast as dense bf16 at a quarter and 1.11 to
1.15 times at a half, with 4,096 tokens; 1.22 and 1.05 times with 1,024. The feed-forward layers are half of a dense
forward, so that static pruning, which routes nothing, is 1.6 and 1.3 times as fast.

    python benchmarks/moe.py [--tokens 1024 4096] [--rounds 15] [--moe DIR]
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from regions.models import checkpoint
from regions.models.base import Item
from regions.models.convert import evaluation
from regions.models.convert.corpus import held_out_texts, rated_pairs
from regions.models.encoder import Encoder, FeedForward, dense_linears, read_blocks
from regions.models.load import load
from regions.models.minilm import MiniLM, embed
from regions.models.minilm_moe import MiniLMMoE
from regions.models.precision import dtype_of
from regions.models.source import find_text_model
from regions.settings import WorkerSettings

BUDGETS = evaluation.BUDGETS
MEASURES = ("dense fp32", "dense bf16", "static pruning")


def batch(model: MiniLM, tokens: int) -> list[str]:
    """Real texts of so many tokens together, or a few less."""
    texts = held_out_texts()
    random.Random(0).shuffle(texts)
    chosen: list[str] = []
    for text in texts:
        cost = item(model, text, 1.0).cost
        if cost <= tokens:
            chosen.append(text)
            tokens -= cost
    return chosen


def item(model: MiniLM | MiniLMMoE, text: str, budget: float) -> Item:
    return model.prepare_text(text, param="input", truncate=True, budget=budget)


def pruned(encoder: Encoder, directory: Path, budget: float) -> FeedForward:
    """The dense feed-forward layers with their first neurons alone, as many as the budget pays for."""
    kept = round(encoder.config.hidden * budget)
    layers = []
    for block in read_blocks(directory):
        (up_HD, up_bias_H), (down_DH, down_bias_D) = block.up, block.down
        layers.append(dense_linears((up_HD[:kept], up_bias_H[:kept]), (down_DH[:, :kept], down_bias_D), encoder.dtype))

    def feed_forward(layer: int, x_TD: torch.Tensor) -> torch.Tensor:
        up, down = layers[layer]
        return down(up(x_TD))

    return feed_forward


def medians(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each."""
    took: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 2):
        for name, run in candidates.items():
            begun = time.perf_counter()
            run()
            took[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds[2:]) for name, seconds in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096], help="of a batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--moe", help="directory that `tidegate convert` wrote; the one that ships unless given")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    directory = find_text_model(None)
    exact, dense = MiniLM(directory), MiniLM(directory, dtype_of("bf16"))
    moe = load("minilm-moe", WorkerSettings(precision="bf16", moe_model=options.moe))
    assert isinstance(moe, MiniLMMoE)
    print(f"weights {checkpoint.fingerprint(directory)[:12]}, {options.threads} threads\n")
    rows = evaluation.evaluate(
        evaluation.served(moe), evaluation.served(exact), held_out_texts(), rated_pairs(), BUDGETS
    )
    print("budget  share  cosine mean / p5   " + "  ".join(rows[0].spearman))
    for row in rows:
        people = "  ".join(f"{value:11.3f}" for value in row.spearman.values())
        print(f"{row.budget:6.2f}  {row.share:.3f}  {row.mean:.4f} / {row.p5:.4f}  {people}")
    for tokens in options.tokens:
        texts = batch(exact, tokens)
        print(f"\n{tokens} tokens in {len(texts)} texts: times over those of minilm-moe in bf16")
        print("budget  minilm-moe ms  " + "  ".join(f"{name:>14}" for name in MEASURES))
        for budget in BUDGETS[:-1]:
            items = [item(exact, text, budget) for text in texts]
            at_budget = [item(moe, text, budget) for text in texts]
            less = pruned(dense.encoder, directory, budget)
            runs: dict[str, Callable[[], object]] = {
                "minilm-moe": partial(moe.forward, at_budget),
                "dense fp32": partial(exact.forward, items),
                "dense bf16": partial(dense.forward, items),
                "static pruning": partial(embed, dense.encoder, items, less),
            }
            seconds = medians(runs, options.rounds)
            ratios = "  ".join(f"{seconds[name] / seconds['minilm-moe']:13.2f}x" for name in MEASURES)
            print(f"{budget:6.2f}  {1000 * seconds['minilm-moe']:13.1f}  {ratios}")


if __name__ == "__main__":
    main()
