"""What operators rely on: metrics that count what happened, a description of every endpoint, and honest readiness."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conformance.topology import EMBED, Topology
from tests.fleet.servers import Request, reply, serving
from tests.running import configuration, gateway

pytestmark = pytest.mark.xdist_group("topology")

REGIONS = ("us-east", "eu-west", "ap-southeast")
ENDPOINTS = {
    "/v1/embeddings": {"post"},
    "/v1/chat/completions": {"post"},
    "/v1/completions": {"post"},
    "/v1/models": {"get"},
    "/v1/models/{model}": {"get"},
    "/v2": {"get"},
    "/v2/health/live": {"get"},
    "/v2/health/ready": {"get"},
    "/v2/models/{model}": {"get"},
    "/v2/models/{model}/versions/{version}": {"get"},
    "/v2/models/{model}/ready": {"get"},
    "/v2/models/{model}/versions/{version}/ready": {"get"},
    "/v2/models/{model}/infer": {"post"},
    "/v2/models/{model}/versions/{version}/infer": {"post"},
    "/v1/route/explain": {"post"},
    "/v1/regions": {"get"},
    "/v1/audit/logs": {"get"},
    "/v1/audit/export": {"get"},
    "/v1/audit/records/{id}": {"get"},
    "/v1/audit/records/{id}/proof": {"get"},
    "/v1/audit/checkpoint": {"get"},
    "/v1/audit/verify": {"get"},
    "/v1/audit/erasures": {"post"},
    "/v1/audit/access": {"post"},
    "/v1/audit/holds": {"get", "post"},
    "/v1/audit/holds/{hold_id}": {"delete"},
    "/livez": {"get"},
    "/readyz": {"get"},
    "/health": {"get"},
    "/health/liveliness": {"get"},
    "/health/readiness": {"get"},
    "/metrics": {"get"},
}


def test_metrics_move_with_the_traffic(topology: Topology) -> None:
    before = topology.metrics()
    text = f"counted {uuid.uuid4().hex}"
    statuses = [
        topology.embed(text, X_Region="us-east").status_code,
        topology.embed(text, X_Region="us-east").status_code,
        topology.embed("", X_Region="us-east").status_code,
        topology.embed(text, X_Region="us-east", X_Data_Subject="DE").status_code,
        topology.embed(text, model="none").status_code,
        topology.embed("x" * 1000, Authorization="Bearer small-key").status_code,
    ]
    assert statuses == [200, 200, 400, 451, 404, 429]
    after = topology.metrics()

    def moved(name: str, **labels: str) -> float:
        return sum(
            value - before[name, held]
            for (named, held), value in after.items()
            if named == name and labels.items() <= dict(held).items()
        )

    asked = {"endpoint": "embeddings"}
    assert moved("tidegate_requests_total", **asked, status="200", region="us-east") == 2
    assert [moved("tidegate_requests_total", **asked, status=str(status)) for status in (400, 451, 404, 429)] == [1] * 4
    assert moved("tidegate_requests_total", **asked) == 6
    assert moved("tidegate_request_duration_seconds_count", **asked) == 6
    assert moved("tidegate_request_duration_seconds_bucket", **asked, le="+Inf") == 6
    assert moved("tidegate_request_duration_seconds_sum", **asked) > 0
    assert moved("tidegate_upstream_attempts_total") == 2
    assert moved("tidegate_upstream_attempts_total", region="us-east", outcome="answered") == 2
    assert moved("tidegate_upstream_duration_seconds_count", region="us-east") == 2
    assert [moved("tidegate_cache_lookups_total", status=status) for status in ("MISS", "HIT")] == [2, 1]
    assert moved("tidegate_cache_entries") == 1
    assert moved("tidegate_cache_bytes") > 0
    assert moved("tidegate_residency_refusals_total", reason="DENY_REQUESTED_REGION") == 1
    assert moved("tidegate_residency_refusals_total") == 1
    assert moved("tidegate_rate_limited_total", limit="tokens") == 1
    logs = {log: moved("tidegate_audit_records_total", log=log) for log in (*REGIONS, "gateway")}
    assert logs["eu-west"] == 2
    assert sum(logs.values()) == 12  # a decision and a completion for each of six requests
    assert moved("tidegate_audit_commit_duration_seconds_count") > 0
    for region in REGIONS:
        held = (("region", region),)
        assert after["tidegate_backend_up", held] == 1
        assert after["tidegate_breaker_state", held] == 0
        assert after["tidegate_requests_in_flight", held] == 0


def test_metrics_name_no_caller(topology: Topology) -> None:
    """No label takes its value from a request: whoever can write labels can fill the memory of all who read them."""
    marker = uuid.uuid4().hex
    topology.embed(marker, model=marker, X_Request_Id=marker, X_Subject_Id=marker)
    topology.client.get(f"/v1/models/{marker}")
    topology.client.get(f"/{marker}")
    assert marker not in topology.client.get("/metrics").text


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from references(child)


def test_the_description_is_sound_and_complete(topology: Topology) -> None:
    described = httpx.get(topology.url + "/openapi.json").json()
    assert described["openapi"].startswith("3.")
    assert described["info"]["title"] == "Tidegate"
    assert described["info"]["version"]
    operations = {
        (path, method): operation for path, item in described["paths"].items() for method, operation in item.items()
    }
    assert set(operations) == {(path, method) for path, methods in ENDPOINTS.items() for method in methods}
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(set(ids)) == len(ids)
    for (path, method), operation in operations.items():
        assert operation["responses"], path
        parameters = operation.get("parameters", [])
        assert {each["name"] for each in parameters if each["in"] == "path"} == {
            part[1:-1] for part in path.split("/") if part.startswith("{")
        }
        assert len({(each["in"], each["name"]) for each in parameters}) == len(parameters)
        assert all(each["in"] != "path" or each["required"] for each in parameters)
        if method == "post":
            assert operation["requestBody"]["content"], path
    for reference in references(described):
        found = described
        for part in reference.removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]


def test_every_endpoint_answers(topology: Topology) -> None:
    """Whatever is described is there: none of them answers that there is nothing at its path."""
    record = topology.embed("to be found again").headers["X-Audit-Id"]
    expected = {"get": 200, "post": 400, "delete": 404}
    for path, methods in ENDPOINTS.items():
        at = path.format(model="minilm", version="1", id=record, hold_id="none")
        query = {"region": "gateway"} if path.endswith("/checkpoint") else {}
        for method in methods:
            answer = topology.client.request(method, at, params=query)
            assert answer.status_code == expected[method], (path, answer.text)
            assert at not in answer.text


def test_the_page_that_shows_the_description(topology: Topology) -> None:
    page = httpx.get(topology.url + "/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in page.text


async def test_readiness_follows_the_regions(tmp_path: Path) -> None:
    """One region is enough to be ready, and without any the gateway says so, in every shape that is asked."""
    well = {"us-east": True, "eu-west": True}

    def answering(region: str) -> Any:
        async def answer(writer: asyncio.StreamWriter, request: Request) -> None:
            await reply(200 if well[region] else 503)(writer, request)

        return answer

    async with serving(answering("us-east")) as first, serving(answering("eu-west")) as second:
        settings = configuration({}, {"resilience": {"health": {"interval": "50ms", "timeout": "5s"}}})
        settings["regions"] = [
            {
                "id": name,
                "country": country,
                "latitude": 0,
                "longitude": 0,
                "operator": {"name": "a"},
                "backends": [{"url": server.url, "protocol": "openai", "models": ["embed"]}],
            }
            for name, country, server in (("us-east", "US", first), ("eu-west", "IE", second))
        ]
        file = tmp_path / "tidegate.yaml"
        file.write_text(json.dumps(settings))
        async with gateway(tmp_path, file) as running:

            async def told(status: int, *up: str) -> None:
                expected = (status, {"status": "ready" if status == 200 else "not ready", "regions_up": list(up)})
                async with asyncio.timeout(20):
                    while True:
                        answer = await running.client.get("/readyz")
                        if (answer.status_code, answer.json()) == expected:
                            break
                        await asyncio.sleep(0.02)
                for path in ("/health", "/health/readiness", "/v2/health/ready"):
                    assert (await running.client.get(path)).status_code == status
                assert (await running.client.get("/livez")).status_code == 200

            await told(200, "us-east", "eu-west")
            well["us-east"] = False
            await told(200, "eu-west")
            well["eu-west"] = False
            await told(503)
            refused = await running.client.post(EMBED, json={"model": "embed", "input": "x"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_healthy_region")
            well["us-east"] = True
            await told(200, "us-east")
