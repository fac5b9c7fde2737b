"""Loads the served models by name; what two of them share is read once."""

from regions.models.base import ServedModel
from regions.models.dynamic_moe import DynamicMoE, config_for
from regions.models.minilm import MiniLM
from regions.models.minilm_moe import MiniLMMoE
from regions.models.source import find_text_model
from regions.settings import WorkerSettings

NAMES = ("minilm", "minilm-moe", "dynamic-moe")


def load(name: str, settings: WorkerSettings, shared: dict[str, MiniLM] | None = None) -> ServedModel:
    """The model of that name, ready to run. Raises ValueError listing the known names, or ModelFilesError.

    One dict given as `shared` to every call of a process makes the text models use the same base weights: the encoder
    is kept there under its directory.
    """
    if name == "dynamic-moe":
        return DynamicMoE(config_for(settings.profile, settings.fallback))
    if name not in NAMES:
        raise ValueError(f"there is no model {name!r}; known are {', '.join(NAMES)}")
    dense = _encoder(settings, {} if shared is None else shared)
    return dense if name == "minilm" else MiniLMMoE(dense, settings.compute_budget, settings.fallback)


def _encoder(settings: WorkerSettings, shared: dict[str, MiniLM]) -> MiniLM:
    directory = find_text_model(settings.text_model)
    if str(directory) not in shared:
        shared[str(directory)] = MiniLM(directory)
    return shared[str(directory)]
