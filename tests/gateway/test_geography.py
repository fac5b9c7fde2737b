"""Where a caller is, through a real gateway: what trusted proxies say counts, what anyone else says is written down."""

from pathlib import Path

import pytest

from tests.mmdb import countries
from tests.running import HASH, running

SPOOFED = {"X_Forwarded_For": "88.217.1.1", "CF_IPCountry": "SG", "X_AppEngine_Country": "JP"}
NAMES = ["X-Forwarded-For", "CF-IPCountry", "X-AppEngine-Country"]
TENANT = {"id": "demo", "keys": [HASH], "scopes": ["infer", "audit:admin", "admin"]}


async def test_a_spoofed_place_moves_nobody_and_stands_in_the_record(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        served = await gateway.embed(**SPOOFED)
        assert served.headers["X-Served-Region"] == "us-east"
        decision, completion = await gateway.records()
        assert (decision["ignored_hints"], decision["jurisdictions"]) == (NAMES, ["US"])
        assert completion["outcome"] == "served"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (451, {"X_Data_Subject": "DE", "X_Region": "us-east"}),
        (400, {"X_Region": "nowhere"}),
        (400, {"X_Data_Subject": "UK"}),
        (404, {"model": "none"}),
        (421, {"X_Data_Subject": "DE"}),
    ],
)
async def test_a_refused_request_records_them_too(tmp_path: Path, status: int, headers: dict[str, str]) -> None:
    async with running(tmp_path, gateway={"region": "us-east"} if status == 421 else {}) as gateway:
        refused = await gateway.embed(**headers, **SPOOFED)
        assert refused.status_code == status
        decision = (await gateway.records(request_id=refused.headers["X-Request-Id"]))[0]
        assert decision["ignored_hints"] == NAMES


async def test_people_are_where_the_file_says_and_only_behind_a_trusted_proxy(tmp_path: Path) -> None:
    countries(tmp_path / "geo.mmdb", {"133.11.0.0/16": "DE", "2400::/12": "SG"})
    place = {"trusted_proxies": ["127.0.0.0/8"], "geoip": "geo.mmdb"}
    people = {**TENANT, "callers": "people"}
    async with running(tmp_path, gateway=place, tenants=[people]) as gateway:
        german = await gateway.embed(X_Forwarded_For="9.9.9.9, 133.11.0.1")
        assert (german.headers["X-Served-Region"], german.headers["X-Route-Reason"]) == ("eu-west", "ALLOW_INTRA")
        singaporean = await gateway.embed(X_Forwarded_For="[2400:cb00::1]:4711")
        assert singaporean.headers["X-Served-Region"] == "ap-southeast"
        # The file does not know this one, and is not second-guessed: nobody can tell whose law applies.
        unknown = await gateway.embed(X_Forwarded_For="88.217.1.1")
        assert (unknown.status_code, unknown.headers["X-Route-Reason"]) == (451, "UNKNOWN_JURISDICTION")


async def test_people_whom_an_untrusted_peer_places_are_nowhere(tmp_path: Path) -> None:
    async with running(tmp_path, tenants=[{**TENANT, "callers": "people"}]) as gateway:
        refused = await gateway.embed(**SPOOFED)
        assert (refused.status_code, refused.headers["X-Route-Reason"]) == (451, "UNKNOWN_JURISDICTION")
        decision = (await gateway.records())[0]
        assert (decision["log"], decision["ignored_hints"]) == ("gateway", NAMES)
