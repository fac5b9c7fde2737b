"""Supervised children through real processes: restarts, probes on readiness, and no process left behind."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.child import LOG_LIMIT, Child, Spec
from app.ports import free_ports

ROOT = Path(__file__).resolve().parents[1]

# A child of either kind: it answers 200 to everything, and writes one line for each SIGUSR1 and each start.
SERVER = """
import http.server, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("probing now", flush=True))
signal.signal(signal.SIGHUP, lambda *_: print("reloading", flush=True))
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
print("started", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ok).serve_forever()
"""

# What `tidegate up` does around the supervisor, less the configuration.
DRIVER = """
import asyncio, os, sys
from pathlib import Path
from app.child import Spec
from app.supervisor import Supervisor

class Report:
    def say(self, text): print(text, flush=True)
    def waiting(self, seconds): pass
    def wrote(self, name, lines): print(*(f"[{name}] {line}" for line in lines), sep="\\n", flush=True)
    def ready(self): print("all ready", flush=True)

async def main(server, logs, worker, gateway):
    def spec(name, port, *more):
        url = f"http://127.0.0.1:{port}"
        return Spec(name, (sys.executable, server, port, *more), os.environ, Path(logs, name), url, url)
    await Supervisor([spec("worker", worker)], [spec("gateway", gateway)], Report()).run()

asyncio.run(main(*sys.argv[1:]))
"""


def driver_arguments(directory: Path) -> list[str]:
    server, driver = directory / "server.py", directory / "driver.py"
    server.write_text(SERVER)
    driver.write_text(DRIVER)
    port = free_ports(2)
    return [sys.executable, str(driver), str(server), str(directory / "logs"), str(port), str(port + 1)]


class Topology:
    """The driver as a process, and what it has said so far."""

    def __init__(self, directory: Path) -> None:
        self.output = directory / "output"
        self.directory = directory
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                driver_arguments(directory),
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def said(self) -> str:
        return self.output.read_text()

    def children(self) -> dict[int, str]:
        """Every process, by pid, that runs the server of this test."""
        return processes(str(self.directory / "server.py"), but=self.process.pid)

    def child(self, port_index: int) -> int:
        """The pid of the worker (0) or the gateway (1), which have consecutive ports."""
        by_port = sorted(self.children().items(), key=lambda item: item[1])
        return by_port[port_index][0]


def processes(marker: str, but: int = 0) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != but:
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if marker in line:
                found[int(entry.name)] = line
    return found


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.fixture
def topology(tmp_path: Path) -> Iterator[Topology]:
    running = Topology(tmp_path)
    try:
        until(lambda: "all ready" in running.said(), "the topology did not become ready")
        yield running
    finally:
        running.process.kill()
        running.process.wait(10)
        until(lambda: not running.children(), "a child outlived the supervisor")


def test_ready_children_are_announced_and_the_gateway_is_told(topology: Topology) -> None:
    assert "worker: ready after" in topology.said()
    assert "gateway: ready after" in topology.said()
    until(lambda: "[gateway] probing now" in topology.said(), "the gateway was not told of the worker")


def test_killed_worker_is_started_again_and_the_gateway_is_told_again(topology: Topology) -> None:
    until(lambda: "[gateway] probing now" in topology.said(), "the gateway was not told of the worker")
    told = topology.said().count("[gateway] probing now")
    gateway = topology.child(1)
    os.kill(topology.child(0), signal.SIGKILL)
    until(lambda: topology.said().count("worker: ready after") == 2, "the worker did not come back")
    assert "worker: died (killed by SIGKILL), next start in 0.5 s; it last wrote: started" in topology.said()
    assert "worker: starting again" in topology.said()
    until(lambda: topology.said().count("[gateway] probing now") > told, "the gateway was not told again")
    assert topology.child(1) == gateway


def test_repeated_deaths_wait_longer(topology: Topology) -> None:
    for deaths in (1, 2):
        os.kill(topology.child(0), signal.SIGKILL)
        until(lambda n=deaths: topology.said().count("worker: ready after") == n + 1, "the worker did not come back")
    assert "next start in 0.5 s" in topology.said()
    assert "next start in 1 s" in topology.said()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_leaves_nothing_and_exits_0(topology: Topology, number: signal.Signals) -> None:
    topology.process.send_signal(number)
    assert topology.process.wait(30) == 0
    assert topology.said().endswith("stopping\nstopped\n")
    assert not topology.children()


def test_sighup_goes_on_to_the_gateways_and_to_nobody_else(topology: Topology) -> None:
    children = topology.children()
    topology.process.send_signal(signal.SIGHUP)
    until(lambda: "[gateway] reloading" in topology.said(), "the gateway was not told")
    assert "the gateways reload the configuration\n" in topology.said()
    assert "[worker] reloading" not in topology.said()
    assert topology.children() == children


def test_a_terminal_that_goes_takes_everything_along(tmp_path: Path) -> None:
    """As when its window is closed: the supervisor leads the session of a terminal, whose other end is closed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, driver_arguments(tmp_path), {**os.environ, "PYTHONPATH": str(ROOT)})
    said = b""
    with contextlib.closing(os.fdopen(terminal, "rb", buffering=0)) as output:
        while b"all ready" not in said:
            said += output.read(4096)
        marker = str(tmp_path / "server.py")
        assert len(processes(marker, but=pid)) == 2
    assert os.waitpid(pid, 0) == (pid, 0)
    assert not processes(marker)


