"""Packing: nothing lost, doubled or mixed, bounds held, and each request its share."""

from collections import defaultdict
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from regions.engine.batching import FairQueue, Pack, patience


@dataclass(frozen=True)
class Input:
    request: int
    index: int
    cost: int
    group: str


requests = st.lists(
    st.lists(st.tuples(st.integers(1, 300), st.sampled_from("abc")), max_size=20), min_size=1, max_size=12
).map(lambda rows: [[Input(r, i, *row) for i, row in enumerate(inputs)] for r, inputs in enumerate(rows)])
sizes = st.integers(1, 12)
budgets = st.integers(1, 400)


class Queue:
    """The queue under test, what runs from it, and how much of each request."""

    def __init__(self, max_size: int, max_tokens: int) -> None:
        self.queue: FairQueue[Input] = FairQueue()
        self.bounds = {"max_size": max_size, "max_tokens": max_tokens}
        self.served: dict[int, int] = defaultdict(int)

    def add(self, inputs: list[Input], arrived: float = 0.0) -> None:
        self.queue.add(inputs[0].request if inputs else None, [(i, i.cost, i.group) for i in inputs], arrived)

    def run(self) -> tuple[Pack, list[Input]] | None:
        batch = self.queue.next(**self.bounds)
        if batch is None:
            return None
        inputs = [value for value, _ in self.queue.take(batch)]
        for each in inputs:
            self.served[each.request] += each.cost
        return batch, inputs

    def run_all(self) -> list[tuple[Pack, list[Input]]]:
        return list(iter(self.run, None))


@given(requests, sizes, budgets)
def test_nothing_is_lost_or_doubled(arriving: list[list[Input]], max_size: int, max_tokens: int) -> None:
    queue = Queue(max_size, max_tokens)
    for inputs in arriving:
        queue.add(inputs)
    everything = [each for inputs in arriving for each in inputs]
    assert queue.queue.tokens == sum(each.cost for each in everything)
    ran = [each for _, inputs in queue.run_all() for each in inputs]
    assert len(ran) == len(everything)
    assert set(ran) == set(everything)
    assert queue.queue.tokens == 0


@given(requests, sizes, budgets)
def test_batches_are_of_one_group_and_within_bounds(
    arriving: list[list[Input]], max_size: int, max_tokens: int
) -> None:
    queue = Queue(max_size, max_tokens)
    for number, inputs in enumerate(arriving):
        queue.add(inputs, arrived=number / 8)
    left = [each for inputs in arriving for each in inputs]
    for batch, inputs in queue.run_all():
        assert {each.group for each in inputs} == {batch.group}
        assert batch.oldest == min(each.request for each in inputs) / 8
        assert batch.requests == tuple(each.request for each in inputs)
        assert 1 <= len(inputs) <= max_size
        assert batch.tokens == sum(each.cost for each in inputs)
        assert batch.tokens <= max_tokens or len(inputs) == 1
        if not batch.full:
            assert set(inputs) == {each for each in left if each.group == batch.group}
        left = [each for each in left if each not in inputs]


@given(requests, sizes, budgets)
def test_a_request_runs_in_its_own_order_within_a_group(
    arriving: list[list[Input]], max_size: int, max_tokens: int
) -> None:
    queue = Queue(max_size, max_tokens)
    for inputs in arriving:
        queue.add(inputs)
    ran = defaultdict(list)
    for _, inputs in queue.run_all():
        for each in inputs:
            ran[each.request, each.group].append(each.index)
    assert all(indices == sorted(indices) for indices in ran.values())


@given(requests, sizes, budgets, st.data())
def test_what_is_dropped_never_runs(
    arriving: list[list[Input]], max_size: int, max_tokens: int, data: st.DataObject
) -> None:
    queue = Queue(max_size, max_tokens)
    for inputs in arriving:
        queue.add(inputs)
    for _ in range(data.draw(st.integers(0, 3))):
        queue.run()
    gone = data.draw(st.sampled_from(range(len(arriving))))
    before = queue.served[gone]
    queue.queue.drop(gone)
    queue.run_all()
    assert queue.served[gone] == before
    assert queue.queue.tokens == 0
    assert all(
        queue.served[number] == sum(each.cost for each in inputs)
        for number, inputs in enumerate(arriving)
        if number != gone
    )


@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), sizes, st.integers(60, 400), st.integers(1, 30))
def test_requests_that_wait_together_get_equal_shares(
    costs: list[int], max_size: int, max_tokens: int, rounds: int
) -> None:
    """Of one group, each with inputs of a cost of its own: no two are further apart than an input of each."""
    queue = Queue(max_size, max_tokens)
    for number, cost in enumerate(costs):
        queue.add([Input(number, index, cost, "a") for index in range(20_000 // cost)])
    for _ in range(rounds):
        queue.run()
        served = [queue.served[number] for number in range(len(costs))]
        for first, a in enumerate(served):
            for second, b in enumerate(served):
                assert a - b <= costs[first] + costs[second]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 30), st.integers(60, 400), st.integers(1, 60)
)
def test_a_small_request_passes_large_ones(costs: list[int], rounds: int, max_tokens: int, cost: int) -> None:
    """What runs before it is what the others were behind their share, and at most an input of each."""
    queue = Queue(128, max_tokens)
    for number, each in enumerate(costs):
        queue.add([Input(number, index, each, "a") for index in range(20_000 // each)])
    for _ in range(rounds):
        queue.run()
    queue.add([Input(99, 0, cost, "a")])
    before = sum(queue.served.values())
    while 99 not in queue.served:
        queue.run()
    assert sum(queue.served.values()) - before <= 2 * max(costs) * len(costs) + 2 * max_tokens


@given(st.integers(1, 12), st.integers(1, 10), st.integers(1, 60), st.integers(1, 60))
def test_a_large_request_goes_on_however_many_small_ones_come(
    inputs: int, newcomers: int, cost: int, small: int
) -> None:
    """As soon as small requests have run others come in their place, so some always arrived after the large one."""
    queue = Queue(4, 200)
    queue.add([Input(0, index, cost, "a") for index in range(inputs)])
    number = 0
    while queue.served[0] < inputs * cost:
        while number - (len(queue.served) - 1) < newcomers:
            number += 1
            queue.add([Input(number, 0, small, "ab"[number % 2])])
        queue.run()
        # Each token of the large request lets one of each other pass, and one input of each is already on its way.
        assert number * small <= (newcomers + 1) * (inputs * cost + cost + small) + 200


def test_nothing_waits() -> None:
    assert FairQueue[Input]().next(max_size=4, max_tokens=4) is None


@given(st.floats(0, 100), st.floats(0, 100), st.booleans())
def test_patience_ends_with_the_window(oldest: float, now: float, full: bool) -> None:
    batch = Pack("a", (1,), 1, oldest, full)
    wait = patience(batch, now=now, window=0.5, more_coming=True)
    assert wait >= 0
    assert (wait == 0) == (full or oldest + 0.5 <= now)
    assert patience(batch, now=now, window=0.5, more_coming=False) == 0
