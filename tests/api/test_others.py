"""What is no request of inference: start and end, and an application that is built when it is asked for."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager

import pytest

from app.api import others
from app.api.others import Others


class NoHealth:
    def has(self, path):
        return path == "/livez"

    async def __call__(self, _scope, _receive, send):
        await send("alive")


class Built:
    """Counts how often it was built, and on which threads."""

    def __init__(self):
        self.threads = []

    def __call__(self):
        self.threads.append(threading.current_thread())
        time.sleep(0.05)

        async def application(scope, _receive, send):
            await send(scope["path"])

        return application


@asynccontextmanager
async def uneventful():
    yield


async def ask(app, path):
    sent = []

    async def send(message):
        sent.append(message)

    await app({"type": "http", "path": path}, None, send)
    return sent


async def live(app, *received):
    """What is sent to a server that says all of this."""
    waiting, sent = iter(received), []

    async def receive():
        return {"type": next(waiting)}

    async def send(message):
        sent.append(message)

    try:
        await app({"type": "lifespan"}, receive, send)
    except RuntimeError:
        sent.append("raised")
    return sent


async def test_it_is_built_once_off_the_loop_however_many_ask_at_once():
    built = Built()
    app = Others(uneventful, NoHealth(), built)
    answers = await asyncio.gather(*(ask(app, f"/{n}") for n in range(20)))
    assert answers == [[f"/{n}"] for n in range(20)]
    assert len(built.threads) == 1
    assert built.threads[0] is not threading.main_thread()


async def test_health_waits_for_no_build():
    built = Built()
    assert await ask(Others(uneventful, NoHealth(), built), "/livez") == ["alive"]
    assert built.threads == []


async def test_it_is_built_unasked_once_the_start_is_over(monkeypatch):
    monkeypatch.setattr(others, "SETTLED", 0.0)
    built = Built()
    app = Others(uneventful, NoHealth(), built)
    await app.settle()
    await ask(app, "/docs")
    assert len(built.threads) == 1


async def test_a_build_that_fails_is_tried_anew():
    outcomes = iter([RuntimeError("no"), Built()()])

    def build():
        found = next(outcomes)
        if isinstance(found, Exception):
            raise found
        return found

    app = Others(uneventful, NoHealth(), build)
    with pytest.raises(RuntimeError):
        await ask(app, "/docs")
    assert await ask(app, "/docs") == ["/docs"]


async def test_the_lifetime_spans_start_and_end():
    seen = []

    @asynccontextmanager
    async def lifetime():
        seen.append("in")
        yield
        seen.append("out")

    sent = await live(Others(lifetime, NoHealth(), Built()), "lifespan.startup", "lifespan.shutdown")
    assert seen == ["in", "out"]
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("stage", ["startup", "shutdown"])
async def test_a_start_or_end_that_fails_is_told_in_a_line(stage):
    @asynccontextmanager
    async def lifetime():
        if stage == "startup":
            raise RuntimeError("the disk is full")
        yield
        raise RuntimeError("the disk is full")

    *_, failed, raised = await live(Others(lifetime, NoHealth(), Built()), "lifespan.startup", "lifespan.shutdown")
    assert failed == {"type": f"lifespan.{stage}.failed", "message": "RuntimeError: the disk is full"}
    assert raised == "raised"
