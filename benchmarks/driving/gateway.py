"""A gateway process in front of one upstream, with its audit trail in a folder of its own."""

import asyncio
import hashlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateways.processes import running

KEY = "sk-driving"
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}
MODEL = "m"
TIDEGATE = str(Path(sys.executable).with_name("tidegate"))


@dataclass(frozen=True)
class Gateway:
    """A gateway that answers."""

    pid: int
    port: int
    directory: Path

    @property
    def trail(self) -> Path:
        """Its audit trail."""
        return self.directory / "audit"


@asynccontextmanager
async def started(directory: Path, upstream: int, limits: Mapping[str, Any]) -> AsyncIterator[Gateway]:
    """A gateway with one tenant in front of an upstream on that port, from its first answer to its clean stop."""
    file, port = directory / "tidegate.yaml", _unused_port()
    file.write_text(json.dumps(_configuration(upstream, limits)))
    command = (TIDEGATE, "gateway", "--config", str(file), "--port", str(port))
    with running(command, directory / "gateway.log") as pid:
        await _until_listening(port)
        yield Gateway(pid, port, directory)


def _configuration(upstream: int, limits: Mapping[str, Any]) -> dict[str, Any]:
    backend = {"url": f"http://127.0.0.1:{upstream}", "protocol": "openai", "models": [MODEL]}
    region = {"id": "here", "country": "US", "latitude": 38.9, "longitude": -77.4, "operator": {"name": "bench"}}
    key = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
    tenant = {"id": "bench", "keys": [key], "scopes": ["infer"], "subject": "US", "limits": dict(limits)}
    return {
        "version": 1,
        "regions": [{**region, "backends": [backend]}],
        "tenants": [tenant],
        "audit": {"path": "audit"},
        # The upstream shares a core with the clients: while that is busy, no probe shall count it down.
        "resilience": {"health": {"timeout": "30s"}},
    }


def _unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def _until_listening(port: int) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
