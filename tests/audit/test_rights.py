"""Erasure, access and legal holds over real logs: what is forgotten, what is kept, what breaks off in the middle."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.audit.check.findings import Result
from app.audit.check.saved import Saved
from app.audit.check.verify import verify
from app.audit.checkpoint import cosigned_at
from app.audit.keys import FileKeys
from app.audit.ledger import Ledger
from app.audit.opener import Opener
from app.audit.place import Place
from app.audit.pseudonym import Pseudonyms
from app.audit.record import canonical
from app.audit.rights.officer import Actor, event
from app.audit.rights.offline import rotate, sites
from app.audit.rights.person import People
from app.audit.rights.rights import Rights
from app.audit.witness.notebook import Notebook
from app.audit.writer import Trail
from app.config import Settings
from app.errors import AuditUnavailable, Forbidden, InvalidRequest, NotFound
from app.stores.sqlite import SqliteAuditStore

ROOT = Path(__file__).resolve().parents[2]
LOGS = ("eu-west", "us-east", "gateway")
OFFICER = Actor("acme", "00000000", "officer-1")
ANNA = "anna.müller@example.org"


@pytest.fixture
def settings(audit):
    regions = [
        {"id": "eu-west", "country": "IE", "latitude": 53, "longitude": -6, "operator": {"name": "acme-eu"}},
        {"id": "us-east", "country": "US", "latitude": 38, "longitude": -77, "operator": {"name": "acme-us"}},
    ]
    tenants = [{"id": "demo"}, {"id": "other"}]
    return Settings(version=1, regions=regions, tenants=tenants, audit=audit)


@pytest.fixture
async def rights(trail, audit, settings):
    return Rights(trail, audit, lambda: settings)


@pytest.fixture
def write(trail, audit, pair):
    """Appends a request of a person (or of nobody) to a log: decision and completion."""
    pseudonyms = Pseudonyms(FileKeys(audit.key_directory))

    async def append(subject_id, log="eu-west", tenant="demo", model="minilm", **fields):
        subject = await pseudonyms.of(log, tenant, subject_id)
        decision, ended = (
            {**each, "model": model} for each in pair(subject=subject, tenant=tenant, region=log, **fields)
        )
        await trail.append(log, [decision, ended], 10)
        return decision

    return append


def intact(audit):
    report = verify(audit.path)
    assert report.result == Result.INTACT, report.as_json()


def rows(audit, log):
    """A log's records as they are stored."""
    with closing(sqlite3.connect(audit.path / f"{log}.db")) as db:
        return [json.loads(each) for (each,) in db.execute("SELECT record FROM records ORDER BY seq")]


@asynccontextmanager
async def open_trail(audit):
    trail = Trail(audit, LOGS)
    with capture_logs():
        await trail.start()
        try:
            yield trail
        finally:
            await trail.close()


def files(audit):
    return {
        path: path.read_bytes()
        for top in (audit.path, audit.key_directory)
        for path in top.rglob("*")
        if path.is_file()
    }


def where(text, audit):
    """The files in which a text stands, in the bytes that it may have there."""
    forms = {text.encode(), text.encode("latin-1", "replace"), json.dumps(text).encode()[1:-1]}
    return sorted({str(path) for path, content in files(audit).items() for form in forms if form in content})


async def disclosed(rights, subject_id, tenant=None):
    lines = b"".join([part async for part in (await rights.access(subject_id, tenant)).parts]).splitlines()
    summary, *records = map(json.loads, lines)
    return summary, records


def pseudonym_of(audit, log, subject_id=ANNA, tenant="demo"):
    (found,) = Pseudonyms(FileKeys(audit.key_directory)).known([log], [tenant], subject_id)
    return found


