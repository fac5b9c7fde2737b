"""Pages and single records of the trail through a real gateway: who sees what, which queries are refused."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.api.trail import get, ids, readings, standing
from tests.running import Running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """After three requests: of demo about anna in the US, of other about anna in Germany, and of other about nobody."""
    async with standing(tmp_path_factory.mktemp("gateway")) as found:
        other = {"Authorization": "Bearer other-key"}
        await found.embed("1", X_Subject_Id="anna", X_Request_Id="first")
        await found.embed("2", X_Subject_Id="anna", X_Request_Id="second", **other)
        await found.embed("3", X_Request_Id="third", **other)
        yield found


async def named(gateway: Running, caller: str = "demo", **query: Any) -> list[str]:
    """The requests whose records match, in order: the names that they were given."""
    answer = await get(gateway, "logs", caller, **query)
    assert answer.status_code == 200, answer.text
    return [each["request_id"] for each in answer.json()["records"] if each["kind"] in {"decision", "completion"}]


async def test_the_administrator_sees_all_newest_last(gateway: Running) -> None:
    answer = await get(gateway, "logs", limit=1000)
    assert answer.json()["cursor"] is None
    assert answer.headers["cache-control"] == "no-store"
    assert await named(gateway) == ["first", "first", "second", "second", "third", "third"]


async def test_a_reader_sees_its_own_tenant_only(gateway: Running) -> None:
    assert await named(gateway, "other") == ["second", "second", "third", "third"]
    assert await named(gateway, "other", tenant="other", region="eu-west") == ["second", "second", "third", "third"]
    answer = await get(gateway, "logs", "other", tenant="demo")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    seen = (await get(gateway, "logs", "other", limit=1000)).json()["records"]
    assert {each["tenant"] for each in seen} == {"other"}


async def test_without_the_scope_nothing_is_shown(gateway: Running) -> None:
    one = (await ids(gateway, limit=1))[0]
    for path in ("logs", "export", "verify", f"records/{one}", f"records/{one}/proof"):
        answer = await get(gateway, path, "blind")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
        async with httpx.AsyncClient(base_url=gateway.client.base_url) as stranger:
            assert (await stranger.get(f"/v1/audit/{path}")).status_code == 401
    assert (await get(gateway, "verify", "other")).status_code == 403


async def test_records_are_opened_until_their_subject_is_erased(tmp_path: Path) -> None:
    async with standing(tmp_path) as gateway:
        await gateway.embed("1", X_Subject_Id="anna", X_Request_Id="first", X_Data_Subject="DE")
        await gateway.embed("2", X_Subject_Id="berta", X_Request_Id="second", X_Data_Subject="DE")
        before = await gateway.records()
        assert [each["request_id"] for each in before] == ["first", "first", "second", "second"]
        erased = await gateway.client.post("/v1/audit/erasures", json={"subject": "anna"})
        assert erased.json()["records"] == 2
        after = [each for each in await gateway.records() if each["kind"] in {"decision", "completion"}]
        assert [each["request_id"] for each in after] == [None, None, "second", "second"]
        assert [each["subject"] for each in after[:2]] == [None, None]
        assert after[0]["personal"] == before[0]["personal"]
        single = (await get(gateway, f"records/{after[0]['id']}")).json()
        assert single == after[0]


async def test_the_subject_by_id_is_for_administrators_and_by_pseudonym_for_everyone(gateway: Running) -> None:
    assert await named(gateway, subject="anna") == ["first", "first", "second", "second"]
    assert await named(gateway, subject="anna", tenant="other") == ["second", "second"]
    assert await named(gateway, subject="berta") == []
    seen = (await get(gateway, "logs", "other", request_id="second")).json()["records"]
    pseudonym = seen[0]["subject"]
    assert re.fullmatch("[0-9a-f]{64}", pseudonym)
    assert await named(gateway, "other", subject=pseudonym) == ["second", "second"]
    assert await named(gateway, subject=pseudonym) == ["second", "second"]
    answer = await get(gateway, "logs", "other", subject="anna")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_filters(gateway: Running) -> None:
    everything = await gateway.records()
    third = next(each["time"] for each in everything if each["request_id"] == "third")
    for query, expected in (
        ({"from": third}, ["third", "third"]),
        ({"to": third, "outcome": "served"}, ["first", "second"]),
        ({"to": "2020-01-01T00:00:00+02:00"}, []),
        ({"region": "us-east", "subject_country": "US"}, ["first", "first"]),
        ({"request_id": "second", "outcome": "permitted"}, ["second"]),
        ({"reason": "DENY_GPC"}, []),
    ):
        assert await named(gateway, **query) == expected, query


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "\N{ARABIC-INDIC DIGIT ONE}"}, "limit"),
        ({"limit": "1e2"}, "limit"),
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-11-22"}, "from"),
        ({"from": "2026-02-31T00:00:00Z"}, "from"),
        ({"to": "2026-11-22T10:00:00"}, "to"),
        ({"to": "0001-01-01T00:00:00+14:00"}, "to"),
        ({"offset": "1"}, "offset"),
        ({"region": ""}, "region"),
        ({"region": "mars"}, "region"),
        ({"region": ["eu-west", "us-east"]}, "region"),
        ({"cursor": "rubbish"}, "cursor"),
    ],
)
async def test_a_query_that_cannot_be_meant_is_refused(gateway: Running, query: dict[str, Any], param: str) -> None:
    answer = await get(gateway, "logs", **query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert param in answer.json()["detail"].lower()


async def test_a_cursor_of_the_administrator_shows_a_reader_nothing(gateway: Running) -> None:
    cursor = (await get(gateway, "logs", limit=1)).json()["cursor"]
    answer = await get(gateway, "logs", "other", limit=1, cursor=cursor)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_pages_show_each_record_once_while_records_are_written(gateway: Running) -> None:
    """Those that there are at the first page, in order; nothing that is written meanwhile, readings included."""
    expected = [each["id"] for each in (await get(gateway, "logs", limit=1000)).json()["records"]]
    pages, cursor = [], {}
    writing = asyncio.create_task(_write(gateway))
    for _ in range(100):
        page = (await get(gateway, "logs", limit=2, **cursor)).json()
        pages.append([each["id"] for each in page["records"]])
        if page["cursor"] is None:
            break
        cursor = {"cursor": page["cursor"]}
    writing.cancel()
    seen = [each for page in pages for each in page]
    first = seen.index(expected[-1])
    assert seen[: first + 1] == expected
    assert len(seen) == len(set(seen)) <= len(expected) + 3  # the reading above, and what was first to be written
    assert len(pages) > 2


async def _write(gateway: Running) -> None:
    for number in range(1000):
        await gateway.embed(f"more {number}", X_Request_Id=f"more-{number}")


async def test_one_record(gateway: Running) -> None:
    records = (await get(gateway, "logs", "other", request_id="second")).json()["records"]
    answer = await get(gateway, f"records/{records[0]['id']}")
    assert (answer.status_code, answer.json()) == (200, records[0])
    assert answer.headers["cache-control"] == "no-store"
    assert (await get(gateway, f"records/{records[1]['id']}", "other")).json() == records[1]


async def test_a_record_that_is_not_there_or_not_the_callers(gateway: Running) -> None:
    of_demo = (await ids(gateway, request_id="first"))[0]
    unknown = of_demo[:-1] + ("0" if of_demo[-1] != "0" else "1")
    for caller, record_id in (
        ("other", of_demo),
        ("demo", unknown),
        ("demo", "x"),
        ("demo", "g" * 32),
        ("demo", "%00"),
    ):
        for path in (f"records/{record_id}", f"records/{record_id}/proof"):
            answer = await get(gateway, path, caller)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path


async def test_every_reading_is_noted_before_its_answer(gateway: Running) -> None:
    of_demo = (await ids(gateway, request_id="first"))[0]
    before = len(await readings(gateway))
    await get(gateway, "logs", "other", region="eu-west", request_id="second", limit="1")
    await get(gateway, "logs", subject="anna", tenant="demo")
    await get(gateway, "export", "other", outcome="served")
    await get(gateway, f"records/{of_demo}")
    await get(gateway, f"records/{of_demo}/proof", "other")
    await get(gateway, "verify", "other")
    await get(gateway, "logs", "blind")
    await get(gateway, "logs", "other", subject="anna")
    await get(gateway, "logs", limit="0")
    await get(gateway, "checkpoint", region="eu-west")
    noted = (await readings(gateway))[before:]
    path = "/v1/audit/"
    assert [(each["tenant"], each["outcome"], each["detail"]) for each in noted[1:]] == [
        (
            "other",
            "served",
            {
                "path": f"{path}logs",
                "filters": {"region": "eu-west", "tenant": "other", "request_id": True},
                "records": 1,
                "status": 200,
            },
        ),
        (
            "demo",
            "served",
            {"path": f"{path}logs", "filters": {"subject": True, "tenant": "demo"}, "records": 2, "status": 200},
        ),
        (
            "other",
            "served",
            {"path": f"{path}export", "filters": {"outcome": "served", "tenant": "other"}, "status": 200},
        ),
        ("demo", "served", {"path": f"{path}records/{{id}}", "filters": {"id": of_demo}, "records": 1, "status": 200}),
        ("other", "refused", {"path": f"{path}records/{{id}}/proof", "filters": {"id": of_demo}, "status": 404}),
        ("other", "refused", {"path": f"{path}verify", "filters": {}, "status": 403}),
        ("blind", "refused", {"path": f"{path}logs", "filters": {}, "status": 403}),
        ("other", "refused", {"path": f"{path}logs", "filters": {}, "status": 403}),
    ]
    assert {each["log"] for each in noted} == {"gateway"}
    assert {(each["subject"], each["personal"]) for each in noted} == {(None, None)}
    assert all(re.fullmatch("[0-9a-f]{8}", each["key_id"]) for each in noted)


async def test_a_note_names_the_request_but_no_person(gateway: Running) -> None:
    await gateway.client.get("/v1/audit/logs", params={"subject": "cleo"}, headers={"X-Request-Id": "about-cleo"})
    await gateway.client.get("/v1/audit/logs", headers={"X-Request-Id": "about-nobody"})
    noted = await readings(gateway)
    assert [each["request_id"] for each in noted[-2:]] == [None, "about-nobody"]
    assert "cleo" not in (await get(gateway, "logs", limit="1000")).text


async def test_the_description_names_every_parameter_and_answer(gateway: Running) -> None:
    paths = (await gateway.client.get("/openapi.json")).json()["paths"]
    logs = paths["/v1/audit/logs"]["get"]
    assert {"from", "to", "subject", "limit", "cursor"} < {each["name"] for each in logs["parameters"]}
    assert [each["name"] for each in paths["/v1/audit/checkpoint"]["get"]["parameters"]] == ["region", "old"]
    media = {
        "/v1/audit/logs": "application/json",
        "/v1/audit/export": "application/x-ndjson",
        "/v1/audit/records/{id}": "application/json",
        "/v1/audit/records/{id}/proof": "application/json",
        "/v1/audit/checkpoint": "text/plain",
        "/v1/audit/verify": "application/json",
    }
    for path, kind in media.items():
        assert list(paths[path]["get"]["responses"]["200"]["content"]) == [kind], path


async def test_nothing_is_shown_that_could_not_be_noted(tmp_path: Path) -> None:
    async with standing(tmp_path) as gateway:
        await gateway.embed("1", X_Request_Id="first")
        one = (await ids(gateway))[0]
        (tmp_path / "audit" / "gateway.db").rename(tmp_path / "audit" / "moved")
        (tmp_path / "audit" / "gateway.db").touch()  # empty: a copy would be trusted as soon as it has been looked over
        for path in (f"records/{one}", "records/x", f"records/{one}/proof", "logs", "export"):
            answer = await get(gateway, path)
            assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable"), path
            assert "Retry-After" in answer.headers
            assert one not in answer.text
