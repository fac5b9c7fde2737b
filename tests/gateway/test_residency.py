"""Where requests go, and that they go nowhere else: header, law and health through a real gateway."""

import asyncio
from pathlib import Path

import pytest

from tests.fleet.servers import hang, reply, until
from tests.running import Running, running


def others(gateway: Running, *regions: str) -> int:
    """Requests that reached any region but these."""
    return sum(len(upstream.posts) for name, upstream in gateway.upstreams.items() if name not in regions)


async def test_a_subjects_law_chooses_the_region(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        german = await gateway.embed(X_Data_Subject="DE")
        assert (german.status_code, german.headers["X-Served-Region"]) == (200, "eu-west")
        assert german.headers["X-Route-Reason"] == "ALLOW_INTRA"
        singaporean = await gateway.embed(X_Data_Subject="sg")
        assert singaporean.headers["X-Served-Region"] == "ap-southeast"
        american = await gateway.embed()
        assert american.headers["X-Served-Region"] == "us-east"
        assert others(gateway, "us-east") == 2


async def test_region_and_preference(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        assert (await gateway.embed(X_Region="eu-west")).headers["X-Served-Region"] == "eu-west"
        wished = await gateway.embed(X_Region_Prefer="ap-southeast, eu-west")
        assert wished.headers["X-Served-Region"] == "ap-southeast"
        narrowed = await gateway.embed(X_Region_Prefer="us-east", X_Data_Subject="DE")
        assert narrowed.headers["X-Served-Region"] == "eu-west"


async def test_a_refused_region_is_told_in_german_and_recorded(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        refused = await gateway.embed(X_Data_Subject="DE", X_Region="us-east", Accept_Language="de-AT, en;q=0.5")
        assert refused.status_code == 451
        error = refused.json()["error"]
        assert error["code"] == "residency_denied"
        assert "nicht zulässig" in error["message"]
        assert error["permitted"] == ["eu-west"]
        assert refused.headers["Content-Language"] == "de"
        assert refused.headers["Link"].endswith('rel="blocked-by"')
        assert refused.headers["Cache-Control"] == "no-store"
        assert refused.headers["X-Route-Reason"] == "DENY_REQUESTED_REGION"
        assert others(gateway) == 0
        decision, completion = await gateway.records(subject_country="DE")
        assert (decision["log"], decision["region"], decision["requested_region"]) == ("eu-west", None, "us-east")
        assert decision["id"] == refused.headers["X-Audit-Id"] == completion["decision_id"]
        assert (completion["status"], completion["outcome"]) == (451, "refused")
        assert completion["body_may_have_arrived"] is False


async def test_lawful_regions_that_are_down_are_never_replaced(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        eu = gateway.upstreams["eu-west"]
        eu.answer = reply(500, b'{"error": "broken"}')
        failed = await gateway.embed(X_Data_Subject="DE")
        assert (failed.status_code, failed.json()["error"]["code"]) == (502, "upstream_failed")
        assert len(eu.posts) == 3  # every attempt stayed inside
        assert others(gateway, "eu-west") == 0
        for _ in range(2):
            await gateway.embed(X_Data_Subject="DE")
        shut = await gateway.embed(X_Data_Subject="DE")
        assert (shut.status_code, shut.json()["error"]["code"]) == (503, "no_healthy_region")
        assert shut.headers["X-Route-Reason"] == "NO_COMPLIANT_HEALTHY"
        assert int(shut.headers["Retry-After"]) >= 1
        assert others(gateway, "eu-west") == 0


async def test_a_broken_region_is_left_for_the_next_permitted_one(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        gateway.upstreams["us-east"].answer = reply(503)
        moved = await gateway.embed()
        assert (moved.status_code, moved.headers["X-Served-Region"]) == (200, "eu-west")
        completion = (await gateway.records())[-1]
        assert [attempt["region"] for attempt in completion["attempts"]] == ["us-east", "eu-west"]
        assert completion["region"] == "eu-west"


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        elsewhere = gateway.upstreams["us-east"].server.url
        gateway.upstreams["eu-west"].answer = reply(307, b"", f"Location: {elsewhere}/v1/embeddings")
        assert (await gateway.embed(X_Data_Subject="DE")).status_code == 502
        assert others(gateway, "eu-west") == 0


async def test_a_gateway_in_the_wrong_region_says_where_to_go(tmp_path: Path) -> None:
    urls = {"us-east": "http://127.0.0.1:1", "eu-west": "http://127.0.0.1:2"}
    async with running(tmp_path, gateway={"region": "us-east", "public_urls": urls}) as gateway:
        refused = await gateway.embed(X_Data_Subject="DE", X_Subject_Id="erika")
        assert (refused.status_code, refused.json()["error"]["code"]) == (421, "misdirected")
        assert refused.json()["error"]["hosts"] == ["http://127.0.0.1:2"]
        assert others(gateway) == 0
        decision, _ = await gateway.records(subject_country="DE")
        assert (decision["log"], decision["subject"]) == ("gateway", None)
        assert (await gateway.embed()).status_code == 200


async def test_a_wrong_gateway_may_redirect_and_keeps_the_method(tmp_path: Path) -> None:
    async with running(
        tmp_path,
        gateway={"region": "us-east", "public_urls": {"eu-west": "http://127.0.0.1:2"}},
        residency={"misdirected": "redirect"},
    ) as gateway:
        sent = await gateway.embed(X_Data_Subject="DE")
        assert (sent.status_code, sent.headers["Location"]) == (307, "http://127.0.0.1:2/v1/embeddings")


async def test_a_pseudonym_is_kept_only_where_the_subject_may_be(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        await gateway.embed(X_Data_Subject="DE", X_Subject_Id="erika-mustermann")
        decision, completion = await gateway.records(subject="erika-mustermann")
        assert decision["log"] == "eu-west"
        assert decision["subject"] == completion["subject"] != "erika-mustermann"
        pseudonym = decision["subject"].encode()
        holding = set()
        for file in (tmp_path / "audit").iterdir():
            content = file.read_bytes()
            assert b"erika" not in content
            holding |= {file.name.partition(".")[0]} if pseudonym in content else set()
        assert holding == {"eu-west"}


@pytest.mark.parametrize("peer_is_trusted", [True, False])
async def test_a_place_counts_only_from_a_trusted_proxy(tmp_path: Path, peer_is_trusted: bool) -> None:
    proxies = ["127.0.0.0/8"] if peer_is_trusted else []
    async with running(tmp_path, gateway={"trusted_proxies": proxies}) as gateway:
        near = await gateway.embed(CF_IPCountry="SG")
        assert near.headers["X-Served-Region"] == ("ap-southeast" if peer_is_trusted else "us-east")
        decision = (await gateway.records())[0]
        assert decision["ignored_hints"] == ([] if peer_is_trusted else ["CF-IPCountry"])


async def test_a_hung_region_ends_at_the_callers_deadline(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        gateway.upstreams["us-east"].answer = hang
        late = await gateway.embed(X_Request_Timeout_Ms="400")
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        sent = gateway.upstreams["us-east"].posts[0].headers["x-request-timeout-ms"]
        assert 0 < int(sent) <= 400


async def test_a_client_that_hangs_up_frees_the_region_and_is_recorded(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        region = gateway.upstreams["us-east"]
        region.answer = hang
        asking = asyncio.create_task(gateway.embed())
        await until(lambda: bool(region.posts))
        asking.cancel()
        await asyncio.wait_for(region.server.gone.wait(), 20)
        async with asyncio.timeout(20):
            while len(records := await gateway.records()) < 2:  # noqa: ASYNC110 - another process tells
                await asyncio.sleep(0.05)
        assert [record["outcome"] for record in records] == ["permitted", "cancelled"]
        regions = (await gateway.client.get("/v1/regions")).json()["data"]
        assert regions[0]["in_flight"] == 0


async def test_a_request_that_no_pseudonym_stands_for_leaves_no_name_in_what_its_caller_wrote(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        named = {"X_Subject_Id": "Zoe@example.org", "X_Request_Id": "order-of-zoe@example.org"}
        refused = await gateway.embed(X_Data_Subject="RU", **named)
        assert refused.status_code == 451
        unknown = await gateway.embed(model="zoe@EXAMPLE.org", X_Data_Subject="DE", **named)
        assert unknown.status_code == 404
        served = await gateway.embed(X_Data_Subject="DE", **named)
        assert served.status_code == 200
        records = await gateway.records()
        assert {record["request_id"] for record in records if record["log"] == "gateway"} == {None}
        assert {record["model"] for record in records} == {None, "embed"}
        assert {record["request_id"] for record in records if record["log"] == "eu-west"} == {named["X_Request_Id"]}
    for file in (tmp_path / "audit").glob("gateway.db*"):
        assert b"zoe@example.org" not in file.read_bytes().lower()