async def test_an_erased_person_is_in_no_byte_and_the_trail_still_proves(rights, trail, audit, write, tmp_path):
    kept = []
    for number in range(150):
        await write(ANNA, ("eu-west", "us-east")[number % 2], request_id=f"anna-was-here-{number}", trace_id="ab" * 16)
        kept.append((await write(f"person-{number}", request_id=f"other-{number}"))["request_id"])
    pseudonyms = [pseudonym_of(audit, log) for log in ("eu-west", "us-east")]
    assert all(where(each, audit) for each in pseudonyms)
    note = tmp_path / "saved.note"
    note.write_text(await trail.checkpoint("eu-west"))

    erasure = (await rights.erase(ANNA, None, OFFICER)).as_json()

    assert (erasure["known"], erasure["tenant"], erasure["records"]) == (True, "demo", 300)
    assert [(each["log"], each["records"]) for each in erasure["logs"]] == [("eu-west", 150), ("us-east", 150)]
    await trail.close()
    for gone in (*pseudonyms, ANNA, "anna-was-here-"):
        assert where(gone, audit) == []
    assert [each for each in kept if not where(each, audit)] == []
    report = verify(audit.path, [Saved.read(note)])
    assert report.result == Result.INTACT, report.as_json()
    erasures = set()
    for each in erasure["logs"]:
        told = rows(audit, each["log"])[-1]
        assert (told["id"], told["kind"], told["outcome"], told["subject"]) == (each["id"], "erasure", "erased", None)
        assert (told["tenant"], told["key_id"], told["request_id"]) == ("acme", "00000000", "officer-1")
        erasures.add(told["detail"].pop("erasure"))
        assert told["detail"] == {"tenant": "demo", "records": each["records"]}
    assert len(erasures) == 1  # one deed, told in several logs


async def test_erased_records_answer_with_nulls(rights, audit, write):
    decision = await write(ANNA, trace_id="ab" * 16)
    pseudonym = decision["subject"]
    await rights.erase(ANNA, None, OFFICER)
    with Opener(FileKeys(audit.key_directory)) as opener:
        opened = [opener.opened("eu-west", canonical(each), pseudonym) for each in rows(audit, "eu-west")[:2]]
    assert [each["kind"] for each in opened] == ["decision", "completion"]
    assert {(each["subject"], each["request_id"], each["trace_id"]) for each in opened} == {(None, None, None)}
    assert all(each["personal"] for each in opened)


async def test_nobody_known_is_said_and_not_recorded(rights, audit, write):
    await write("somebody")
    before = {log: rows(audit, log) for log in LOGS}
    erasure = await rights.erase(ANNA, None, OFFICER)
    assert erasure.as_json() == {"known": False, "tenant": None, "records": 0, "logs": []}
    assert (await rights.erase(ANNA, "demo", OFFICER)).as_json()["known"] is False
    assert {log: rows(audit, log) for log in LOGS} == before


async def test_twice_is_as_good_as_once(rights, audit, write):
    await write(ANNA)
    assert (await rights.erase(ANNA, None, OFFICER)).as_json()["records"] == 2
    assert (await rights.erase(ANNA, None, OFFICER)).as_json()["known"] is False
    assert [each["kind"] for each in rows(audit, "eu-west")] == ["decision", "completion", "erasure"]


async def test_a_person_of_several_tenants_needs_the_tenant_named(rights, write):
    await write(ANNA, "eu-west", "other")
    await write(ANNA, "us-east", "demo")
    for asked in (rights.erase(ANNA, None, OFFICER), rights.access(ANNA, None)):
        with pytest.raises(InvalidRequest) as refused:
            await asked
        assert (refused.value.message_id, refused.value.param) == ("invalid_request.tenant_ambiguous", "tenant")
        assert refused.value.values["expected"] == ["demo", "other"]
    erasure = (await rights.erase(ANNA, "other", OFFICER)).as_json()
    assert [(each["log"], each["records"]) for each in erasure["logs"]] == [("eu-west", 2)]
    summary, _ = await disclosed(rights, ANNA)
    assert (summary["tenant"], summary["records"]) == ("demo", 2)


async def test_a_tenant_that_is_no_longer_configured_is_taken_by_its_name(rights, write):
    await write(ANNA, tenant="former")
    assert (await rights.erase(ANNA, None, OFFICER)).as_json()["known"] is False
    with pytest.raises(InvalidRequest) as refused:
        await rights.erase(ANNA, "fromer", OFFICER)
    assert (refused.value.message_id, refused.value.values) == ("invalid_request.tenant_unknown", {"value": "fromer"})
    assert (await rights.erase("somebody else", "former", OFFICER)).as_json()["known"] is False
    assert (await rights.erase(ANNA, "former", OFFICER)).as_json()["records"] == 2


