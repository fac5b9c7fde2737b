"""Real gateway processes for tests, in front of small servers on loopback whose answers a test can change."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.fleet.servers import Answer, Request, Server, reply, serving, unused_port

KEY = "test-key"
HASH = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
EMBEDDING = json.dumps(
    {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
        "model": "embed",
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
).encode()
TIDEGATE = str(Path(sys.executable).with_name("tidegate"))

REGIONS: Mapping[str, Mapping[str, Any]] = {
    "us-east": {"country": "US", "subdivision": "US-VA", "latitude": 38.9, "longitude": -77.4},
    "eu-west": {"country": "IE", "latitude": 53.3, "longitude": -6.3},
    "ap-southeast": {"country": "SG", "latitude": 1.35, "longitude": 103.8},
    "eu-central": {"country": "DE", "latitude": 50.1, "longitude": 8.7},
}
USUAL = ("us-east", "eu-west", "ap-southeast")


class Upstream:
    """A region's server: well when probed, and answering everything else as `answer` says."""

    def __init__(self) -> None:
        self.answer: Answer = reply(200, EMBEDDING)
        self.server: Server = Server("")

    @property
    def posts(self) -> list[Request]:
        return [request for request in self.server.requests if request.line.startswith("POST")]

    async def respond(self, writer: asyncio.StreamWriter, request: Request) -> None:
        await (reply(200) if request.line.startswith("GET") else self.answer)(writer, request)


@dataclass
class Running:
    """A gateway process, a client that holds its key, and the regions behind it."""

    client: httpx.AsyncClient
    process: subprocess.Popen[bytes]
    directory: Path
    port: int
    upstreams: dict[str, Upstream] = field(default_factory=dict)

    @property
    def log(self) -> str:
        return (self.directory / "gateway.log").read_text()

    async def embed(self, text: Any = "hello", *, model: str = "embed", **headers: str) -> httpx.Response:
        """POST /v1/embeddings; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post("/v1/embeddings", json={"model": model, "input": text}, headers=named)

    async def records(self, **filters: str) -> list[dict[str, Any]]:
        """Every audit record that matches but those of readings as this one, by as many pages as it takes."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(100):
            page = await self.client.get(
                "/v1/audit/logs", params={"limit": "1000", **filters, **({"cursor": cursor} if cursor else {})}
            )
            page.raise_for_status()
            found += [record for record in page.json()["records"] if record["kind"] != "read"]
            cursor = page.json()["cursor"]
            if cursor is None:
                return found
        raise AssertionError("the pages of the audit trail do not end")


def configuration(upstreams: Mapping[str, Upstream], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with one openai and one kserve backend in each region; `changes` replace whole sections."""
    regions = [
        {
            "id": name,
            **REGIONS[name],
            "operator": {"name": f"acme-{name}"},
            "backends": [
                {"url": upstream.server.url, "protocol": "openai", "models": ["embed", "chat"]},
                {"url": upstream.server.url, "protocol": "kserve", "models": ["tensors"]},
            ],
        }
        for name, upstream in upstreams.items()
    ]
    tenant = {"id": "demo", "keys": [HASH], "scopes": ["infer", "audit:admin", "admin"], "subject": "US"}
    # The servers share a thread with the test: while that is busy, as with an import, no probe shall count them down.
    patient = {"health": {"timeout": "30s"}}
    fixed = {"version": 1, "regions": regions, "tenants": [tenant], "audit": {"path": "audit"}}
    return {**fixed, **changes, "resilience": {**patient, **changes.get("resilience", {})}}


@asynccontextmanager
async def running(directory: Path, *regions: str, **changes: Any) -> AsyncIterator[Running]:
    """Start servers for the regions (the usual three unless named) and a gateway before them; end it by its pid."""
    async with AsyncExitStack() as stack:
        upstreams = {name: Upstream() for name in regions or USUAL}
        for upstream in upstreams.values():
            upstream.server = await stack.enter_async_context(serving(upstream.respond))
        file = directory / "tidegate.yaml"
        file.write_text(json.dumps(configuration(upstreams, changes)))  # JSON is YAML
        async with gateway(directory, file) as found:
            found.upstreams = upstreams
            yield found


@asynccontextmanager
async def gateway(directory: Path, file: Path, *arguments: str, port: int | None = None) -> AsyncIterator[Running]:
    """A gateway process on a free port unless another is given, up once it answers."""
    port = port or unused_port()
    with (directory / "gateway.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - takes no time that a test would miss
            [TIDEGATE, "gateway", "--config", str(file), "--port", str(port), *arguments],
            stdout=log,
            stderr=log,
            env={name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")},
        )
    headers = {"Authorization": f"Bearer {KEY}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
            await _until_alive(client, process, directory)
            yield Running(client, process, directory, port)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 30)


async def _until_alive(client: httpx.AsyncClient, process: subprocess.Popen[bytes], directory: Path) -> None:
    async with asyncio.timeout(40):
        while True:
            try:
                if (await client.get("/readyz")).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            assert process.poll() is None, (directory / "gateway.log").read_text()
            await asyncio.sleep(0.05)
