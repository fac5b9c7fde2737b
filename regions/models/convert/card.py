"""The model card of a conversion: what it is, how it was made, and the table that says what it costs and keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

from regions.models.convert.evaluation import Row
from regions.models.convert.training import Progress


@dataclass(frozen=True, slots=True)
class Made:
    """How a conversion was made; `texts` were trained on, `held_out` only judged by, `files` beside gensim's text."""

    base: str
    experts: int
    seed: int
    texts: int
    held_out: int
    files: Sequence[str]
    progress: Progress


def card(made: Made, rows: Sequence[Row], pruned: Sequence[Row]) -> str:
    """The card as Markdown; `pruned` are the rows of static pruning, none where it was left out."""
    progress = made.progress
    sources = ", ".join(["gensim's sample of Wikipedia", *made.files])
    text = f"""---
license: apache-2.0
base_model: sentence-transformers/all-MiniLM-L6-v2
pipeline_tag: sentence-similarity
---

# A dynamic mixture of experts out of a dense text encoder

Each feed-forward layer of the encoder is split into {made.experts} experts. In each text the router picks the (token,
expert) pairs that a compute budget pays for; at budget 1.0 the dense encoder itself runs. The dense weights have the
SHA-256 `{made.base}`.

Trained by distillation on {made.texts:,} texts ({sources}): {progress.steps:,} steps, {progress.tokens:,} tokens,
{progress.seconds / 60:.0f} minutes, seed {made.seed}.

Judged on {made.held_out} held-out texts (news and film reviews) by the cosine to the dense embedding in float32, and on
word pairs rated by people by Spearman's correlation. `share` is the part of the feed-forward FLOPs that was executed,
the router included.

{_table(rows)}"""
    if pruned:
        text += (
            f"\nStatic pruning, the same experts for every token, after as many steps of training:\n\n{_table(pruned)}"
        )
    return text


def _table(rows: Sequence[Row]) -> str:
    sets = list(rows[0].spearman)
    head = ["budget", "share", "cosine, mean", "cosine, p5", *sets]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        figures = (row.share, row.mean, row.p5, *row.spearman.values())
        lines.append(_line([f"{row.budget:.2f}", *(f"{figure:.3f}" for figure in figures)]))
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
