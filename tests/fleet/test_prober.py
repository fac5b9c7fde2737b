import asyncio
import time
from contextlib import asynccontextmanager

from app.fleet.prober import Prober
from app.fleet.registry import Registry
from app.fleet.trust import Trust
from tests.fleet.servers import hang, reply, serving, settings_for, until, unused_port

MANAGED = {"managed": True}
QUICK = {"resilience": {"health": {"interval": "20ms", "timeout": "2s"}}}


@asynccontextmanager
async def prober_for(*regions, managed=None, **changes):
    settings = settings_for(*regions, **(QUICK | changes))
    registry = Registry(settings, managed or {}, time.monotonic)
    prober = Prober(registry, settings.resilience.health, time.monotonic, Trust())
    try:
        yield prober, registry
    finally:
        await prober.aclose()


@asynccontextmanager
async def running(prober):
    task = asyncio.create_task(prober.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_each_backend_is_asked_in_its_own_way_and_told_nothing():
    async with serving(reply(200)) as ours, serving(reply(200)) as openai, serving(reply(200)) as kserve:
        regions = (
            [MANAGED],
            [{"url": openai.url, "protocol": "openai", "api_key": "secret"}],
            [{"url": kserve.url, "protocol": "kserve"}],
        )
        async with prober_for(*regions, managed={"r0": ours.url}) as (prober, registry), running(prober):
            await until(lambda: all(backend.health == "up" for backend in registry.backends))
    assert ours.requests[0].line == kserve.requests[0].line == "GET /v2/health/ready HTTP/1.1"
    assert openai.requests[0].line == "GET /v1/models HTTP/1.1"
    assert openai.requests[0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in ours.requests[0].headers
    assert {request.body for server in (ours, openai, kserve) for request in server.requests} == {b""}


async def test_probes_go_on_and_each_opens_its_own_connection():
    async with serving(reply(200)) as server, prober_for([{"url": server.url}]) as (prober, _), running(prober):
        await until(lambda: len(server.requests) >= 3)
        assert server.connections >= 3


async def test_a_backend_that_dies_goes_down_and_comes_back():
    well = True

    async def answer(writer, request):
        await reply(200 if well else 503)(writer, request)

    async with serving(answer) as server, prober_for([{"url": server.url}]) as (prober, registry), running(prober):
        await until(lambda: registry.backends[0].health == "up")
        assert registry.backends[0].condition.latency_ms > 0
        well = False
        await until(lambda: registry.backends[0].health == "down")
        well = True
        await until(lambda: registry.backends[0].health == "up")


async def test_bad_answers_are_bad_probes():
    async with (
        serving(reply(200)) as elsewhere,
        serving(reply(302, b"", f"Location: {elsewhere.url}")) as redirects,
        serving(reply(401)) as refuses,
        serving(hang) as hangs,
        serving(reply(200, bytes(2 << 20))) as floods,
    ):
        urls = [redirects.url, refuses.url, hangs.url, floods.url, f"http://127.0.0.1:{unused_port()}"]
        slow = {"resilience": {"health": {"interval": "20ms", "timeout": "300ms"}}}
        async with prober_for(*([{"url": url}] for url in urls), **slow) as (prober, registry), running(prober):
            await until(lambda: all(backend.health == "down" for backend in registry.backends))
        assert elsewhere.connections == 0


async def test_one_that_hangs_keeps_no_other_waiting():
    async with serving(hang) as hangs, serving(reply(200)) as well:
        patient = {"resilience": {"health": {"interval": "20ms", "timeout": "1h"}}}
        regions = ([{"url": hangs.url}], [{"url": well.url}])
        async with prober_for(*regions, **patient) as (prober, _), running(prober):
            await until(lambda: len(well.requests) >= 3)


async def test_a_prompt_round_brings_a_managed_worker_back_at_once():
    async with serving(reply(200)) as ours, serving(reply(200)) as other:
        regions = ([MANAGED], [{"url": other.url}])
        async with prober_for(*regions, managed={"r0": ours.url}) as (prober, registry):
            backend = registry.backends[0]
            await prober.probe_now()
            for _ in range(5):
                registry.started(backend)
                registry.finished(backend, failed=True, seconds=None)
            registry.refused(backend)
            assert not registry.states()["r0"].up
            await prober.probe_now()
            assert registry.states()["r0"].up
            assert (len(ours.requests), len(other.requests)) == (2, 0)


async def test_a_worker_that_is_starting_is_asked_often():
    async with prober_for([MANAGED], managed={"r0": f"http://127.0.0.1:{unused_port()}"}, resilience={}) as (
        prober,
        registry,
    ):
        pauses = [prober._pause(registry.backends[0]) for _ in range(100)]
        assert all(0.5 <= pause <= 1.0 for pause in pauses)
        registry.probed(registry.backends[0], ok=True, seconds=0.01)
        pauses = [prober._pause(registry.backends[0]) for _ in range(100)]
        assert all(4.5 <= pause <= 5.5 for pause in pauses)
        assert len(set(pauses)) > 50


async def test_a_model_is_described_by_a_backend_that_is_up():
    told = b'{"name": "minilm"}'
    async with serving(reply(200, told)) as server:
        regions = ([{"url": f"http://127.0.0.1:{unused_port()}"}], [{"url": server.url, "models": ["a/b", "minilm"]}])
        async with prober_for(*regions) as (prober, registry):
            registry.refused(registry.backends[0])
            assert await prober.describe_model(registry, "minilm") == {"name": "minilm"}
            assert await prober.describe_model(registry, "a/b") == {"name": "minilm"}
            assert await prober.describe_model(registry, "other") is None
    assert [request.line for request in server.requests] == [
        "GET /v2/models/minilm HTTP/1.1",
        "GET /v2/models/a%2Fb HTTP/1.1",
    ]


async def test_no_description_where_none_is_given():
    async with serving(reply(404)) as server, prober_for([{"url": server.url}]) as (prober, registry):
        assert await prober.describe_model(registry, "minilm") is None
    for odd in (b"[]", b"no json"):
        async with serving(reply(200, odd)) as server, prober_for([{"url": server.url}]) as (prober, registry):
            assert await prober.describe_model(registry, "minilm") is None


async def test_another_configuration_is_followed_and_what_it_left_alone_goes_on():
    async with serving(reply(200)) as old, serving(reply(200)) as kept, serving(reply(200)) as new:
        slow = {"resilience": {"health": {"interval": "1h", "timeout": "2s"}}}
        async with prober_for([{"url": old.url}, {"url": kept.url}], **slow) as (prober, registry), running(prober):
            await until(lambda: all(backend.health == "up" for backend in registry.backends))
            settings = settings_for([{"url": kept.url}, {"url": new.url}], **slow)
            after = Registry(settings, {}, time.monotonic, registry)
            prober.follow(after, settings.resilience.health)
            await until(lambda: all(backend.health == "up" for backend in after.backends))
            assert (len(old.requests), len(kept.requests), len(new.requests)) == (1, 1, 1)
            quick = settings_for([{"url": kept.url}], **QUICK)
            prober.follow(Registry(quick, {}, time.monotonic, after), quick.resilience.health)
            await until(lambda: len(kept.requests) > 3)
            assert (len(old.requests), len(new.requests)) == (1, 1)
