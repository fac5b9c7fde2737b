"""Two real gateways that witness each other's logs: what one has lost or rewritten, the other can prove."""

import asyncio
import json
import shutil
import subprocess
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import ANY

import pytest

from app.audit.checkpoint import Checkpoint, VerifierKey, cosigned_at
from app.audit.keys import FileKeys
from tests.fleet.servers import until, unused_port
from tests.running import HASH, REGIONS, TIDEGATE, Running, gateway

STANDINGS = {"us-east": "US", "eu-west": "DE"}
"""The regions with a gateway, each with a country whose data it may see."""
EVENT = "a peer's audit log contradicts what was witnessed"


@dataclass
class Site:
    """A region's gateway, which can be stopped and started again on the same port."""

    region: str
    home: Path
    ports: dict[str, int]
    running: Running | None = None
    stack: AsyncExitStack | None = None

    @property
    def audit(self) -> Path:
        return self.home.parent / "audit" / self.region

    @property
    def keys(self) -> Path:
        return self.home.parent / "keys" / self.region

    async def start(self) -> None:
        self.home.mkdir(exist_ok=True)
        urls = {region: f"http://127.0.0.1:{port}" for region, port in self.ports.items()}
        regions = [{"id": each, **REGIONS[each], "operator": {"name": "acme"}} for each in STANDINGS]
        tenant = {"id": "demo", "keys": [HASH], "scopes": ["infer", "audit:admin"]}
        audit = {"path": str(self.audit), "keys": str(self.keys), "witness": "100ms", "commit_deadline": "10s"}
        settings = {
            "version": 1,
            "gateway": {"region": self.region, "public_urls": urls},
            "regions": regions,
            "tenants": [tenant],
            "audit": audit,
        }
        file = self.home / "tidegate.yaml"
        file.write_text(json.dumps(settings))
        self.stack = AsyncExitStack()
        self.running = await self.stack.enter_async_context(gateway(self.home, file, port=self.ports[self.region]))

    async def stop(self) -> None:
        if self.stack:
            await self.stack.aclose()
            self.stack = None

    async def record(self, requests: int) -> None:
        """Leave two records a request in the region's log: no model is served here."""
        for _ in range(requests):
            answer = await self.running.embed(X_Data_Subject=STANDINGS[self.region])
            assert answer.status_code == 404, answer.text

    def note(self, peer: str, log: str) -> str:
        return (self.audit / "witness" / peer / f"{log}.note").read_text()

    def witnessed(self, peer: str) -> int:
        """Records of the peer's log of its own region that are witnessed here."""
        try:
            return Checkpoint.parse(self.note(peer, peer).rpartition("\n\n")[0] + "\n").size
        except FileNotFoundError:
            return 0

    async def metric(self, name: str, peer: str) -> float:
        text = (await self.running.client.get("/metrics")).text
        start = f'{name}{{log="{peer}",peer="{peer}"}} '
        return next(float(line.removeprefix(start)) for line in text.splitlines() if line.startswith(start))

    async def conflicts(self) -> float:
        return await self.metric("tidegate_audit_witness_conflicts_total", "eu-west")

    async def next_conflict(self) -> None:
        """Wait until it has found one more."""
        before = await self.conflicts()
        async with asyncio.timeout(20):
            while await self.conflicts() <= before:  # noqa: ASYNC110 - another process brings it about
                await asyncio.sleep(0.05)

    def problems(self) -> list[str]:
        lines = [json.loads(line) for line in self.running.log.splitlines()]
        assert {line["event"] for line in lines if line["level"] == "error"} <= {EVENT}
        return [line["problem"] for line in lines if line["event"] == EVENT]


async def verify(directory: Path, *notes: Path) -> tuple[int, str]:
    """What an officer sees of a directory, given checkpoints that another gateway has kept: exit status and text."""
    saved = [text for note in notes for text in ("--checkpoint", str(note))]
    command = [TIDEGATE, "audit", "verify", "--path", str(directory), *saved]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture
async def sites(tmp_path):
    ports = {region: unused_port() for region in STANDINGS}
    made = {region: Site(region, tmp_path / region, ports) for region in STANDINGS}
    try:
        await asyncio.gather(*(site.start() for site in made.values()))
        yield made
    finally:
        await asyncio.gather(*(site.stop() for site in made.values()))