async def test_a_dry_run_tells_and_does_nothing(rights, write, audit):
    await write(ANNA)
    told = (await rights.erase(ANNA, None, OFFICER, dry_run=True)).as_json()
    assert told["logs"] == [{"log": "eu-west", "records": 2, "id": None}]
    assert len(rows(audit, "eu-west")) == 2
    assert (await disclosed(rights, ANNA))[0]["records"] == 2


@pytest.mark.parametrize("named", [ANNA, ANNA.upper()])
@pytest.mark.parametrize("given", [ANNA, f" {ANNA}\t"])
async def test_a_request_id_that_names_the_person_is_not_recorded(rights, trail, audit, write, given, named):
    await write(ANNA)
    officer = Actor("acme", "00000000", f"erase-{named}")
    placed = await rights.hold("a note", officer, subject_id=given)
    await rights.release(placed.hold.id, OFFICER)
    await rights.erase(given, None, officer)
    await trail.close()
    assert where(ANNA, audit) == where(named, audit) == []
    told = [each for each in rows(audit, "eu-west") if each["kind"] in {"hold", "erasure"}]
    assert [each["request_id"] for each in told] == [None, None, None]  # the release's is the person's, and forgotten


async def test_a_returning_person_gets_a_new_key(rights, trail, audit, write):
    first = await write(ANNA)
    keys = FileKeys(audit.key_directory).subject_keys("eu-west", readonly=True)
    old = keys.get(first["subject"])
    await rights.erase(ANNA, None, OFFICER)
    assert keys.get(first["subject"]) is None
    await write(ANNA, request_id="back-again")
    assert keys.get(first["subject"]) not in (None, old)
    keys.close()
    _, records = await disclosed(rights, ANNA)
    assert [each["request_id"] for each in records] == ["back-again", "back-again"]
    assert (await rights.erase(ANNA, None, OFFICER)).as_json()["records"] == 2
    await trail.close()
    assert where(first["subject"], audit) == []
    intact(audit)


async def test_a_request_in_flight_leaves_no_name(rights, trail, audit, pair):
    subject = await Pseudonyms(FileKeys(audit.key_directory)).of("eu-west", "demo", ANNA)
    requests = [pair(subject=subject, request_id=f"anna-was-here-{number}") for number in range(3)]
    for decision, _ in requests:
        await trail.append("eu-west", [decision], 10)
    assert (await rights.erase(ANNA, None, OFFICER)).as_json()["records"] == 3
    await trail.append("eu-west", [requests[0][1]], 10)
    await trail.append("eu-west", [requests[1][1]], 10)
    await trail.close()
    assert where(subject, audit) == []
    assert where("anna-was-here", audit) == []
    again = Trail(audit, LOGS)
    with capture_logs():
        await again.start()
    await again.close()
    assert where("anna-was-here", audit) == []
    ends = [each for each in rows(audit, "eu-west") if each["kind"] == "completion"]
    assert [each["outcome"] for each in ends] == ["served", "served", "lost"]
    assert {(each["subject"], each["request_id"]) for each in ends} == {(None, None)}
    intact(audit)


async def test_requests_of_the_person_come_while_they_are_erased(rights, trail, audit, write):
    """Whatever lands before an erasure is forgotten; whatever lands after it is a new person's."""

    async def come(number):
        for each in range(15):
            await write(ANNA, ("eu-west", "us-east")[number % 2], request_id=f"r-{number}-{each}-end")

    coming = [asyncio.create_task(come(number)) for number in range(6)]
    for _ in range(5):
        await rights.erase(ANNA, None, OFFICER)
        await asyncio.sleep(0.01)
    await asyncio.gather(*coming)
    await rights.erase(ANNA, None, OFFICER)
    await trail.close()
    for log in ("eu-west", "us-east"):
        assert where(pseudonym_of(audit, log), audit) == []
    assert [n for n in range(6) for each in range(15) if where(f"r-{n}-{each}-end", audit)] == []
    intact(audit)


# --- legal holds


