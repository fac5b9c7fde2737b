"""GET /v1/audit/logs over a real trail: who sees what, and which queries are refused."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import httpx
import orjson
import pytest
from fastapi import FastAPI, Request, Response

from app.access import Principal
from app.api.audit import router
from app.audit import record
from app.audit.keys import FileKeys
from app.audit.pseudonym import Pseudonyms
from app.audit.reader import Reader
from app.audit.writer import Trail
from app.config import AuditSettings, Tenant
from app.errors import GatewayError

LOGS = ("eu-west", "us-east", "gateway")
START = datetime(2026, 11, 22, 10, tzinfo=UTC)
SCOPES = {"demo": ("audit:read", "audit:admin"), "other": ("audit:read",), "none": ("infer",)}


class Site:
    """The route alone, behind a gate that believes a header; errors answer their code, message id and parameter."""

    def __init__(self, settings):
        self.app = FastAPI()
        self.app.include_router(router)
        self.app.state.gateway_reader = Reader(settings, LOGS, ["demo", "other"])
        self.app.add_exception_handler(GatewayError, self.failure)

    @staticmethod
    async def failure(_request: Request, error: GatewayError) -> Response:
        content = {"code": error.code, "id": error.message_id, "param": error.param, "values": error.values}
        return Response(orjson.dumps(content, default=str), error.status)

    async def __call__(self, scope, receive, send):
        tenant = dict(scope["headers"]).get(b"x-tenant", b"demo").decode()
        principal = Principal(Tenant(id=tenant, scopes=SCOPES[tenant]), "00000000")
        scope["state"] = {"exchange": SimpleNamespace(principal=principal)}
        await self.app(scope, receive, send)


@pytest.fixture
async def site(tmp_path):
    settings = AuditSettings(path=tmp_path / "audit", commit_deadline=10.0)
    trail = Trail(settings, LOGS)
    await trail.start()
    pseudonyms = Pseudonyms(FileKeys(settings.key_directory))
    for number, (log, tenant) in enumerate([("eu-west", "demo"), ("us-east", "other"), ("eu-west", "other")]):
        decision = record.decision(
            id=f"d{number}",
            time=START + timedelta(seconds=number),
            request_id=f"r{number}",
            outcome="permitted",
            tenant=tenant,
            key_id="0",
            region=log,
            subject=await pseudonyms.of(log, tenant, "anna"),
            subject_country="DE",
        )
        ended = record.completion(
            id=f"c{number}", time=START + timedelta(seconds=number), decision=decision, outcome="served", status=200
        )
        await trail.append(log, [decision, ended], 10)
    yield Site(settings)
    await trail.close()


async def get(site, caller="demo", **query):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(site), base_url="http://gateway") as client:
        return await client.get("/v1/audit/logs", params=query, headers={"x-tenant": caller})


async def ids(site, caller="demo", **query):
    answer = await get(site, caller, **query)
    assert answer.status_code == 200, answer.text
    return [each["id"] for each in answer.json()["records"]]


async def test_the_administrator_sees_all_newest_last(site):
    answer = await get(site)
    assert answer.json()["cursor"] is None
    assert answer.headers["cache-control"] == "no-store"
    assert [each["id"] for each in answer.json()["records"]] == ["d0", "c0", "d1", "c1", "d2", "c2"]


async def test_pages_follow_their_cursor(site):
    seen, cursor = [], {}
    for _ in range(4):
        page = (await get(site, limit=2, **cursor)).json()
        seen.append([each["id"] for each in page["records"]])
        if page["cursor"] is None:
            break
        cursor = {"cursor": page["cursor"]}
    assert seen == [["d0", "c0"], ["d1", "c1"], ["d2", "c2"]]


async def test_a_reader_sees_its_own_tenant_only(site):
    assert await ids(site, "other") == ["d1", "c1", "d2", "c2"]
    assert await ids(site, "other", tenant="other", outcome="served") == ["c1", "c2"]
    answer = await get(site, "other", tenant="demo")
    assert (answer.status_code, answer.json()["values"]) == (403, {"scope": "audit:admin"})


async def test_a_cursor_of_the_administrator_shows_a_reader_nothing(site):
    cursor = (await get(site, limit=1)).json()["cursor"]
    answer = await get(site, "other", limit=1, cursor=cursor)
    assert (answer.status_code, answer.json()["id"]) == (400, "invalid_request.cursor")


async def test_without_the_scope_nothing_is_shown(site):
    answer = await get(site, "none")
    assert (answer.status_code, answer.json()["id"]) == (403, "forbidden.scope")


async def test_the_subject_by_id_is_for_administrators_and_by_pseudonym_for_everyone(site):
    assert await ids(site, subject="anna", outcome="served") == ["c0", "c1", "c2"]
    pseudonym = (await get(site, "other")).json()["records"][0]["subject"]
    assert await ids(site, "other", subject=pseudonym) == ["d1", "c1"]
    answer = await get(site, "other", subject="anna")
    assert (answer.status_code, answer.json()["values"]) == (403, {"scope": "audit:admin"})


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"from": "2026-11-22T10:00:02Z"}, ["d2", "c2"]),
        ({"from": "2026-11-22T12:00:02+02:00"}, ["d2", "c2"]),
        ({"to": "2026-11-22t10:00:00.000001z"}, ["d0", "c0"]),
        ({"to": "2026-11-22T10:00:00Z"}, []),
        ({"region": "us-east", "subject_country": "DE"}, ["d1", "c1"]),
        ({"request_id": "r2", "outcome": "permitted"}, ["d2"]),
        ({"reason": "DENY_GPC"}, []),
    ],
)
async def test_filters(site, query, expected):
    assert await ids(site, **query) == expected


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
        ({"region": ["a", "b"]}, "region"),
    ],
)
async def test_a_query_that_cannot_be_meant_is_refused(site, query, param):
    answer = await get(site, **query)
    assert (answer.status_code, answer.json()["id"], answer.json()["param"]) == (400, "invalid_request.query", param)
