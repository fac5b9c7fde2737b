"""The settings of a layer: the factories' figures, and an environment that is told what is wrong with it."""

import pytest

from regions.moe.config import MoEConfig


def test_factories_hold_the_figures_of_the_product():
    inference, training = MoEConfig.for_inference(), MoEConfig.for_training()
    assert (inference.width, inference.experts, inference.min_experts, inference.max_experts) == (768, 8, 1, 3)
    assert (training.width, training.experts, training.min_experts, training.max_experts) == (1024, 16, 2, 8)
    assert inference.resilience
    assert not training.resilience
    assert training.balance_weight > 0
    assert training.z_weight > 0
    assert (inference.cache_entries, inference.batch_threshold, inference.security) == (10_000, 500, "standard")
    assert (training.cache_entries, training.batch_threshold, training.security) == (0, 2_000, "minimal")
    assert (training.memory_budget, training.timeout) == (8 * 2**30, 60.0)


def test_from_env_without_settings_is_the_inference_profile():
    assert MoEConfig.from_env({"PATH": "/bin"}) == MoEConfig.for_inference()


def test_from_env_overrides_the_named_profile():
    environment = {
        "TIDEGATE_MOE_PROFILE": "training",
        "TIDEGATE_MOE_WIDTH": "64",
        "TIDEGATE_MOE_COMPUTE_BUDGET": "0.5",
        "TIDEGATE_MOE_FALLBACK": "random",
        "TIDEGATE_MOE_RESILIENCE": "true",
    }
    config = MoEConfig.from_env(environment)
    assert (config.width, config.compute_budget, config.fallback, config.resilience) == (64, 0.5, "random", True)
    assert config.experts == 16
    assert MoEConfig.from_env({"TIDEGATE_MOE_TIMEOUT": "1.5"}).timeout == 1.5
    assert MoEConfig.from_env({"TIDEGATE_MOE_MEMORY_BUDGET": "4096"}).memory_budget == 4096
    assert MoEConfig.from_env({"TIDEGATE_MOE_COMPUTE_BUDGET": "none"}).compute_budget is None


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PROFILE", "turbo", "TIDEGATE_MOE_PROFILE is 'turbo'; inference or training"),
        ("WIDTH", "wide", "TIDEGATE_MOE_WIDTH is 'wide'; a whole number"),
        ("COMPUTE_BUDGET", "half", "TIDEGATE_MOE_COMPUTE_BUDGET is 'half'; a number or none"),
        ("MEMORY_BUDGET", "8GB", "TIDEGATE_MOE_MEMORY_BUDGET is '8GB'; a whole number or none"),
        ("TIMEOUT", "-1", "timeout is -1.0"),
        ("BATCH_THRESHOLD", "0", "batch_threshold is 0"),
        ("SECURITY", "none", "TIDEGATE_MOE_SECURITY is 'none'; one of minimal, standard, strict"),
        ("RESILIENCE", "maybe", "TIDEGATE_MOE_RESILIENCE is 'maybe'; true or false"),
        ("FALLBACK", "hope", "TIDEGATE_MOE_FALLBACK is 'hope'; one of dense, load_balance, single_expert, random"),
        ("DEPTH", "3", "TIDEGATE_MOE_DEPTH is not a setting; known are TIDEGATE_MOE_PROFILE, TIDEGATE_MOE_WIDTH"),
        ("COMPUTE_BUDGET", "1.5", "compute_budget is 1.5"),
        ("COMPUTE_BUDGET", "nan", "compute_budget is nan"),
        ("SPREAD", "inf", "spread is inf"),
        ("MAX_EXPERTS", "9", "min_experts 1, max_experts 9 and experts 8"),
        ("MIN_EXPERTS", "0", "min_experts is 0"),
        ("HIDDEN", "0", "hidden is 0"),
    ],
)
def test_from_env_says_what_is_wrong(name, value, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        MoEConfig.from_env({f"TIDEGATE_MOE_{name}": value})