async def test_a_hold_keeps_everything_in_every_log_from_being_erased(rights, trail, audit, write):
    await write(ANNA, "us-east")
    placed = (await rights.hold("case 17", OFFICER, subject_id=ANNA)).as_json()
    assert [each["log"] for each in placed["logs"]] == ["us-east"]
    await write(ANNA, "eu-west")
    before = {log: rows(audit, log) for log in LOGS}
    for dry_run in (True, False):
        with pytest.raises(Forbidden) as refused:
            await rights.erase(ANNA, None, OFFICER, dry_run=dry_run)
        assert (refused.value.message_id, refused.value.values) == ("forbidden.held", {"holds": [placed["id"]]})
    assert {log: rows(audit, log) for log in LOGS} == before
    assert (await disclosed(rights, ANNA))[0]["records"] == 5  # with the hold's own
    await rights.release(placed["id"], OFFICER)
    assert (await rights.erase(ANNA, None, OFFICER)).as_json()["records"] == 6
    await trail.close()
    for log in ("eu-west", "us-east"):
        assert where(pseudonym_of(audit, log), audit) == []
    intact(audit)


@pytest.mark.parametrize(
    ("bounds", "held"),
    [
        ({"tenant": "demo"}, True),
        ({"tenant": "other"}, False),
        ({"since": "2026-01-01T00:00:00.000000Z"}, True),
        ({"since": "2999-01-01T00:00:00.000000Z"}, False),
        ({"until": "2999-01-01T00:00:00.000000Z"}, True),
        ({"until": "2026-01-01T00:00:00.000000Z"}, False),
        ({"tenant": "demo", "since": "2026-01-01T00:00:00.000000Z", "until": "2999-01-01T00:00:00.000000Z"}, True),
        ({}, True),
    ],
)
async def test_a_hold_matches_by_tenant_and_time(rights, write, bounds, held):
    await write(ANNA, time=datetime(2026, 6, 1, tzinfo=UTC))
    placed = await rights.hold("a note", OFFICER, **bounds)
    assert [log for log, _ in placed.logs] == list(LOGS)
    if held:
        with pytest.raises(Forbidden):
            await rights.erase(ANNA, None, OFFICER)
    else:
        assert (await rights.erase(ANNA, None, OFFICER)).as_json()["records"] == 2


async def test_a_hold_on_nobody_or_on_no_tenant_is_refused(rights, audit):
    with pytest.raises(NotFound) as refused:
        await rights.hold("a note", OFFICER, subject_id=ANNA)
    assert refused.value.message_id == "not_found.person"
    with pytest.raises(InvalidRequest) as refused:
        await rights.hold("a note", OFFICER, tenant="nobody")
    assert refused.value.message_id == "invalid_request.tenant_unknown"
    assert await rights.holds() == []
    assert [rows(audit, log) for log in LOGS] == [[], [], []]


async def test_holds_are_listed_recorded_without_their_notes_and_released(rights, trail, audit, write):
    await write(ANNA)
    await write("bert", tenant="other")
    first = await rights.hold("about anna", OFFICER, subject_id=ANNA)
    second = await rights.hold("about all of other", OFFICER, tenant="other", until="2999-01-01T00:00:00.000000Z")
    listed = [each.as_json() for each in await rights.holds()]
    assert [(each["note"], each["tenant"], each["to"]) for each in listed] == [
        ("about anna", "demo", None),
        ("about all of other", "other", "2999-01-01T00:00:00.000000Z"),
    ]
    assert listed[0]["logs"] == [{"log": "eu-west", "subject": pseudonym_of(audit, "eu-west")}]
    assert [each["log"] for each in listed[1]["logs"]] == list(LOGS)
    assert listed == [first.as_json(), second.as_json()]

    for hold in (first, second):
        await rights.release(hold.hold.id, OFFICER)
        with pytest.raises(NotFound) as refused:
            await rights.release(hold.hold.id, OFFICER)
        assert (refused.value.message_id, refused.value.values) == ("not_found.hold", {"hold": hold.hold.id})
    assert await rights.holds() == []
    told = [each for each in rows(audit, "eu-west") if each["kind"] == "hold"]
    actions = [(each["outcome"], each["detail"]["action"], each["detail"]["hold"]) for each in told]
    assert actions == [
        ("placed", "placed", first.hold.id),
        ("placed", "placed", second.hold.id),
        ("released", "released", first.hold.id),
        ("released", "released", second.hold.id),
    ]
    await trail.close()
    assert where("about ", audit) == []
    intact(audit)


