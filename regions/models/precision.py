"""The data type that an encoder runs in."""

import torch

from regions.settings import Precision


def dtype_of(precision: Precision) -> torch.dtype:
    """`auto` takes bfloat16 where the processor multiplies it in hardware, else float32."""
    if precision == "bf16" or (precision == "auto" and has_bf16()):
        return torch.bfloat16
    return torch.float32


def has_bf16() -> bool:
    """Whether this processor has AVX-512 or AMX instructions for bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001 - torch is pinned
