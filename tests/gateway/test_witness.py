"""Two real gateways that witness each other's logs: what one has lost or rewritten, the other can prove."""

import asyncio
import json
import shutil
import subprocess
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.audit.checkpoint import Checkpoint, VerifierKey, cosigned_at
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
        return self.home / "audit"

    async def start(self) -> None:
        self.home.mkdir(exist_ok=True)
        urls = {region: f"http://127.0.0.1:{port}" for region, port in self.ports.items()}
        regions = [{"id": each, **REGIONS[each], "operator": {"name": "acme"}} for each in STANDINGS]
        tenant = {"id": "demo", "keys": [HASH], "scopes": ["infer", "audit:admin"]}
        audit = {"path": "audit", "witness": "100ms", "commit_deadline": "10s"}
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

    async def verify(self, note: Path) -> subprocess.CompletedProcess[str]:
        """What the officer of this region sees, who was handed a note by another."""
        command = [TIDEGATE, "audit", "verify", "--path", str(self.audit), "--checkpoint", str(note)]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)


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
    await eu.record(3)
    await us.record(2)
    await until(lambda: (us.witnessed("eu-west"), eu.witnessed("us-east")) == (6, 4))
    for site, peer in ((us, eu), (eu, us)):
        assert {file.name for file in (site.audit / "witness" / peer.region).glob("*.note")} == {
            f"{log}.note" for log in (*STANDINGS, "gateway")
        }
        assert not (site.audit / "witness" / site.region).exists()
        assert site.problems() == []
        own = VerifierKey.parse((site.audit / "witness" / "witness.pub").read_text().strip())
        assert own.name == f"tidegate/{site.region}/witness"
        assert abs(cosigned_at(site.note(peer.region, peer.region), own) - time.time()) < 60
        assert await site.metric("tidegate_audit_witnessed_timestamp_seconds", peer.region) > time.time() - 60
        await site.stop()
        assert json.loads(site.running.log.splitlines()[-1])["event"] == "gateway stopped"
    for log in ("eu-west", "gateway"):
        checked = await eu.verify(us.audit / "witness" / "eu-west" / f"{log}.note")
        assert checked.returncode == 0, checked.stdout + checked.stderr


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
    assert (await us.verify(conflict)).returncode == 1  # of another gateway's log, which is not there

    await eu.record(4)  # now larger than what was witnessed, and another tree
    await us.stop()
    await us.start()
    await us.next_conflict()
    assert us.problems()[-1] == "its 12 records are not shown to begin with the 10 witnessed"
    assert (note.read_text(), conflict.read_text()) == (good, first)
    await eu.stop()
    checked = await eu.verify(note)
    assert checked.returncode == 1, checked.stdout + checked.stderr

    shutil.move(eu.audit, tmp_path / "fork")
    shutil.move(tmp_path / "truth", eu.audit)
    await eu.start()
    await eu.record(1)
    await until(lambda: us.witnessed("eu-west") == 12)
    await eu.stop()
    checked = await eu.verify(note)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    checked = await eu.verify(conflict)  # of four records, which both trees begin with
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_a_new_signing_key_is_followed(sites):
    eu, us = sites["eu-west"], sites["us-east"]
    await eu.record(2)
    await until(lambda: us.witnessed("eu-west") == 4)
    await eu.stop()
    pinned = (us.audit / "witness" / "eu-west" / "eu-west.pub").read_text()
    (eu.home / "keys" / "eu-west.ed25519").unlink()  # a gateway that finds none makes one
    await eu.start()
    await eu.record(1)
    await until(lambda: us.witnessed("eu-west") == 6)
    keys = (eu.audit / "eu-west.pub").read_text().splitlines()
    assert len(keys) == 2
    assert pinned == f"{keys[0]}\n"
    assert (us.audit / "witness" / "eu-west" / "eu-west.pub").read_text() == f"{keys[1]}\n"
    assert us.problems() == []
