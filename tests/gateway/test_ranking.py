"""What requests tell of a region comes back to the ranking: through a real gateway."""

import asyncio
from pathlib import Path

from tests.fleet.servers import Request, reply
from tests.running import EMBEDDING, Running, running


async def latency(gateway: Running, region: str) -> float:
    regions = (await gateway.client.get("/v1/regions")).raise_for_status().json()["data"]
    return float(next(each["latency_ms"] or 0.0 for each in regions if each["id"] == region))


async def slowly(writer: asyncio.StreamWriter, request: Request) -> None:
    await asyncio.sleep(2)
    await reply(200, EMBEDDING)(writer, request)


async def test_requests_that_take_unusually_long_count_against_a_region(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        for number in range(20):
            assert (await gateway.embed(f"usual {number}")).headers["X-Served-Region"] == "us-east"
        before = await latency(gateway, "us-east")
        gateway.upstreams["us-east"].answer = slowly  # and well when probed
        for batch in range(6):  # how many it takes depends on what was usual on this machine just now
            answers = await asyncio.gather(*(gateway.embed(f"slow {batch}/{number}") for number in range(40)))
            assert {answer.status_code for answer in answers} == {200}
            if (now := await latency(gateway, "us-east")) > before + 50:
                break
        assert now > before + 50


async def test_explain_and_the_real_request_agree(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        for headers, options in (
            ({}, {}),
            ({"X_Data_Subject": "DE"}, {"subject": "DE"}),
            ({"X_Region_Prefer": "ap-southeast"}, {"prefer": ["ap-southeast"]}),
        ):
            told = (await gateway.client.post("/v1/route/explain", json=options)).raise_for_status().json()
            assert (await gateway.embed(str(options), **headers)).headers["X-Served-Region"] == told["chosen"]
