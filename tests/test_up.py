"""`tidegate up` with a real worker: one story, from the start to Ctrl-C."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.commands.up import welcome
from app.law import load_all
from app.policy.ground import Ground
from app.ports import free_ports
from app.topology import plan

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """\
version: 1
regions:
  - {id: us-east, country: US, subdivision: US-VA, latitude: 38.9, longitude: -77.4, operator: {name: a}, backends: []}
  - id: eu-west
    country: IE
    latitude: 53.3
    longitude: -6.3
    operator: {name: a}
    backends: [{managed: true, models: [minilm]}]
tenants:
  - id: demo
    keys: ["sha256:fcf3ee12ae7c1e141073831c0f518e99d64d8aecbc80c838e879155c233fa114"]
    scopes: [infer, admin]
    subject: US
audit: {path: ../var/audit}
"""


@dataclass(frozen=True, slots=True)
class Up:
    """The running topology; the gateway is on `port`, those of us-east and eu-west on the two ports that follow."""

    process: subprocess.Popen[bytes]
    output: Path
    home: Path
    port: int

    def said(self) -> str:
        return self.output.read_text()

    def children(self) -> dict[int, str]:
        """Command lines, as `ps` shows them, of every process but the supervisor that has our configuration."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != self.process.pid:
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if str(self.home) in line:
                    found[int(entry.name)] = line
        return found

    def worker(self) -> int:
        return next(pid for pid, line in self.children().items() if "regions.worker" in line)

    def embed(self, text: str, offset: int = 0, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body of an embedding of `text`."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port + offset}/v1/embeddings",
            data=json.dumps({"model": "minilm", "input": text}).encode(),
            headers={"Authorization": "Bearer tidegate-demo", "Content-Type": "application/json", **headers},
        )
        try:
            reply = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            return reply.status, {name.lower(): value for name, value in reply.headers.items()}, reply.read()


