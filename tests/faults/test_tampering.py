"""Whatever is done to a copied trail, `tidegate audit verify` with a saved checkpoint says so and names the record.

FAULT_TAMPERINGS sets how many random tamperings there are: `make faults` makes 1,000.
"""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from app.cli import tidegate
from tests.audit.trails import LOGS, TAMPERINGS, Built, Damaged, Hit, build

COUNT = int(os.environ.get("FAULT_TAMPERINGS", "60"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("trail"))


def verified(directory: Path, note: Path) -> tuple[int, dict]:
    ran = CliRunner().invoke(
        tidegate, ["audit", "verify", "--path", str(directory), "--checkpoint", str(note), "--json"]
    )
    return ran.exit_code, orjson.loads(ran.stdout)


def named(report: dict, log: str, hit: Hit) -> bool:
    """Whether the first record that is named is the one that was hit, as closely as can be known."""
    found = [each for one in report["logs"] if one["log"] == log for each in one["findings"]]
    bad = [each for each in found if each["result"] == "tampered"]
    if hit.seq is None:
        return bool(bad)
    first = next((each["seq"] for each in bad if each["seq"] is not None), None)
    return first is not None and hit.seq - hit.early <= first <= hit.seq


@pytest.mark.timeout(1800)
def test_every_random_tampering_is_detected_and_named(built: Built, tmp_path: Path) -> None:
    draw = random.Random(20261122)
    seen: Counter[str] = Counter()
    for number in range(COUNT):
        tampering = TAMPERINGS[number % len(TAMPERINGS)]
        log = draw.choice(LOGS)
        copy = built.copy(tmp_path)
        hit = tampering(Damaged(copy, log, draw, built.earlier[log]))
        code, report = verified(copy, built.saved[log])
        assert code == 1, (number, tampering.__name__, log, report)
        assert named(report, log, hit), (number, tampering.__name__, log, hit, report)
        seen[tampering.__name__] += 1
        shutil.rmtree(copy)
    print(f"{COUNT} tamperings of {len(seen)} kinds, each detected and named")
