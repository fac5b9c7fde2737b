"""What each rule chooses: by hand-made scores, within its bounds, and whatever lies beside a text.

Shapes: T tokens, E experts.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regions.moe.rules import ComplexityK, RelativeThreshold, SequenceBudget, TopK, TopP, places


def chosen(rule, scores, complexity=None, lengths=None):
    scores_TE = torch.tensor(scores)
    complexity_T = torch.zeros(len(scores_TE)) if complexity is None else torch.tensor(complexity)
    return rule.choose(scores_TE, lambda: complexity_T, lengths or [len(scores_TE)]).int().tolist()


def never():
    raise AssertionError("this rule has no use for complexities")


def logs(*shares):
    return [math.log(share) for share in shares]


def test_places_break_ties_by_the_order_of_the_experts():
    assert places(torch.tensor([[1.0, 3.0, 3.0, 0.0]])).tolist() == [[2, 0, 1, 3]]


def test_top_k_gives_every_token_as_many():
    assert chosen(TopK(2), [[0.1, 0.5, 0.3], [3.0, 2.0, 1.0]]) == [[0, 1, 1], [1, 1, 0]]


def test_top_p_takes_the_fewest_that_reach_the_mass():
    sure, unsure = logs(0.9, 0.06, 0.04), logs(0.4, 0.35, 0.25)
    assert chosen(TopP(0.7, 1, 3), [sure, unsure]) == [[1, 0, 0], [1, 1, 0]]
    assert chosen(TopP(0.8, 1, 3), [sure, unsure]) == [[1, 0, 0], [1, 1, 1]]
    assert chosen(TopP(0.8, 2, 2), [sure, unsure]) == [[1, 1, 0], [1, 1, 0]]


def test_a_relative_threshold_asks_for_a_part_of_the_largest():
    assert chosen(RelativeThreshold(0.5, 1, 3), [logs(8, 4, 3), logs(8, 7, 6)]) == [[1, 1, 0], [1, 1, 1]]
    assert chosen(RelativeThreshold(1.0, 1, 3), [logs(8, 4, 3)]) == [[1, 0, 0]]


def test_complexity_sets_the_count_between_its_bounds():
    rule = ComplexityK(2.0, 1.0, 1, 3)
    assert chosen(rule, [[3.0, 2.0, 1.0]] * 3, [0.0, 0.5, 1.0]) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_what_a_sequence_budget_rounds_off_is_given_in_a_later_layer():
    scores, given, spent = [[0.3, 0.2, 0.1, 0.0]], [], 0.0
    for share in (0.4, 0.4, 0.3, 0.5):
        given.append(sum(map(sum, chosen(SequenceBudget(share, 0, 4, spent), scores))))
        spent += share
    assert given == [1, 2, 1, 2]


def test_a_sequence_budget_goes_to_the_best_pairs_of_the_text():
    scores = [[9.0, 8.0, 7.0], [1.0, 0.0, 0.5]]
    assert chosen(SequenceBudget(0.5, 0, 3), scores) == [[1, 1, 1], [0, 0, 0]]
    assert chosen(SequenceBudget(0.7, 0, 3), scores) == [[1, 1, 1], [1, 0, 0]]
    assert chosen(SequenceBudget(0.5, 0, 3), scores, lengths=[1, 1]) == [[1, 0, 0], [1, 0, 0]]
    assert chosen(SequenceBudget(0.5, 1, 2), scores) == [[1, 1, 0], [1, 0, 0]]


def test_equal_scores_fall_to_the_first():
    assert chosen(SequenceBudget(0.5, 0, 2), [[1.0, 1.0], [1.0, 1.0]]) == [[1, 1], [0, 0]]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
    levels=st.integers(1, 50),
)
def test_a_text_gets_what_it_pays_for_whoever_is_beside_it(lengths, share, seed, levels):
    scores_TE = torch.randint(levels, (sum(lengths), 6), generator=torch.Generator().manual_seed(seed)).float()
    rule = SequenceBudget(share, 0, 6)
    together = rule.choose(scores_TE, never, lengths).split(lengths)
    for length, part_TE, mask_TE in zip(lengths, scores_TE.split(lengths), together, strict=True):
        assert int(mask_TE.sum()) == max(1, int(share * length * 6))
        assert torch.equal(rule.choose(part_TE, never, [length]), mask_TE)
        if bool((~mask_TE).any()):
            assert float(part_TE[mask_TE].min()) >= float(part_TE[~mask_TE].max())


@pytest.mark.parametrize("rule", [TopP(0.6, 1, 4), RelativeThreshold(0.3, 1, 4), ComplexityK(2.5, 1.5, 1, 4)])
def test_bounds_hold_and_the_best_expert_is_always_there(rule):
    scores_TE = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    mask_TE = rule.choose(scores_TE, lambda: torch.linspace(0, 1, 200), [200])
    count_T = mask_TE.sum(dim=1)
    assert (int(count_T.min()), int(count_T.max())) == (1, 4)
    assert bool(mask_TE.gather(1, scores_TE.argmax(dim=1, keepdim=True)).all())
