"""The load: wrk out of Debian, so that it is not of our making, as fast as answers come or at a rate."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gateways.candidates import KEY, MODEL, Candidate
from gateways.peers import Peers
from gateways.processes import on_core

PATH = "/v1/chat/completions"
BODY = {
    "model": MODEL,
    "temperature": 0,
    "messages": [
        {"role": "system", "content": "You answer in one sentence, and name what you do not know."},
        {"role": "user", "content": "When does the tide turn in the harbour, and why is it later each day? NUMBER"},
    ],
}
"""About 300 bytes."""
_LUA = """
local number = 0
local salt = "%(salt)s"
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %(key)s"
function request()
  number = number + 1
  return wrk.format(nil, nil, nil, (string.gsub('%(body)s', "NUMBER", %(text)s)))
end
local pause = %(pause)s
if pause > 0 then
  math.randomseed(%(seed)s)
  function delay()
    return math.floor(pause * 2 * math.random() + 0.5)
  end
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests": %%d, "us": %%d, "errors": %%d, "p50": %%d, "p99": %%d}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Load:
    """What one run of a load saw: answers, seconds, errors, and milliseconds of latency."""

    requests: int
    seconds: float
    errors: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds


class Generator:
    """Makes load on one core, where there are several."""

    def __init__(self, peers: Peers, directory: Path, core: int | None) -> None:
        self._peers = peers
        self._directory = directory
        self._core = core
        self._run = 0

    def flat_out(self, candidate: Candidate, clients: int, seconds: float) -> Load:
        """As fast as answers come, each request another text unless the candidate `repeats`."""
        return self._load(candidate, clients, seconds, 0.0)

    def paced(self, candidate: Candidate, clients: int, rate: float, seconds: float, took: float = 0.0) -> Load:
        """At about so many requests a second, an answer taking `took` milliseconds.

        Every client waits by chance before its next request, so that they do not come in step.
        """
        return self._load(candidate, clients, seconds, max(0.0, 1000 * clients / rate - took))

    def _load(self, candidate: Candidate, clients: int, seconds: float, pause: float) -> Load:
        """`pause` is the mean of what a client waits before a request, in milliseconds."""
        script = self._script(candidate.repeats, pause)
        options = ["-t", "1", "-c", str(clients), "-d", f"{max(1, round(seconds))}s", "--timeout", "30s"]
        told = self._output(["wrk", *options, "-s", str(script), f"http://127.0.0.1:{candidate.port}{PATH}"])
        seen = json.loads(told.rpartition("RESULT ")[2])
        return Load(seen["requests"], seen["us"] / 1e6, seen["errors"], seen["p50"] / 1000, seen["p99"] / 1000)

    def _script(self, repeats: bool, pause: float) -> Path:
        self._run += 1
        path = self._directory / "load.lua"
        text = '"same"' if repeats else "salt .. number"
        values = {"key": KEY, "body": json.dumps(BODY), "text": text, "salt": f"{self._run}-"}
        path.write_text(_LUA % {**values, "pause": f"{pause:.3f}", "seed": self._run})
        return path

    def _output(self, command: list[str]) -> str:
        line = on_core([self._peers.debian(command[0]), *command[1:]], self._core)
        environ = {**os.environ, **self._peers.environ}
        return subprocess.run(line, env=environ, capture_output=True, text=True, check=True, timeout=300).stdout