async def test_each_witnesses_the_other_s_logs(sites):
    eu, us = sites["eu-west"], sites["us-east"]
    begun = int(time.time())
    await eu.record(3)
    await us.record(2)
    await until(lambda: (us.witnessed("eu-west"), eu.witnessed("us-east")) == (6, 4))
    for site, peer in ((us, eu), (eu, us)):
        kept = site.audit / "witness" / peer.region
        logs = {f"{log}.note" for log in (*STANDINGS, "gateway")}
        await until(lambda kept=kept, logs=logs: {file.name for file in kept.glob("*.note")} == logs)
        assert not (site.audit / "witness" / site.region).exists()
        assert site.problems() == []
        own = VerifierKey.parse((site.audit / "witness" / "witness.pub").read_text().strip())
        assert own.name == f"tidegate/{site.region}/witness"
        assert begun <= cosigned_at(site.note(peer.region, peer.region), own) <= time.time()
        assert await site.metric("tidegate_audit_witnessed_timestamp_seconds", peer.region) >= begun
        await site.stop()
        assert '"gateway stopped"' in site.running.log
    handed = sorted((us.audit / "witness" / "eu-west").glob("*.note"))
    assert await verify(eu.audit, *handed) == (0, ANY)
    assert await verify(eu.audit.parent) == (0, ANY)  # both directories, each with what it has of the other


async def test_a_log_set_back_to_an_older_copy_is_a_conflict_that_outlives_restarts(sites, tmp_path):
    eu, us = sites["eu-west"], sites["us-east"]
    note, conflict = (us.audit / "witness" / "eu-west" / f"eu-west.{kind}" for kind in ("note", "conflict"))
    await eu.record(2)
    await eu.stop()
    shutil.copytree(eu.audit, tmp_path / "backup")
    await eu.start()
    await eu.record(3)
    await until(lambda: us.witnessed("eu-west") == 10)
    await eu.stop()
    good = note.read_text()

    shutil.move(eu.audit, tmp_path / "truth")
    shutil.copytree(tmp_path / "backup", eu.audit)
    await eu.start()
    await us.next_conflict()
    assert us.problems() == ["it covers 4 records where 10 were witnessed: the newest are gone"]
    await until(conflict.exists)
    first = conflict.read_text()
    assert (await us.running.client.get("/readyz")).status_code == 200
    await eu.record(4)  # now larger than what was witnessed, and another tree
    await us.stop()
    await us.start()
    await us.next_conflict()
    assert us.problems()[-1] == "its 12 records are not shown to begin with the 10 witnessed"
    assert (note.read_text(), conflict.read_text()) == (good, first)
    await eu.stop()
    assert await verify(eu.audit) == (0, ANY)  # by itself it looks intact
    assert await verify(eu.audit, note) == (1, ANY)
    status, told = await verify(eu.audit.parent)
    assert status == 1
    assert "eu-west/eu-west" in told

    shutil.move(eu.audit, tmp_path / "fork")
    shutil.move(tmp_path / "truth", eu.audit)
    await eu.start()
    await eu.record(1)
    await until(lambda: us.witnessed("eu-west") == 12)
    await eu.stop()
    assert await verify(eu.audit, note, conflict) == (0, ANY)  # the conflict is of four records that both trees have
    await us.stop()
    assert await verify(eu.audit.parent) == (0, ANY)


async def test_a_new_signing_key_is_followed(sites):
    eu, us = sites["eu-west"], sites["us-east"]
    await eu.record(2)
    await until(lambda: us.witnessed("eu-west") == 4)
    await eu.stop()
    pinned = (us.audit / "witness" / "eu-west" / "eu-west.pub").read_text()
    FileKeys(eu.keys).rotate("eu-west")
    await eu.start()
    await eu.record(1)
    await until(lambda: us.witnessed("eu-west") == 6)
    keys = (eu.audit / "eu-west.pub").read_text().splitlines()
    assert len(keys) == 2
    assert pinned == f"{keys[0]}\n"
    assert (us.audit / "witness" / "eu-west" / "eu-west.pub").read_text() == f"{keys[1]}\n"
    assert us.problems() == []
