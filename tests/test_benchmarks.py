"""The comparison of gateways: what it reads from the kernel, and what it says of figures."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gateways(monkeypatch):
    """The programs are no package: each finds the modules that lie beside it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return [importlib.import_module(f"gateways.{name}") for name in ("load", "processes", "report")]


def test_processor_time_of_what_has_ended_counts(gateways):
    _, processes, _ = gateways
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    code = f"""
import subprocess, sys, threading
subprocess.run([sys.executable, "-c", {burn!r}], check=True)
thread = threading.Thread(target=exec, args=({burn!r}, {{}}))
thread.start(); thread.join()
print("done", flush=True); sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"done\n"
        assert processes.cpu_seconds(process.pid) >= 0.55
        assert processes.resident(process.pid) > 1
        process.stdin.close()
    assert os.getpid() in processes.tree(os.getpid())


def test_ratios_are_of_the_rounds_and_promises_say_whether_they_are_met(gateways):
    load, _, report = gateways

    def result(*cpu, p50=0.1):
        seen = load.Load(100, 1.0, 0, p50, 5.0)
        return report.Result(0.5, 80.0, 90.0, [report.Round(each, seen, seen) for each in cpu], seen)

    results = {"direct": result(5, 5, 5), "vllm-router": result(50, 100, 50), "tidegate": result(75, 300, 75, p50=1.6)}
    assert report.times(results, "tidegate", "vllm-router") == 1.5
    assert report.times(results, "tidegate", "litellm") is None
    told = report.promises(results, None)
    assert "| CPU a request, whole path, times vllm-router | 1.5 | 2 | yes |" in told
    assert "| CPU a request, cache hit, times vllm-router | not measured | 1.3 | |" in told
    assert "| added p50 at one client | 1.5 ms | 1 ms | NO |" in told
    assert report.comparison(results).count("\n") == 4
    assert "times direct" in report.comparison({"direct": result(5)})
