"""Every error that a request can meet, through a real gateway: its code, its wire shape, and two languages."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.fleet.servers import cut_at_once, hang, reply, until
from tests.running import HASH, KEY, Running, running

EMBED = "/v1/embeddings"
INFER = "/v2/models/tensors/infer"
BODY = {"model": "embed", "input": "hello"}
TENSOR = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}


async def refused(
    gateway: Running, status: int, code: str, path: str = EMBED, body: Any = BODY, **headers: str
) -> dict[str, httpx.Response]:
    """The same request in English and French: both refused with this code, and in words of their own."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    answers = {}
    for language in ("en", "fr"):
        answer = await gateway.client.post(path, content=content, headers={**named, "Accept-Language": language})
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Language"] == language
        assert answer.headers["X-Request-Id"]
        answers[language] = answer
    texts = {language: _message(answer, code) for language, answer in answers.items()}
    assert texts["en"] != texts["fr"]
    return answers


def _message(answer: httpx.Response, code: str) -> str:
    content = answer.json()
    if answer.headers["Content-Type"] == "application/problem+json":
        assert (content["code"], content["status"]) == (code, answer.status_code)
        assert content["type"]
        assert content["title"]
        assert content["instance"]
        return str(content["detail"])
    error = content["error"]
    if isinstance(error, str):
        return error
    assert error["code"] == code
    assert error["type"]
    assert "param" in error
    return str(error["message"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("gateway"), gateway={"body_limit": "64KiB"}) as found:
        yield found


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "embed", "input": ', None),
        (b"\xff\xfe", None),
        (b"", None),
        ([BODY], None),
        ({"input": "x"}, "model"),
        ({"model": 7, "input": "x"}, "model"),
        ({"model": "chat", "messages": [], "stream": "yes"}, "stream"),
        (b'{"model": "embed", "input": ' + b"[" * 5000 + b"]" * 5000 + b"}", None),
    ],
)
async def test_a_body_that_cannot_be_read(gateway: Running, body: Any, param: str | None) -> None:
    answers = await refused(gateway, 400, "invalid_request", body=body)
    assert answers["en"].json()["error"]["param"] == param
    assert answers["en"].headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": "x"},
        {"inputs": [{**TENSOR, "datatype": "FLOAT"}]},
        {"inputs": [{**TENSOR, "shape": [-1]}]},
        {"inputs": [{**TENSOR, "data": [1.0, 2.0]}]},
    ],
)
async def test_a_kserve_body_that_cannot_be_read(gateway: Running, body: Any) -> None:
    answers = await refused(gateway, 400, "invalid_request", path=INFER, body=body)
    assert set(answers["en"].json()) == {"error"}


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Data_Subject": "UK"},
        {"X_Data_Subject": "EL"},
        {"X_Data_Subject": "Germany"},
        {"X_Data_Subject": "US-ZZ"},
        {"X_Transfer_Basis": "nobody-registered-this"},
        {"X_Request_Timeout_Ms": "soon"},
        {"X_Request_Timeout_Ms": "-1"},
        {"x_stainless_read_timeout": "nan"},
    ],
)
async def test_a_header_that_cannot_be_read(gateway: Running, headers: dict[str, str]) -> None:
    answers = await refused(gateway, 400, "invalid_request", **headers)
    assert answers["en"].json()["error"]["param"].lower() == next(iter(headers)).replace("_", "-").lower()


async def test_the_right_code_is_named_for_uk(gateway: Running) -> None:
    answers = await refused(gateway, 400, "invalid_request", X_Data_Subject="UK")
    assert "GB" in answers["en"].json()["error"]["message"]


async def test_a_region_twice(gateway: Running) -> None:
    answer = await gateway.client.post(EMBED, json=BODY, headers=[("X-Region", "us-east"), ("X-Region", "eu-west")])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("header", ["X_Region", "X_Region_Prefer"])
async def test_an_unknown_region(gateway: Running, header: str) -> None:
    answers = await refused(gateway, 400, "unknown_region", **{header: "mars"})
    assert "eu-west" in answers["en"].json()["error"]["message"]