def test_stop_while_a_child_waits_for_its_next_start(topology: Topology) -> None:
    os.kill(topology.child(0), signal.SIGKILL)
    until(lambda: "died" in topology.said(), "the death went unseen")
    topology.process.send_signal(signal.SIGINT)
    assert topology.process.wait(30) == 0
    assert not topology.children()


def test_children_die_with_a_killed_supervisor(topology: Topology) -> None:
    assert len(topology.children()) == 2
    topology.process.kill()
    until(lambda: not topology.children(), "a child outlived the supervisor")


def test_children_are_out_of_reach_of_the_terminals_signals(topology: Topology) -> None:
    for pid in topology.children():
        assert os.getsid(pid) == pid


async def test_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    child = Child(Spec("stubborn", (sys.executable, "-c", stubborn), os.environ, tmp_path / "log", health=""))
    await child.start()
    until(lambda: child.last_words() == "up", "the child did not start")
    await child.stop(0.2)
    assert await child.exited() == "killed by SIGKILL"


async def test_log_is_begun_anew_and_bounded(tmp_path: Path) -> None:
    log = tmp_path / "chatty.log"
    log.write_text("of an earlier run\n")
    code = textwrap.dedent(f"""
        import sys
        line = "x" * 1023 + "\\n"
        for _ in range({LOG_LIMIT // 1024 + 1}): sys.stdout.write(line)
        sys.stdout.flush(); sys.stdin.read(); print("end", flush=True)
    """)
    child = Child(Spec("chatty", (sys.executable, "-c", code), os.environ, log, health=""))
    await child.start()
    assert await child.exited() == "exit status 0"
    assert len(child.news()) == LOG_LIMIT // 1024 + 2
    assert log.stat().st_size == 0
    assert (tmp_path / "chatty.log.1").stat().st_size > LOG_LIMIT
    assert child.news() == []


async def test_a_log_that_somebody_empties_or_removes_is_read_on(tmp_path: Path) -> None:
    log = tmp_path / "talker.log"
    code = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"
    child = Child(Spec("talker", (sys.executable, "-c", code), os.environ, log, health=""))
    log.write_text("a line that is longer than what comes\n")
    assert child.news() == ["a line that is longer than what comes"]
    log.write_text("new\n")
    assert child.news() == ["new"]
    log.unlink()
    assert child.news() == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ""),
        (["first", "last", ""], "last"),
        (['{"event": "broke", "level": "error"}', '{"event": "stopped", "level": "info"}'], "broke"),
        (
            ['{"event": "broke", "level": "error", "exception": "Traceback:\\n  x\\nOSError: no"}', "bye"],
            "broke: OSError: no",
        ),
        (['{"event": "e", "level": "error", "exception": [{"exc_type": "A", "exc_value": "b"}]}'], "e: A: b"),
        (["[1]", "{"], "{"),
    ],
)
async def test_last_words_are_the_error_not_the_farewell(tmp_path: Path, lines: list[str], expected: str) -> None:
    code = f"print({chr(10).join(lines)!r})"
    child = Child(Spec("talker", (sys.executable, "-c", code), os.environ, tmp_path / "log", health=""))
    await child.start()
    await child.exited()
    assert child.last_words() == expected
