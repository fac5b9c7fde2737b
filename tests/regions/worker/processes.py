"""Worker processes for tests: started on a free port, driven over a socket, ended whatever happens."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[3]
PATIENCE = 100.0


class Process:
    """`python -m regions.worker` and the lines that it logs."""

    def __init__(self, *arguments: str, **environ: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "regions.worker", *arguments],
            cwd=ROOT,
            env=os.environ | environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.lines.put(line)
        self.lines.put(None)

    def event(self, name: str) -> dict[str, Any]:
        """The next logged event of this name."""
        while (line := self.lines.get(timeout=PATIENCE)) is not None:
            record: dict[str, Any] = json.loads(line)
            if record["event"] == name:
                return record
        raise AssertionError(f"the worker ended without logging {name}")

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(timeout=30)
        finally:
            self.child.kill()
            self.child.wait()
            self.reader.join()
            assert self.child.stderr is not None
            self.child.stderr.close()


@dataclass(frozen=True)
class Worker:
    process: Process
    port: int
    client: httpx.Client

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content, headers=headers)

    def embed(self, **body: Any) -> httpx.Response:
        return self.post("/v1/embeddings", {"model": "minilm"} | body)


@contextmanager
def started(*arguments: str, **environ: str) -> Iterator[Worker]:
    """A worker that is ready, on a free port."""
    process = Process("--region", "eu-west", "--port", "0", *arguments, **environ)
    try:
        port = process.event("listening")["port"]
        process.event("ready")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Worker(process, port, client)
    finally:
        process.end()
