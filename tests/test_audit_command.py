"""`tidegate audit` as auditors run it: real processes over real files and a real gateway; output and exit codes."""

import asyncio
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.audit import record
from app.audit.checkpoint import Checkpoint, VerifierKey, opened
from app.audit.keys import FileKeys
from app.audit.pseudonym import Pseudonyms
from app.cli import tidegate
from app.config import AuditSettings
from tests.audit import trails
from tests.audit.trails import Built, Damaged, pair
from tests.running import KEY, running

ROOT = Path(__file__).resolve().parents[1]
START = datetime(2026, 11, 1, tzinfo=UTC)


def run(*arguments: object, cwd: Path = ROOT, environ: Mapping[str, str] | None = None) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", "audit", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT), **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def invoke(*arguments: object) -> Any:
    """The same without a process of its own, for what is asked many times."""
    return CliRunner().invoke(tidegate, ["audit", *map(str, arguments)])


async def run_aside(*arguments: object) -> Any:
    return await asyncio.to_thread(run, *arguments)


def lines(ran: Any) -> list[dict[str, Any]]:
    assert ran.stderr == ""
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return trails.build(tmp_path_factory.mktemp("trail"), pairs=150)


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    return built.copy(tmp_path)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trail of which much is known: six requests of two tenants, the third one and the last about anna."""
    settings = AuditSettings(path=tmp_path_factory.mktemp("known") / "audit", commit_deadline=30.0)
    keys = FileKeys(settings.key_directory)
    keys.pseudonym_key("eu-west")
    (anna,) = Pseudonyms(keys).known(["eu-west"], ["demo"], "anna")

    async def write() -> None:
        async with trails.opened(settings, "eu-west", "gateway") as trail:
            for number in range(6):
                log = "gateway" if number % 3 == 1 else "eu-west"
                decision, ended = pair(1, START + timedelta(hours=number), random.Random(number), log)
                fields = {
                    "tenant": "other" if number == 4 else "demo",
                    "request_id": f"r{number}",
                    "subject": anna if number % 3 == 2 else None,
                    "subject_country": "DE" if log == "eu-west" else None,
                }
                await trail.append(log, [{**decision, **fields}, {**ended, **fields}], 30)

    asyncio.run(write())
    return settings.path


# --- verify


def test_an_intact_trail(built: Built) -> None:
    ran = run("verify", "--path", built.directory, "--checkpoint", built.saved["eu-west"])
    assert (ran.returncode, ran.stderr) == (0, "")
    first, *_, last = ran.stdout.splitlines()
    assert first == "eu-west: intact, records 1 to 300, checkpoint at 300"
    assert last.startswith("intact: 901 records read, ")
    assert last.endswith(" records/s")
    assert "  note: retention has deleted the records up to 300" in ran.stdout


def test_an_altered_record_is_named(built: Built, copy: Path) -> None:
    Damaged(copy, "eu-west", random.Random(1)).run("UPDATE records SET record = '{}' WHERE seq = 57")
    Damaged(copy, "gateway", random.Random(1)).run("DELETE FROM records WHERE seq = 12")
    ran = run("verify", "--path", copy, "--checkpoint", built.saved["eu-west"])
    assert ran.returncode == 1
    assert "  tampered: eu-west: record 57: is not what its leaf hash was made of" in ran.stdout.splitlines()
    assert "  tampered: gateway: record 12: is missing" in ran.stdout.splitlines()
    assert "us-east: intact" in ran.stdout
    asked = run("verify", "--path", copy, "--json")
    report = json.loads(asked.stdout)
    assert (asked.returncode, report["result"]) == (1, "tampered")
    (log,) = [each for each in report["logs"] if each["log"] == "eu-west"]
    assert [(each["result"], each["seq"]) for each in log["findings"]] == [("tampered", 57)]
    assert report["records_per_second"] > 0


def test_what_cannot_be_read_or_is_not_covered_yet_is_incomplete(built: Built, copy: Path) -> None:
    (copy / "gateway.db").write_bytes(b"x" * 5000)
    assert run("verify", "--path", copy).returncode == 2
    shutil.copy(built.directory / "gateway.db", copy)
    trails.roll_the_checkpoint_back(Damaged(copy, "eu-west", random.Random(1), built.earlier["eu-west"]))
    ran = run("verify", "--path", copy)
    assert ran.returncode == 2
    assert "incomplete: eu-west: record 201: is not covered by a checkpoint yet, nor any up to 300" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--path", "nowhere"], "there is no directory nowhere"),
        (["--path", "empty"], "there is no audit log in"),
        (["--bogus"], "No such option '--bogus'"),
        ([], "say where the trail is: --path DIR, --config FILE or --url URL"),
        (["--path", "empty", "--checkpoint", "nowhere"], "nowhere"),
        (["--path", "empty", "--checkpoint", "note"], "note holds no checkpoint"),
        (["--path", "empty", "--url", "http://127.0.0.1:1"], "give one of both"),
        (["--config", "nowhere"], "nowhere: cannot be read"),
    ],
)
def test_wrong_usage_is_3(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note").write_text("no note")
    ran = run("verify", *arguments, cwd=tmp_path)
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (3, "", 1)
    assert said in ran.stderr


def test_a_gateway_that_is_not_there_is_unreadable() -> None:
    ran = run("verify", "--url", "http://127.0.0.1:9")
    assert (ran.returncode, "cannot be asked" in ran.stderr, len(ran.stderr.splitlines())) == (2, True, 1)


def test_the_configuration_says_where_the_trail_is(built: Built, tmp_path: Path) -> None:
    file = tmp_path / "tidegate.yaml"
    text = (ROOT / "configs" / "local.yaml").read_text().replace("path: ../var/audit", f"path: {built.directory}")
    file.write_text(text)
    assert run("verify", "--config", file).returncode == 0
    (tmp_path / "configs").mkdir()
    shutil.copy(file, tmp_path / "configs" / "local.yaml")
    assert run("verify", cwd=tmp_path).returncode == 0
    assert run("verify", environ={"TIDEGATE_AUDIT__PATH": str(tmp_path / "none")}, cwd=tmp_path).returncode == 3


# --- tail


def test_the_newest_records_of_all_logs_in_order_of_time(known: Path) -> None:
    ran = run("tail", "--path", known, "-n", "5")
    assert ran.returncode == 0
    found = [line.split("  ")[:4] for line in ran.stdout.splitlines()]
    assert found == [
        ["2026-11-01T03:00:00.003000Z", "eu-west:6", "completion served 200", "demo"],
        ["2026-11-01T04:00:00.000000Z", "gateway:3", "decision permitted", "other"],
        ["2026-11-01T04:00:00.003000Z", "gateway:4", "completion served 200", "other"],
        ["2026-11-01T05:00:00.000000Z", "eu-west:7", "decision permitted", "demo"],
        ["2026-11-01T05:00:00.003000Z", "eu-west:8", "completion served 200", "demo"],
    ]
    assert "DE -> eu-west" in ran.stdout


def test_tail_opens_records_where_the_keys_are_at_hand(known: Path, tmp_path: Path) -> None:
    (here,) = lines(run("tail", "--path", known, "-n", "1", "--json"))
    assert here["request_id"] == "r5"
    elsewhere = shutil.copytree(known, tmp_path / "audit")
    (there,) = lines(run("tail", "--path", elsewhere, "-n", "1", "--json"))
    assert (there["request_id"], there["subject"], there["id"]) == (None, None, here["id"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--from", "2026-11-01T04:00:00Z"], ["r4", "r5"]),
        (["--to", "2026-11-01T02:00:00+01:00"], ["r0"]),
        (["--to", "2026-11-01"], []),
        (["--region", "eu-west"], ["r0", "r2", "r3", "r5"]),
        (["--tenant", "other"], ["r4"]),
        (["--subject-country", "DE"], ["r0", "r2", "r3", "r5"]),
        (["--outcome", "refused"], []),
        (["--reason", "DENY"], []),
        (["--request-id", "r3"], ["r3"]),
        (["--subject", "anna", "--tenant", "demo"], ["r2", "r5"]),
    ],
)
def test_tail_and_export_filter(known: Path, options: list[str], expected: list[str]) -> None:
    """A decision and its completion each."""
    wanted = [each for each in expected for _ in range(2)]
    assert [each["request_id"] for each in lines(invoke("tail", "--path", known, "--json", *options))] == wanted
    manifest, *records, last = lines(invoke("export", "--path", known, *options))
    assert [each["request_id"] for each in records] == wanted
    assert (manifest["kind"], last["kind"], last["records"]) == ("manifest", "checkpoint", len(wanted))


def test_an_id_that_looks_like_a_pseudonym_finds_the_person_as_well(tmp_path: Path) -> None:
    given = "ab" * 32
    settings = AuditSettings(path=tmp_path / "audit", commit_deadline=30.0)
    keys = FileKeys(settings.key_directory)
    keys.pseudonym_key("eu-west")
    (pseudonym,) = Pseudonyms(keys).known(["eu-west"], ["demo"], given)

    async def write() -> None:
        async with trails.opened(settings, "eu-west", "gateway") as trail:
            for number, subject in enumerate((given, pseudonym)):
                records = pair(number, START, random.Random(number), "eu-west")
                await trail.append("eu-west", [{**each, "tenant": "demo", "subject": subject} for each in records], 30)

    asyncio.run(write())
    for options, found in ((["--tenant", "demo"], {given, pseudonym}), ([], {given})):
        shown = lines(invoke("tail", "--path", settings.path, "--json", "--subject", given, *options))
        assert {each["subject"] for each in shown} == found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--subject", "anna"], "needs --tenant"),
        (["--subject", "anna", "--tenant", "demo"], "needs the keys of pseudonyms"),
        (["--from", "yesterday"], "'yesterday' is no time"),
        (["--from", "2026-11-01T04:00:00"], "is no time"),
        (["--path", "nowhere"], "there is no directory"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_wrong_usage(
    known: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    elsewhere = shutil.copytree(known, tmp_path / "audit")
    for command in ("tail", "export"):
        ran = invoke(command, "--path", elsewhere, *options)
        assert (ran.exit_code, ran.stdout) == (2, "")
        assert said in ran.stderr


def test_what_callers_name_does_not_steer_the_terminal(tmp_path: Path) -> None:
    settings = AuditSettings(path=tmp_path / "audit", commit_deadline=30.0)

    async def write() -> None:
        async with trails.opened(settings, "gateway") as trail:
            refused = pair(1, START, random.Random(1), "gateway")
            await trail.append("gateway", [{**each, "model": "\x1b[2J\x07m"} for each in refused], 30)

    asyncio.run(write())
    assert "?[2J?m" in run("tail", "--path", settings.path).stdout
    log = Damaged(settings.path, "gateway", random.Random(1))
    log.put(1, log.stored(1).replace(b'"gateway"', b'"\\u001b[2J' + b"x" * 1000 + b'"'))
    (line,) = [each for each in run("verify", "--path", settings.path).stdout.splitlines() if "record 1 " in each]
    assert line.endswith(f"says that it is record 1 of ?[2J{'x' * 60}")


class Following:
    """`tidegate audit tail -f` while it runs."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "app.cli", "audit", "tail", "-f", "--json", *map(str, arguments)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._rest = b""

    def next(self) -> Any:
        """The next record; fails if it does not come within 30 s."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            assert select.select([self.process.stdout], [], [], 30)[0], "no record came"
            self._rest += os.read(self.process.stdout.fileno(), 65536)
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture
def following() -> Iterator[list[Following]]:
    started: list[Following] = []
    yield started
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate(timeout=30)


async def test_tail_follows(tmp_path: Path, following: list[Following]) -> None:
    settings, draw = AuditSettings(path=tmp_path / "audit", commit_deadline=30.0), random.Random(1)
    async with trails.opened(settings, "eu-west", "gateway") as trail:
        await trail.append("gateway", pair(1, START, draw, "gateway"), 30)
        tail = Following("--path", settings.path, "-n", "1")
        following.append(tail)
        seen = [await asyncio.to_thread(tail.next)]
        for number, log in ((2, "eu-west"), (3, "gateway"), (4, "eu-west")):
            await trail.append(log, pair(number, START, draw, log), 30)
            seen += [await asyncio.to_thread(tail.next) for _ in range(2)]
    assert [(each["log"], each["seq"]) for each in seen] == [
        ("gateway", 2),
        *[("eu-west", 1), ("eu-west", 2), ("gateway", 3), ("gateway", 4), ("eu-west", 3), ("eu-west", 4)],
    ]
    assert tail.end() == 130


# --- export


def test_an_export_says_what_it_is_of_and_ends_with_the_checkpoints(built: Built, tmp_path: Path) -> None:
    file = tmp_path / "export.ndjson"
    ran = run("export", "--path", built.directory, "-o", file)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["export.ndjson"]
    manifest, *records, last = map(json.loads, file.read_text().splitlines())
    assert manifest == {
        "kind": "manifest",
        "filters": {},
        "logs": {
            "eu-west": {"first": 1, "last": 300, "floor": 0},
            "gateway": {"first": 1, "last": 300, "floor": 0},
            "us-east": {"first": 301, "last": 601, "floor": 300},
        },
    }
    assert [(each["time"], each["log"], each["seq"]) for each in records] == sorted(
        (each["time"], each["log"], each["seq"]) for each in records
    )
    assert last["records"] == len(records) == 901
    assert last["checkpoints"] == {log: note.read_text() for log, note in built.saved.items()}
    key = VerifierKey.parse((built.directory / "eu-west.pub").read_text().strip())
    assert Checkpoint.parse(opened(last["checkpoints"]["eu-west"], [key])).size == 300


def test_an_export_that_fails_leaves_no_file(copy: Path, tmp_path: Path) -> None:
    log = Damaged(copy, "eu-west", random.Random(1))
    begin, size = log.page_of(log.stored(150))
    log.overwrite(begin, bytes(size))
    file = tmp_path / "out" / "export.ndjson"
    file.parent.mkdir()
    ran = run("export", "--path", copy, "-o", file)
    assert (ran.returncode, len(ran.stderr.splitlines()), list(file.parent.iterdir())) == (1, 1, [])
    assert ran.stderr.startswith("tidegate: audit log ")


def test_an_export_names_a_person_by_pseudonyms_only(known: Path) -> None:
    ran = run("export", "--path", known, "--subject", "anna", "--tenant", "demo")
    manifest, *records, _ = lines(ran)
    assert manifest["filters"] == {"subject": [records[0]["subject"]], "tenant": "demo"}
    assert "anna" not in ran.stdout


# --- prove


@pytest.fixture
def newest(known: Path) -> str:
    (found,) = lines(invoke("tail", "--path", known, "-n", "1", "--json"))
    return str(found["id"])


def test_a_proof_is_shown_and_its_file_needs_only_the_public_key(known: Path, newest: str, tmp_path: Path) -> None:
    shown = run("prove", newest, "--path", known)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"record     {newest}" in shown.stdout
    assert "place      eu-west 8" in shown.stdout
    (tmp_path / "proof.json").write_text(run("prove", newest, "--path", known, "--json").stdout)
    shutil.copy(known / "eu-west.pub", tmp_path)
    checked = run("prove", "--check", "proof.json", "--public-key", "eu-west.pub", cwd=tmp_path)
    assert (checked.returncode, checked.stdout) == (0, shown.stdout)
    assert run("prove", "--check", tmp_path / "proof.json", "--path", known).stdout == shown.stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"served"', '"failed"'),
        ('"seq":8', '"seq":7'),
        ('"leaf_index":7', '"leaf_index":6'),
        ('"proof":["', '"proof":["A'),
        ("\\n8\\n", "\\n9\\n"),
        ("\u2014", "-"),
        ('"kind":"proof"', '"kind":"prose"'),
        ("{", ""),
        ('"log":"eu-west"', '"log":"eu-east"'),
    ],
)
def test_an_altered_proof_proves_nothing(known: Path, newest: str, tmp_path: Path, old: str, new: str) -> None:
    proof = invoke("prove", newest, "--path", known, "--json").stdout
    assert old in proof
    (tmp_path / "proof.json").write_text(proof.replace(old, new, 1))
    ran = invoke("prove", "--check", tmp_path / "proof.json", "--public-key", known / "eu-west.pub")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "nothing is proved" in ran.stderr


def test_what_is_not_in_a_log_or_not_covered_yet_is_not_proved(built: Built, copy: Path, newest: str) -> None:
    ran = run("prove", newest, "--path", copy)
    assert (ran.returncode, "holds a record" in ran.stderr) == (1, True)
    log = Damaged(copy, "eu-west", random.Random(1), built.earlier["eu-west"])
    trails.roll_the_checkpoint_back(log)
    ran = run("prove", json.loads(log.stored(300))["id"], "--path", copy)
    assert (ran.returncode, "record 300 is not covered by a checkpoint yet" in ran.stderr) == (1, True)
    assert run("prove", json.loads(log.stored(200))["id"], "--path", copy).returncode == 0
    log.put(200, log.altered(200))
    assert run("prove", json.loads(log.stored(200))["id"], "--path", copy).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the ID of a record, or --check FILE"),
        (["ID", "--check", "-"], "give the ID of a record, or --check FILE"),
        (["../../etc/passwd"], "is no record's id"),
        (["0" * 32, "--url", "http://127.0.0.1:9"], "needs --public-key FILE"),
        (["--check", "-", "--public-key", "README.md"], "--public-key README.md"),
    ],
)
def test_prove_used_wrongly(known: Path, arguments: list[str], said: str) -> None:
    where = [] if "--url" in arguments else ["--path", known]
    ran = invoke("prove", *arguments, *where)
    assert (ran.exit_code, ran.stdout, said in ran.stderr) == (2, "", True)


# --- over the API


async def test_everything_over_a_running_gateway(tmp_path: Path, following: list[Following]) -> None:
    async with running(tmp_path) as gateway:
        url = ("--url", str(gateway.client.base_url), "--key", KEY)
        served = [(await gateway.embed(x_data_subject="DE", x_subject_id="anna")).headers["x-audit-id"] for _ in "abc"]

        newest = lines(await run_aside("tail", *url, "-n", "2", "--json"))
        assert [each["kind"] for each in newest] == ["decision", "completion"]
        assert newest[0]["id"] == served[-1]
        found = lines(await run_aside("tail", *url, "--json", "--subject", "anna"))
        assert [each["id"] for each in found if each["kind"] == "decision"] == served

        tail = Following(*url, "-n", "0")
        following.append(tail)
        await asyncio.sleep(2)
        another = (await gateway.embed("other", x_data_subject="DE")).headers["x-audit-id"]
        assert (await asyncio.to_thread(tail.next))["id"] == another
        assert tail.end() == 130

        manifest, *records, last = lines(await run_aside("export", *url, "--region", "eu-west"))
        assert (manifest["kind"], last["kind"], last["records"]) == ("manifest", "checkpoint", len(records))
        assert [each["id"] for each in records if each["kind"] == "decision"] == [*served, another]

        keys = tmp_path / "audit" / "eu-west.pub"
        proof = await run_aside("prove", served[0], *url, "--public-key", keys, "--json")
        assert proof.returncode == 0, proof.stderr
        (tmp_path / "proof.json").write_text(proof.stdout)
        checked = await run_aside("prove", "--check", tmp_path / "proof.json", "--public-key", keys)
        assert (checked.returncode, served[0] in checked.stdout) == (0, True)

        report = await run_aside("verify", *url)
        assert (report.returncode, report.stdout.splitlines()[-1].startswith("intact: ")) == (0, True), report.stdout
        refused = await run_aside("tail", "--url", str(gateway.client.base_url), "--key", "wrong")
        assert (refused.returncode, "answered 401" in refused.stderr) == (1, True)
    whole = await run_aside("verify", "--path", tmp_path / "audit")
    assert whole.returncode == 0, whole.stdout
    records = lines(await run_aside("tail", "--path", tmp_path / "audit", "-n", "500", "--json"))
    assert {"read"} <= {each["kind"] for each in records}
    assert all(record.time_of(each["id"]) == each["time"] for each in records)
