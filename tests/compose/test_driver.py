"""The parts of `make compose-test` that can be looked at without an engine: above all, what it takes back."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.compose.firewall import removals
from tests.compose.host import ROOT
from tests.compose.report import Failure, Report
from tests.compose.scene import readme_requests
from tests.compose.shell import run

BEFORE = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [9:720]
:OUTPUT ACCEPT [0:0]
:mine - [0:0]
-A FORWARD -j mine
-A mine -s 10.9.0.0/16 -j DROP
COMMIT
"""
AFTER = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:mine - [0:0]
:yours - [0:0]
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i br-0123456789ab ! -o br-0123456789ab -j ACCEPT
-A FORWARD -j mine
-A FORWARD -i eth1 -j yours
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A mine -s 10.9.0.0/16 -j DROP
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 10.0.0.0/8 -o eth0 -j MASQUERADE
COMMIT
"""


def test_the_engines_rules_are_removed_and_only_those() -> None:
    assert [" ".join(each) for each in removals(BEFORE, AFTER)] == [
        "-t filter -D FORWARD -j DOCKER-ISOLATION-STAGE-1",
        "-t filter -D FORWARD -o docker0 -j DOCKER",
        "-t filter -D FORWARD -i br-0123456789ab ! -o br-0123456789ab -j ACCEPT",
        "-t filter -F DOCKER",
        "-t filter -F DOCKER-ISOLATION-STAGE-1",
        "-t filter -X DOCKER",
        "-t filter -X DOCKER-ISOLATION-STAGE-1",
        "-t filter -P FORWARD ACCEPT",
        "-t nat -D POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        "-t nat -F DOCKER",
        "-t nat -X DOCKER",
    ]


def test_rules_of_an_engine_that_was_there_before_stay() -> None:
    assert removals(AFTER, AFTER) == []
    assert removals("", BEFORE) == []


def test_the_readmes_requests_are_found() -> None:
    body, headers = readme_requests()
    assert body["model"] == "minilm"
    assert [sorted(each) for each in headers] == [
        [],
        ["X-Data-Subject"],
        ["Accept-Language", "X-Data-Subject", "X-Region"],
    ]


def test_a_step_ends_at_its_limit() -> None:
    with pytest.raises(Failure, match="A step: not done after 1 s"), Report().step("A step", 1):
        time.sleep(10)


def test_what_does_not_hold_ends_the_run_and_says_what_was_found() -> None:
    with pytest.raises(Failure, match=r"expected: a thing; found: \[\]"):
        Report().check(False, "a thing", [])


def test_a_program_that_fails_is_named_with_what_it_printed() -> None:
    with pytest.raises(Failure, match=r"sh -c .*: exit status 3\nout\nerr"):
        run("sh", "-c", "echo out; echo err >&2; exit 3")
    with pytest.raises(Failure, match="no-such-program: No such file"):
        run("no-such-program")
    assert run("cat", given="what is given").out == "what is given"


def test_an_interrupted_program_ends_with_all_that_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(Failure, match="not done"), Report().step("A step", 1):
        run("sh", "-c", f"sleep 60 & echo $! > {pid}; wait")
    end = time.monotonic() + 10
    while _lives(int(pid.read_text())) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _lives(int(pid.read_text()))


def _lives(pid: int) -> bool:
    try:
        return re.search(r"State:\s+Z", Path(f"/proc/{pid}/status").read_text()) is None
    except OSError:
        return False


@pytest.mark.parametrize(("user", "said"), [(0, "this is no Debian"), (65534, "only root can start one")])
def test_without_an_engine_it_says_in_a_line_what_to_do(user: int, said: str) -> None:
    if os.geteuid():
        pytest.skip("needs root to stand for both")
    ran = driver(f"os.environ['PATH'] = '/nowhere'; os.setuid({user})")
    _, err = ran.communicate(timeout=60)
    assert (ran.returncode, err.count("\n")) == (1, 1), err
    assert err.startswith("error: no Docker engine answers (there is no program `docker`), and ")
    assert said in err


def test_a_port_that_is_taken_is_named() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with taken:
        ran = driver(f"run.REGIONS = {{'eu-west': {port}}}; run._run = lambda *_: run._require_free_ports()")
        _, err = ran.communicate(timeout=60)
    assert (ran.returncode, err) == (
        1,
        f"error: port {port}, for eu-west, is taken by another program; stop that first\n",
    )


def test_a_signal_ends_the_run_with_130() -> None:
    ran = driver("run._run = lambda *_: (print('ready', flush=True), time.sleep(60))")
    assert ran.stdout
    assert ran.stdout.readline() == "ready\n"
    ran.send_signal(signal.SIGTERM)
    _, err = ran.communicate(timeout=20)
    assert (ran.returncode, err.startswith("error: interrupted")) == (130, True), err


def test_a_run_that_nobody_reads_goes_on_to_its_end(tmp_path: Path) -> None:
    taken_down = tmp_path / "taken down"
    change = (
        "run._run = lambda report, _: (print('ready', flush=True), time.sleep(1), report.say('x'), "
        f"open({str(taken_down)!r}, 'w').close())"
    )
    with driver(change) as ran:
        assert ran.stdout
        assert ran.stdout.readline() == "ready\n"
        ran.stdout.close()
        ran.wait(timeout=20)
    assert taken_down.exists()


def driver(change: str) -> "subprocess.Popen[str]":
    """A run in a process of its own, after a change to it; alone, whatever else runs on this machine."""
    alone = "run._alone = contextlib.nullcontext"
    code = f"import contextlib, os, time; import tests.compose.__main__ as run; {alone}; {change}; run.main([])"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
