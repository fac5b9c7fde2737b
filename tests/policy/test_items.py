"""Answers to several texts, taken apart and put together."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.policy.items import merged, split


def answer(vectors, tokens=10, model="m", **more):
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps({"object": "list", "data": data, "model": model, "usage": usage, **more}).encode()


def test_each_text_gets_its_own_vector_and_share():
    parts = split(answer([[1.5, -2e-05], [3.0]], tokens=10), ["a" * 6, "b" * 4])
    first, second = map(json.loads, parts)
    assert first == json.loads(answer([[1.5, -2e-05]], tokens=6))
    assert second == json.loads(answer([[3.0]], tokens=4))


def test_vectors_keep_their_bytes():
    body = answer(["NUM"]).replace(b'"NUM"', b"[0.10000000149011612,1e-7, -0.0]")
    (part,) = split(body, ["a"])
    assert b"[0.10000000149011612,1e-7, -0.0]" in part
    assert b"[0.10000000149011612,1e-7, -0.0]" in merged([part])


def test_order_is_that_of_the_indexes():
    body = json.loads(answer([[1], [2], [3]], tokens=3))
    body["data"].reverse()
    parts = split(json.dumps(body).encode(), ["a", "b", "c"])
    assert [json.loads(part)["data"][0]["embedding"] for part in parts] == [[1], [2], [3]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        answer([[1]]),
        answer([[1], [2], [3]]),
        answer([[1], [2]], created=1),
        answer([[1], [2]]).replace(b'"index": 1', b'"index": 0'),
        answer([[1], [2]]).replace(b'"index": 1', b'"index": 7'),
        answer([[1], [2]]).replace(b'"total_tokens": 10', b'"total_tokens": 11'),
        answer([[1], [2]]).replace(b'"total_tokens": 10', b'"total_tokens": 10, "details": {"flops_share": 0.5}'),
        answer([[1], [2]]).replace(b'"usage"', b'"used"'),
        b"\xff" + answer([[1], [2]]),
    ],
)
def test_what_says_more_or_less_is_left_whole(body):
    assert split(body, ["a", "b"]) is None


def test_answers_of_two_models_do_not_go_together():
    assert merged([answer([[1]]), answer([[2]], model="other")]) is None


vectors = st.lists(st.floats(-1, 1), min_size=1, max_size=3)


@given(st.lists(st.tuples(st.text(), vectors), min_size=1, max_size=20), st.integers(0, 5000))
@settings(deadline=None)
def test_apart_and_together_is_the_same(items, tokens):
    body = answer([vector for _, vector in items], tokens)
    parts = split(body, [text for text, _ in items])
    assert json.loads(merged(parts)) == json.loads(body)
