"""Models of four families with random weights: their own choice reproduced, others executed and counted as chosen.

Shapes: T tokens, E experts, D width.
"""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertModel,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from regions.moe.budget import BudgetController
from regions.moe.complexity import entropy
from regions.moe.hugging_face import DynamicExperts, load
from regions.moe.rules import ComplexityK, RelativeThreshold, SequenceBudget, TopK, TopP

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
QWEN = SIZES | {"moe_intermediate_size": 24, "num_experts": 6, "decoder_sparse_step": 1}
MODELS = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=6)),
    "olmoe": lambda: OlmoeForCausalLM(OlmoeConfig(**SIZES, num_experts=6)),
    "qwen2": lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**QWEN, shared_expert_intermediate_size=16)),
    "qwen3": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**QWEN, head_dim=8, norm_topk_prob=True)),
}
IDS = torch.arange(1, 41).view(2, 20)


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval().requires_grad_(requires_grad=False)


def test_the_models_own_number_gives_its_own_answer(model):
    own = model(IDS).logits
    with DynamicExperts(model, TopK(2)) as dynamic:
        torch.testing.assert_close(model(IDS).logits, own, atol=1e-5, rtol=1e-5)
        figures = dynamic.read()
    assert figures.executed == figures.own_choice
    assert figures.tokens == 2 * IDS.numel()


def test_removed_it_leaves_the_model_as_it_was(model):
    own, state, implementation = model(IDS).logits, set(model.state_dict()), model.get_experts_implementation()
    with DynamicExperts(model, TopK(1)):
        assert float((model(IDS).logits - own).abs().max()) > 1e-3
        assert set(model.state_dict()) == state
    assert torch.equal(model(IDS).logits, own)
    assert model.get_experts_implementation() == implementation


@pytest.mark.parametrize("rule", [TopP(0.7, 1, 6), RelativeThreshold(0.2, 1, 5), ComplexityK(3.0, 2.0, 1, 6)])
def test_each_token_gets_the_experts_that_the_rule_names(model, rule):
    """Against a slow loop over tokens and experts, in the first layer's block."""
    block = model.model.layers[0].mlp
    x_TD = 0.5 * torch.randn(30, 32, generator=torch.Generator().manual_seed(1))
    scores_TE = functional.linear(x_TD, block.gate.weight)
    chosen_TE = rule.choose(scores_TE, lambda: entropy(scores_TE), [30])
    assert len(chosen_TE.sum(dim=1).unique()) > 2
    expected_TD = torch.zeros_like(x_TD)
    for token in range(30):
        shares_E = scores_TE[token].softmax(dim=0) * chosen_TE[token]
        if getattr(block.gate, "norm_topk_prob", True):
            shares_E = shares_E / shares_E.sum()
        for expert in chosen_TE[token].nonzero()[:, 0]:
            gate_F, up_F = (block.experts.gate_up_proj[expert] @ x_TD[token]).chunk(2)
            inner_F = functional.silu(gate_F) * up_F
            expected_TD[token] += shares_E[expert] * (block.experts.down_proj[expert] @ inner_F)
    if hasattr(block, "shared_expert"):
        expected_TD += block.shared_expert_gate(x_TD).sigmoid() * block.shared_expert(x_TD)
    with DynamicExperts(model, rule):
        actual_TD = block(x_TD.view(2, 15, 32)).view(30, 32)
    torch.testing.assert_close(actual_TD, expected_TD, atol=1e-4, rtol=1e-4)


def test_flops_are_those_of_the_flop_counter(model):
    block = model.model.layers[1].mlp
    x_TD = torch.randn(30, 32, generator=torch.Generator().manual_seed(1))
    with DynamicExperts(model, TopP(0.6, 1, 4)) as dynamic, FlopCounterMode(display=False) as counter:
        _, weights_TK, indices_TK = block.gate(x_TD)
        block.experts(x_TD, indices_TK, weights_TK)
        figures = dynamic.read()
    assert figures.executed == counter.get_total_flops()
    assert 0.1 < figures.share < 0.6


def test_it_generates_the_same_with_and_without_a_cache(model):
    with DynamicExperts(model, TopP(0.6, 1, 4)):
        with_cache, without = (
            model.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
        )
    assert with_cache.shape == (2, 26)
    assert torch.equal(with_cache, without)


def test_it_trains_with_the_models_own_balance_loss(model):
    model.train().requires_grad_()
    with DynamicExperts(model, TopP(0.6, 1, 4)):
        output = model(IDS, labels=IDS, output_router_logits=True)
        output.loss.backward()
    assert float(output.aux_loss.detach()) > 0
    for layer in model.model.layers:
        assert float(layer.mlp.gate.weight.grad.abs().sum()) > 0
        assert float(layer.mlp.experts.down_proj.grad.abs().sum()) > 0


@pytest.mark.parametrize("rule", [TopP(0.5, 1, 6), RelativeThreshold(0.5, 1, 6)])
def test_a_controller_holds_it_to_a_share(model, rule):
    with DynamicExperts(model, rule) as dynamic:
        controller = BudgetController(dynamic, 0.5)
        shares = []
        for _ in range(60):
            model(IDS)
            shares.append(dynamic.read().share)
            controller.observe(shares[-1])
    assert sum(shares[-20:]) / 20 == pytest.approx(0.5, abs=0.03)
    assert abs(shares[0] - 0.5) > 0.03


def test_weights_come_from_a_directory(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, dynamic = load(tmp_path, TopP(0.6, 1, 4))
    with DynamicExperts(model, TopP(0.6, 1, 4)):
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
    assert not loaded.training
    assert dynamic.read().executed > 0


def test_what_it_cannot_do_is_refused(model):
    with pytest.raises(ValueError, match="which a decoder does not know"):
        DynamicExperts(model, SequenceBudget(0.5, 0, 6))
    with DynamicExperts(model, TopK(2)) as dynamic, pytest.raises(ValueError, match="TopK has no level"):
        dynamic.steer(0.5)
    bert = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match="BertModel has none of the routers of Mixtral, Olmoe"):
        DynamicExperts(bert, TopK(2))