async def test_a_hold_beats_retention(audit, settings, pair):
    """Records past retention go when the writer starts; the first that a hold matches stays, with all behind it."""
    pseudonyms = Pseudonyms(FileKeys(audit.key_directory))
    async with open_trail(audit) as trail:
        for day in range(4):
            old = datetime.now(UTC) - timedelta(days=10 - day)
            subject = await pseudonyms.of("eu-west", "demo", ANNA if day == 2 else "bert")
            decision, ended = pair(subject=subject, time=old, request_id=f"day-{day}")
            await trail.append("eu-west", [decision, {**ended, "time": decision["time"]}], 10)
        placed = await Rights(trail, audit, lambda: settings).hold("a note", OFFICER, subject_id=ANNA)
    short = audit.model_copy(update={"retention": 86400.0})
    async with open_trail(short) as trail:
        await trail.checkpoint("eu-west")  # the deletion is done before what is asked for afterwards
        await trail.checkpoint("eu-west")
        rights = Rights(trail, short, lambda: settings)
        summary, records = await disclosed(rights, ANNA)
        assert [each["request_id"] for each in records if each["kind"] == "decision"] == ["day-2"]
        assert summary["logs"][0]["holds"] == [placed.hold.id]
        bert, _ = await disclosed(rights, "bert")
        assert bert["records"] == 2  # the day behind the one held; the two before it are gone
        await rights.release(placed.hold.id, OFFICER)
    async with open_trail(short) as trail:
        await trail.checkpoint("eu-west")
        await trail.checkpoint("eu-west")
        assert {each["kind"] for each in rows(audit, "eu-west")} <= {"hold", "retention"}
    intact(audit)


# --- access


async def test_access_discloses_everything_about_one_person(rights, audit, write, trail):
    await write("somebody else")
    await write(ANNA, model="minilm", subject_country="DE", trace_id="ab" * 16)
    await write(ANNA, "us-east", model="llama")
    hold = await rights.hold("a note", OFFICER, subject_id=ANNA)
    summary, records = await disclosed(rights, ANNA)
    assert {(each["log"], each["kind"]) for each in records} == {
        (log, kind) for log in ("eu-west", "us-east") for kind in ("decision", "completion", "hold")
    }
    assert {each["subject"] for each in records} == {pseudonym_of(audit, log) for log in ("eu-west", "us-east")}
    assert records[0]["trace_id"] == "ab" * 16
    assert (summary["kind"], summary["tenant"], summary["known"]) == ("access", "demo", True)
    assert (summary["records"], summary["retention_s"]) == (6, 365 * 86400)
    assert [(each["log"], each["records"], each["holds"]) for each in summary["logs"]] == [
        ("eu-west", 3, [hold.hold.id]),
        ("us-east", 3, [hold.hold.id]),
    ]
    assert summary["logs"][0]["oldest"] == records[0]["time"]
    assert summary["logs"][0]["newest"] == records[2]["time"]
    assert summary["purposes"] == [
        {"purpose": "inference", "model": "llama", "requests": 1},
        {"purpose": "inference", "model": "minilm", "requests": 1},
        {"purpose": "accountability", "records": 6},
    ]
    await trail.close()
    for log in ("eu-west", "us-east"):
        assert not [file for file in where(pseudonym_of(audit, log), audit) if "gateway" in file]
    assert where(ANNA, audit) == []


async def test_access_to_nobody_is_answered(rights):
    summary, records = await disclosed(rights, ANNA)
    assert (summary["known"], summary["tenant"], summary["records"]) == (False, None, 0)
    assert (summary["logs"], records) == ([], [])


async def test_access_goes_on_over_many_parts(rights, trail, audit, pair):
    subject = await Pseudonyms(FileKeys(audit.key_directory)).of("eu-west", "demo", ANNA)
    for _ in range(12):
        records = [each for _ in range(100) for each in pair(subject=subject)]
        await trail.append("eu-west", records, 10)
    summary, found = await disclosed(rights, ANNA)
    assert summary["records"] == len(found) == 2400
    assert len({each["id"] for each in found}) == 2400


async def test_access_that_an_erasure_overtakes_breaks_off(rights, trail, audit, pair):
    subject = await Pseudonyms(FileKeys(audit.key_directory)).of("eu-west", "demo", ANNA)
    for _ in range(12):
        await trail.append("eu-west", [each for _ in range(100) for each in pair(subject=subject)], 10)
    parts = (await rights.access(ANNA, None)).parts
    assert json.loads(await anext(parts))["records"] == 2400
    await anext(parts)
    await rights.erase(ANNA, None, OFFICER)
    with pytest.raises(AuditUnavailable):
        _ = [part async for part in parts]


