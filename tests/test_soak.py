"""The long run of the gateway, in its short form: nothing fails, and of each request there are exactly two records."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def soak(**environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/soak.py"]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False, timeout=110
    )


def test_a_short_run_is_sound() -> None:
    ran = soak(SOAK_REQUESTS="2000", SOAK_CLIENTS="64")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    line = ran.stdout.splitlines()[-1]
    assert line.endswith(": sound")
    assert "2000 requests, 64 clients, " in line
    assert " 0 errors, " in line
    assert "2000 decisions, 2000 completions, 2000 pairs" in line
    kinds = dict(re.findall(r"'(\w+)': (\d+)", line))
    assert int(kinds["MISS"]) >= 1264
    assert int(kinds["HIT"]) > 400


@pytest.mark.parametrize("asked", ["0", "999", "many", "1e6", "100000001"])
def test_how_many_is_bounded(asked: str) -> None:
    ran = soak(SOAK_REQUESTS=asked)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"SOAK_REQUESTS is {asked!r}; write a number from 1000 to 100000000\n"
