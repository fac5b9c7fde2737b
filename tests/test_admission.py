"""What headers alone decide is decided without touching the body: calls of `receive` are counted."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from app.activity import Activity
from app.configuration import ConfigurationFiles
from app.main import create_app

KEY = "counted"
REGIONS = {"us-east": ("US", 38.9, -77.4), "eu-west": ("IE", 53.3, -6.3)}


def gateway(directory: Path, **section: Any) -> ASGIApp:
    """The application by a file with this gateway section."""
    regions = [
        {"id": name, "country": country, "latitude": latitude, "longitude": longitude, "operator": {"name": "acme"}}
        for name, (country, latitude, longitude) in REGIONS.items()
    ]
    limits = {"requests": "1/hour"}
    key = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
    tenant = {"id": "demo", "keys": [key], "subject": "US", "limits": limits}
    sections = {"gateway": section, "regions": regions, "tenants": [tenant], "audit": {"path": "audit"}}
    file = directory / "tidegate.yaml"
    file.write_text(json.dumps({"version": 1, **sections}))  # JSON is YAML
    files = ConfigurationFiles(file, {})
    return create_app(files, files.load(), {}, Activity())


@asynccontextmanager
async def started(app: ASGIApp) -> AsyncIterator[ASGIApp]:
    """The application between its lifespan's start and end."""
    async with app._app._lifetime():  # type: ignore[attr-defined]
        yield app


async def ask(app: ASGIApp, **headers: str) -> tuple[int, int]:
    """The status of a POST with a body that never comes, and how often the body was asked for."""
    calls, status = 0, 0

    async def receive() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    sent = {"authorization": f"Bearer {KEY}", "content-length": "50", "content-type": "application/json", **headers}
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": fields, "client": ("127.0.0.1", 1)}
    await app({**scope, "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"}, receive, send)
    return status, calls


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x_data_subject": "DE", "x_region": "us-east"}, 451),
        ({"x_data_subject": "GL"}, 451),
        ({"x_data_subject": "UK"}, 400),
        ({"x_region": "mars"}, 400),
        ({"authorization": "Bearer wrong"}, 401),
        ({"content_length": "99999999", "expect": "100-continue"}, 413),
        ({"content_type": "text/plain"}, 415),
    ],
)
async def test_a_refusal_reads_nothing(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    renamed = {name.replace("content_", "content-"): value for name, value in headers.items()}
    async with started(gateway(tmp_path)) as app:
        assert await ask(app, **renamed) == (status, 0)


async def test_a_wrong_gateway_and_a_spent_limit_read_nothing(tmp_path: Path) -> None:
    async with started(gateway(tmp_path, region="us-east")) as app:
        assert await ask(app, x_data_subject="DE") == (421, 0)
        assert (await ask(app))[1] > 0  # a permitted request does read; nobody is there to send
        assert await ask(app) == (429, 0)
