"""How good a conversion is, by what it makes of texts that it was not trained on, beside the dense encoder.

Shapes: B texts, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from regions.models.base import ServedModel
from regions.models.convert.corpus import Rated
from regions.models.convert.student import Student
from regions.models.minilm import MiniLM

BUDGETS = (0.25, 0.5, 0.75, 1.0)
_TOGETHER = 32
"""Texts in a forward."""

Embedder = Callable[[Sequence[str], float], tuple[Tensor, float]]
"""From texts and a budget to (embeddings_BD of length 1, the share of feed-forward FLOPs that was executed)."""


@dataclass(frozen=True, slots=True)
class Row:
    """The figures at one budget: cosines to the dense embeddings, and rank correlations with people by set."""

    budget: float
    share: float
    mean: float
    p5: float
    spearman: dict[str, float]


def evaluate(
    embed: Embedder, dense: Embedder, texts: Sequence[str], pairs: dict[str, list[Rated]], budgets: Sequence[float]
) -> list[Row]:
    """A row for each budget."""
    whole_BD, _ = dense(texts, 1.0)
    rows = []
    for budget in budgets:
        got_BD, share = embed(texts, budget)
        cosine_B = (got_BD * whole_BD).sum(dim=1)
        people = {name: agreement(embed, rated, budget) for name, rated in pairs.items()}
        rows.append(Row(budget, share, float(cosine_B.mean()), float(cosine_B.quantile(0.05)), people))
    return rows


def agreement(embed: Embedder, rated: Sequence[Rated], budget: float) -> float:
    """Spearman's correlation of cosines with people's ratings."""
    # Of an extra: without it the command says what to install, which an import at the top would forestall.
    from scipy.stats import spearmanr  # noqa: PLC0415 - see above

    words = sorted({word for pair in rated for word in (pair.first, pair.second)})
    vectors_BD, _ = embed(words, budget)
    place = {word: number for number, word in enumerate(words)}
    cosines = [float(vectors_BD[place[pair.first]] @ vectors_BD[place[pair.second]]) for pair in rated]
    return float(spearmanr(cosines, [pair.rating for pair in rated]).statistic)


def served(model: ServedModel) -> Embedder:
    """A model as workers run it; the share is what its forwards count."""

    def embed(texts: Sequence[str], budget: float) -> tuple[Tensor, float]:
        vectors: list[Tensor] = []
        flops = dense_flops = 0
        for start in range(0, len(texts), _TOGETHER):
            some = texts[start : start + _TOGETHER]
            items = [model.prepare_text(text, param="input", truncate=True, budget=budget) for text in some]
            batch = model.forward(items)
            vectors += [torch.as_tensor(outcome.arrays["embedding"]) for outcome in batch.outcomes]
            flops += batch.flops
            dense_flops += batch.dense_flops
        return functional.normalize(torch.stack(vectors).float(), dim=1), flops / dense_flops

    return embed


def pruned(student: Student, dense: MiniLM, emphases: Sequence[float]) -> Embedder:
    """The same experts for every token, as `selection="static"` trains them; no router runs."""

    @torch.no_grad()
    def embed(texts: Sequence[str], budget: float) -> tuple[Tensor, float]:
        encoded = [dense.tokens.encode(text, param="input", truncate=True)[0] for text in texts]
        order = sorted(range(len(texts)), key=lambda place: len(encoded[place]))
        rows: dict[int, Tensor] = {}
        for _, run in groupby(order, key=lambda place: len(encoded[place])):
            places = list(run)
            budget_B = torch.full((len(places),), budget)
            shares = student.pair_shares(budget_B, emphases, "static")
            ids_BL = torch.tensor([encoded[place] for place in places])
            x_BLD = dense.encoder.embed(ids_BL, torch.arange(ids_BL.shape[1])).float()
            hidden_BLD = student(x_BLD, shares, "static").hidden_BLD
            rows |= dict(zip(places, functional.normalize(hidden_BLD.mean(dim=1), dim=1), strict=True))
        kept = [block.kept(share_B[:1]) for block, share_B in zip(student.layers(), shares, strict=True)]
        return torch.stack([rows[place] for place in range(len(texts))]), float(torch.cat(kept).float().mean())

    return embed
