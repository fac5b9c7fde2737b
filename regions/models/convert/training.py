"""The training of a conversion: the dense encoder teaches its own split at many budgets at once, and can be resumed.

Shapes: B texts of one length, L tokens of each, D width, T tokens, H hidden features, M kinds of budgets.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from regions.models.convert.batches import Batches
from regions.models.convert.split import Split, split
from regions.models.convert.student import Selection, Student
from regions.models.depth import emphasis
from regions.models.encoder import Block, Encoder, Packed

RATE, WARM_UP, LAST_RATE = 4e-4, 60, 0.02
"""Highest learning rate, the steps that it takes to get there, and the share of it that is left at the end."""
EMBEDDING, HIDDEN, ROUTER = 4.0, 0.2, 0.03
"""Weights of the losses: one minus the cosine of embeddings, relative error of hidden states, error of the scores."""
MIXTURE = ((0.18, 0.25, 0.25), (0.5, 0.5, 0.5), (0.08, 0.1, 0.35), (0.24, 0.3, 0.95))
"""Of a text's budget: how often, between what and what. A quarter and a half are what is asked for most."""
CLIP = 1.0
MEMORY = 0.995
"""Of the running average of the weights, which is what a training gives: single steps wander around it."""
CALIBRATION_BATCHES = 10
REFRESH = 20
"""Steps between two updates of what the router's loss knows of the weights."""
SAVE_EVERY = 10.0
"""Seconds of training that a kill may cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is trained: the same plan goes on where its last run was stopped. It ends by minutes, or by steps."""

    experts: int
    seed: int
    selection: Selection
    text: str
    """Digest of the training text and of the dense weights."""
    minutes: float | None = None
    steps: int | None = None


