"""Erasure, holds, access and new keys by command: on files, alone and with regional ones, and on running gateways."""

import asyncio
import json
import os
import pty
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.audit import record
from app.audit.check.findings import Result
from app.audit.check.saved import Saved
from app.audit.check.verify import verify
from app.audit.checkpoint import VerifierKey
from app.audit.keys import FileKeys
from app.audit.pseudonym import Pseudonyms
from app.audit.writer import Trail
from app.config import AuditSettings
from tests.fleet.servers import reply, serving
from tests.running import HASH, KEY, running

ROOT = Path(__file__).resolve().parents[1]
ANNA = "anna-zoë"
LOGS = ("eu-west", "us-east", "gateway")
SUBJECTS = {"audit": "edge", "audit/eu-west": "eu-west"}
"""The trails of a topology with one regional gateway, and where each gateway stands."""


def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "audit", *map(str, arguments)],
        cwd=ROOT,
        env={**environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(*arguments: object) -> tuple[int, str, str]:
    with started(*arguments, stdin=subprocess.DEVNULL) as process:
        out, err = process.communicate(timeout=90)
    assert ANNA not in err
    assert len(err.splitlines()) <= 1
    return process.returncode, out, err


def told(*arguments: object) -> Any:
    """What a command that succeeds prints as JSON."""
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, ""), err
    return json.loads(out)


async def aside(*arguments: object) -> tuple[int, str, str]:
    return await asyncio.to_thread(run, *arguments)


class Topology:
    """A configuration's file, and the trails of its gateways as they lie after these have stopped."""

    def __init__(self, directory: Path, subjects: Mapping[str, str] = SUBJECTS) -> None:
        self.directory = directory
        self.subjects = subjects
        self.config = directory / "tidegate.json"
        region = {"latitude": 1, "longitude": 1, "operator": {"name": "acme"}}
        regions = [{"id": "eu-west", "country": "IE", **region}, {"id": "us-east", "country": "US", **region}]
        tenants = [{"id": "demo", "keys": [HASH], "subject": "US"}, {"id": "other", "subject": "US"}]
        content = {"version": 1, "regions": regions, "tenants": tenants, "audit": {"path": "audit", "retention": "1d"}}
        self.config.write_text(json.dumps(content))

    def audit(self, name: str) -> AuditSettings:
        keys = self.directory / "keys" / Path(name).relative_to("audit")
        return AuditSettings(path=self.directory / name, keys=keys, commit_deadline=30.0)

    async def write(self, name: str, *entries: tuple[str, str, str], age: timedelta = timedelta(0)) -> None:
        """A request for each (log, tenant, id) in the trail of that name."""
        audit = self.audit(name)
        pseudonyms = Pseudonyms(FileKeys(audit.key_directory))
        trail = Trail(audit, LOGS, self.subjects[name])
        await trail.start()
        for number, (log, tenant, subject_id) in enumerate(entries):
            decision = record.decision(
                id=record.new_id(datetime.now(UTC), number),
                time=datetime.now(UTC) - age,
                request_id="annas-own-request",
                outcome="permitted",
                tenant=tenant,
                key_id="00000000",
                region=log,
                subject=await pseudonyms.of(log, tenant, subject_id),
            )
            ended = record.completion(
                id=record.new_id(datetime.now(UTC), number),
                time=datetime.now(UTC) - age,
                decision=decision,
                outcome="served",
                status=200,
            )
            await trail.append(log, [decision, ended], 30)
        await trail.close()

    def pseudonym(self, name: str, log: str) -> str:
        (found,) = Pseudonyms(FileKeys(self.audit(name).key_directory)).known([log], ["demo"], ANNA)
        return found

    def rows(self, name: str, log: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.directory / name / f"{log}.db")) as db:
            return [json.loads(each) for (each,) in db.execute("SELECT record FROM records ORDER BY seq")]

    def where(self, text: str) -> list[str]:
        return [
            str(file)
            for file in self.directory.rglob("*")
            if file.is_file() and file != self.config and text.encode() in file.read_bytes()
        ]

    def intact(self, saved: Sequence[Saved] = ()) -> None:
        report = verify(self.directory / "audit", saved)
        assert report.result == Result.INTACT, report.as_json()


