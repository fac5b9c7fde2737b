"""Reading while writing: every record that there was at the first page comes once, in order, whatever is written."""

import asyncio
import base64
import json
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.audit import record
from app.audit.keys import FileKeys
from app.audit.log import new_id
from app.audit.merkle import leaf_hash
from app.audit.pseudonym import Pseudonyms
from app.audit.reader import Filters, Reader
from app.audit.writer import Trail
from app.config import AuditSettings
from app.errors import AuditUnavailable, InvalidRequest, NotFound
from app.stores.base import AuditEntry
from app.stores.sqlite import SqliteAuditStore

LOGS = ("eu-west", "us-east", "gateway")
TENANTS = ("demo", "other")
START = datetime(2026, 11, 22, tzinfo=UTC)


class Logs:
    """Real stores of three logs, and the list of what was written to them."""

    def __init__(self, directory):
        self.settings = AuditSettings(path=directory / "audit")
        self.settings.path.mkdir(parents=True)
        self.stores = {log: SqliteAuditStore(self.settings.path / f"{log}.db") for log in LOGS}
        for store in self.stores.values():
            store._db.execute("PRAGMA synchronous = OFF")  # nothing here dies: spare the disk its many small commits
        self.written = []

    def write(self, log, second, **fields):
        store = self.stores[log]
        made = record.decision(
            id=f"d{len(self.written)}",
            time=START + timedelta(seconds=second),
            **{"tenant": "demo", "key_id": "0", "request_id": "r", "outcome": "permitted", **fields},
        )
        numbered = record.numbered(made, log, store.last_seq() + 1)
        stored = record.canonical(numbered)
        store.append([AuditEntry(numbered["seq"], numbered, stored, leaf_hash(stored))], [])
        self.written.append(numbered)

    def reader(self):
        return Reader(self.settings, LOGS, lambda: TENANTS)

    def pseudonyms(self):
        return Pseudonyms(FileKeys(self.settings.key_directory))

    def close(self):
        for store in self.stores.values():
            store.close()


@pytest.fixture
def logs(tmp_path):
    opened = Logs(tmp_path)
    yield opened
    opened.close()


def in_order(records):
    return [each["id"] for each in sorted(records, key=lambda each: (each["time"], each["log"], each["seq"]))]


_WRITES = st.lists(st.tuples(st.sampled_from(LOGS), st.integers(0, 4), st.sampled_from(["demo", "other"])), max_size=8)


@given(
    before=_WRITES,
    between=st.lists(st.tuples(_WRITES, st.integers(1, 5)), max_size=6),
    tenant=st.sampled_from([None, "demo"]),
)
@settings(deadline=None, max_examples=40)
def test_pages_give_each_record_of_the_first_pages_moment_once_and_in_order(before, between, tenant):
    with tempfile.TemporaryDirectory() as directory:
        logs = Logs(Path(directory))
        for log, second, owner in before:
            logs.write(log, second, tenant=owner)
        expected = in_order(each for each in logs.written if tenant in (None, each["tenant"]))
        asyncio.run(_read_all(logs, Filters(tenant=tenant), expected, between))
        logs.close()


async def _read_all(logs, filters, expected, between):
    reader, cursor, seen = logs.reader(), None, []
    steps = [*between, *[([], 3)] * (len(expected) + 1)]
    for writes, limit in steps:
        page = await reader.page(filters, cursor, limit)
        assert len(page.records) <= limit
        seen += [each["id"] for each in page.records]
        cursor = page.cursor
        if cursor is None:
            break
        for log, second, owner in writes:
            logs.write(log, second, tenant=owner)
    assert cursor is None
    assert seen == expected


async def test_the_cursor_ends_exactly_with_the_newest_record(logs):
    for second in range(4):
        logs.write("eu-west", second)
    first = await logs.reader().page(Filters(), None, 2)
    last = await logs.reader().page(Filters(), first.cursor, 2)
    assert [len(first.records), len(last.records), last.cursor] == [2, 2, None]


