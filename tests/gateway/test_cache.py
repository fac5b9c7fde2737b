"""The cache as a caller sees it through a real gateway."""

import asyncio
import hashlib
import json
from pathlib import Path

from regions.wire import OWNER_HEADER
from tests.fleet.servers import reply
from tests.running import EMBEDDING, Running, running
from tests.running import gateway as started


async def status(gateway: Running, text: str, control: str) -> tuple[int, str | None]:
    answer = await gateway.embed(text, Cache_Control=control)
    return answer.status_code, answer.headers.get("X-Cache-Status")


async def test_request_directives(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        missing = await gateway.embed("a", Cache_Control="only-if-cached", Accept_Language="de")
        assert (missing.status_code, missing.json()["error"]["code"]) == (504, "cache_miss")
        assert "Cache" in missing.json()["error"]["message"]
        assert await status(gateway, "a", "no-store") == (200, "BYPASS")
        assert await status(gateway, "a", "max-age=60") == (200, "MISS")
        assert await status(gateway, "a", "only-if-cached") == (200, "HIT")
        assert await status(gateway, "a", "no-cache") == (200, "REFRESH")
        await asyncio.sleep(0.01)
        assert await status(gateway, "a", "max-age=0") == (200, "REFRESH")
        assert await status(gateway, "a", "max-age=60") == (200, "HIT")
        assert len(gateway.upstreams["us-east"].posts) == 4


async def test_subjects_of_different_laws_share_no_answer(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        await gateway.embed("a")
        german = await gateway.embed("a", X_Data_Subject="DE")
        assert (german.headers["X-Cache-Status"], german.headers["X-Served-Region"]) == ("MISS", "eu-west")


async def test_errors_and_pages_in_place_of_answers_are_not_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        for region in gateway.upstreams.values():
            region.answer = reply(200, b"<html>sign in</html>", "Content-Type: text/html")
        failed = await gateway.embed("a")
        assert (failed.status_code, failed.json()["error"]["code"]) == (502, "upstream_failed")
        outcomes = [attempt["outcome"] for attempt in (await gateway.records())[-1]["attempts"]]
        assert outcomes == ["content"] * 3
        gateway.upstreams["eu-west"].answer = reply(200, EMBEDDING)
        moved = await gateway.embed("a")
        assert (moved.status_code, moved.headers["X-Cache-Status"]) == (200, "MISS")


async def test_answers_that_are_for_this_request_alone_are_not_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        for region in gateway.upstreams.values():
            region.answer = reply(200, EMBEDDING, "Content-Type: application/json", "Cache-Control: private, no-store")
        assert await status(gateway, "a", "max-age=60") == (200, "MISS")
        assert await status(gateway, "a", "max-age=60") == (200, "MISS")
        for region in gateway.upstreams.values():
            region.answer = reply(200, EMBEDDING)
        assert await status(gateway, "a", "max-age=60") == (200, "MISS")
        assert await status(gateway, "a", "max-age=60") == (200, "HIT")


async def test_sampled_answers_are_computed_anew(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        for temperature, second in ((0, "HIT"), (1, "BYPASS")):
            chat = {"model": "chat", "messages": [], "temperature": temperature}
            await gateway.client.post("/v1/chat/completions", json=chat)
            again = await gateway.client.post("/v1/chat/completions", json=chat)
            assert again.headers["X-Cache-Status"] == second


async def test_a_worker_is_told_whose_request_it_is_and_no_other_server(tmp_path: Path) -> None:
    """What it keeps of one tenant must answer no other; a digest tells tenants apart and names none."""
    keys = ("first-key", "second-key")
    tenants = [
        {
            "id": f"tenant-{number}",
            "keys": ["sha256:" + hashlib.sha256(key.encode()).hexdigest()],
            "scopes": ["infer"],
            "subject": "US",
        }
        for number, key in enumerate(keys)
    ]
    async with running(tmp_path, "us-east", tenants=tenants) as gateway:
        owners = [await _owner(gateway, key) for key in (*keys, keys[0])]
        assert owners == [None] * 3
        file = tmp_path / "tidegate.yaml"
        changed = json.loads(file.read_text())
        for backend in changed["regions"][0]["backends"]:
            backend["protocol"] = "tidegate"
        (tmp_path / "worker").mkdir()
        other = tmp_path / "worker" / "tidegate.yaml"
        other.write_text(json.dumps(changed))
        async with started(tmp_path / "worker", other) as workers:
            workers.upstreams = gateway.upstreams
            first, second, again = [await _owner(workers, key) for key in (*keys, keys[0])]
    assert first == again != second
    assert len(first or "") == len(second or "") == 32


async def _owner(gateway: Running, key: str) -> str | None:
    answer = await gateway.embed("hello", Authorization=f"Bearer {key}", Cache_Control="no-store")
    assert answer.status_code == 200, answer.text
    return gateway.upstreams["us-east"].posts[-1].headers.get(OWNER_HEADER)
