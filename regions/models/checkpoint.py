"""A converted encoder on disk: the tensors that differ from the dense one's, in fp16, and what they were made from.

`model.safetensors` holds `layers.N.PART.weight` and `.bias` for the parts `qkv`, `attended`, `attention_norm`, `up`
[H, D] and `down` [D, H] with the neurons in the order of their experts, `output_norm`, and `router` [E, D]; and
`layers.N.skipped` [E, D], what stands in for a skipped expert. D width, H hidden features, E experts.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regions.models.encoder import Block, Pair
from regions.models.source import WEIGHTS, ModelFilesError

FORMAT = "tidegate-moe-1"
BLOCK = tuple(field.name for field in fields(Block))
PAIRS = (*BLOCK, "router")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors by name, and the emphasis of each layer (`depth.layer_shares`); `base` is the dense file's digest."""

    tensors: Mapping[str, Tensor]
    emphases: tuple[float, ...]
    base: str

    def block(self, layer: int) -> Block:
        """The weights of a layer, the neurons in the order of their experts."""
        return Block(**{part: self.pair(layer, part) for part in BLOCK})

    def pair(self, layer: int, part: str) -> Pair:
        """(weight, bias) of a part of a layer, in float32."""
        name = f"layers.{layer}.{part}"
        return self.tensors[f"{name}.weight"].float(), self.tensors[f"{name}.bias"].float()

    def skipped(self, layer: int) -> Tensor:
        """skipped_ED of a layer, in float32."""
        return self.tensors[f"layers.{layer}.skipped"].float()


def fingerprint(directory: Path) -> str:
    """SHA-256 of the weights in an encoder's directory."""
    with (directory / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint into `directory`, whole or not at all."""
    tensors = {name: value.to(torch.float16).contiguous() for name, value in checkpoint.tensors.items()}
    metadata = {"format": FORMAT, "emphases": json.dumps(checkpoint.emphases), "base": checkpoint.base}
    beside = directory / f"{WEIGHTS}.part"
    save_file(tensors, beside, metadata)
    beside.chmod(0o644)
    beside.replace(directory / WEIGHTS)


def read(directory: Path, *, base: str, layers: int) -> Checkpoint:
    """The checkpoint in `directory` for the encoder of digest `base`. Raises ModelFilesError for any other."""
    path = directory / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file, not a mapping
    except (OSError, SafetensorError) as error:
        told = f"{path}: cannot be read ({error}); make it again by `tidegate convert`"
        raise ModelFilesError(told) from error
    if metadata.get("format") != FORMAT:
        raise ModelFilesError(f"{path}: is no conversion of this version; make it by `tidegate convert`")
    if metadata["base"] != base:
        raise ModelFilesError(
            f"{path}: was converted from other weights than worker.text_model; make a conversion of those by "
            "`tidegate convert --model DIR` and name it in worker.moe_model"
        )
    _check(path, tensors, layers)
    return Checkpoint(tensors, tuple(json.loads(metadata["emphases"])), base)


def _check(path: Path, tensors: Mapping[str, Tensor], layers: int) -> None:
    pairs = {
        f"layers.{layer}.{part}.{kind}" for layer in range(layers) for part in PAIRS for kind in ("weight", "bias")
    }
    needed = pairs | {f"layers.{layer}.skipped" for layer in range(layers)}
    if missing := sorted(needed - set(tensors)):
        raise ModelFilesError(f"{path}: lacks {missing[0]} and {len(missing) - 1} more; make it again")
    for name, value in tensors.items():
        # A router that fails is stood in for; nothing stands in for the rest.
        if ".router." not in name and not value.isfinite().all():
            raise ModelFilesError(f"{path}: {name} holds NaN or infinity; make it again by `tidegate convert`")
