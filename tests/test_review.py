"""A law whose review has run out stops a strict gateway from starting, and is warned about everywhere else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import running

ROOT = Path(__file__).resolve().parents[1]
LAWS = ROOT / "configs" / "residency"
SAID = "residency.rules: the review of law sg_pdpa ran out on 2020-06-30"
CONFIG = """\
version: 1
gateway: {listen: "127.0.0.1:0", security: LEVEL}
regions:
  - {id: eu-west, country: IE, latitude: 53.3, longitude: -6.3, operator: {name: acme}}
residency:
  rules: laws/*.yaml
tenants: [{id: one}]
audit: {path: audit}
"""


@pytest.fixture
def laws(tmp_path: Path) -> Path:
    """A copy of the laws that ship, all reviewed for long, but for one that was last reviewed years ago."""
    copies = shutil.copytree(LAWS, tmp_path / "laws")
    for file in copies.glob("*.yaml"):
        dates = (
            "2020-01-01\nreviewed_until: 2020-06-30"
            if file.stem == "sg_pdpa"
            else "2026-01-01\nreviewed_until: 2999-12-31"
        )
        head, _, rest = file.read_text().partition("reviewed: ")
        file.write_text(f"{head}reviewed: {dates}\n{rest.split(chr(10), 2)[2]}")
    return copies


def configuration(directory: Path, level: str) -> Path:
    file = directory / "tidegate.yaml"
    file.write_text(CONFIG.replace("LEVEL", level))
    return file


def tidegate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("level", ["minimal", "standard"])
def test_check_warns(laws: Path, level: str) -> None:
    file = configuration(laws.parent, level)
    done = tidegate("check", file)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{file}: sound (1 region, 1 tenant, 11 laws)")
    assert done.stderr.startswith(f"warning: {file}:6: {SAID}")
    assert done.stderr.count("\n") == 1
    found = json.loads(tidegate("check", file, "--json").stdout)
    assert (found["sound"], found["problems"]) == (True, [])
    assert [(one["line"], one["key"]) for one in found["warnings"]] == [(6, "residency.rules")]


@pytest.mark.parametrize("command", [["check"], ["gateway", "--config"], ["up", "--config"]])
def test_a_strict_configuration_is_refused(laws: Path, command: list[str]) -> None:
    file = configuration(laws.parent, "strict")
    done = tidegate(*command, file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{file}:6: {SAID}")
    assert done.stderr.count("\n") == 1


def test_a_strict_refusal_is_listed_as_json(laws: Path) -> None:
    done = tidegate("check", configuration(laws.parent, "strict"), "--json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert (found["sound"], [one["key"] for one in found["problems"]]) == (False, ["residency.rules"])


def test_a_decision_is_still_explained(laws: Path) -> None:
    done = tidegate("explain", "--config", configuration(laws.parent, "strict"), "--subject", "SG", "--json")
    assert json.loads(done.stdout)["status"] == 451


def test_strict_is_no_obstacle_while_all_laws_are_reviewed(laws: Path) -> None:
    (laws / "sg_pdpa.yaml").unlink()
    done = tidegate("check", configuration(laws.parent, "strict"))
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_gateway_starts_and_says_so_in_its_log(laws: Path) -> None:
    rules = str(laws / "*.yaml")
    async with running(laws.parent, "eu-west", residency={"rules": rules}) as gateway:
        assert (await gateway.embed(X_Data_Subject="DE")).status_code == 200
        lines = [json.loads(line) for line in gateway.log.splitlines() if line.startswith("{")]
    warned = [line for line in lines if line.get("event") == "law is due for review"]
    assert [line["level"] for line in warned] == ["warning"]
    assert SAID in warned[0]["problem"]
