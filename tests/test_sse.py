"""The closing event of a stream is held back however the bytes are cut, and nothing else is."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from app.sse import EndOfStream

CLOSING = b"data: [DONE]\n\n"
EVENTS = st.sampled_from(
    [
        b'data: {"x": 1}\n\n',
        b'data: {"text": "say data: [DONE] now"}\n\n',
        b"data: [DONE] is near\n\n",
        b": comment\r\n\r\n",
        b"event: ping\ndata: data: [DONE]\n\n",
        b"data: [DONE",
        b"\n",
    ]
)


def cut(content: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(content) + 1) for place in places), len(content)]
    return [content[start:end] for start, end in pairwise(edges)]


@given(st.lists(EVENTS, max_size=5), st.lists(st.integers(0, 10_000), max_size=8), st.booleans())
@settings(deadline=None, max_examples=500)
def test_only_the_closing_event_is_held(events: list[bytes], places: list[int], closes: bool) -> None:
    before = b"".join(events)
    if not before.endswith(b"\n"):
        before += b"\n"
    end = EndOfStream()
    passed = b"".join(end.feed(part) for part in cut(before + (CLOSING if closes else b""), places))
    held_early = CLOSING.strip() in [line.strip() for line in before.splitlines()]
    if closes and not held_early:
        assert (passed, end.held, end.found) == (before, CLOSING, True)
    assert passed + end.held == before + (CLOSING if closes else b"")
    assert end.found is (closes or held_early)


def test_what_may_not_become_the_closing_event_is_not_waited_for() -> None:
    end = EndOfStream()
    assert end.feed(b"data: {") == b"data: {"
    assert end.feed(b"data: [DONE]\n") == b"data: [DONE]\n"  # in the middle of a line
    assert end.feed(b"data: [DO") == b""
    assert end.feed(b"NE]\n\n") == b""
    assert end.held == CLOSING
