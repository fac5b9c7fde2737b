"""What each stage of a request takes in Tidegate, by its own Server-Timing, asked by one client over one connection."""

import http.client
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping

from gateways.candidates import KEY, Candidate
from gateways.load import BODY, PATH

_HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
_DURATION = re.compile(r"(\w+);dur=([\d.]+)")
_WARM = 50

_TELLS = {
    "gate": "key, facts, residency decision, request limit",
    "limit": "token and concurrency limits",
    "cache": "look-up, and waiting for the same request of another",
    "upstream": "ranking, connection, the backend's own time",
    "audit": "decision and completion durable (SQLite, synchronous=FULL)",
    "rest": "reading the body, metrics, log line, answer",
    "total": "from head to the answer's head",
}


def sample(candidate: Candidate, requests: int) -> Mapping[str, float]:
    """Milliseconds of each stage, medians; `rest` is what no stage has."""
    connection = http.client.HTTPConnection("127.0.0.1", candidate.port, timeout=30)
    seen: dict[str, list[float]] = defaultdict(list)
    for number in range(_WARM + requests):
        text = json.dumps(BODY).replace("NUMBER", "same" if candidate.repeats else f"stage {number}")
        connection.request("POST", PATH, text, _HEADERS)
        answer = connection.getresponse()
        answer.read()
        if number < _WARM:
            continue
        found = {name: float(took) for name, took in _DURATION.findall(answer.headers["Server-Timing"])}
        found["rest"] = found["total"] - sum(took for name, took in found.items() if name != "total")
        for name, took in found.items():
            seen[name].append(took)
    connection.close()
    return {name: statistics.median(each) for name, each in seen.items()}


def table(sampled: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each stage, a column for each way through the gateway."""
    lines = [f"| stage | {' | '.join(f'{name}, ms' for name in sampled)} | what it does |"]
    lines.append(f"| {' | '.join(['---'] * (len(sampled) + 2))} |")
    for stage, does in _TELLS.items():
        cells = [f"{stages[stage]:.2f}" if stage in stages else "" for stages in sampled.values()]
        lines.append(f"| {stage} | {' | '.join(cells)} | {does} |")
    return "\n".join(lines)
