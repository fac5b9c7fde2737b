"""A long run of the whole gateway: no request fails, its memory stays, and of each there are exactly two audit records.

Clients ask a gateway of one process, audit durable on disk, as fast as it answers. Of ten requests four are texts that
come once, four are of 64 texts that come again (answered from the cache), one is a stream, and one names a person, of
whom there are 5,000. Every answer has to hold the number that its request sent. The cache holds 10,000 answers and
times out after 5 minutes: the first 100,000 requests bring 50,000 that are kept, so it is full long before growth is
measured, as are the other stores whose bound is a number of entries.

    SOAK_REQUESTS=1000000 SOAK_CLIENTS=64 python benchmarks/soak.py

Requests may be 1,000 to 100,000,000 (100,000 unless given), clients 1 to 1,000 (64). The trail takes about 3 KiB of
disk for each request, in the folder for temporary files. Growth is the resident memory at the end less that after the
first 100,000 requests, or the first half of fewer; 5 MiB are the most, where there were more than 200,000. What ran is
told in the last line; the exit status is 1 where something is wrong.
"""

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from driving.gateway import AUTHORIZATION, MODEL, TIDEGATE, Gateway, started
from driving.http import Answer, Connection, listening
from gateways.processes import heed_sigterm, resident

PATH = "/v1/chat/completions"
WARM = 100_000
MOST_GROWTH = 5.0
"""MiB."""
TELLING = 10.0
"""Seconds between two lines of progress."""
_NUMBER = re.compile(rb"number (\d+)\.")
_TEXT = "When does the tide turn in the harbour, and why is it later each day? Answer with number "
_EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_ENDED = (ConnectionError, asyncio.IncompleteReadError)


@dataclass
class Seen:
    """What has happened so far."""

    done: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)
    warm: float = 0.0
    """MiB of resident memory once everything that is bounded is full."""


def answered(body: bytes) -> bytes:
    """The upstream's answer, which holds the number of the request, as an object or as a stream."""
    found = _NUMBER.search(body)
    if found is None:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    said = b"number %b." % found[1]
    if b'"stream": true' in body:
        events = [b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % said, b"data: [DONE]\n\n"]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in [events[0]] * 3 + events[1:])
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n"
            % chunks
        )
    text = b"The tide turns. " * 20 + said
    content = b'{"choices": [{"message": {"content": "%b"}}], "usage": {"total_tokens": 120}}' % text
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
    return head + content


