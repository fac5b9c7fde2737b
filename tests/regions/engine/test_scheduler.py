"""The scheduler with a real runner and a numpy model: batches, bounds, departures, failures and draining."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from regions.engine.runner import Runner
from regions.engine.scheduler import Overloaded, Scheduler
from regions.models.base import Item
from regions.settings import BatchSettings, QueueSettings
from tests.regions.fakes import Doubler, LetterCounts, Record


class Engine:
    """A scheduler at work, and the parts that tests look at."""

    def __init__(self, **settings: Any) -> None:
        self.model = LetterCounts()
        self.record = Record()
        self.runner = Runner()
        self.scheduler = Scheduler(
            self.runner,
            batch=settings.get("batch", BatchSettings()),
            queue=settings.get("queue", QueueSettings()),
            observer=self.record,
        )
        self.work = asyncio.create_task(self.scheduler.work())

    def item(self, text: str, budget: float | None = None) -> Item:
        return self.model.prepare_text(text, param="text", truncate=False, budget=budget)

    def submit(self, *texts: str, budget: float | None = None) -> asyncio.Task[Any]:
        return asyncio.create_task(self.scheduler.submit(self.model, [self.item(text, budget) for text in texts]))

    async def hold(self) -> asyncio.Task[Any]:
        """Keeps the runner busy with the text "first" until `model.gate` is set."""
        self.model.gate.clear()
        task = self.submit("first")
        assert await asyncio.to_thread(self.model.entered.acquire, timeout=20)
        return task

    async def close(self) -> None:
        self.model.gate.set()
        self.work.cancel()
        await asyncio.gather(self.work, return_exceptions=True)
        await asyncio.to_thread(self.runner.close)


@pytest.fixture
async def engines() -> AsyncIterator[Any]:
    made: list[Engine] = []

    def make(**settings: Any) -> Engine:
        made.append(Engine(**settings))
        return made[-1]

    yield make
    for engine in made:
        await engine.close()


async def test_outcomes_come_in_the_order_of_the_items(engines: Any) -> None:
    engine = engines()
    outcomes = await engine.submit("a", "bb", "cab")
    rows = np.stack([outcome.arrays["embedding"][:3] for outcome in outcomes])
    assert rows.tolist() == [[1, 0, 0], [0, 2, 0], [1, 1, 1]]
    assert engine.record.batches == [("letters", 3, 3)]


async def test_requests_that_wait_share_a_forward(engines: Any) -> None:
    engine = engines()
    first = await engine.hold()
    waiting = [engine.submit(f"text {index}") for index in range(20)]
    await asyncio.sleep(0)
    engine.model.gate.set()
    await asyncio.gather(first, *waiting)
    assert engine.model.batches == [["first"], [f"text {index}" for index in range(20)]]


async def test_groups_and_models_do_not_share_a_forward(engines: Any) -> None:
    engine = engines()
    doubler = Doubler()
    row = doubler.prepare_tensor(np.ones((2, 4), dtype=np.float32), name="x", budget=None)
    first = await engine.hold()
    others = [
        engine.submit("low", budget=0.2),
        engine.submit("high", budget=0.9),
        asyncio.create_task(engine.scheduler.submit(doubler, [row])),
        engine.submit("low too", budget=0.2),
    ]
    await asyncio.sleep(0)
    engine.model.gate.set()
    await asyncio.gather(first, *others)
    assert engine.model.batches == [["first"], ["low", "low too"], ["high"]]
    assert engine.record.batches[-1] == ("doubler", 1, 2)
    assert others[2].result()[0].arrays["total"].tolist() == [4, 4]


async def test_a_large_request_runs_in_several_batches(engines: Any) -> None:
    engine = engines(batch=BatchSettings(max_size=8))
    outcomes = await engine.submit(*["b" * (index + 1) for index in range(20)])
    assert [outcome.arrays["embedding"][1] for outcome in outcomes] == list(range(1, 21))
    assert [len(batch) for batch in engine.model.batches] == [8, 8, 4]


async def test_one_text_passes_a_request_of_many(engines: Any) -> None:
    engine = engines(batch=BatchSettings(max_size=8))
    first = await engine.hold()
    large = engine.submit(*["large"] * 40)
    await asyncio.sleep(0)
    small = engine.submit("small")
    await asyncio.sleep(0)
    engine.model.gate.set()
    await asyncio.gather(first, large, small)
    assert engine.model.batches[1] == ["large", "small", *["large"] * 6]
    assert [len(batch) for batch in engine.model.batches] == [1, 8, 8, 8, 8, 8, 1]


async def test_a_batch_gathers_while_a_request_is_on_its_way(engines: Any) -> None:
    engine = engines(batch=BatchSettings(window=20.0))
    with engine.scheduler.expecting():
        early = engine.submit("early")
        for _ in range(10):
            await asyncio.sleep(0)
        assert engine.model.batches == []
        late = engine.submit("late")
        await asyncio.sleep(0)
    await asyncio.gather(early, late)
    assert engine.model.batches == [["early", "late"]]


async def test_the_window_ends_although_a_request_stays_away(engines: Any) -> None:
    engine = engines(batch=BatchSettings(window=0.01))
    with engine.scheduler.expecting():
        await asyncio.wait_for(engine.submit("alone"), timeout=20)
    assert engine.model.batches == [["alone"]]


async def test_a_full_batch_does_not_wait(engines: Any) -> None:
    engine = engines(batch=BatchSettings(max_size=2, window=60.0))
    with engine.scheduler.expecting():
        await asyncio.wait_for(engine.submit("one", "two"), timeout=20)
    assert engine.model.batches == [["one", "two"]]


async def test_what_was_cancelled_is_never_computed(engines: Any) -> None:
    engine = engines()
    first = await engine.hold()
    gone, stays = engine.submit("gone", "gone too"), engine.submit("stays")
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    engine.model.gate.set()
    await asyncio.gather(first, stays)
    assert gone.cancelled()
    assert engine.model.batches == [["first"], ["stays"]]


async def test_a_deadline_takes_a_request_out_of_the_queue(engines: Any) -> None:
    engine = engines()
    first = await engine.hold()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await engine.scheduler.submit(engine.model, [engine.item("late")])
    engine.model.gate.set()
    await first
    await engine.submit("next")
    assert engine.model.batches == [["first"], ["next"]]


async def test_cancelling_what_already_runs_harms_no_one(engines: Any) -> None:
    engine = engines()
    running = await engine.hold()
    waiting = engine.submit("next")
    running.cancel()
    await asyncio.sleep(0)
    engine.model.gate.set()
    assert len(await waiting) == 1
    assert running.cancelled()


async def test_an_item_that_fails_fails_alone(engines: Any) -> None:
    engine = engines()
    first = await engine.hold()
    good = [engine.submit(f"good {index}") for index in range(6)]
    bad = engine.submit("fine", "poison")
    more = [engine.submit(f"more {index}") for index in range(6)]
    await asyncio.sleep(0)
    engine.model.gate.set()
    answers = await asyncio.gather(first, *good, *more)
    assert all(len(answer) == 1 for answer in answers)
    with pytest.raises(ArithmeticError, match="poison"):
        await bad


async def test_the_rest_of_a_failed_request_is_not_computed(engines: Any) -> None:
    engine = engines(batch=BatchSettings(max_size=1))
    with pytest.raises(ArithmeticError):
        await engine.submit("poison", "never", "never")
    await engine.submit("next")
    assert engine.model.batches == [["poison"], ["next"]]


async def test_too_many_requests_are_refused_at_once(engines: Any) -> None:
    engine = engines(queue=QueueSettings(max_requests=3))
    first = await engine.hold()
    waiting = [engine.submit("one"), engine.submit("two")]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await engine.submit("three")
    engine.model.gate.set()
    await asyncio.gather(first, *waiting)
    assert len(await engine.submit("again")) == 1


async def test_too_many_tokens_are_refused_at_once_but_one_large_request_may_pass(engines: Any) -> None:
    engine = engines(queue=QueueSettings(max_tokens=4))
    first = await engine.hold()
    large = engine.submit("a b c d e f g")
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await engine.submit("one")
    large.cancel()
    await asyncio.sleep(0)
    small = engine.submit("one")
    await asyncio.sleep(0)
    engine.model.gate.set()
    await asyncio.gather(first, small)


async def test_draining_finishes_what_is_here_and_takes_no_more(engines: Any) -> None:
    engine = engines()
    first = await engine.hold()
    waiting = engine.submit("second")
    await asyncio.sleep(0)
    drained = asyncio.create_task(engine.scheduler.drain(20))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await engine.submit("late")
    engine.model.gate.set()
    assert await drained
    assert first.done()
    assert waiting.done()
    assert engine.model.batches == [["first"], ["second"]]


async def test_draining_is_bounded(engines: Any) -> None:
    engine = engines()
    stuck = await engine.hold()
    assert not await engine.scheduler.drain(0.01)
    with pytest.raises(Overloaded):
        await stuck


async def test_a_closed_runner_is_said_and_not_waited_for(engines: Any) -> None:
    engine = engines()
    await asyncio.to_thread(engine.runner.close)
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(engine.submit("text"), timeout=20)


async def test_no_items_need_no_forward(engines: Any) -> None:
    engine = engines()
    assert await engine.scheduler.submit(engine.model, []) == []