async def test_keys(gateway: Running) -> None:
    async with httpx.AsyncClient(base_url=gateway.client.base_url) as stranger:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"Authorization": "Basic eDp5"}):
            answer = await stranger.post(EMBED, json=BODY, headers={**headers, "Accept-Language": "ja"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")
            assert answer.headers["Content-Language"] == "ja"
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        for headers in ({"x-api-key": KEY}, {"api-key": KEY}, {"Authorization": f"bearer {KEY}"}):
            assert (await stranger.post(EMBED, json=BODY, headers=headers)).status_code == 200


async def test_an_unknown_model(gateway: Running) -> None:
    await refused(gateway, 404, "model_not_found", body={**BODY, "model": "gpt-17"})
    await refused(gateway, 404, "model_not_found", path="/v2/models/none/infer", body={"inputs": [TENSOR]})
    missing = await gateway.client.get("/v1/models/none")
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_paths_and_methods(gateway: Running) -> None:
    nothing = await gateway.client.get("/nope", headers={"Accept-Language": "zh"})
    assert (nothing.status_code, _message(nothing, "not_found") != "") == (404, True)
    assert nothing.headers["Content-Language"] == "zh"
    wrong = await gateway.client.get(EMBED, headers={"Accept-Language": "es"})
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert _message(wrong, "method_not_allowed")


async def test_media_types(gateway: Running) -> None:
    await refused(gateway, 415, "unsupported_media_type", Content_Type="text/plain")
    await refused(gateway, 415, "unsupported_media_type", Content_Encoding="gzip")


async def test_a_large_body_is_refused_from_its_length_and_when_chunked(gateway: Running) -> None:
    before = {name: len(upstream.posts) for name, upstream in gateway.upstreams.items()}
    await refused(gateway, 413, "payload_too_large", body=b'{"model": "embed", "input": "' + b"x" * 70_000 + b'"}')

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"model": "embed", "input": "'
        for _ in range(40):
            yield b"x" * 4096

    for language in ("en", "fr"):
        answer = await gateway.client.post(EMBED, content=chunks(), headers={"Accept-Language": language})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    assert {name: len(upstream.posts) for name, upstream in gateway.upstreams.items()} == before


async def raw(gateway: Running, content: bytes, until: bytes = b"") -> bytes:
    """Send bytes as they are; read to the end of the connection, or to the bytes given."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(content)
        async with asyncio.timeout(25):
            return await (reader.readuntil(until) if until else reader.read())
    finally:
        writer.close()


def head(*lines: str) -> bytes:
    fixed = (f"POST {EMBED} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Connection: close")
    return "\r\n".join((*fixed, *lines, "", "")).encode()


async def test_a_refusal_comes_before_100_continue(gateway: Running) -> None:
    denied = await raw(
        gateway,
        head("Content-Length: 40", "Expect: 100-continue", "X-Data-Subject: DE", "X-Region: us-east"),
    )
    assert denied.startswith(b"HTTP/1.1 451 ")
    assert b"100 Continue" not in denied
    large = await raw(gateway, head("Content-Length: 999999999", "Expect: 100-continue"))
    assert large.startswith(b"HTTP/1.1 413 ")


async def test_a_permitted_request_is_asked_for_its_body(gateway: Running) -> None:
    asked = await raw(gateway, head("Content-Length: 40", "Expect: 100-continue"), b"\r\n\r\n")
    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_a_body_that_stops_coming(gateway: Running) -> None:
    answer = await raw(gateway, head("Content-Length: 40") + b'{"model"')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in answer


async def test_a_head_without_end_is_cut_off(gateway: Running) -> None:
    answer = await raw(gateway, b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_failing_regions(gateway: Running) -> None:
    def all_answer(answer: Any) -> None:
        for upstream in gateway.upstreams.values():
            upstream.answer = answer

    all_answer(reply(500, b"{}"))
    await refused(gateway, 502, "upstream_failed", body={**BODY, "input": "fails"})
    all_answer(hang)
    await refused(gateway, 504, "deadline_exceeded", body={**BODY, "input": "hangs"}, X_Request_Timeout_Ms="300")
    all_answer(reply(503, b'{"error": "The queue is full", "code": "overloaded"}'))
    answers = await refused(gateway, 503, "overloaded", body={**BODY, "input": "full"})
    assert int(answers["en"].headers["Retry-After"]) >= 1
    assert int(answers["en"].headers["retry-after-ms"]) >= 1
    all_answer(reply(422, b'{"error": {"message": "no", "type": "x", "param": null, "code": "own"}}'))
    passed = await gateway.embed("refused by the backend")
    assert (passed.status_code, passed.json()["error"]["code"]) == (422, "own")


async def test_nobody_fails_twice(tmp_path: Path) -> None:
    async with running(tmp_path, "eu-west") as gateway:
        gateway.upstreams["eu-west"].answer = cut_at_once
        tenant_subject = {"X_Data_Subject": "DE"}
        for _ in range(2):
            await gateway.embed(**tenant_subject)
        await refused(gateway, 503, "no_healthy_region", **tenant_subject)


async def test_scopes_and_tenant_rules(tmp_path: Path) -> None:
    bare = {"id": "bare", "keys": [HASH], "scopes": ["audit:read"], "subject": "US"}
    async with running(tmp_path, tenants=[bare]) as gateway:
        await refused(gateway, 403, "forbidden")
        problem = await gateway.client.post("/v1/route/explain", json={})
        assert (problem.status_code, problem.json()["code"]) == (403, "forbidden")
    (tmp_path / "second").mkdir()
    narrow = {"id": "narrow", "keys": [HASH], "scopes": ["infer"], "subject": "US", "allow_regions": ["us-east"]}
    async with running(tmp_path / "second", tenants=[narrow]) as gateway:
        answers = await refused(gateway, 403, "forbidden", X_Region="eu-west")
        assert answers["en"].headers["X-Route-Reason"] == "DENY_TENANT"
        other = await gateway.client.post("/v1/route/explain", json={"tenant": "another"})
        assert other.status_code == 403


async def test_limits(tmp_path: Path) -> None:
    limits = {"requests": "3/minute", "tokens": "1000/minute", "concurrency": 1}
    tenant = {"id": "demo", "keys": [HASH], "scopes": ["infer"], "subject": "US", "limits": limits}
    async with running(tmp_path, tenants=[tenant], cache={"ttl": "1ms"}) as gateway:
        first = await gateway.embed("one")
        assert first.headers["x-ratelimit-remaining-requests"] == "2"
        assert first.headers["RateLimit-Policy"] == '"requests";q=3;w=60, "tokens";q=1000;w=60'
        assert first.headers["RateLimit"].startswith('"requests";r=2;t=')
        never = await gateway.embed("x" * 8000)
        assert (never.status_code, "Retry-After" in never.headers) == (429, False)
        assert never.headers["x-should-retry"] == "false"
        gateway.upstreams["us-east"].answer = hang
        running_one = asyncio.create_task(gateway.embed("two"))
        await until(lambda: any(b"two" in post.body for post in gateway.upstreams["us-east"].posts))
        await refused(gateway, 429, "rate_limited")
        running_one.cancel()


async def test_one_at_a_time(tmp_path: Path) -> None:
    tenant = {"id": "demo", "keys": [HASH], "scopes": ["infer"], "subject": "US", "limits": {"concurrency": 1}}
    async with running(tmp_path, tenants=[tenant]) as gateway:
        gateway.upstreams["us-east"].answer = hang
        first = asyncio.create_task(gateway.embed("one"))
        await until(lambda: bool(gateway.upstreams["us-east"].posts))
        await refused(gateway, 429, "rate_limited", body={**BODY, "input": "two"})
        first.cancel()
        gateway.upstreams["us-east"].answer = reply(200)
        async with asyncio.timeout(20):
            while (await gateway.embed("three")).status_code == 429:  # noqa: ASYNC110 - another process tells
                await asyncio.sleep(0.05)


async def test_a_trailer_is_no_header(gateway: Running) -> None:
    lines = (f"POST {EMBED} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "Connection: close")
    content = "\r\n".join((*lines, "", "2", "{}", "0", f"Authorization: Bearer {KEY}", "", "")).encode()
    assert (await raw(gateway, content)).startswith(b"HTTP/1.1 401 ")


async def test_two_keys(gateway: Running) -> None:
    twice = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")]
    async with httpx.AsyncClient(base_url=gateway.client.base_url) as stranger:
        answer = await stranger.post(EMBED, json=BODY, headers=twice)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "authorization")


@pytest.mark.parametrize("query", ["region=mars", "outcome=bogus", "reason=X", "subject_country=UK", "limit=0", "x=1"])
async def test_a_filter_that_no_record_can_meet(gateway: Running, query: str) -> None:
    answer = await gateway.client.get(f"/v1/audit/logs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_a_client_that_leaves_in_its_body_is_recorded(gateway: Running) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head("Content-Length: 40", "X-Request-Id: left-early") + b'{"model"')
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.close()
    async with asyncio.timeout(20):
        while len(records := await gateway.records(request_id="left-early")) < 2:  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(0.05)
    assert [record["outcome"] for record in records] == ["refused", "cancelled"]
    assert records[1]["body_may_have_arrived"] is False