# --- what breaks off in the middle


@contextmanager
def locked(audit, log):
    """Nobody else can write the log meanwhile."""
    with closing(sqlite3.connect(audit.path / f"{log}.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


async def test_a_hold_that_a_log_cannot_take_is_ended_in_the_others(audit, settings):
    short = audit.model_copy(update={"commit_deadline": 1.5})
    async with open_trail(short) as trail:
        rights = Rights(trail, short, lambda: settings)
        with locked(audit, "us-east"), pytest.raises(AuditUnavailable) as failed:
            await rights.hold("a note", OFFICER)
        assert await rights.holds() == []
    told = [(each["detail"]["action"], each["detail"]["hold"]) for each in rows(audit, "eu-west")]
    hold = failed.value.values["hold"]
    assert failed.value.message_id == "audit_unavailable.hold"
    assert told == [("placed", hold), ("released", hold)]
    assert [rows(audit, log) for log in ("us-east", "gateway")] == [[], []]
    intact(audit)


async def test_an_erasure_that_came_too_late_tells_of_no_record(rights, trail, audit, settings, write):
    await write(ANNA)
    twice = [
        asyncio.create_task(each.erase(ANNA, None, OFFICER))
        for each in (rights, Rights(trail, audit, lambda: settings))
    ]
    with locked(audit, "eu-west"):
        await asyncio.wait(twice, timeout=0.5)  # time for both to find the person, which only one can then erase
    told = sorted([(await each).as_json() for each in twice], key=lambda each: each["known"])
    (record,) = [each for each in rows(audit, "eu-west") if each["kind"] == "erasure"]
    assert told[0] == {"known": False, "tenant": None, "records": 0, "logs": []}
    assert told[1]["logs"] == [{"log": "eu-west", "records": 2, "id": record["id"]}]


_ERASES = """
import asyncio, os, signal, sys
from pathlib import Path
from app.audit.rights.officer import Actor
from app.audit.rights.rights import Rights
from app.audit.writer import Trail
from app.config import AuditSettings

class Dies(Trail):
    async def erase(self, log, subject, event):
        found = await super().erase(log, subject, event)
        sys.stdout.write(log + chr(10))
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    audit = AuditSettings(path=Path(sys.argv[1]), commit_deadline=10.0)
    trail = Dies(audit, ["eu-west", "us-east", "gateway"])
    await trail.start()
    await Rights(trail, audit, lambda: None).erase(sys.argv[2], "demo", Actor())

asyncio.run(main())
"""


async def test_killed_between_two_logs_an_erasure_is_finished_by_doing_it_again(audit, settings, pair):
    pseudonyms = Pseudonyms(FileKeys(audit.key_directory))
    async with open_trail(audit) as trail:
        for log in ("eu-west", "us-east"):
            subject = await pseudonyms.of(log, "demo", ANNA)
            await trail.append(log, pair(subject=subject, region=log, request_id="anna-was-here"), 10)
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _ERASES, str(audit.path), ANNA],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout.split()) == (-signal.SIGKILL, ["eu-west"]), ran.stderr
    assert where(pseudonym_of(audit, "us-east"), audit)
    async with open_trail(audit) as trail:
        again = (await Rights(trail, audit, lambda: settings).erase(ANNA, None, OFFICER)).as_json()
        assert [(each["log"], each["records"]) for each in again["logs"]] == [("us-east", 2)]
    for gone in (pseudonym_of(audit, "eu-west"), pseudonym_of(audit, "us-east"), "anna-was-here"):
        assert where(gone, audit) == []
    intact(audit)


async def test_a_key_destroyed_without_its_record_is_recorded_by_doing_it_again(audit, settings, pair):
    """As a kill between the two commits of one log leaves it: the key is gone, the index still names the person."""
    subject = await Pseudonyms(FileKeys(audit.key_directory)).of("eu-west", "demo", ANNA)
    async with open_trail(audit) as trail:
        await trail.append("eu-west", pair(subject=subject), 10)
    keys = FileKeys(audit.key_directory).subject_keys("eu-west")
    keys.destroy([subject])
    keys.close()
    async with open_trail(audit) as trail:
        again = (await Rights(trail, audit, lambda: settings).erase(ANNA, None, OFFICER)).as_json()
        assert [(each["log"], each["records"]) for each in again["logs"]] == [("eu-west", 2)]
    assert where(subject, audit) == []
    intact(audit)