def until(condition: Callable[[], object], what: Callable[[], str], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    home = tmp_path_factory.mktemp("up")
    (home / "configs").mkdir()
    (home / "configs" / "tiny.yaml").write_text(CONFIG)
    output, port = home / "output", free_ports(3)
    arguments = ["up", "--config", str(home / "configs" / "tiny.yaml"), "--port", str(port), "--regional"]
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", *arguments], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        )
    running = Up(process, output, home, port)
    try:
        until(lambda: "Tidegate is ready" in running.said() or process.poll() is not None, running.said)
        yield running
    finally:
        process.kill()
        process.wait(10)
        until(lambda: not running.children(), lambda: str(running.children()), 30)


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("", "", ["-i http", '"X-Data-Subject: DE" http', "X-Region: us-east"]),
        ("models: [minilm]", "models: [minilm-moe]", ["-i http", '"X-Data-Subject: DE" http', "X-Region: us-east"]),
        ("models: [minilm]", "models: [dynamic-moe]", ["/v1/models"]),
        ("    subject: US\n", "", ['"X-Data-Subject: DE" http', "X-Region: us-east"]),
        ("country: US, subdivision: US-VA,", "country: FR,", ["-i http", '"X-Data-Subject: DE" http']),
    ],
)
def test_the_requests_to_paste_fit_the_configuration(tmp_path: Path, old: str, new: str, shown: list[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(CONFIG.replace(old, new, 1))
    settings, law = load_all(file, {})
    lines = welcome(settings, Ground.lay(law, settings.regions), plan(settings, file, 8090, {}, regional=False))
    commands = [line for line in lines if line.startswith("  curl -sS ")]
    assert len(commands) == len(shown), commands
    for command, part in zip(commands, shown, strict=True):
        assert part in command


def test_a_second_one_leaves_the_first_alone(up: Up) -> None:
    before = up.children()
    other = subprocess.run(
        [sys.executable, "-m", "app.cli", "up", "--config", str(up.home / "configs" / "tiny.yaml"), "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert other.returncode == 1
    assert "another `tidegate up` is running" in other.stderr
    assert len(other.stderr.splitlines()) == 1
    assert up.process.poll() is None
    assert up.children() == before


def test_what_children_log_is_their_owners_alone(up: Up) -> None:
    files = list((up.home / "var" / "log").glob("*.log"))
    assert files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_it_says_what_it_starts_and_how_to_use_it(up: Up) -> None:
    said = up.said()
    assert re.search(r"^worker eu-west: ready after \d+\.\d s$", said, re.MULTILINE)
    assert f"Tidegate is ready: http://127.0.0.1:{up.port}\n" in said
    assert f"gateway us-east: http://127.0.0.1:{up.port + 1}\n" in said
    assert "Demo key: tidegate-demo\n" in said
    assert said.count("  curl -sS ") == 3
    assert "\x1b" not in said
    lines = sorted(up.children().values())
    assert len(lines) == 4
    assert sum("tidegate gateway --config" in line for line in lines) == 3
    assert sum("-m regions.worker --region eu-west" in line for line in lines) == 1
    logs = {log.name for log in (up.home / "var" / "log").iterdir()}
    assert logs == {"lock", "gateway.log", "gateway-us-east.log", "gateway-eu-west.log", "worker-eu-west.log"}


def test_the_requests_to_paste_work_as_announced(up: Up) -> None:
    commands = [line.strip() for line in up.said().splitlines() if line.startswith("  curl")]
    first, second, third = (
        subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True).stdout
        for command in commands
    )
    assert first.startswith("HTTP/1.1 200 ")
    assert second.startswith("HTTP/1.1 200 ")
    assert "x-served-region: eu-west" in second.lower()
    assert third.startswith("HTTP/1.1 451 ")
    assert "content-language: de" in third.lower()


def test_regional_gateways_stand_in_their_region_and_name_each_other(up: Up) -> None:
    german = {"X-Data-Subject": "DE"}
    status, headers, _ = up.embed("served at home", 2, **german)
    assert (status, headers["x-served-region"]) == (200, "eu-west")
    status, _, body = up.embed("sent to the wrong door", 1, **german)
    assert status == 421
    assert f"127.0.0.1:{up.port + 2}" in body.decode()
    audit = up.home / "var" / "audit"
    for directory in (audit, audit / "us-east", audit / "eu-west"):
        assert (directory / "eu-west.db").is_file(), directory
    for witness, peer in ((audit, "eu-west"), (audit / "us-east", "eu-west"), (audit / "eu-west", "us-east")):
        until((witness / "witness" / peer / "eu-west.note").is_file, up.said)


def test_a_killed_worker_comes_back_and_is_used_again(up: Up) -> None:
    german = {"X-Data-Subject": "DE"}
    assert up.embed("before", **german)[0] == 200
    killed = up.worker()
    os.kill(killed, signal.SIGKILL)
    assert up.embed("meanwhile", **german)[0] == 503
    until(lambda: up.said().count("worker eu-west: ready after") == 2, up.said)
    assert "worker eu-west: died (killed by SIGKILL), next start in 0.5 s" in up.said()
    # The supervisor's word that its child is ready closes the breaker: far sooner than the 60 s that it would wait.
    until(lambda: up.embed("after", **german)[0] == 200, up.said, 20)
    assert up.worker() != killed


def test_all_gateways_reload_and_the_terminal_tells_how_it_went(up: Up) -> None:
    file, ports = up.home / "configs" / "tiny.yaml", range(up.port, up.port + 3)
    before = {port: digest(port) for port in ports}
    file.write_text(CONFIG.replace("version: 1", "version: 2"))
    refused = f"gateway: configuration refused, the running one stays: {file}:1: version: 2 is not allowed; write 1\n"
    until(lambda: refused in up.said(), up.said, 30)
    assert {port: digest(port) for port in ports} == before
    file.write_text(CONFIG.replace("subject: US", "subject: DE"))
    up.process.send_signal(signal.SIGHUP)
    until(lambda: all(digest(port) != before[port] for port in ports), up.said, 30)
    until(lambda: "the gateways reload the configuration\ngateway: configuration applied\n" in up.said(), up.said, 30)
    assert up.embed("the subject is German now")[1]["x-served-region"] == "eu-west"


def digest(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
        return str(json.load(answer)["configuration"]["digest"])


def test_ctrl_c_leaves_nothing(up: Up) -> None:
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(40) == 0
    assert up.said().endswith("\nstopping\nstopped\n")
    assert up.children() == {}
