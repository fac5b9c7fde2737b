"""Stopping a gateway: what is under way ends well, readiness says so, and nothing of the audit trail stays open."""

import asyncio
import re
import signal
from pathlib import Path

import httpx
import pytest

from tests.fleet.servers import Request, reply, until
from tests.running import EMBEDDING, gateway, running


async def test_a_request_under_way_outlives_sigterm(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def late(writer: asyncio.StreamWriter, request: Request) -> None:
        await released.wait()
        await reply(200, EMBEDDING)(writer, request)

    async with running(tmp_path) as found:
        region = found.upstreams["us-east"]
        region.answer = late
        asking = asyncio.create_task(found.embed())
        await until(lambda: bool(region.posts))
        found.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            while (ready := await found.client.get("/readyz")).status_code != 503:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        assert ready.json()["status"] == "draining"
        released.set()
        assert (await asking).status_code == 200
        assert await asyncio.to_thread(found.process.wait, 20) == 0


async def test_a_killed_gateway_leaves_no_decision_open(tmp_path: Path) -> None:
    async with running(tmp_path) as found:
        region = found.upstreams["us-east"]

        async def never(_writer: asyncio.StreamWriter, _request: Request) -> None:
            await asyncio.sleep(60)

        region.answer = never
        asking = asyncio.create_task(found.embed())
        await until(lambda: bool(region.posts))
        found.process.kill()
        await asyncio.gather(asking, return_exceptions=True)
        async with gateway(tmp_path, tmp_path / "tidegate.yaml") as again:
            decision, completion = await again.records()
            assert (decision["kind"], completion["kind"]) == ("decision", "completion")
            assert (completion["outcome"], completion["decision_id"]) == ("lost", decision["id"])
            assert completion["body_may_have_arrived"] is True


async def test_a_second_gateway_on_one_trail_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path):
        with pytest.raises(AssertionError, match=re.escape(str(tmp_path / "audit"))):
            async with gateway(tmp_path, tmp_path / "tidegate.yaml"):
                pass


async def test_nothing_is_served_before_a_region_answers(tmp_path: Path) -> None:
    async with running(tmp_path, "eu-west") as found:
        assert (await found.client.get("/readyz")).json() == {"status": "ready", "regions_up": ["eu-west"]}
        for path in ("/livez", "/health", "/health/liveliness", "/health/readiness", "/v2/health/live"):
            assert (await found.client.get(path)).status_code == httpx.codes.OK
