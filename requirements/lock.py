"""Owns requirements/lock.txt: pins every package that the gateway, the worker, the extras and the tests resolve to.

`make lock` keeps the versions that are installed beside it and adds what is missing; `make lock UPGRADE=1` takes the
newest of each. The file names versions only (no hashes, addresses or build suffixes), so that it serves wherever
packages come from: an index, a mirror or a folder of wheels.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
HEADER = (
    "# Made by `make lock`: what `pip install -c` keeps to. Edit pyproject.toml, not this file.\n"
    "# torch brings the packages of its accelerator with it and pins those itself.\n"
)
# Packages that torch pins exactly, and only where its build has an accelerator: they differ from machine to machine.
OF_TORCH = re.compile(r"^(nvidia|cuda|triton)(-.*)?$")


def pip(*arguments: str) -> str:
    """Output of pip in this interpreter's environment; raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def installed() -> list[str]:
    """Pins of what is installed, without editable projects and files."""
    lines = pip("freeze", "--exclude-editable").splitlines()
    return [line.partition("+")[0] for line in lines if "==" in line and " @ " not in line]


def resolve(keep: list[str]) -> list[str]:
    """Pins of everything that pyproject and model.txt need, holding to those in `keep`."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for group in project["optional-dependencies"].values() for line in group),
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(keep))
        constraints.flush()
        report = pip(
            "install", "--dry-run", "--ignore-installed", "-qq", "--report", "-", "-c", constraints.name, *wanted
        )
    found = {
        re.sub(r"[-_.]+", "-", entry["metadata"]["name"]).lower(): entry["metadata"]["version"].partition("+")[0]
        for entry in json.loads(report)["install"]
    }
    return sorted(f"{name}=={version}" for name, version in found.items() if not OF_TORCH.match(name))


if __name__ == "__main__":
    pins = resolve([] if "--upgrade" in sys.argv else installed())
    (HERE / "lock.txt").write_text(HEADER + "\n".join(pins) + "\n")
    sys.stdout.write(f"requirements/lock.txt: {len(pins)} packages\n")