async def test_an_empty_trail_has_one_empty_page(logs):
    page = await logs.reader().page(Filters(), None, 10)
    assert (page.records, page.cursor) == ([], None)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(since=record.timestamp(START + timedelta(seconds=2))), ["d2", "d3"]),
        (Filters(until=record.timestamp(START + timedelta(seconds=1))), ["d0"]),
        (Filters(region="eu-west"), ["d0", "d2"]),
        (Filters(tenant="other"), ["d1"]),
        (Filters(subject="f" * 64), ["d2"]),
        (Filters(subject_country="DE"), ["d0", "d2"]),
        (Filters(outcome="refused"), ["d3"]),
        (Filters(reason="ALLOW_INTRA"), ["d0"]),
        (Filters(request_id="mine"), ["d1"]),
        (Filters(region="eu-west", reason="ALLOW_INTRA", tenant="other"), []),
    ],
)
async def test_each_filter_matches_its_field(logs, filters, expected):
    logs.write("eu-west", 0, region="eu-west", subject_country="DE", reason="ALLOW_INTRA")
    logs.write("us-east", 1, region="us-east", tenant="other", request_id="mine")
    logs.write("eu-west", 2, region="eu-west", subject_country="DE", subject="f" * 64)
    logs.write("gateway", 3, outcome="refused")
    page = await logs.reader().page(filters, None, 10)
    assert [each["id"] for each in page.records] == expected


async def test_a_callers_own_id_matches_its_pseudonyms_at_all_tenants_in_all_regions(logs):
    pseudonyms = logs.pseudonyms()
    for second, (log, tenant) in enumerate([("eu-west", "demo"), ("us-east", "demo"), ("us-east", "other")]):
        logs.write(log, second, tenant=tenant, subject=await pseudonyms.of(log, tenant, "anna"))
        logs.write(log, second, tenant=tenant, subject=await pseudonyms.of(log, tenant, "berta"))
    for filters, expected in (
        (Filters(subject="anna", subject_is_id=True), ["d0", "d2", "d4"]),
        (Filters(subject="anna", subject_is_id=True, tenant="other"), ["d4"]),
        (Filters(subject="anna", subject_is_id=True, tenant="none"), []),
        (Filters(subject=await pseudonyms.of("us-east", "demo", "anna"), subject_is_id=True), ["d2"]),
        (Filters(subject=await pseudonyms.of("us-east", "demo", "anna")), ["d2"]),
        (Filters(subject="anna"), []),
    ):
        page = await logs.reader().page(filters, None, 10)
        assert [each["id"] for each in page.records] == expected, filters


async def test_an_id_stands_for_pseudonyms_alone(logs):
    """What is passed on of a question about a person never holds the person's id."""
    reader = logs.reader()
    assert reader.subjects(Filters(subject="anna", subject_is_id=True)) == frozenset()
    one = await logs.pseudonyms().of("eu-west", "demo", "anna")
    asked = Filters(subject="anna", subject_is_id=True, tenant="demo")
    assert reader.subjects(asked) == {one}
    assert reader.subjects(Filters(subject=one)) == {one}
    assert reader.subjects(Filters()) is None


async def test_a_cursor_belongs_to_its_filters(logs):
    for second in range(3):
        logs.write("eu-west", second)
    page = await logs.reader().page(Filters(tenant="demo"), None, 1)
    with pytest.raises(InvalidRequest) as refusal:
        await logs.reader().page(Filters(tenant="other"), page.cursor, 1)
    assert refusal.value.message_id == "invalid_request.cursor"


def forged(cursor, **changes):
    content = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return base64.urlsafe_b64encode(json.dumps(content | changes).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "changes",
    [
        {"b": {"../../etc/passwd": 1}},
        {"b": {"eu-west": "1; DROP TABLE records"}},
        {"b": {"eu-west": -1}},
        {"b": {"eu-west": 2**64}},
        {"b": {"eu-west": True}},
        {"b": []},
        {"l": "' OR 1=1"},
        {"l": []},
        {"s": 1.5},
        {"s": None},
        {"t": "short"},
        {"t": 5},
        {"f": "0" * 16},
        {"f": None},
        {"more": 1},
    ],
)
async def test_a_forged_cursor_is_refused(logs, changes):
    for second in range(3):
        logs.write("eu-west", second)
    page = await logs.reader().page(Filters(), None, 1)
    await logs.reader().page(Filters(), forged(page.cursor), 1)
    with pytest.raises(InvalidRequest):
        await logs.reader().page(Filters(), forged(page.cursor, **changes), 1)


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode())))
@settings(deadline=None)
def test_rubbish_is_no_cursor(text):
    reader = Reader(AuditSettings(path=Path("nowhere")), LOGS, lambda: TENANTS)
    with pytest.raises(InvalidRequest):
        asyncio.run(reader.page(Filters(), text, 1))


async def test_a_log_that_cannot_be_read_is_said_so(logs):
    logs.stores["us-east"].close()
    (logs.settings.path / "us-east.db").unlink()
    with pytest.raises(AuditUnavailable) as refusal:
        await logs.reader().page(Filters(), None, 1)
    assert refusal.value.message_id == "audit_unavailable.read"


async def test_reading_does_not_wait_for_a_writer(logs):
    logs.write("eu-west", 0)
    logs.stores["eu-west"]._db.execute("BEGIN IMMEDIATE")
    page = await logs.reader().page(Filters(), None, 10)
    logs.stores["eu-west"]._db.execute("ROLLBACK")
    assert [each["id"] for each in page.records] == ["d0"]


async def sealed(audit, *subjects):
    """Records of those persons, as a trail writes them; returns their ids."""
    trail = Trail(audit, LOGS)
    await trail.start()
    pseudonyms = Pseudonyms(FileKeys(audit.key_directory))
    made = []
    for second, subject in enumerate(subjects):
        now = datetime.now(UTC)
        decision = record.decision(
            id=new_id(now),
            time=now,
            request_id=f"r{second}",
            outcome="refused",
            tenant="demo",
            key_id="0",
            subject=await pseudonyms.of("eu-west", "demo", subject),
            trace_id="t",
        )
        await trail.append("eu-west", [decision], 10)
        made.append(decision["id"])
    await trail.close()
    return made


async def test_records_come_opened_unless_their_person_has_been_erased(audit):
    anna, berta = await sealed(audit, "anna", "berta")
    reader = Reader(audit, LOGS, lambda: TENANTS)
    before = (await reader.page(Filters(), None, 10)).records[:2]
    assert [(each["id"], each["request_id"], each["trace_id"]) for each in before] == [
        (anna, "r0", "t"),
        (berta, "r1", "t"),
    ]
    assert await reader.record(anna, "demo") == before[0]
    trail = Trail(audit, LOGS)
    await trail.start()
    now = datetime.now(UTC)
    event = record.event(kind="erasure", id=new_id(now), time=now, outcome="erased", detail={})
    assert await trail.erase("eu-west", before[0]["subject"], event) > 0
    await trail.close()
    after = (await reader.page(Filters(), None, 10)).records[:2]
    assert after == [{**before[0], "subject": None, "request_id": None, "trace_id": None}, before[1]]
    assert after[0]["personal"]
    assert (await reader.page(Filters(subject="anna", subject_is_id=True), None, 10)).records == []


@pytest.mark.parametrize("tenant", ["other", "none"])
async def test_a_record_of_another_tenant_is_not_there(audit, tenant):
    (anna,) = await sealed(audit, "anna")
    reader = Reader(audit, LOGS, lambda: TENANTS)
    assert (await reader.record(anna, None))["id"] == anna
    with pytest.raises(NotFound) as missing:
        await reader.record(anna, tenant)
    assert missing.value.message_id == "not_found.record"


@given(st.one_of(st.text(max_size=40), st.text(alphabet="0123456789abcdef", min_size=32, max_size=32)))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rubbish_is_no_record(logs, text):
    with pytest.raises(NotFound):
        asyncio.run(logs.reader().record(text, None))


async def test_few_readings_take_a_thread_at_the_same_time(logs):
    reader, running, most = logs.reader(), [], []
    lock = threading.Lock()

    def work(number):
        with lock:
            running.append(number)
            most.append(len(running))
        time.sleep(0.01)
        with lock:
            running.remove(number)
        return number

    assert await asyncio.gather(*(reader.aside(work, number) for number in range(12))) == list(range(12))
    assert max(most) == 2


@pytest.mark.parametrize(("filters", "wanted"), [(Filters(outcome="refused"), 7), (Filters(reason="DENY_GPC"), 0)])
async def test_a_page_ends_in_time_where_filters_leave_little_of_much(logs, filters, wanted):
    """No page looks at all of a long log; what matches comes once and in order all the same."""
    entries = []
    for seq in range(1, 50_001):
        made = record.decision(
            id=f"m{seq}",
            time=START + timedelta(seconds=seq),
            outcome="refused" if seq in (5, 30_000, 50_000) else "permitted",
            tenant="demo",
            key_id="0",
            request_id="r",
        )
        stored = record.canonical(numbered := record.numbered(made, "eu-west", seq))
        entries.append(AuditEntry(seq, numbered, stored, leaf_hash(stored)))
    logs.stores["eu-west"].append(entries, [])
    for second in (1, 29_999, 45_000, 60_000):
        logs.write("us-east", second, outcome="refused")
    hurried = Reader(logs.settings, LOGS, lambda: TENANTS, page_time=0)
    pages = [await hurried.page(filters, None, 2)]
    while pages[-1].cursor:
        logs.write("us-east", 20_000 + len(pages), outcome="refused")  # too late to count
        pages.append(await hurried.page(filters, pages[-1].cursor, 2))
    times = [each["time"] for page in pages for each in page.records]
    assert times == sorted(set(times))
    assert len(times) == wanted
    assert len(pages) > max(2, wanted // 2)