@pytest.fixture
async def topology(tmp_path: Path) -> Topology:
    """Anna is known in one log of the first trail and in one of the regional gateway's."""
    made = Topology(tmp_path)
    await made.write("audit", ("eu-west", "demo", ANNA), ("us-east", "demo", "bert"))
    await made.write("audit/eu-west", ("eu-west", "demo", ANNA))
    return made


def test_erases_in_every_trail_below_the_directory(topology: Topology) -> None:
    names = [topology.pseudonym(name, "eu-west") for name in SUBJECTS]
    assert all(topology.where(name) for name in names)
    planned = told("erase", ANNA, "--config", topology.config, "--dry-run")
    erased = told("erase", ANNA, "--config", topology.config, "--yes")
    assert (erased["known"], erased["tenant"], erased["records"]) == (True, "demo", 4)
    assert {(each["trail"], each["log"], each["records"]) for each in erased["logs"]} == {
        (str(topology.directory / name), "eu-west", 2) for name in SUBJECTS
    }
    assert planned == {**erased, "logs": [{**each, "id": None} for each in erased["logs"]]}
    for each in erased["logs"]:
        event = topology.rows(Path(each["trail"]).relative_to(topology.directory).as_posix(), "eu-west")[-1]
        assert (event["id"], event["kind"], event["tenant"]) == (each["id"], "erasure", None)
    for name in (*names, ANNA):
        assert topology.where(name) == []
    assert told("erase", ANNA, "--config", topology.config)["known"] is False
    topology.intact()


def test_prints_what_it_did(topology: Topology) -> None:
    code, out, _ = run("erase", ANNA, "--config", topology.config, "--yes")
    assert code == 0
    assert out.splitlines()[0].split() == ["trail", "log", "records", "erasure"]
    assert out.splitlines()[-1] == "The person is erased from 4 records of tenant demo."
    code, out, _ = run("erase", ANNA, "--config", topology.config, "--yes")
    assert (code, out) == (0, "Nobody is known by that id: nothing to erase, and nothing recorded.\n")


def test_does_not_erase_unasked(topology: Topology) -> None:
    code, out, err = run("erase", ANNA, "--config", topology.config)
    assert (code, out) == (2, ""), err
    assert "give --yes" in err
    assert told("erase", ANNA, "--config", topology.config, "--dry-run")["records"] == 4


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 130, 4), ("y\n", 0, 0)])
def test_asks_on_a_terminal(topology: Topology, answer: str, code: int, left: int) -> None:
    master, slave = pty.openpty()
    try:
        with started("erase", ANNA, "--config", topology.config, stdin=slave) as process:
            os.write(master, answer.encode())
            _, err = process.communicate(timeout=90)
    finally:
        os.close(master)
        os.close(slave)
    assert process.returncode == code
    assert "Erase the person of tenant demo from 4 records, for good?" in err
    assert told("erase", ANNA, "--config", topology.config, "--dry-run")["records"] == left


async def test_persons_of_different_tenants_in_different_trails_are_not_mixed_up(tmp_path: Path) -> None:
    topology = Topology(tmp_path)
    await topology.write("audit", ("eu-west", "demo", ANNA))
    await topology.write("audit/eu-west", ("eu-west", "other", ANNA))
    for command in (("erase", ANNA, "--yes"), ("access", ANNA), ("hold", "place", "--note", "n", "--subject", ANNA)):
        code, _, err = await aside(*command, "--config", topology.config)
        assert code == 2, err
        assert "--tenant" in err
    erased = await asyncio.to_thread(told, "erase", ANNA, "--config", topology.config, "--tenant", "other", "--yes")
    assert [each["trail"] for each in erased["logs"]] == [str(tmp_path / "audit" / "eu-west")]
    code, _, err = await aside("erase", ANNA, "--config", topology.config, "--tenant", "nobody", "--yes")
    assert (code, "there is no tenant nobody" in err) == (1, True)


