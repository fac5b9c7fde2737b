"""The simulation of routing runs, covers every policy, and counts no request outside its permitted regions."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_short_run_prints_its_table() -> None:
    command = [sys.executable, "benchmarks/routing.py", "--requests", "3000", "--callers", "land"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=110)
    head, *rows = ran.stdout.splitlines()
    assert head.split()[:6] == ["p50", "p99", "p99.9", "failed", "outside", "misrouted"]
    columns = {row[:14].strip(): row[14:].split() for row in rows}
    assert list(columns) == ["tidegate", "nearest first", "round robin", "envoy"]
    for figures in columns.values():
        assert figures[7] == "0"
        assert 20 < int(figures[0]) < int(figures[2])
