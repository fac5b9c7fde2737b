"""The settings of one mixture-of-experts layer, with the factories for inference, for training and from an environment.

Every field is read by the router, the layer or its losses; what the layer does not read is not here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

from regions.moe.complexity import Estimator

Fallback = Literal["dense", "load_balance", "single_expert", "random"]
"""Who serves a token when the router fails on it: every expert, turns, the first expert, or chance."""

Gate = Literal["softmax", "unit"]
"""How chosen experts are weighed: by their renormalised probabilities, or each by one (parts of a dense layer)."""

Scorer = Literal["linear", "norm"]
"""How experts are scored: logits of a token scaled to unit length, or logarithms of what each would contribute."""

RuleName = Literal["complexity_k", "top_k", "top_p", "relative_threshold", "sequence_budget"]
"""How many experts a token gets, and which (`rules`)."""

Security = Literal["minimal", "standard", "strict"]
"""What a layer checks of its tokens: nothing, shape and type, or also that no number is NaN or infinite."""

STEERED: tuple[RuleName, ...] = ("top_p", "relative_threshold")
"""Rules that go by a level, which a `BudgetController` moves, and not by a budget."""

ENVIRONMENT_PREFIX = "TIDEGATE_MOE_"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """Sizes in features; `hidden` is the inner width of one expert. Raises ValueError for what cannot be built.

    `compute_budget` is the share of the FLOPs of all experts that a token takes on average, router included; without
    one, the number of experts ranges freely from `min_experts` to `max_experts`. `spread` is how far, in experts, a
    token may depart from the average that a budget allows. `mass` is what the rule `top_p` gathers, `ratio` what
    `relative_threshold` asks for, at the start: a `BudgetController` moves them. `noise` is the standard deviation of
    what is added to the scores in training (Shazeer et al. 2017).

    All experts run on at most `batch_threshold` tokens at a time, fewer experts on so many more, which bounds what is
    in flight. A forward of more than `timeout` seconds stops between two such parts. `memory_budget` bounds the bytes
    that a forward keeps for its gradients: above it, experts are computed again in the backward. `cache_entries` is for
    a server of the layer: how many answers it may keep.
    """

    width: int
    hidden: int
    experts: int
    min_experts: int
    max_experts: int
    compute_budget: float | None = None
    spread: float = 1.0
    mass: float = 0.6
    ratio: float = 0.3
    scorer: Scorer = "linear"
    rule: RuleName = "complexity_k"
    estimator: Estimator = "entropy"
    noise: float = 0.0
    gate: Gate = "softmax"
    fallback: Fallback = "dense"
    resilience: bool = True
    security: Security = "standard"
    batch_threshold: int = 16_384
    timeout: float | None = None
    memory_budget: int | None = None
    cache_entries: int = 0
    balance_weight: float = 0.0
    z_weight: float = 0.0

    def __post_init__(self) -> None:
        self._check_counts()
        if self.compute_budget is not None and not 0 < self.compute_budget <= 1:
            raise ValueError(f"compute_budget is {self.compute_budget}; a share over 0 and up to 1 is needed")
        if self.compute_budget is not None and self.rule in STEERED:
            raise ValueError(f"compute_budget is set; a BudgetController holds the rule {self.rule} to a share instead")
        for name in ("mass", "ratio"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a share between 0 and 1 is needed")
        for name in ("spread", "noise", "balance_weight", "z_weight", "timeout", "memory_budget", "cache_entries"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; a finite number from 0 up is needed")

    def _check_counts(self) -> None:
        for name in ("width", "hidden", "experts", "max_experts", "batch_threshold"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if not 0 <= self.min_experts <= self.max_experts <= self.experts:
            raise ValueError(
                f"min_experts {self.min_experts}, max_experts {self.max_experts} and experts {self.experts} "
                "must stand in this order, from 0 up"
            )
        if self.min_experts == 0 and self.gate == "softmax":
            raise ValueError("min_experts is 0; a softmax gate needs at least 1 expert to weigh")

    @classmethod
    def for_inference(cls) -> Self:
        """768 wide, 8 experts of which 1 to 3 serve a token; a router that fails is stood in for."""
        return cls(
            width=768,
            hidden=384,
            experts=8,
            min_experts=1,
            max_experts=3,
            batch_threshold=500,
            cache_entries=10_000,
        )

    @classmethod
    def for_training(cls) -> Self:
        """1024 wide, 16 experts of which 2 to 8 serve a token; a router that fails stops the run.

        The weights of the losses are those of Switch Transformer (Fedus et al. 2021) and ST-MoE (Zoph et al. 2022).
        """
        return cls(
            width=1024,
            hidden=256,
            experts=16,
            min_experts=2,
            max_experts=8,
            resilience=False,
            security="minimal",
            batch_threshold=2_000,
            timeout=60.0,
            memory_budget=8 * 2**30,
            balance_weight=0.01,
            z_weight=0.001,
        )

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Self:
        """The inference settings (TIDEGATE_MOE_PROFILE=training: the training ones) with what the mapping overrides.

        Every field is named TIDEGATE_MOE_ and its name in capitals, such as TIDEGATE_MOE_MAX_EXPERTS. A COMPUTE_BUDGET,
        TIMEOUT (seconds) or MEMORY_BUDGET (bytes) of `none` is no limit; RESILIENCE is true or false. Raises ValueError
        naming the variable that is unknown or wrong.
        """
        given = {
            name.removeprefix(ENVIRONMENT_PREFIX).lower(): text
            for name, text in environment.items()
            if name.startswith(ENVIRONMENT_PREFIX)
        }
        profile = given.pop("profile", "inference")
        if profile not in ("inference", "training"):
            raise ValueError(f"{ENVIRONMENT_PREFIX}PROFILE is {profile!r}; inference or training is expected")
        base = cls.for_training() if profile == "training" else cls.for_inference()
        types = {field.name: field.type for field in fields(cls)}
        for name in given:
            if name not in types:
                known = ", ".join(ENVIRONMENT_PREFIX + known.upper() for known in ("profile", *types))
                raise ValueError(f"{ENVIRONMENT_PREFIX}{name.upper()} is not a setting; known are {known}")
        return replace(base, **{name: _read(name, types[name], text) for name, text in given.items()})


def _flag(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _number(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def _whole(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


_READERS: Mapping[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (_flag, "true or false"),
    float | None: (_number, "a number or none"),
    int | None: (_whole, "a whole number or none"),
}


def _read(name: str, kind: Any, text: str) -> Any:
    variable = ENVIRONMENT_PREFIX + name.upper()
    if choices := get_args(kind) if kind not in _READERS else ():
        if text not in choices:
            raise ValueError(f"{variable} is {text!r}; one of {', '.join(choices)} is expected")
        return text
    reader, expected = _READERS[kind]
    try:
        return reader(text.strip())
    except (ValueError, KeyError):
        raise ValueError(f"{variable} is {text!r}; {expected} is expected") from None
