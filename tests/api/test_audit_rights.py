"""Erasure, access and holds over a real gateway: who may, what is answered, and what is left of a name afterwards."""

import asyncio
import json
import sqlite3
from contextlib import closing

import httpx
import pytest

from app.audit.check.findings import Result
from app.audit.check.saved import Saved
from app.audit.check.verify import verify
from app.audit.keys import FileKeys
from app.audit.pseudonym import Pseudonyms
from tests.api.trail import readings, standing
from tests.running import EMBEDDING

ANNA = "anna-zoë-à"
"""Its last byte in UTF-8 is white space in Latin-1, which is what a header's text is read as."""
NAME = ANNA.encode().decode("latin-1")


async def post(gateway, path, caller="demo", /, **body):
    key = {} if caller == "demo" else {"Authorization": f"Bearer {caller}-key"}
    return await gateway.client.post(f"/v1/audit/{path}", json=body, headers=key)


async def visit(gateway, subject=ANNA, caller="demo", **headers):
    """One request for a person, sent as bytes: what a header holds is no text."""
    key = {} if caller == "demo" else {"Authorization": f"Bearer {caller}-key"}
    sent = {
        "X-Subject-Id": subject.encode(),
        "X-Data-Subject": "DE",
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    body = {"model": "embed", "input": "hello"}
    answer = await gateway.client.post("/v1/embeddings", json=body, headers={**key, **sent})
    assert answer.status_code == 200, answer.text
    return answer


def where(text, *directories):
    return [
        file.name
        for directory in directories
        for file in directory.rglob("*")
        if file.is_file() and text.encode() in file.read_bytes()
    ]


def pseudonym(directory, log="eu-west", tenant="demo", subject=ANNA):
    (found,) = Pseudonyms(FileKeys(directory / "keys")).known([log], [tenant], subject)
    return found


def rows(directory, log):
    with closing(sqlite3.connect(directory / "audit" / f"{log}.db")) as db:
        return [json.loads(each) for (each,) in db.execute("SELECT record FROM records ORDER BY seq")]


async def test_an_erased_person_leaves_no_name_and_a_trail_that_verifies(tmp_path):
    async with standing(tmp_path) as gateway:
        first = await visit(gateway, X_Request_Id="annas-own-request", traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
        await visit(gateway, "bert")
        name = pseudonym(tmp_path)
        assert where(name, tmp_path / "audit")
        checkpoint = tmp_path / "saved.note"
        checkpoint.write_text((await gateway.client.get("/v1/audit/checkpoint", params={"region": "eu-west"})).text)

        answer = await post(gateway, "erasures", subject=ANNA)

        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        erasure = answer.json()
        assert {**erasure, "logs": None} == {"known": True, "tenant": "demo", "records": 2, "logs": None}
        (log,) = erasure["logs"]
        told = (await gateway.client.get(f"/v1/audit/records/{log['id']}")).json()
        assert (log["log"], log["records"], told["kind"], told["detail"]["records"]) == ("eu-west", 2, "erasure", 2)
        gone = (await gateway.client.get(f"/v1/audit/records/{first.headers['X-Audit-Id']}")).json()
        assert (gone["subject"], gone["request_id"], gone["trace_id"]) == (None, None, None)
        assert gone["personal"]
        assert gone["model"] == "embed"
        assert await gateway.records(subject=ANNA) == []
        assert await gateway.records(subject=name) == []
        assert len(await gateway.records(subject="bert")) == 2
        assert (await post(gateway, "erasures", subject=ANNA)).json() == {
            "known": False,
            "tenant": None,
            "records": 0,
            "logs": [],
        }
    for text in (name, ANNA, NAME, "annas-own-request", "ab" * 16):
        assert where(text, tmp_path / "audit", tmp_path / "keys") == []
    assert where(ANNA, tmp_path) == where(NAME, tmp_path) == where(name, tmp_path) == []  # its log included
    report = verify(tmp_path / "audit", [Saved.read(checkpoint)])
    assert report.result == Result.INTACT, report.as_json()


async def test_a_request_in_flight_leaves_no_name(tmp_path):
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow(writer, _request):
        reached.set()
        await go_on.wait()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(EMBEDDING)}\r\n\r\n"
        writer.write(head.encode() + EMBEDDING)
        await writer.drain()

    async with standing(tmp_path) as gateway:
        gateway.upstreams["eu-west"].answer = slow
        visiting = asyncio.create_task(visit(gateway, X_Request_Id="annas-own-request"))
        await asyncio.wait_for(reached.wait(), 30)
        name = pseudonym(tmp_path)
        assert (await post(gateway, "erasures", subject=ANNA)).json()["records"] == 1
        go_on.set()
        await visiting
        kinds = [each["kind"] for each in await gateway.records(region="eu-west")]
        assert sorted(kinds) == ["completion", "decision"]
    for text in (name, ANNA, NAME, "annas-own-request"):
        assert where(text, tmp_path / "audit", tmp_path / "keys") == []
    assert verify(tmp_path / "audit").result == Result.INTACT


async def test_a_person_of_several_tenants(tmp_path):
    async with standing(tmp_path) as gateway:
        await visit(gateway)
        await visit(gateway, caller="other")
        for path in ("erasures", "access"):
            answer = await post(gateway, path, subject=ANNA)
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
            assert "demo and other" in answer.json()["detail"]
        assert (await post(gateway, "holds", note="a note", subject=ANNA)).status_code == 400
        erasure = (await post(gateway, "erasures", subject=ANNA, tenant="other")).json()
        assert (erasure["tenant"], erasure["records"]) == ("other", 2)
        assert (await post(gateway, "erasures", subject=ANNA, dry_run=True)).json()["tenant"] == "demo"
        assert len(await gateway.records(subject=ANNA)) == 2
        answer = await post(gateway, "erasures", subject=ANNA, tenant="nobody")
        assert (answer.status_code, "nobody" in answer.json()["detail"]) == (400, True)


async def test_a_hold_refuses_an_erasure_in_the_callers_language(tmp_path):
    async with standing(tmp_path) as gateway:
        await visit(gateway)
        await visit(gateway, X_Region="us-east", X_Data_Subject="US")
        hold = await post(gateway, "holds", note="case 17", tenant="demo", to="2999-01-31T12:00:00+02:00")
        placed = hold.json()
        assert hold.status_code == 200, hold.text
        assert (placed["tenant"], placed["from"], placed["to"]) == ("demo", None, "2999-01-31T10:00:00.000000Z")
        before = await gateway.records(subject=ANNA)
        answer = await gateway.client.post(
            "/v1/audit/erasures", json={"subject": ANNA}, headers={"Accept-Language": "de"}
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert answer.json()["holds"] == [placed["id"]]
        assert "Es wurde nichts gelöscht" in answer.json()["detail"]
        assert await gateway.records(subject=ANNA) == before
        assert (await gateway.client.get("/v1/audit/holds")).json() == {"holds": [placed]}
        released = await gateway.client.delete(f"/v1/audit/holds/{placed['id']}")
        assert (released.status_code, released.json()) == (200, placed)
        again = await gateway.client.delete(f"/v1/audit/holds/{placed['id']}")
        assert (again.status_code, again.json()["code"]) == (404, "not_found")
        assert (await gateway.client.get("/v1/audit/holds")).json() == {"holds": []}
        assert (await post(gateway, "erasures", subject=ANNA)).json()["records"] == 4
    told = [each for each in rows(tmp_path, "gateway") if each["kind"] == "hold"]
    assert [(each["detail"]["action"], each["tenant"], each["detail"]["hold"]) for each in told] == [
        ("placed", "demo", placed["id"]),
        ("released", "demo", placed["id"]),
    ]
    assert where("case 17", tmp_path) == []


async def test_access_tells_everything_and_is_itself_recorded(tmp_path):
    async with standing(tmp_path) as gateway:
        await visit(gateway, X_Request_Id="annas-own-request")
        await visit(gateway)
        await visit(gateway, "bert")
        answer = await gateway.client.post(
            "/v1/audit/access", json={"subject": ANNA}, headers={"X-Request-Id": f"about-{NAME}".encode()}
        )
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
        summary, *records = map(json.loads, answer.text.splitlines())
        assert [each["kind"] for each in records] == ["decision", "completion"] * 2
        assert {each["subject"] for each in records} == {pseudonym(tmp_path)}
        assert records[0]["request_id"] == "annas-own-request"
        assert (summary["tenant"], summary["records"], summary["jurisdictions"]) == ("demo", 4, ["DE", "US"])
        assert summary["retention_s"] == 365 * 86400
        (recipient,) = summary["recipients"]
        assert (recipient["region"], recipient["operator"], recipient["country"]) == ("eu-west", "acme-eu-west", "IE")
        assert recipient["requests"] == 1  # the other answer came from the cache
        assert recipient["law"].startswith("GDPR")
        assert {each["code"] for each in summary["evidence"]} == {"DE", "US"}
        (read,) = [each for each in await readings(gateway) if each["detail"]["path"] == "/v1/audit/access"]
        assert (read["outcome"], read["tenant"], read["log"]) == ("served", "demo", "gateway")
        assert read["detail"]["filters"] == {"subject": True, "tenant": "demo"}
        assert read["detail"]["records"] == 4
        assert "anna" not in str(read)
        answer = await gateway.client.post(
            "/v1/audit/access", json={"subject": " bert\t"}, headers={"X-Request-Id": "about-BERT"}
        )
        assert json.loads(answer.text.splitlines()[0])["records"] == 2
        newest = [each for each in await readings(gateway) if each["detail"]["path"] == "/v1/audit/access"][-1]
        assert (newest["detail"]["records"], newest["request_id"]) == (2, None)
    assert where(pseudonym(tmp_path), tmp_path / "audit") == ["eu-west.db"]
    assert where(ANNA, tmp_path) == where(NAME, tmp_path) == []


@pytest.mark.parametrize("caller", ["other", "blind"])
async def test_without_the_scope_nothing_is_done(tmp_path, caller):
    async with standing(tmp_path) as gateway:
        await visit(gateway, caller="other")
        key = {"Authorization": f"Bearer {caller}-key"}
        calls = [
            await post(gateway, "erasures", caller, subject=ANNA),
            await post(gateway, "access", caller, subject=ANNA),
            await post(gateway, "holds", caller, note="a note"),
            await gateway.client.get("/v1/audit/holds", headers=key),
            await gateway.client.delete("/v1/audit/holds/x", headers=key),
        ]
        assert [each.status_code for each in calls] == [403] * 5
        async with httpx.AsyncClient(base_url=gateway.client.base_url) as stranger:
            answer = await stranger.post("/v1/audit/erasures", json={"subject": ANNA})
            assert answer.status_code == 401
        assert (await gateway.client.get("/v1/audit/holds")).json() == {"holds": []}
        assert len(await gateway.records(subject=ANNA)) == 2


WRONG = [
    ("erasures", {}, "subject"),
    ("erasures", {"subject": ""}, "subject"),
    ("erasures", {"subject": "  "}, "subject"),
    ("erasures", {"subject": "x" * 513}, "subject"),
    ("erasures", {"subject": 7}, "subject"),
    ("erasures", {"subject": "anna", "tenant": ""}, "tenant"),
    ("erasures", {"subject": "anna", "all": True}, "all"),
    ("erasures", {"subject": "anna", "dry_run": "perhaps"}, "dry_run"),
    ("access", {"subject": None}, "subject"),
    ("holds", {}, "note"),
    ("holds", {"note": " "}, "note"),
    ("holds", {"note": "a note", "from": "yesterday"}, "from"),
    ("holds", {"note": "a note", "to": "2026-02-31T00:00:00Z"}, "to"),
    ("holds", {"note": "a note", "from": 17}, "from"),
    ("holds", {"note": "a note", "from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "to"),
    ("holds", {"note": "a note", "tenant": "nobody"}, "tenant"),
]


async def test_bodies_that_cannot_be_meant_are_refused(tmp_path):
    async with standing(tmp_path) as gateway:
        for path, body, param in WRONG:
            answer = await post(gateway, path, **body)
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), (path, body)
            assert param in answer.json()["detail"], (path, body, answer.json())
        surrogate = b'{"subject": "\\ud800"}'
        answer = await gateway.client.post(
            "/v1/audit/erasures", content=surrogate, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400
        nobody = await post(gateway, "holds", note="a note", subject=ANNA)
        assert (nobody.status_code, nobody.json()["code"]) == (404, "not_found")
        assert (await gateway.client.get("/v1/audit/holds")).json() == {"holds": []}
