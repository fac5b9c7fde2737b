import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.openai import to_call
from app.policy.cache_key import cache_key, item_keys
from app.types import Call

CALL = Call(
    wire="openai",
    path="/v1/embeddings",
    model="minilm",
    body=b'{"input":"a"}',
    headers=(("content-type", "application/json"),),
    canonical=b'{"input":"a"}',
    cacheable=True,
    stream=False,
    tokens=1,
)

# Short texts over few letters, so that fields often hold each other's content and boundaries are easily moved.
texts = st.text("ab\x00/\ud800", max_size=4)
questions = st.tuples(
    texts,
    st.frozensets(texts, max_size=3),
    st.lists(texts, max_size=2).map(tuple),
    st.sampled_from(["openai", "kserve"]),
    texts,
    texts,
    st.booleans(),
    st.binary(max_size=4),
)


def key(question):
    tenant, permitted, prefer, wire, path, model, stream, canonical = question
    call = replace(CALL, wire=wire, path=path, model=model, stream=stream, canonical=canonical)
    return cache_key(tenant, sorted(permitted), prefer, call)


@given(questions, questions)
@settings(deadline=None, max_examples=500)
def test_keys_are_equal_exactly_where_the_questions_are(one, other):
    assert (key(one) == key(other)) is (one == other)


@pytest.mark.parametrize(
    "other",
    [
        ("t", ("eu-west", "us-east"), (), replace(CALL, path="/v1/embeddingsm", model="inilm")),
        ("t", ("eu-west", "us-east"), (), replace(CALL, model="minilm-moe")),
        ("t", ("eu-west", "us-east"), (), replace(CALL, stream=True)),
        ("t", ("eu-west", "us-east"), (), replace(CALL, canonical=b'{"input":"b"}')),
        ("t", ("eu-west", "us-east"), (), replace(CALL, wire="kserve")),
        ("t", ("eu-westus-east",), (), CALL),
        ("t", ("eu-west",), (), CALL),
        ("t", ("eu-west", "us-east"), ("eu-west",), CALL),
        ("t", ("eu-west",), ("us-east",), CALL),
        ("t", (), (), CALL),
        ("te", ("u-west", "us-east"), (), CALL),
        ("u", ("eu-west", "us-east"), (), CALL),
    ],
)
def test_each_field_counts_and_none_runs_into_the_next(other):
    assert cache_key(*other) != cache_key("t", ("eu-west", "us-east"), (), CALL)


def test_the_order_of_regions_and_the_spelling_of_the_body_do_not_count():
    same = replace(CALL, body=b'{ "input": "a" }', headers=(), tokens=9)
    assert cache_key("t", ("us-east", "eu-west"), (), same) == cache_key("t", ("eu-west", "us-east"), (), CALL)
    assert len(cache_key("t", ("us-east",), (), CALL)) == 32


@given(st.lists(st.text(max_size=4), min_size=2, max_size=4))
@settings(deadline=None)
def test_a_text_among_several_has_the_key_that_it_has_alone(given_texts):
    def call(given):
        return to_call("/v1/embeddings", json.dumps({"model": "m", "input": given}).encode(), 8, sampled=False)

    several = call(given_texts)
    alone = tuple(cache_key("t", ("r",), (), call(text)) for text in given_texts)
    assert item_keys("t", ("r",), (), several) == alone
    assert cache_key("t", ("r",), (), several) not in alone
    assert alone == tuple(cache_key("t", ("r",), (), call([text])) for text in given_texts)
