"""A reload that fails where none should: what runs goes on whole, and the next reload is taken."""

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from app.activity import Activity
from app.configuration import Configuration, ConfigurationFiles
from app.main import Works
from app.reload import Reloader
from app.stores.base import CacheStats
from app.telemetry.metrics import Metrics
from tests.audit.threads import replacing
from tests.fleet.servers import until

REGION = "{id: us-east, country: US, latitude: 38.9, longitude: -77.4, operator: {name: a}, backends: []}"
CONFIG = f"""\
version: 1
regions: [{REGION}]
tenants: [{{id: demo, subject: US}}]
"""
ANOTHER = CONFIG + "cache: {ttl: 1s}\n"


def written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


async def test_a_bug_in_one_reload_does_not_end_those_to_come(tmp_path: Path) -> None:
    file = written(tmp_path / "tidegate.yaml", CONFIG)
    files = ConfigurationFiles(file, {})
    first, taken = files.load(), []
    metrics = Metrics(list, lambda: CacheStats(0, 0, 0))

    def take(configuration: Configuration) -> None:
        taken.append(configuration)
        if len(taken) == 1:
            raise LookupError("a bug\nof ours")

    reloader = Reloader(files, first, take, metrics)
    with capture_logs() as lines:
        task = asyncio.create_task(reloader.run())
        try:
            written(file, ANOTHER)
            await until(lambda: b'reloads_total{outcome="refused"} 1.0' in metrics.render()[0])
            reloader.ask()
            await until(lambda: b'reloads_total{outcome="applied"} 1.0' in metrics.render()[0])
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert [one.settings.cache.ttl for one in taken] == [1, 1]
    told = [line for line in lines if line["log_level"] == "error"]
    assert [line["problem"] for line in told] == ["unexpected LookupError('a bug\\nof ours')"]


async def test_what_cannot_be_served_by_leaves_nothing_behind(tmp_path: Path) -> None:
    file = written(tmp_path / "tidegate.yaml", CONFIG)
    works = Works(ConfigurationFiles(file, {}).load(), {}, Activity())
    before, serving = (works._registry, works._cache, works._flights), works.current.serving
    written(file, ANOTHER)
    found = ConfigurationFiles(file, {}).load()
    lawless: Any = None
    try:
        works.take(dataclasses.replace(found, ground=lawless))
    except AttributeError:
        assert (works._registry, works._cache, works._flights) == before
        assert works.current.serving is serving
        works.take(found)
    assert works.current.serving.gateway.registry is works._registry is not before[0]
    assert works.current.serving.gateway.caching.flights is works._flights is not before[2]
    assert works._cache is not before[1]
    await works.aclose()


async def test_the_witness_follows_its_interval(tmp_path: Path) -> None:
    urls = "gateway: {public_urls: {us-east: 'http://127.0.0.1:1'}}\n"
    file = written(tmp_path / "tidegate.yaml", CONFIG + urls + "audit: {witness: null}\n")
    works = Works(ConfigurationFiles(file, {}).load(), {}, Activity())
    kept = tmp_path / "var" / "audit" / "witness" / "witness.pub"
    kept.parent.mkdir(parents=True)
    draft = kept.with_name(".witness.pub.new")
    os.mkfifo(draft)  # whoever opens it to write waits for a reader
    works.witness()
    written(file, CONFIG + urls + "audit: {witness: 1h}\n")
    works.take(ConfigurationFiles(file, {}).load())
    try:
        await until(lambda: replacing() == 1)
        for hours in (2, 3):
            written(file, CONFIG + urls + f"audit: {{witness: {hours}h}}\n")
            works.take(ConfigurationFiles(file, {}).load())
            await asyncio.sleep(0.1)
            assert replacing() == 1  # the next one waits until the one before has written
        assert not kept.exists()
    finally:
        reader = os.open(draft, os.O_RDONLY | os.O_NONBLOCK)
        draft.unlink()
        await until(kept.exists)
        await works.aclose()
        os.close(reader)
