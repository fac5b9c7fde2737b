"""The real topology for tests: `tidegate up` on a free port, what can be asked of it, and its end without a trace."""

import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from app.config import DEMO_KEY, DEMO_KEY_HASH
from app.ports import free_ports
from tests.running import TIDEGATE

ROOT = Path(__file__).parents[2]
TOKEN = uuid.uuid4().hex
"""In the environment of whatever is started here, so that every descendant is found, whatever its command line is."""
READY_SECONDS = 100.0
EMBED = "/v1/embeddings"
INFER = "/v2/models/{}/infer"

Records = list[dict[str, Any]]
Series = Counter[tuple[str, tuple[tuple[str, str], ...]]]


def until(condition: Callable[[], object], what: Callable[[], str], seconds: float) -> None:
    """Wait for what other processes bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


class Topology:
    """A gateway and the workers of three regions; `client` holds the key of the tenant `demo`."""

    def __init__(self, home: Path, tenants: tuple[Mapping[str, Any], ...]) -> None:
        self.port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = home / "output"
        self._log = home / "var" / "log"
        command = [TIDEGATE, "up", "--config", str(_configuration(home, tenants)), "--port", str(self.port)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=output, env=environ | {"CONFORMANCE": TOKEN}
            )
        self.client = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {DEMO_KEY}"}, timeout=60)

    def start(self) -> None:
        """Return once everything is ready."""
        until(lambda: "Tidegate is ready" in self.said() or self.process.poll() is not None, self.said, READY_SECONDS)
        assert self.process.poll() is None, self.said()

    def stop(self) -> None:
        """End it by its pid; it must end well and leave nothing."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(40)
        finally:
            self.process.kill()
            self.process.wait()
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == {}
        assert status == 0, self.said()
        assert self.said().endswith("\nstopping\nstopped\n")

    def said(self) -> str:
        return self.output.read_text()

    def logged(self, name: str) -> list[dict[str, Any]]:
        """The log of a process, such as `gateway` or `worker-eu-west`; what is not JSON comes as {"line": ...}."""
        entries = []
        for line in (self._log / f"{name}.log").read_text().splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                entries.append({"line": line})
        return entries

    def complaints(self) -> list[dict[str, Any]]:
        """What any process has logged as an error, or without being asked to: warnings of Python, tracebacks."""
        entries = [entry for log in sorted(self._log.glob("*.log")) for entry in self.logged(log.stem)]
        return [entry for entry in entries if "line" in entry or entry["level"] in ("error", "critical")]

    def processes(self) -> dict[int, str]:
        """Command lines by pid of everything that was started here and still runs, the supervisor included."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and TOKEN.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended meanwhile, or belongs to somebody else
        return found

    def worker(self, region: str) -> tuple[int, str]:
        """The pid and the URL of a region's worker."""
        for pid, line in self.processes().items():
            port = re.search(rf"-m regions\.worker --region {region} .*--port (\d+)", line)
            if port:
                return pid, f"http://127.0.0.1:{port[1]}"
        raise AssertionError(f"no worker of {region} among {self.processes()}")

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """POST JSON, or bytes as they are; header names are written with underscores."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return self.client.post(path, content=content, headers=named)

    def embed(self, text: Any, model: str = "minilm", **headers: str) -> httpx.Response:
        return self.post(EMBED, {"model": model, "input": text}, **headers)

    def records(self, **filters: str) -> Records:
        """Every audit record that matches but those of readings as this one, by as many pages as it takes."""
        found: Records = []
        cursor: dict[str, str] = {}
        for _ in range(100):
            page = self.client.get("/v1/audit/logs", params={"limit": "1000", **filters, **cursor})
            assert page.status_code == 200, page.text
            found += [record for record in page.json()["records"] if record["kind"] != "read"]
            if page.json()["cursor"] is None:
                return found
            cursor = {"cursor": page.json()["cursor"]}
        raise AssertionError("the pages of the audit trail do not end")

    def pair(self, request_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The one decision and the one completion of a request; waits a moment for the latter."""
        until(
            lambda: len(self.records(request_id=request_id)) >= 2, lambda: str(self.records(request_id=request_id)), 20
        )
        decision, completion = self.records(request_id=request_id)
        assert (decision["kind"], completion["kind"]) == ("decision", "completion")
        assert completion["decision_id"] == decision["id"]
        return decision, completion

    def metrics(self) -> Series:
        """The gateway's metrics."""
        return _series(self.client.get("/metrics").text)

    def requests(self, *regions: str, status: str | None = None) -> dict[str, int]:
        """Inference requests that the workers of these regions have counted: all of them, or those of one status."""
        counted = {}
        for region in regions:
            series = _series(httpx.get(self.worker(region)[1] + "/metrics").text)
            counted[region] = int(
                sum(
                    value
                    for (name, labels), value in series.items()
                    if name == "tidegate_worker_requests_total" and status in (None, dict(labels)["status"])
                )
            )
        return counted

    def in_flight(self) -> dict[str, int]:
        """Attempts that the gateway has under way, by region."""
        return {region["id"]: region["in_flight"] for region in self.client.get("/v1/regions").json()["data"]}


def _configuration(home: Path, tenants: tuple[Mapping[str, Any], ...]) -> Path:
    """A copy of configs/local.yaml, its audit trail beside it, with more tenants."""
    settings = YAML(typ="safe").load(ROOT / "configs" / "local.yaml")
    assert settings["tenants"][0]["keys"] == [DEMO_KEY_HASH]
    settings["audit"]["path"] = str(home / "var" / "audit")
    # What a busy machine takes its time for shall not pass for a disk or a region that fails.
    settings["audit"]["commit_deadline"] = settings["resilience"]["health"]["timeout"] = "10s"
    settings["tenants"] += [dict(tenant) for tenant in tenants]
    file = home / "tidegate.yaml"
    with file.open("w") as out:
        YAML(typ="safe").dump(settings, out)
    return file


def _series(text: str) -> Series:
    """Samples by name and sorted labels, as Prometheus' own parser reads them."""
    return Counter(
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )
