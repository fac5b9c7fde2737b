"""Loads the served models by name; what two of them share is read once."""

from regions.models.base import ServedModel
from regions.models.dynamic_moe import DynamicMoE, config_for
from regions.models.minilm import MiniLM
from regions.models.minilm_moe import MiniLMMoE
from regions.models.source import find_text_model
from regions.settings import WorkerSettings

NAMES = ("minilm", "minilm-moe", "dynamic-moe")


class Loader:
    """Makes the models that a worker's settings ask for; `minilm` and `minilm-moe` share their base weights."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._encoder: MiniLM | None = None

    def load(self, name: str) -> ServedModel:
        """The model of that name. Raises ValueError listing the known names, or ModelFilesError without its files."""
        if name == "minilm":
            return self._dense()
        if name == "minilm-moe":
            return MiniLMMoE(self._dense(), self._settings.compute_budget, self._settings.fallback)
        if name == "dynamic-moe":
            return DynamicMoE(config_for(self._settings.profile, self._settings.fallback))
        raise ValueError(f"there is no model {name!r}; known are {', '.join(NAMES)}")

    def _dense(self) -> MiniLM:
        if self._encoder is None:
            self._encoder = MiniLM(find_text_model(self._settings.text_model))
        return self._encoder
