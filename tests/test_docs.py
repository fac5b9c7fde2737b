"""What a user can touch is documented: endpoints, settings, codes, reasons, commands and metrics, read from code."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args

import click
import httpx
import pytest
from prometheus_client import generate_latest
from pydantic import BaseModel

from app import errors
from app.activity import Activity
from app.cli import tidegate
from app.config import Rate, Settings
from app.configuration import ConfigurationFiles
from app.main import create_app
from app.types import Reason
from regions.worker.metrics import Metrics as WorkerMetrics

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCS = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
TICKED = set(re.findall(r"`([^`\n]+)`", DOCS))


def missing(names: Iterator[str] | list[str] | set[str]) -> list[str]:
    """Those names that no page holds in code type."""
    return [name for name in names if name not in TICKED]


def settings(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        below = [one for one in sections(field.annotation) if one is not Rate]
        kind = str(field.annotation)
        many = "[]" if "tuple[" in kind else "{}" if "dict[" in kind else ""
        yield from (key for one in below for key in settings(one, f"{prefix}{name}{many}."))
        if not below:
            yield prefix + name


def sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for argument in get_args(annotation) for one in sections(argument)]


def test_every_setting_is_documented() -> None:
    assert missing(settings()) == []


def test_every_documented_setting_exists() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    keys = {key for row in re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE) for key in re.findall(r"`([^`]+)`", row)}
    assert keys - set(settings()) == set()


def test_every_error_code_is_documented_with_its_status() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type) and "code" in vars(each)]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", DOCS, re.MULTILINE))
    assert {each.code: str(each.status) for each in classes if issubclass(each, errors.GatewayError)} == rows


def test_every_reason_is_documented() -> None:
    assert missing([str(reason) for reason in Reason]) == []


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, f"{path} {name}")


def test_every_command_and_option_is_documented() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for path, command in commands(tidegate, "tidegate"):
        assert f"`{path}" in page, path
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "help":
                assert f"{option.opts[0]}" in page, f"{path} {option.opts}"


# --- what the gateway itself says of its endpoints, and what both halves count

CONFIG = ROOT / "configs" / "compose" / "gateway.yaml"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The gateway in this process, not started: what it says of itself needs no backend and no audit trail."""
    files = ConfigurationFiles(CONFIG, {"TIDEGATE_AUDIT__PATH": str(tmp_path)})
    app = create_app(files, files.load(), {}, Activity())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


async def test_every_endpoint_is_documented_and_the_other_way_round(gateway: httpx.AsyncClient) -> None:
    paths = (await gateway.get("/openapi.json")).raise_for_status().json()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert set(re.findall(r"^\| `([A-Z]+) (/\S*)` \|", DOCS, re.MULTILINE)) == served


async def test_every_metric_is_documented_and_the_other_way_round(gateway: httpx.AsyncClient) -> None:
    exported = (await gateway.get("/metrics")).raise_for_status().text
    exported += generate_latest(WorkerMetrics().registry).decode()
    helped = set(re.findall(r"^# HELP (tidegate_\w+)", exported, re.MULTILINE))
    assert set(re.findall(r"^\| `(tidegate_\w+)` \|", DOCS, re.MULTILINE)) == {
        name for name in helped if not name.endswith("_created")
    }


# --- links between the pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
