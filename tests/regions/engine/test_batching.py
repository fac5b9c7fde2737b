"""Packing: nothing lost, doubled or mixed, first come first served, bounds held."""

from hypothesis import given
from hypothesis import strategies as st

from regions.engine.batching import Pack, Waiting, pack, patience

queues = st.lists(st.tuples(st.integers(1, 300), st.sampled_from("abc")), max_size=60).map(
    lambda rows: [Waiting(key, cost, group, arrived=key / 8) for key, (cost, group) in enumerate(rows)]
)
sizes = st.integers(1, 12)
budgets = st.integers(1, 400)


def run_all(queue: list[Waiting], max_size: int, max_tokens: int) -> list[tuple[Pack, list[Waiting]]]:
    """Packs until nothing waits; each batch with its inputs."""
    waiting = {item.key: item for item in queue}
    batches = []
    while (batch := pack(waiting.values(), max_size=max_size, max_tokens=max_tokens)) is not None:
        batches.append((batch, [waiting.pop(key) for key in batch.keys]))
    return batches


@given(queues, sizes, budgets)
def test_nothing_is_lost_or_doubled(queue: list[Waiting], max_size: int, max_tokens: int) -> None:
    keys = [item.key for _, items in run_all(queue, max_size, max_tokens) for item in items]
    assert sorted(keys) == [item.key for item in queue]


@given(queues, sizes, budgets)
def test_groups_never_mix(queue: list[Waiting], max_size: int, max_tokens: int) -> None:
    assert all(len({item.group for item in items}) == 1 for _, items in run_all(queue, max_size, max_tokens))


@given(queues, sizes, budgets)
def test_a_group_runs_in_order_of_arrival(queue: list[Waiting], max_size: int, max_tokens: int) -> None:
    order = [item for _, items in run_all(queue, max_size, max_tokens) for item in items]
    for group in "abc":
        keys = [item.key for item in order if item.group == group]
        assert keys == sorted(keys)


@given(queues, sizes, budgets)
def test_the_oldest_input_is_always_in_the_next_batch(queue: list[Waiting], max_size: int, max_tokens: int) -> None:
    waiting = [item.key for item in queue]
    for batch, items in run_all(queue, max_size, max_tokens):
        assert batch.keys[0] == waiting[0]
        assert batch.oldest == items[0].arrived
        waiting = [key for key in waiting if key not in batch.keys]


@given(queues, sizes, budgets)
def test_bounds_hold(queue: list[Waiting], max_size: int, max_tokens: int) -> None:
    for batch, items in run_all(queue, max_size, max_tokens):
        assert 1 <= len(items) <= max_size
        assert batch.tokens == sum(item.cost for item in items)
        assert batch.tokens <= max_tokens or len(items) == 1


@given(queues, sizes, budgets)
def test_a_batch_that_is_not_full_holds_its_whole_group(queue: list[Waiting], max_size: int, max_tokens: int) -> None:
    batch = pack(queue, max_size=max_size, max_tokens=max_tokens)
    if batch is not None and not batch.full:
        assert list(batch.keys) == [item.key for item in queue if item.group == queue[0].group]


def test_nothing_waits() -> None:
    assert pack([], max_size=4, max_tokens=4) is None


@given(st.floats(0, 100), st.floats(0, 100), st.booleans())
def test_patience_ends_with_the_window(oldest: float, now: float, full: bool) -> None:
    batch = Pack((1,), 1, oldest, full)
    wait = patience(batch, now=now, window=0.5, more_coming=True)
    assert wait >= 0
    assert (wait == 0) == (full or oldest + 0.5 <= now)
    assert patience(batch, now=now, window=0.5, more_coming=False) == 0
