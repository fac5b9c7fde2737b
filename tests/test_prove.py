"""`tidegate prove` as operators and CI run it: real processes, exit codes, and one line where something is wrong."""

import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ROOT / "configs" / "local.yaml"
TENANT = """\
  - id: analytics
    subject: null
    posture: transfer
    instruments:
      - {id: scc-us, type: scc, to: [US], valid: [2026-01-01, 2099-12-31], tia_valid: [2026-01-01, 2099-12-31]}
"""


def run(*arguments: object, columns: str = "200") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": columns},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def prove(statement: str, config: Path = LOCAL, *options: str) -> subprocess.CompletedProcess[str]:
    return run("prove", "--config", config, statement, *options)


@pytest.fixture
def today() -> date:
    return datetime.now(UTC).date()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The local topology, and a tenant that holds clauses toward the United States."""
    copy = tmp_path / "changed.yaml"
    copy.write_text(LOCAL.read_text().replace("\ntenants:\n", "\ntenants:\n" + TENANT))
    return copy


def certified(file: Path, start: date) -> Path:
    """The local topology, where the region in the United States is certified from `start` on, and a tenant moves."""
    valid = f"{{id: eu-us-dpf, valid: [{start}, 2099-12-31]}}"
    text = LOCAL.read_text().replace("certifications: []       #", f"certifications: [{valid}] #", 1)
    file.write_text(text.replace("posture: residency           #", "posture: transfer #", 1))
    return file


def test_the_local_topology_keeps_germans_in_the_area(today: date) -> None:
    done = prove("DE only reaches EEA")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "holds: DE only reaches EEA"
    assert lines[1].startswith("covered: 1 tenant, 0 instruments, 1 subject code, 3 regions, ")
    assert f"every day until {today.year + 2}-" in lines[1]
    assert lines[-1] == "DE may be served in: eu-west; EEA means: eu-west"
    assert prove("DE never reaches US, ap-southeast or CN for demo").returncode == 0


def test_a_tenant_with_clauses_is_the_counterexample(file: Path, today: date) -> None:
    done = prove("DE only reaches EEA", file)
    assert (done.returncode, done.stderr) == (1, "")
    refused, smallest, command = done.stdout.splitlines()
    assert refused == "does not hold: DE only reaches EEA"
    assert smallest == (
        f"smallest counterexample: tenant analytics on {today} with X-Data-Subject: DE may be served in us-east (US): "
        "ALLOW_SCC by gdpr-scc:scc-us (GDPR 46(2)(c))"
    )
    shown = run(*shlex.split(command.removeprefix("see it: tidegate ")))
    assert shown.stdout.startswith(
        "200 served: ALLOW_SCC by gdpr-scc:scc-us (GDPR 46(2)(c))\nregions in order: us-east"
    )
    assert prove("DE only reaches EEA for demo", file).returncode == 0
    assert prove("SG never reaches US", file).returncode == 0


def test_a_certification_that_begins_next_year(tmp_path: Path, today: date) -> None:
    start = today + timedelta(days=400)
    config = certified(tmp_path / "later.yaml", start)
    done = prove("DE never reaches US", config)
    assert done.returncode == 1, done.stderr
    assert f"tenant demo on {start} with X-Data-Subject: DE may be served in us-east" in done.stdout
    assert "ALLOW_CERT by eu-us-dpf (2023/1795)" in done.stdout
    assert prove(f"DE never reaches US until {start}", config).returncode == 1
    assert prove(f"DE never reaches US until {start - timedelta(days=1)}", config).returncode == 0
    assert prove("DE never reaches US", certified(config, start + timedelta(days=400))).returncode == 0


def test_json_says_the_same(file: Path, today: date) -> None:
    done = prove("EU never reaches SG", file, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert (answer["holds"], answer["counterexample"]) == (True, None)
    assert (answer["reached"], answer["named"]) == (["us-east", "eu-west"], ["ap-southeast"])
    covered = answer["covered"]
    assert (covered["tenants"], covered["instruments"]) == (["analytics", "demo"], 1)
    assert (covered["from"], covered["days"][0]) == (str(today), str(today))
    assert "FR" in covered["subjects"]
    assert covered["decisions"] > 0
    done = prove("DE never reaches US", file, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)["counterexample"]
    assert found.pop("explain").startswith("tidegate explain --config ")
    assert found == {
        "tenant": "analytics",
        "day": str(today),
        "headers": {"X-Data-Subject": "DE"},
        "purpose": None,
        "region": "us-east",
        "reason": "ALLOW_SCC",
        "rule": "gdpr-scc:scc-us",
        "law": "GDPR 46(2)(c)",
    }


def test_the_words_need_no_quotes() -> None:
    assert run("prove", "--config", LOCAL, "DE", "only", "reaches", "EEA").returncode == 0


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DE reaches US", "tidegate: 'DE reaches US' is no statement; write SUBJECT never|only reaches "),
        ("UK-X never reaches US", "tidegate: subject: 'UK-X' is unknown; write GB"),
        ("DE never reaches eu-wst", "tidegate: 'eu-wst' is unknown"),
        ("DE never reaches US for nobody", "tidegate: for: there is no tenant 'nobody'; configured: demo"),
        ("DE never reaches US until 2020-01-01", "tidegate: until: 2020-01-01 has passed"),
    ],
)
def test_a_statement_that_says_nothing_is_one_line(statement: str, said: str) -> None:
    for options in ((), ("--json",)):
        done = prove(statement, LOCAL, *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(said)
        assert done.stderr.count("\n") == 1


def test_a_bad_configuration_is_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(LOCAL.read_text().replace("country: IE", "country: UK"))
    done = prove("DE only reaches EEA", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "regions.1.country: 'UK' is not the ISO 3166 code; write GB" in done.stderr
    assert done.stderr.count("\n") == 1
    assert prove("DE only reaches EEA", tmp_path / "nowhere.yaml").returncode == 2