@dataclass(slots=True)
class Progress:
    """How far a training has come; `loss` is that of embeddings, smoothed."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 1.0

    def done(self, plan: Plan) -> float:
        """The part that is behind, 0 to 1."""
        if plan.steps is not None:
            return min(1.0, self.steps / max(1, plan.steps))
        return min(1.0, self.seconds / max(1e-9, (plan.minutes or 0.0) * 60))


class OtherPlan(Exception):
    """The directory holds a training of another plan; `str()` is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a training starts from, the same for the same text and seed."""

    blocks: Sequence[Block]
    splits: Sequence[Split]
    emphases: Sequence[float]

    def student(self, encoder: Encoder) -> Student:
        """A student that knows no more than the split."""
        return Student(encoder.config, self.blocks, self.splits)


def prepare(encoder: Encoder, blocks: Sequence[Block], batches: Batches, experts: int, seed: int) -> Start:
    """Splits every layer by its inputs on the first batches, and finds what each layer loses when pruned alone."""
    ids = list(islice(batches.after(0), CALIBRATION_BATCHES))
    inputs = _inputs(encoder, ids)
    splits = [split(block, x_TD, experts, seed) for block, x_TD in zip(blocks, inputs, strict=True)]
    start = Start(blocks, splits, [0.0] * len(splits))
    return replace(start, emphases=emphasis(_losses_alone(encoder, start, ids)))


@torch.inference_mode()
def _inputs(encoder: Encoder, batches: list[Tensor]) -> list[Tensor]:
    """x_TD of each feed-forward layer."""
    seen: list[list[Tensor]] = [[] for _ in range(encoder.config.layers)]

    def watch(layer: int, x_TD: Tensor) -> Tensor:
        seen[layer].append(x_TD.float())
        return encoder.dense(layer, x_TD)

    for ids_BL in batches:
        encoder(Packed.of(ids_BL.tolist()), watch)
    return [torch.cat(parts) for parts in seen]


@torch.no_grad()
def _losses_alone(encoder: Encoder, start: Start, batches: list[Tensor]) -> list[float]:
    student = start.student(encoder)
    losses = [0.0] * len(start.splits)
    for ids_BL in batches:
        x_BLD, whole_BLD = _embedded(encoder, ids_BL), _taught(encoder, ids_BL)
        for layer in range(len(losses)):
            shares = [torch.full((len(ids_BL),), 0.5 if layer == other else 1.0) for other in range(len(losses))]
            losses[layer] += float(_embedding_loss(student(x_BLD, shares).hidden_BLD, whole_BLD))
    return losses


@dataclass(frozen=True, slots=True)
class Trainer:
    """A training of one plan; `state` is the file that it goes on from."""

    encoder: Encoder
    start: Start
    batches: Batches
    plan: Plan
    state: Path

    def run(self, told: Callable[[Progress], None]) -> tuple[Student, Progress]:
        """Trains to the end of the plan; `told` hears of every step.

        `state` is written every SAVE_EVERY seconds and at the end, whole or not at all. Raises OtherPlan.
        """
        student = self.start.student(self.encoder)
        averaged = AveragedModel(student, avg_fn=_averaged)
        optimiser = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0, fused=True)
        parts: Mapping[str, Any] = {"student": student, "averaged": averaged, "optimiser": optimiser}
        progress = self._restore(parts)
        saved = progress.seconds
        source = self.batches.after(progress.steps)
        while progress.done(self.plan) < 1.0:
            begun = time.perf_counter()
            self._step(student, optimiser, next(source), progress)
            averaged.update_parameters(student)
            progress.seconds += time.perf_counter() - begun
            told(progress)
            if progress.seconds - saved >= SAVE_EVERY:
                self._save(parts, progress)
                saved = progress.seconds
        self._save(parts, progress)
        student.load_state_dict(averaged.module.state_dict())
        student.refresh()
        return student, progress

    def _step(self, student: Student, optimiser: torch.optim.Optimizer, ids_BL: Tensor, progress: Progress) -> None:
        plan = self.plan
        if progress.steps % REFRESH == 0:
            student.refresh()
        for group in optimiser.param_groups:
            group["lr"] = _rate(progress.steps, progress.done(plan))
        budget_B = draw_budgets(len(ids_BL), torch.Generator().manual_seed(plan.seed * 1_000_003 + progress.steps))
        taught_BLD = _taught(self.encoder, ids_BL)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            shares = student.pair_shares(budget_B, self.start.emphases, plan.selection)
            trained = student(_embedded(self.encoder, ids_BL), shares, plan.selection)
        embedding = _embedding_loss(trained.hidden_BLD, taught_BLD)
        hidden = functional.mse_loss(trained.hidden_BLD, taught_BLD) / taught_BLD.var()
        optimiser.zero_grad(set_to_none=True)
        (EMBEDDING * embedding + HIDDEN * hidden + ROUTER * trained.router_loss).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimiser.step()
        progress.steps += 1
        progress.tokens += ids_BL.numel()
        progress.loss += 0.02 * (float(embedding.detach()) - progress.loss)

    def _restore(self, parts: Mapping[str, Any]) -> Progress:
        if not self.state.exists():
            return Progress()
        kept: dict[str, Any] = torch.load(self.state, weights_only=True)
        if kept["plan"] != self._identity():
            told = f"{self.state} is of a conversion with other settings or text; remove it or name another --out"
            raise OtherPlan(told)
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        return Progress(**kept["progress"])

    def _save(self, parts: Mapping[str, Any], progress: Progress) -> None:
        kept = {name: part.state_dict() for name, part in parts.items()}
        kept |= {"plan": self._identity(), "progress": asdict(progress)}
        beside = self.state.with_suffix(".part")
        torch.save(kept, beside)
        beside.replace(self.state)

    def _identity(self) -> dict[str, Any]:
        """What must be equal to go on; more minutes may be given to a training that was to be shorter."""
        plan = self.plan
        return {"experts": plan.experts, "seed": plan.seed, "selection": plan.selection, "text": plan.text}


def draw_budgets(texts: int, generator: torch.Generator) -> Tensor:
    """budget_B of each text, out of MIXTURE."""
    odds_M, low_M, high_M = torch.tensor(MIXTURE).T
    kind_B = torch.multinomial(odds_M, texts, replacement=True, generator=generator)
    return torch.lerp(low_M[kind_B], high_M[kind_B], torch.rand(texts, generator=generator))


def _averaged(average: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
    """The running average; its memory grows to MEMORY, so that a short training is not held to its start."""
    return average.lerp(new, 1 - min(MEMORY, (int(steps) + 1) / (int(steps) + 10)))


def _rate(steps: int, done: float) -> float:
    """Warm-up, then half a cosine down (Loshchilov & Hutter 2017)."""
    falling = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))
    return RATE * min(1.0, (steps + 1) / WARM_UP) * falling


@torch.no_grad()
def _embedded(encoder: Encoder, ids_BL: Tensor) -> Tensor:
    """x_BLD as the first layer gets it."""
    return encoder.embed(ids_BL, torch.arange(ids_BL.shape[1])).float()


@torch.no_grad()
def _taught(encoder: Encoder, ids_BL: Tensor) -> Tensor:
    """hidden_BLD of the dense encoder."""
    return encoder(Packed.of(ids_BL.tolist())).float().view(*ids_BL.shape, -1)


def _embedding_loss(hidden_BLD: Tensor, taught_BLD: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(hidden_BLD.mean(dim=1), taught_BLD.mean(dim=1)).mean()
