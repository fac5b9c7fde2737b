"""The command `python -m regions.models.convert`: a dense text encoder into a dynamic mixture of experts."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from regions.models import checkpoint
from regions.models.convert import corpus, evaluation
from regions.models.convert.batches import Batches
from regions.models.convert.card import Made, card
from regions.models.convert.evaluation import BUDGETS, Row
from regions.models.convert.student import Selection, Student
from regions.models.convert.training import OtherPlan, Plan, Progress, Start, Trainer, prepare
from regions.models.encoder import read_blocks
from regions.models.minilm import MiniLM
from regions.models.minilm_moe import MiniLMMoE
from regions.models.precision import dtype_of
from regions.models.source import ModelFilesError, find_text_model

_QUIET_EVERY = 30.0
"""Seconds of training between two lines where no terminal shows a bar."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options of the command."""

    model: str
    experts: int
    out: Path
    minutes: float
    files: tuple[Path, ...]
    seed: int
    static: bool


@dataclass(frozen=True, slots=True)
class _Work:
    """What every stage needs: the dense model and its digest, and the text to learn from."""

    directory: Path
    dense: MiniLM
    base: str
    texts: list[str]
    batches: Batches
    start: Start


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--model", default="minilm", show_default=True, help="`minilm`, or a directory with a BERT text encoder.")
@click.option("--experts", default=8, show_default=True, type=click.IntRange(2, 64),
              help="Experts of each layer: more of them keep more, fewer run faster.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option("--minutes", default=15.0, show_default=True, type=click.FloatRange(0.01, 10_000), help="Of training.")
@click.option("--text", "files", multiple=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Text to train on beside gensim's: UTF-8, a paragraph a line. May be repeated.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31), help="Of split and training.")
@click.option("--static/--no-static", default=True, help="Train static pruning for as many steps, to compare with.")
def main(**options: Any) -> None:
    """Turn a dense text encoder into a dynamic mixture of experts.

    Writes model.safetensors and a model card, README.md, into DIR, for `worker.moe_model`. Stopped, it goes on where it
    was when called again with the same options.
    """
    try:
        _convert(_Asked(**options), Console(stderr=True))
    except (corpus.CorpusError, ModelFilesError, OtherPlan, ValueError, OSError) as error:
        click.echo(f"convert: {error}", err=True)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        click.echo("convert: stopped; the same command goes on from here", err=True)
        raise SystemExit(130) from None


def _convert(asked: _Asked, console: Console) -> None:
    asked.out.mkdir(parents=True, exist_ok=True)
    work = _prepare(asked, console)
    text = hashlib.sha256("\n".join([work.base, *work.texts]).encode()).hexdigest()
    plan = Plan(experts=asked.experts, seed=asked.seed, selection="dynamic", text=text, minutes=asked.minutes)
    student, progress = _train(work, plan, asked.out, console)
    kept = checkpoint.Checkpoint(student.tensors(), tuple(work.start.emphases), work.base)
    checkpoint.write(asked.out, kept)
    fixed = None
    if asked.static:
        as_long = replace(plan, selection="static", minutes=None, steps=progress.steps)
        fixed, _ = _train(work, as_long, asked.out, console)
    console.print("Judging on held-out text")
    names = [file.name for file in asked.files]
    made = Made(work.base, asked.experts, asked.seed, len(work.texts), corpus.HELD_OUT, names, progress)
    told = card(made, *_judge(work, asked.out, fixed))
    (asked.out / "README.md").write_text(told, encoding="utf-8")
    for selection in get_args(Selection):
        _state(asked.out, selection).unlink(missing_ok=True)
    click.echo(told[told.index("Judged") :])


def _prepare(asked: _Asked, console: Console) -> _Work:
    directory = find_text_model(None if asked.model == "minilm" else asked.model)
    console.print(f"Reading the text ({', '.join(['gensim', *map(str, asked.files)])})")
    texts = corpus.training_texts(asked.files)
    dense = MiniLM(directory, dtype_of("auto"))
    config = dense.encoder.config
    if config.hidden % asked.experts:
        raise ValueError(f"--experts {asked.experts} does not divide the {config.hidden} hidden features")
    batches = Batches([dense.tokens.encode(text, param="text", truncate=True)[0] for text in texts], asked.seed)
    console.print(f"Splitting {config.layers} layers into {asked.experts} experts, by {len(texts):,} texts")
    start = prepare(dense.encoder, read_blocks(directory), batches, asked.experts, asked.seed)
    return _Work(directory, dense, checkpoint.fingerprint(directory), texts, batches, start)


def _train(work: _Work, plan: Plan, out: Path, console: Console) -> tuple[Student, Progress]:
    with _shown(console, plan) as told:
        trainer = Trainer(work.dense.encoder, work.start, work.batches, plan, _state(out, plan.selection))
        return trainer.run(told)


def _state(out: Path, selection: Selection) -> Path:
    return out / f"{selection}.training"


def _judge(work: _Work, out: Path, fixed: Student | None) -> tuple[list[Row], list[Row]]:
    """The rows of what was written, read back and run as workers run it, and of static pruning."""
    kept = checkpoint.read(out, base=work.base, layers=work.dense.encoder.config.layers)
    texts, pairs = corpus.held_out_texts(), corpus.rated_pairs()
    dense = evaluation.served(MiniLM(work.directory))
    rows = evaluation.evaluate(evaluation.served(MiniLMMoE(work.dense, kept)), dense, texts, pairs, BUDGETS)
    if fixed is None:
        return rows, []
    pruned = evaluation.pruned(fixed, work.dense, work.start.emphases)
    return rows, evaluation.evaluate(pruned, dense, texts, pairs, BUDGETS[:-1])


@contextmanager
def _shown(console: Console, plan: Plan) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, else a line now and then."""
    columns = (TextColumn("Training ({task.fields[kind]})"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
               TextColumn("loss {task.fields[loss]:.4f}"), TimeElapsedColumn())  # fmt: skip
    said = 0.0
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0, kind=plan.selection, loss=1.0)

        def told(progress: Progress) -> None:
            nonlocal said
            bar.update(task, completed=progress.done(plan), loss=progress.loss)
            if not console.is_terminal and progress.seconds - said >= _QUIET_EVERY:
                said = progress.seconds
                done, rate = progress.done(plan), progress.tokens / progress.seconds
                console.print(
                    f"Training ({plan.selection}): {done:.0%}, loss {progress.loss:.4f}, {rate:,.0f} tokens/s",
                    highlight=False,
                )

        yield told


if __name__ == "__main__":
    main(prog_name="python -m regions.models.convert")