def request(number: int) -> tuple[dict[str, object], dict[str, str]]:
    """The body and the headers of one of the requests."""
    kind = number % 10
    text = f"{_TEXT}{number % 160 if kind < 4 else number}."
    body: dict[str, object] = {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": text}]}
    if kind == 8:
        body["stream"] = True
    person = {"X-Subject-Id": f"person-{number // 10 % 5000}"} if kind == 9 else {}
    return body, AUTHORIZATION | person


async def client(gateway: Gateway, numbers: Iterator[int], seen: Seen) -> None:
    connection = await Connection.to(gateway.port)
    for number in numbers:
        body, headers = request(number)
        content = json.dumps(body).encode()
        try:
            wrong = _wrong(await connection.post(PATH, content, headers), content, seen)
        except _ENDED as error:
            wrong = type(error).__name__
            connection.close()
            connection = await Connection.to(gateway.port)
        if wrong:
            seen.errors[wrong] += 1
        seen.done += 1
    connection.close()


def _wrong(answer: Answer, content: bytes, seen: Seen) -> str | None:
    """What is wrong with an answer, if anything is."""
    seen.cache[answer.headers.get("x-cache-status", "none")] += 1
    if answer.status != 200:
        return f"status {answer.status}"
    asked, told = _NUMBER.search(content), _NUMBER.findall(answer.body)
    return None if asked and set(told) == {asked[1]} else "another request's answer"


async def watch(gateway: Gateway, total: int, seen: Seen) -> None:
    """Take the memory when all is warm, and tell how it goes."""
    begun = told = time.monotonic()
    warm = min(WARM, total // 2)
    while True:
        await asyncio.sleep(0.05)
        now = time.monotonic()
        if not seen.warm and seen.done >= warm:
            seen.warm = resident(gateway.pid)
        if now - told >= TELLING:
            told = now
            growth = f", {resident(gateway.pid) - seen.warm:+.1f} since {warm:,}" if seen.warm else ""
            rate, errors = seen.done / (now - begun), sum(seen.errors.values())
            size = f"{resident(gateway.pid):.1f} MiB{growth}"
            print(f"{seen.done:>11,} of {total:,}, {rate:,.0f}/s, {errors} errors, {size}", flush=True)


async def soak(directory: Path, total: int, clients: int) -> tuple[Seen, float, float]:
    """What happened, seconds that it took, and MiB of resident memory at the end."""
    upstream, port = await listening(answered)
    limits = {"requests": "1000000/second", "tokens": "1000000000/second", "concurrency": 2 * clients}
    every = {**limits, "per_key": limits, "models": {MODEL: limits}}
    async with started(directory, port, every) as gateway:
        seen, numbers, begun = Seen(), iter(range(total)), time.monotonic()
        watching = asyncio.create_task(watch(gateway, total, seen))
        await asyncio.gather(*(client(gateway, numbers, seen) for _ in range(clients)))
        took, end = time.monotonic() - begun, resident(gateway.pid)
        watching.cancel()
    upstream.close()
    return seen, took, end


def records(trail: Path) -> tuple[int, int, int]:
    """Decisions, completions, and decisions that have exactly one completion, counted in the files themselves."""
    decisions = completions = paired = 0
    for file in sorted(trail.glob("*.db")):
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            kinds = dict(store.execute("SELECT json_extract(record, '$.kind'), count(*) FROM records GROUP BY 1"))
            decisions += kinds.pop("decision", 0)
            completions += kinds.pop("completion", 0)
            completions += sum(kinds.values())  # of another kind there is none: told as one too many
            (own,) = store.execute(_PAIRED).fetchone()
            paired += own
    return decisions, completions, paired


_PAIRED = """
    SELECT count(*) FROM (
        SELECT json_extract(record, '$.decision_id') AS owed FROM records
        WHERE json_extract(record, '$.kind') = 'completion' GROUP BY owed HAVING count(*) = 1
    )
"""


def number(name: str, default: int, least: int, most: int) -> int:
    """A number from the environment, within bounds."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise SystemExit(f"{name} is {text!r}; write a number from {least} to {most}")
    return int(text)


def main() -> None:
    heed_sigterm()
    total = number("SOAK_REQUESTS", WARM, 1_000, 100_000_000)
    clients = number("SOAK_CLIENTS", 64, 1, 1_000)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        seen, took, end = uvloop.run(soak(directory, total, clients))
        print("counting and verifying the trail", flush=True)
        decisions, completions, paired = records(directory / "audit")
        verified = subprocess.run([TIDEGATE, "audit", "verify", "--path", str(directory / "audit")], check=False)
        size = sum(file.stat().st_size for file in (directory / "audit").iterdir() if file.is_file())
    errors, growth = sum(seen.errors.values()), end - seen.warm
    exact = decisions == completions == paired == total
    sound = not errors and exact and verified.returncode == 0 and (total <= 2 * WARM or growth < MOST_GROWTH)
    print(
        f"{total} requests, {clients} clients, {took:.0f} s, {total / took:.0f}/s, {errors} errors"
        f"{f' {dict(seen.errors)}' if errors else ''}, {dict(seen.cache)}, RSS {end:.1f} MiB, growth {growth:+.1f} MiB "
        f"after {min(WARM, total // 2)}, {decisions} decisions, {completions} completions, {paired} pairs, "
        f"trail {size / 2**20:.0f} MiB verify {verified.returncode}: {'sound' if sound else 'NOT SOUND'}"
    )
    sys.exit(not sound)


if __name__ == "__main__":
    main()
