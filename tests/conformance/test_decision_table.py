"""Every case of the shared decision table through `tidegate explain` and through a gateway's endpoint: one answer."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from app.cli import tidegate
from tests.running import HASH, gateway

DATA = Path(__file__).parents[1] / "data" / "residency"
yaml = YAML(typ="safe", pure=True)
CASES: list[dict[str, Any]] = yaml.load((DATA / "cases.yaml").read_text())
TODAY = "2026-11-22"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """The shared world with a tenant besides who may ask on behalf of the others."""
    content = yaml.load((DATA / "world.yaml").read_text())
    content["tenants"].append({"id": "officer", "keys": [HASH], "scopes": ["infer", "admin"]})
    content["audit"] = {"path": "audit"}
    file = tmp_path / "world.yaml"
    file.write_text(json.dumps(content, default=str))  # JSON is YAML
    return file


@pytest.fixture
async def endpoint(world: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway(world.parent, world) as running:
        yield running.client


def body(case: dict[str, Any]) -> dict[str, Any]:
    """The case in the words of the contract; the table says `basis` and gives GPC one value."""
    same = ("tenant", "subject", "region", "down", "disabled", "evidence", "purpose")
    asked = {name: case[name] for name in same if name in case}
    asked |= {"at": str(case.get("at", TODAY))}
    asked |= {"transfer_basis": case["basis"]} if "basis" in case else {}
    asked |= {"gpc": [case["gpc"]]} if "gpc" in case else {}
    return asked


def options(asked: dict[str, Any]) -> list[str]:
    """The same as options of the command: a list is an option for each entry."""
    found: list[str] = []
    for name, value in asked.items():
        entries = value if isinstance(value, list) else [] if value is None else [value]
        texts = [f"{one['source']}={one['code']}" if isinstance(one, dict) else str(one) for one in entries]
        found += [text for one in texts for text in (f"--{name.replace('_', '-')}", one)]
    return found


def command(world: Path, asked: dict[str, Any]) -> dict[str, Any]:
    done = CliRunner().invoke(tidegate, ["explain", "--config", str(world), "--json", *options(asked)])
    assert (done.exit_code, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def agrees(case: dict[str, Any], answer: dict[str, Any]) -> bool:
    return (
        answer["status"] == case.get("status", 200)
        and sorted(answer["permitted"]) == sorted(case.get("permitted", []))
        and answer["reason"] == case.get("reason", answer["reason"])
    )


async def test_command_and_endpoint_give_the_answers_of_the_table(world: Path, endpoint: httpx.AsyncClient) -> None:
    assert len(CASES) >= 37
    for case in CASES:
        asked = body(case)
        response = await endpoint.post("/v1/route/explain", json=asked)
        assert response.status_code == 200, case
        answer = response.json()
        assert agrees(case, answer), (case, answer)
        # Nothing has been sent to these regions, so not even the scores differ.
        assert answer == command(world, asked), case


async def test_a_refusal_names_the_code_and_serves_nobody(endpoint: httpx.AsyncClient) -> None:
    codes = {400: "invalid_request", 403: "forbidden", 451: "residency_denied", 503: "no_healthy_region"}
    for case in CASES:
        answer = (await endpoint.post("/v1/route/explain", json=body(case))).json()
        assert answer["code"] == codes.get(answer["status"])
        assert (answer["chosen"] in answer["permitted"]) == (answer["status"] == 200)


async def test_what_the_request_would_be_refused_for_is_an_answer(world: Path, endpoint: httpx.AsyncClient) -> None:
    for asked, code, param in (
        ({"subject": "UK"}, "invalid_request", "subject"),
        ({"subject": "DE", "region": "mars"}, "unknown_region", "region"),
        ({"subject": "DE", "prefer": ["mars"]}, "unknown_region", "prefer"),
        ({"subject": "DE", "transfer_basis": "none"}, "invalid_request", "transfer_basis"),
        ({"evidence": [{"source": "claim", "code": "EL"}]}, "invalid_request", "evidence"),
    ):
        whole: dict[str, Any] = {"tenant": "move", **asked}
        answer = (await endpoint.post("/v1/route/explain", json=whole)).raise_for_status().json()
        nothing = {"reason": None, "permitted": [], "chosen": None, "regions": []}
        assert answer == {"status": 400, "code": code, "param": param, **nothing}
        assert answer == command(world, whole)


async def test_a_dry_run_that_is_itself_malformed_is_an_error(endpoint: httpx.AsyncClient) -> None:
    for asked, said in (
        ({"down": ["mars"]}, "mars"),
        ({"disabled": ["eu-us-privacy-shield"]}, "disabled"),
        ({"tenant": "nobody"}, "tenant"),
        ({"sbject": "DE"}, "sbject"),
        ({"at": "tomorrow"}, "at"),
    ):
        refused = await endpoint.post("/v1/route/explain", json={"subject": "DE", **asked})
        assert refused.status_code == 400
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert said in refused.json()["detail"]


async def test_an_instrument_may_be_switched_off_like_a_rule(endpoint: httpx.AsyncClient) -> None:
    asked = {"tenant": "scc", "subject": "DE", "region": "us", "at": TODAY}
    before = (await endpoint.post("/v1/route/explain", json=asked)).json()
    after = (await endpoint.post("/v1/route/explain", json={**asked, "disabled": ["scc-us"]})).json()
    assert (before["reason"], after["status"], after["reason"]) == ("ALLOW_SCC", 451, "DENY_NO_BASIS")
