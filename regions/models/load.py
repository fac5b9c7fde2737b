"""Loads the served models by name; what two of them share is read once."""

from importlib import resources
from pathlib import Path

import torch

from regions.models import checkpoint
from regions.models.base import ServedModel
from regions.models.dynamic_moe import DynamicMoE, config_for
from regions.models.minilm import MiniLM
from regions.models.minilm_moe import MiniLMMoE
from regions.models.precision import dtype_of
from regions.models.source import find_text_model
from regions.settings import WorkerSettings

NAMES = ("minilm", "minilm-moe", "dynamic-moe")

Shared = dict[tuple[Path, torch.dtype], MiniLM]
"""The encoders of a process, by where they were read and the type they run in."""


def load(name: str, settings: WorkerSettings, shared: Shared | None = None) -> ServedModel:
    """The model of that name, ready to run. Raises ValueError listing the known names, or ModelFilesError.

    One dict given as `shared` to every call of a process makes the text models use the same base weights.
    """
    if name == "dynamic-moe":
        return DynamicMoE(config_for(settings.profile, settings.fallback))
    if name not in NAMES:
        raise ValueError(f"there is no model {name!r}; known are {', '.join(NAMES)}")
    directory = find_text_model(settings.text_model)
    dense = _encoder(directory, settings, {} if shared is None else shared)
    if name == "minilm":
        return dense
    converted = _shipped() if settings.moe_model is None else Path(settings.moe_model)
    conversion = checkpoint.read(converted, base=checkpoint.fingerprint(directory), layers=dense.encoder.config.layers)
    usual = settings.auto_budget.max if settings.compute_budget == "auto" else settings.compute_budget
    return MiniLMMoE(dense, conversion, usual, settings.fallback)


def _encoder(directory: Path, settings: WorkerSettings, shared: Shared) -> MiniLM:
    dtype = dtype_of(settings.precision)
    if (directory, dtype) not in shared:
        shared[directory, dtype] = MiniLM(directory, dtype)
    return shared[directory, dtype]


def _shipped() -> Path:
    """The conversion of the default text model that comes with this package."""
    return Path(str(resources.files("regions.models"))) / "shipped"