def test_a_hold_in_one_trail_keeps_all_of_them_from_being_erased(topology: Topology) -> None:
    regional = topology.directory / "audit" / "eu-west"
    below = ("--config", topology.config)
    everywhere = told("hold", "place", *below, "--note", "of 1999", "--from", "1999-01-01", "--to", "2000-01-01")[
        "holds"
    ]
    assert {each["trail"] for each in everywhere} == {str(topology.directory / name) for name in SUBJECTS}
    assert all([log["log"] for log in each["logs"]] == sorted(LOGS) for each in everywhere)
    (held,) = told("hold", "place", "--path", regional, "--note", "case 17", "--tenant", "demo", *_keys(topology))[
        "holds"
    ]
    before = {name: topology.rows(name, "eu-west") for name in SUBJECTS}
    for options in (["--yes"], ["--dry-run"]):
        code, out, err = run("erase", ANNA, *below, *options)
        assert (code, out) == (1, ""), err
        assert f"Nothing has been erased, because legal holds keep records of this person: {held['id']}." in err
    assert {name: topology.rows(name, "eu-west") for name in SUBJECTS} == before
    listed = told("hold", "list", *below)["holds"]
    assert sorted(each["id"] for each in listed) == sorted([held["id"], *(each["id"] for each in everywhere)])
    for hold in listed:
        released = told("hold", "release", hold["id"], *below)["holds"]
        assert [each["id"] for each in released] == [hold["id"]]
    code, _, err = run("hold", "release", held["id"], *below)
    assert (code, err) == (1, f"tidegate: There is no legal hold {held['id']}.\n")
    assert told("erase", ANNA, *below, "--yes")["records"] == 4
    topology.intact()


def _keys(topology: Topology) -> Sequence[object]:
    """A configuration whose keys are the regional gateway's."""
    file = topology.directory / "regional.json"
    content = json.loads(topology.config.read_text())
    content["audit"] = {"path": "audit/eu-west", "keys": "keys/eu-west"}
    file.write_text(json.dumps(content))
    return ["--config", file]


def test_a_hold_on_a_person_stands_where_they_are_known(topology: Topology) -> None:
    asked = ("--config", topology.config, "--note", "case 17", "--tenant", "demo")
    code, _, err = run("hold", "place", *asked, "--subject", "nobody")
    assert (code, "knows this person" in err) == (1, True)
    placed = told("hold", "place", *asked, "--subject", "bert")["holds"]
    assert [(each["trail"], [log["log"] for log in each["logs"]]) for each in placed] == [
        (str(topology.directory / "audit"), ["us-east"])
    ]
    code, out, _ = run("hold", "list", "--config", topology.config)
    assert code == 0
    header, row = out.splitlines()
    assert header.split() == ["trail", "id", "placed", "tenant", "person", "from", "to", "logs", "note"]
    assert row.split()[3:] == ["demo", "yes", "us-east", "case", "17"]
    assert topology.where("bert") == []


def test_access_writes_everything_to_a_file_of_its_owner(topology: Topology, tmp_path: Path) -> None:
    file = tmp_path / "anna.ndjson"
    file.write_text("what was there")
    code, out, _ = run("access", ANNA, "--config", topology.config, "-o", file)
    assert code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [each["kind"] for each in lines] == ["access", "decision", "completion"] * 2
    assert [each.get("trail") for each in lines if each["kind"] == "access"] == [
        str(topology.directory / name) for name in SUBJECTS
    ]
    assert {each["request_id"] for each in lines if each["kind"] != "access"} == {"annas-own-request"}
    assert lines[0]["retention_s"] == 86400
    assert "1 d" in out
    assert ANNA not in out
    code, printed, _ = run("access", ANNA, "--config", topology.config, "--json")
    assert [json.loads(line)["kind"] for line in printed.splitlines()] == [each["kind"] for each in lines]
    code, printed, _ = run("access", "nobody", "--config", topology.config)
    assert (code, printed) == (0, "Nobody is known by that id.\n")
    for name in SUBJECTS:
        (first, second, third) = topology.rows(name, "gateway")
        assert first["detail"] == {"command": "access", "filters": {"subject": True, "tenant": "demo"}, "records": 2}
        assert second["detail"]["records"] == 2
        assert third["detail"] == {"command": "access", "filters": {"subject": True, "tenant": None}, "records": 0}
        assert {(each["kind"], each["outcome"], each["subject"]) for each in (first, second, third)} == {
            ("read", "served", None)
        }
    topology.intact()