# --- many records


async def fill(trail, pair, subject, pairs):
    for _ in range(0, pairs, 500):
        await trail.append("eu-west", [each for _ in range(500) for each in pair(subject=subject)], 10)


async def test_others_append_while_somebody_with_100_000_records_is_erased(audit, settings, pair):
    subject = await Pseudonyms(FileKeys(audit.key_directory)).of("eu-west", "demo", ANNA)
    async with open_trail(audit) as trail:
        await fill(trail, pair, subject, 50_000)
    async with open_trail(audit.model_copy(update={"commit_deadline": 1.0})) as trail:
        erasing = asyncio.create_task(Rights(trail, audit, lambda: settings).erase(ANNA, None, OFFICER))
        appended = 0
        while not erasing.done():
            await trail.append("eu-west", pair(), 1.0)  # raises where it waits for longer
            appended += 2
        assert (await erasing).as_json()["records"] == 100_000
        assert appended > 20
    assert where(subject, audit) == []
    assert [each["kind"] for each in rows(audit, "eu-west")].count("erasure") == 1
    intact(audit)


async def test_an_erasure_killed_between_its_parts_is_gone_on_with_and_recorded_once(audit, settings, pair):
    """As a kill between two parts leaves it: key destroyed, erasure recorded, most records still in the index."""
    subject = await Pseudonyms(FileKeys(audit.key_directory)).of("eu-west", "demo", ANNA)
    async with open_trail(audit) as trail:
        await fill(trail, pair, subject, 2500)
    place = Place(audit.path, "eu-west", "edge")
    ledger = Ledger(place, SqliteAuditStore(place.file), FileKeys(audit.key_directory))
    assert ledger.erase(event("erasure", "erased", {}, OFFICER), subject) == 5000
    ledger.checkpoint()
    ledger.close()
    assert where(subject, audit)
    intact(audit)
    async with open_trail(audit) as trail:
        assert where(subject, audit) == []
        again = (await Rights(trail, audit, lambda: settings).erase(ANNA, None, OFFICER)).as_json()
        assert again["known"] is False
    told = [each["detail"]["records"] for each in rows(audit, "eu-west") if each["kind"] == "erasure"]
    assert told == [5000]
    intact(audit)


async def test_who_comes_back_while_being_erased_keeps_what_came_later(audit, pair):
    subject = await Pseudonyms(FileKeys(audit.key_directory)).of("eu-west", "demo", ANNA)
    async with open_trail(audit) as trail:
        await fill(trail, pair, subject, 2500)
        erasing = asyncio.create_task(trail.erase("eu-west", subject, event("erasure", "erased", {}, OFFICER)))
        await trail.append("eu-west", pair(subject=None), 10)
        while "erasure" not in {each["kind"] for each in rows(audit, "eu-west")}:  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.001)
        decision, ended = pair(subject=subject)
        await trail.append("eu-west", [decision, ended], 10)
        assert await erasing == 5000
        found = People(audit, LOGS).find(ANNA, ["demo"])
        assert [each.records for each in found.traces] == [2]
    intact(audit)


# --- new keys


async def test_the_key_of_cosignatures_is_rotated_and_what_the_old_one_cosigned_still_counts(audit, pair):
    async with open_trail(audit) as trail:
        await trail.append("eu-west", pair(), 10)
        note = await trail.checkpoint("eu-west")
    key = Place(audit.path, "eu-west", "edge").verifiers()[-1]
    Notebook(audit, "edge").keep("edge", "eu-west", note, key, 17)
    (site,) = sites(audit.path, audit.key_directory)
    renewed = await rotate(site)
    assert renewed.keys() == {*LOGS, "witness"}
    notebook = Notebook(audit, "edge")
    assert notebook.last("edge", "eu-west").seconds == 17
    keys = Place(audit.path / "witness", "witness", "edge").verifiers()
    assert [each.line() for each in keys][1:] == [renewed["witness"]]
    notebook.keep("edge", "eu-west", note, key, 18)
    assert cosigned_at(notebook.file("edge", "eu-west").read_text(), keys[1]) == 18
    assert {"key": renewed["witness"]} in [each["detail"] for each in rows(audit, "gateway")]
    intact(audit)