async def test_a_directory_alone_needs_its_own_keys_and_the_tenant_and_keeps_what_is_old(tmp_path: Path) -> None:
    topology = Topology(tmp_path)
    await topology.write("audit", ("eu-west", "demo", ANNA), age=timedelta(days=300))
    await topology.write("audit", ("eu-west", "demo", "bert"), age=timedelta(days=200))
    place = ("--path", tmp_path / "audit")
    code, _, err = await aside("erase", ANNA, *place, "--yes")
    assert (code, "--tenant" in err) == (2, True)
    moved = tmp_path / "elsewhere" / "audit"
    moved.parent.mkdir()
    (tmp_path / "audit").rename(moved)
    code, _, err = await aside("erase", ANNA, "--path", moved, "--tenant", "demo", "--yes")
    assert (code, "private keys are not in" in err) == (1, True)
    assert not (moved.parent / "keys").exists()
    moved.rename(tmp_path / "audit")
    erased = await asyncio.to_thread(told, "erase", ANNA, *place, "--tenant", "demo", "--yes")
    assert erased["records"] == 2
    assert len(topology.rows("audit", "eu-west")) == 5  # and no retention was enforced, whatever it is
    topology.intact()


def test_new_keys_for_every_log_and_old_checkpoints_still_count(topology: Topology, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    saved = []
    for name in SUBJECTS:
        for log in LOGS:
            with closing(sqlite3.connect(topology.directory / name / f"{log}.db")) as db:
                file = notes / f"{name.replace('/', '-')}-{log}.note"
                file.write_text(db.execute("SELECT note FROM head").fetchone()[0])
                saved.append(Saved.read(file))
    old = {file: file.read_bytes() for file in (topology.directory / "keys").rglob("*") if file.is_file()}
    public = {file: file.read_text() for file in (topology.directory / "audit").rglob("*.pub")}

    rotated = told("rotate-keys", "--config", topology.config)["logs"]

    assert {(each["trail"], each["log"]) for each in rotated} == {
        (str(topology.directory / name), log) for name in SUBJECTS for log in LOGS
    }
    for file, key in old.items():
        assert (file.read_bytes() == key) == (file.suffix == ".key"), file  # pseudonyms stay
    for each in rotated:
        file = Path(each["trail"]) / f"{each['log']}.pub"
        assert file.read_text() == f"{public[file]}{each['key']}\n"
        assert VerifierKey.parse(each["key"]).name.endswith(each["log"])
        name = Path(each["trail"]).relative_to(topology.directory).as_posix()
        event = topology.rows(name, each["log"])[-1]
        assert (event["kind"], event["outcome"], event["detail"]) == ("rotation", "rotated", {"key": each["key"]})
    topology.intact(saved)
    asyncio.run(topology.write("audit", ("eu-west", "demo", ANNA)))
    topology.intact(saved)
    code, printed, _ = run("access", ANNA, "--config", topology.config, "--json")
    opened = [json.loads(line) for line in printed.splitlines()]
    assert {each["request_id"] for each in opened if each["kind"] != "access"} == {"annas-own-request"}
    assert (code, len(opened)) == (0, 8)
    assert told("erase", ANNA, "--config", topology.config, "--yes")["records"] == 6
    topology.intact(saved)


async def test_while_gateways_run_their_urls_are_asked(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gateways = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            gateways.append(await stack.enter_async_context(running(tmp_path / name, "eu-west")))
        for gateway in gateways:
            sent = {"X-Subject-Id": ANNA.encode(), "X-Data-Subject": "DE"}
            body = {"model": "embed", "input": "hello"}
            (await gateway.client.post("/v1/embeddings", json=body, headers=sent)).raise_for_status()
        config = tmp_path / "first" / "tidegate.yaml"
        for command in (("erase", ANNA, "--yes"), ("access", ANNA), ("hold", "list"), ("rotate-keys",)):
            code, out, err = await aside(*command, "--config", config)
            assert (code, out) == (1, ""), err
            assert f"audit directory {tmp_path / 'first' / 'audit'} is in use by another gateway; use --url" in err
        urls = [str(gateway.client.base_url).rstrip("/") for gateway in gateways]
        asked = [option for url in urls for option in ("--url", url)] + ["--key", KEY]

        code, printed, _ = await aside("access", ANNA, *asked, "--json")
        lines = [json.loads(line) for line in printed.splitlines()]
        assert [each.get("trail", each["kind"]) for each in lines] == [
            part for url in urls for part in (url, "decision", "completion")
        ]
        placed = (await asyncio.to_thread(told, "hold", "place", "--url", urls[1], "--key", KEY, "--note", "case 17"))[
            "holds"
        ]
        code, out, err = await aside("erase", ANNA, *asked, "--yes")
        assert (code, out) == (1, ""), err
        assert (
            f"answered 403: Nothing has been erased, because legal holds keep records of this person: {placed[0]['id']}"
            in err
        )
        assert len(await gateways[0].records(subject=ANNA)) == 2
        listed = (await asyncio.to_thread(told, "hold", "list", *asked))["holds"]
        assert listed == placed == [{**placed[0], "trail": urls[1]}]
        assert (await asyncio.to_thread(told, "hold", "release", placed[0]["id"], *asked))["holds"] == placed
        erased = await asyncio.to_thread(told, "erase", ANNA, *asked, "--yes")
        assert [(each["trail"], each["log"], each["records"]) for each in erased["logs"]] == [
            (url, "eu-west", 2) for url in urls
        ]
        assert [await gateway.records(subject=ANNA) for gateway in gateways] == [[], []]
        code, _, err = await aside("erase", ANNA, *asked[:-1], "wrong", "--yes")
        assert (code, "answered 401" in err) == (1, True)
    for name in ("first", "second"):
        assert verify(tmp_path / name / "audit").result == Result.INTACT


async def test_only_the_gateway_is_asked_and_by_the_whole_id(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = reply(404, b'{"detail": "no such hold"}')
    async with serving(reply(200, b"{}")) as proxy, serving(refusal) as gateway:
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        code, _, err = await aside("hold", "release", "a/b?c", "--url", gateway.url, "--key", KEY)
        assert (code, "no such hold" in err) == (1, True)
        assert (proxy.connections, gateway.connections) == (0, 1)
        assert gateway.requests[0].line.startswith("DELETE /v1/audit/holds/a%2Fb%3Fc ")


def test_text_that_is_not_utf_8_is_wrong_usage(topology: Topology) -> None:
    before = {log: topology.rows("audit", log) for log in LOGS}
    place = ("hold", "place", "--note")
    for name, command in {
        "--note": (*place, "\udcff"),
        "--tenant": (*place, "n", "--tenant", "\udcff"),
        "--subject": (*place, "n", "--subject", "\udcff"),
        "SUBJECT": ("erase", "\udcff", "--yes"),
        "ID": ("hold", "release", "\udcff"),
    }.items():
        code, out, err = run(*command, "--config", topology.config)
        assert (code, out, f"'{name}': this is no UTF-8 text" in err) == (2, "", True), err
    assert {log: topology.rows("audit", log) for log in LOGS} == before


def _kill_once_changed(topology: Topology, key: Path) -> None:
    old = key.read_bytes()
    with started("rotate-keys", "--config", topology.config, stdin=subprocess.DEVNULL) as process:
        while process.poll() is None and key.read_bytes() == old:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)


async def test_killed_in_the_middle_all_keys_stay_good_and_again_finishes(topology: Topology) -> None:
    """Killed as soon as the key of the first, second, ... log is another one."""
    places = [(name, log) for name in SUBJECTS for log in LOGS]
    for name, log in places:
        key = topology.audit(name).key_directory / f"{log}.ed25519"
        old = key.read_bytes()
        await asyncio.to_thread(_kill_once_changed, topology, key)
        assert key.read_bytes() != old
        await topology.write("audit", ("eu-west", "demo", ANNA))  # as a gateway that starts again
        await topology.write("audit/eu-west")
        topology.intact()
    assert len((await asyncio.to_thread(told, "rotate-keys", "--config", topology.config))["logs"]) == len(places)
    _, printed, _ = await aside("access", ANNA, "--config", topology.config, "--json")
    opened = [json.loads(line) for line in printed.splitlines()]
    assert {each["request_id"] for each in opened if each["kind"] != "access"} == {"annas-own-request"}
    assert len(opened) == 2 + 4 + 2 * len(places)
    topology.intact()
