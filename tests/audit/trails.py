"""A real trail of three logs for tests to damage, and every way in which they do: by SQL, by byte, file by file."""

import asyncio
import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from app.audit import record
from app.audit.merkle import leaf_hash
from app.audit.rights.officer import Actor, hold_event
from app.audit.tree import EMPTY, Edge
from app.audit.writer import Trail
from app.config import AuditSettings
from app.stores.base import Hold

LOGS = ("eu-west", "us-east", "gateway")
NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Built:
    """A trail that is closed, and for each log a checkpoint of all of it that somebody has saved, and an older one."""

    directory: Path
    saved: dict[str, Path]
    earlier: dict[str, str]

    def copy(self, to: Path) -> Path:
        return shutil.copytree(self.directory, to / "audit")


def pair(number: int, time: datetime, draw: random.Random, log: str) -> list[record.Record]:
    """A decision and its completion; every third has a subject, but in the gateway's own log."""
    subject = None if log == "gateway" or number % 3 else f"{draw.getrandbits(256):064x}"
    decision = record.decision(
        id=record.new_id(time, draw.getrandbits(62)),
        time=time,
        request_id=f"request-{number}",
        outcome="permitted",
        tenant=draw.choice(["demo", "other"]),
        key_id="00000000",
        region=None if log == "gateway" else log,
        subject=subject,
        subject_country=draw.choice(["DE", "FR", None]),
        model="minilm",
    )
    end = time + timedelta(milliseconds=3)
    ended = record.completion(
        id=record.new_id(end, draw.getrandbits(62)), time=end, decision=decision, outcome="served", status=200
    )
    return [decision, ended]


def build(directory: Path, pairs: int = 300) -> Built:
    """Logs of about twice as many records as `pairs`; of `us-east` retention has deleted the first 300."""
    return asyncio.run(_build(AuditSettings(path=directory / "audit", commit_deadline=30.0), pairs))


async def _build(settings: AuditSettings, pairs: int) -> Built:
    draw = random.Random(4)
    earlier, saved = {}, {}
    async with opened(settings) as trail:
        await _append(trail, "us-east", 150, NOW - timedelta(days=500), draw)
    async with opened(settings) as trail:
        for log in LOGS:
            await _place_holds(trail, log)
            await _append(trail, log, pairs * 2 // 3 - 3, NOW, draw)
            await _leave_open(trail, log, draw)
            earlier[log] = await trail.checkpoint(log)
            await _append(trail, log, pairs - pairs * 2 // 3, NOW + timedelta(minutes=1), draw)
            saved[log] = settings.path.parent / f"saved-{log}.note"
            saved[log].write_text(await trail.checkpoint(log))
    return Built(settings.path, saved, earlier)


@contextlib.asynccontextmanager
async def opened(settings: AuditSettings, *logs: str) -> Any:
    trail = Trail(settings, logs or LOGS)
    await trail.start()
    try:
        yield trail
    finally:
        await trail.close()


async def _place_holds(trail: Trail, log: str) -> None:
    """Three legal holds on nothing that retention would delete, of which one is released again: four records."""
    for number in range(3):
        hold = Hold(f"hold-{number}", record.timestamp(NOW), "case 17", "demo", None, record.timestamp(NOW), None)
        await trail.hold(log, hold, hold_event(hold, "placed", Actor(), None))
        if number == 0:
            assert await trail.release(log, hold.id, hold_event(hold, "released", Actor(), None))


async def _leave_open(trail: Trail, log: str, draw: random.Random) -> None:
    """Two decisions that have no completion yet; in `eu-west`, where all is complete, one with its own."""
    decisions = [pair(number, NOW + timedelta(seconds=30 + number), draw, log) for number in range(2)]
    await trail.append(log, decisions[0] if log == "eu-west" else [one for one, _ in decisions], 30)


async def _append(trail: Trail, log: str, pairs: int, begin: datetime, draw: random.Random) -> None:
    for first in range(0, pairs, 60):
        many = range(first, min(first + 60, pairs))
        await trail.append(log, [each for n in many for each in pair(n, begin + timedelta(seconds=n), draw, log)], 30)


class Damaged:
    """One log of a copied trail, open for whoever wants to alter it; `first` and `last` are its records' numbers."""

    def __init__(self, directory: Path, log: str, draw: random.Random, earlier: str = "") -> None:
        self.file = directory / f"{log}.db"
        self.public = directory / f"{log}.pub"
        self.log = log
        self.draw = draw
        self.earlier = earlier
        with self.sql() as db:
            self.first, self.last = db.execute("SELECT min(seq), max(seq) FROM records").fetchone()

    @contextlib.contextmanager
    def sql(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.file, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = OFF")
            yield db
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def run(self, text: str, *values: Any) -> None:
        with self.sql() as db:
            db.execute(text, values)

    def any(self, before_last: int = 0) -> int:
        return self.draw.randint(self.first, self.last - before_last)

    def stored(self, seq: int) -> bytes:
        with self.sql() as db:
            found: bytes = db.execute("SELECT CAST(record AS BLOB) FROM records WHERE seq = ?", (seq,)).fetchone()[0]
            return found

    def altered(self, seq: int) -> bytes:
        """Another record for that place, in every respect as a gateway would write it."""
        fields = orjson.loads(self.stored(seq))
        return record.canonical({**fields, "status": 418, "tenant": "mallory"})

    def put(self, seq: int, canonical: bytes) -> None:
        """A record with all that is kept beside it."""
        tenant = orjson.loads(canonical)["tenant"]
        text = "UPDATE records SET record = ?, leaf = ?, tenant = ? WHERE seq = ?"
        self.run(text, canonical.decode(), leaf_hash(canonical), tenant, seq)

    def rebuild(self) -> None:
        """Roots of all bundles as the leaves now have them, where no record has been deleted by retention."""
        with self.sql() as db:
            leaves = [leaf for (leaf,) in db.execute("SELECT leaf FROM records ORDER BY seq")]
            _, bundles = Edge(EMPTY, EMPTY).appended(leaves)
            db.execute("DELETE FROM bundles")
            db.executemany("INSERT INTO bundles VALUES (?, ?)", bundles)

    def remove_newest(self, count: int) -> None:
        """The newest records with their bundles, as if they had never been."""
        with self.sql() as db:
            db.execute("DELETE FROM records WHERE seq > ?", (self.last - count,))
            db.execute("DELETE FROM bundles WHERE bundle >= ?", ((self.last - count) // 256,))
            db.execute("DELETE FROM pending")
            db.execute("""
                INSERT INTO pending SELECT json_extract(record, '$.id'), seq FROM records
                WHERE kind = 'decision' AND json_extract(record, '$.id') NOT IN
                (SELECT json_extract(record, '$.decision_id') FROM records WHERE kind = 'completion')
            """)
            db.execute("""
                DELETE FROM holds WHERE id NOT IN
                (SELECT json_extract(record, '$.detail.hold') FROM records WHERE kind = 'hold')
            """)

    def told_of(self, text: str) -> list[tuple[int, str]]:
        """Numbers and ids of the records that such an SQL condition picks."""
        with self.sql() as db:
            return db.execute(f"SELECT seq, json_extract(record, '$.id') FROM records WHERE {text}").fetchall()

    def flip(self, part: bytes) -> None:
        """One bit of the first place in the file where those bytes stand."""
        data = bytearray(self.file.read_bytes())
        place = data.index(part) + self.draw.randrange(len(part))
        data[place] ^= 1 << self.draw.randrange(8)
        self.file.write_bytes(data)

    def page_of(self, part: bytes) -> tuple[int, int]:
        """Begin and size of the page that holds those bytes."""
        data = self.file.read_bytes()
        size = int.from_bytes(data[16:18], "big")
        return data.index(part) // size * size, size

    def overwrite(self, begin: int, data: bytes) -> None:
        with self.file.open("r+b") as stream:
            stream.seek(begin)
            stream.write(data)


@dataclass(frozen=True)
class Hit:
    """The record that has been hit; a finding may begin up to `early` records before it, where no more can be known."""

    seq: int | None
    early: int = 0


Tampering = Callable[[Damaged], Hit]
_ANY = 1 << 40
_BUNDLE = 255
_PAGE = 20


def flip_a_bit_of_a_record(log: Damaged) -> Hit:
    seq = log.any()
    log.flip(log.stored(seq))
    return Hit(seq)


def alter_a_record(log: Damaged) -> Hit:
    seq = log.any()
    log.run("UPDATE records SET record = ? WHERE seq = ?", log.altered(seq).decode(), seq)
    return Hit(seq)


def alter_a_record_and_its_hash(log: Damaged) -> Hit:
    seq = log.any()
    log.put(seq, log.altered(seq))
    return Hit(seq, _ANY if seq > log.last // 256 * 256 else _BUNDLE)


def alter_a_record_and_every_hash(log: Damaged) -> Hit:
    seq = log.any()
    log.put(seq, log.altered(seq))
    if log.first == 1:
        log.rebuild()
    return Hit(seq, _ANY)


def spell_a_record_otherwise(log: Damaged) -> Hit:
    seq = log.any()
    text = log.stored(seq).replace(b":", b": ", 1)
    log.run("UPDATE records SET record = ?, leaf = ? WHERE seq = ?", text.decode(), leaf_hash(text), seq)
    return Hit(seq)


def alter_a_column(log: Damaged) -> Hit:
    seq = log.any()
    column = log.draw.choice(["time", "kind", "tenant", "subject_country", "region", "outcome", "reason"])
    log.run(f"UPDATE records SET {column} = 'x' WHERE seq = ?", seq)
    return Hit(seq)


def alter_a_leaf(log: Damaged) -> Hit:
    seq = log.any()
    log.run("UPDATE records SET leaf = ? WHERE seq = ?", log.draw.randbytes(32), seq)
    return Hit(seq)


def drop_a_record(log: Damaged) -> Hit:
    seq = log.any(before_last=1)
    log.run("DELETE FROM records WHERE seq = ?", seq)
    return Hit(seq)


def drop_a_record_and_close_the_gap(log: Damaged) -> Hit:
    seq = log.any(before_last=1)
    log.run("DELETE FROM records WHERE seq = ?", seq)
    for each in range(seq, log.last):
        log.run("UPDATE records SET seq = ? WHERE seq = ?", each, each + 1)
    return Hit(seq)


def reorder_two_records(log: Damaged) -> Hit:
    one, other = sorted(log.draw.sample(range(log.first, log.last + 1), 2))
    for new, old in ((0, one), (one, other), (other, 0)):
        log.run("UPDATE records SET seq = ? WHERE seq = ?", new, old)
    return Hit(one)


def swap_the_texts_of_two_records(log: Damaged) -> Hit:
    one, other = sorted(log.draw.sample(range(log.first, log.last + 1), 2))
    texts = log.stored(one), log.stored(other)
    log.put(one, texts[1])
    log.put(other, texts[0])
    return Hit(one)


def repeat_a_record(log: Damaged) -> Hit:
    seq = log.any(before_last=1)
    log.put(seq + 1, log.stored(seq))
    return Hit(seq + 1)


def truncate_the_file(log: Damaged) -> Hit:
    with log.file.open("r+b") as stream:
        stream.truncate(log.draw.randrange(log.file.stat().st_size * 9 // 10))
    return Hit(log.last, _ANY)


def overwrite_a_page(log: Damaged) -> Hit:
    seq = log.any()
    begin, size = log.page_of(log.stored(seq))
    log.overwrite(begin, log.draw.choice([bytes(size), log.draw.randbytes(size)]))
    return Hit(seq, _PAGE)


def swap_two_pages(log: Damaged) -> Hit:
    one, other = log.draw.sample(range(log.first, log.last + 1), 2)
    (begin, size), (end, _) = log.page_of(log.stored(one)), log.page_of(log.stored(other))
    if begin == end:
        return reorder_two_records(log)
    data = log.file.read_bytes()
    log.overwrite(begin, data[end : end + size])
    log.overwrite(end, data[begin : begin + size])
    return Hit(min(one, other), _PAGE)


def remove_the_newest(log: Damaged) -> Hit:
    count = log.draw.randint(1, log.last - log.first)
    log.remove_newest(count)
    return Hit(log.last - count + 1)


def remove_the_newest_and_their_checkpoint(log: Damaged) -> Hit:
    hit = remove_the_newest(log)
    log.run("DELETE FROM head")
    return hit


def remove_the_newest_and_roll_the_checkpoint_back(log: Damaged) -> Hit:
    count = log.last - int(log.earlier.split("\n")[1])
    log.remove_newest(count)
    log.run("UPDATE head SET note = ?", log.earlier)
    return Hit(log.last - count + 1)


def remove_the_checkpoint(log: Damaged) -> Hit:
    log.run("DELETE FROM head")
    return Hit(None)


def roll_the_checkpoint_back(log: Damaged) -> Hit:
    log.run("UPDATE head SET note = ?", log.earlier)
    return Hit(None)


def alter_the_checkpoint(log: Damaged) -> Hit:
    size = log.draw.randrange(log.last)
    log.run("UPDATE head SET note = replace(note, ?, ?)", f"\n{log.last}\n", f"\n{size}\n")
    return Hit(None)


def alter_a_bundle(log: Damaged) -> Hit:
    bundle = log.draw.randrange(log.last // 256)
    log.run("UPDATE bundles SET root = ? WHERE bundle = ?", log.draw.randbytes(32), bundle)
    return Hit(None if bundle < log.first // 256 else bundle * 256 + 1, _ANY)


def remove_a_bundle(log: Damaged) -> Hit:
    bundle = log.draw.randrange(log.last // 256)
    log.run("DELETE FROM bundles WHERE bundle = ?", bundle)
    return Hit(None if bundle < log.first // 256 else bundle * 256 + 1, _ANY)


def feign_retention(log: Damaged) -> Hit:
    floor = log.any(before_last=1)
    with log.sql() as db:
        leaves = db.execute(
            "SELECT leaf FROM records WHERE seq BETWEEN ? AND ? ORDER BY seq", (floor // 256 * 256 + 1, floor)
        )
        values = (floor, log.earlier, b"".join(leaf for (leaf,) in leaves))
        db.execute("DELETE FROM records WHERE seq <= ?", (floor,))
        db.execute("INSERT OR REPLACE INTO floor VALUES (1, ?, ?, ?)", values)
    return Hit(None)


def deny_retention(log: Damaged) -> Hit:
    """Where retention has deleted records: lower its floor. Elsewhere: bring back what it never deleted."""
    if log.first == 1:
        log.put(log.last, log.altered(log.last))
        log.run("UPDATE records SET seq = 0 WHERE seq = ?", log.last)
        return Hit(0)
    log.run("UPDATE floor SET floor = floor - ?", log.draw.randint(1, log.first - 1))
    return Hit(None)


def replace_by_another_log(log: Damaged) -> Hit:
    other = next(each for each in LOGS if each != log.log)
    for name in (log.file, log.public) if log.draw.random() < 0.5 else (log.file,):
        shutil.copy(log.file.with_name(name.name.replace(log.log, other)), name)
    return Hit(None)


def remove_the_log(log: Damaged) -> Hit:
    log.file.unlink()
    return Hit(None)


def remove_the_log_and_its_keys(log: Damaged) -> Hit:
    log.file.unlink()
    log.public.unlink()
    return Hit(None)


def replace_the_keys(log: Damaged) -> Hit:
    other = next(each for each in LOGS if each != log.log)
    shutil.copy(log.public.with_name(f"{other}.pub"), log.public)
    return Hit(None)


def plant_in_the_schema(log: Damaged) -> Hit:
    """What would act, or be read, in the place of the log's own tables."""
    planted = (
        "CREATE TRIGGER mine AFTER INSERT ON records BEGIN UPDATE records SET tenant = 'x' WHERE seq = new.seq; END",
        "CREATE VIEW mine AS SELECT * FROM records",
        "CREATE TABLE mine (seq INTEGER)",
        "CREATE INDEX mine ON records (outcome)",
    )
    log.run(log.draw.choice(planted))
    return Hit(None)


def drop_a_legal_hold(log: Damaged) -> Hit:
    (identity,) = log.draw.sample(["hold-1", "hold-2"], 1)
    log.run("DELETE FROM holds WHERE id = ?", identity)
    return Hit(log.told_of(f"kind = 'hold' AND json_extract(record, '$.detail.hold') = '{identity}'")[0][0])


def narrow_a_legal_hold(log: Damaged) -> Hit:
    column = log.draw.choice(["tenant", "subject", "since", "until"])
    log.run(f"UPDATE holds SET {column} = '1' WHERE id = 'hold-2'")
    return Hit(log.told_of("kind = 'hold' AND json_extract(record, '$.detail.hold') = 'hold-2'")[0][0])


def renew_a_released_hold(log: Damaged) -> Hit:
    log.run("INSERT INTO holds VALUES ('hold-0', '2026-01-01', 'case 17', NULL, NULL, NULL, NULL)")
    return Hit(log.told_of("kind = 'hold' AND outcome = 'released'")[0][0])


def forget_an_open_decision(log: Damaged) -> Hit:
    with log.sql() as db:
        pending = db.execute("SELECT seq, decision FROM pending ORDER BY seq").fetchall()
    if not pending:
        return reopen_a_decision(log)
    seq, identity = log.draw.choice(pending)
    log.run("DELETE FROM pending WHERE decision = ?", identity)
    return Hit(seq)


def reopen_a_decision(log: Damaged) -> Hit:
    text = "kind = 'decision' AND seq NOT IN (SELECT seq FROM pending)"
    seq, identity = log.draw.choice(log.told_of(text))
    log.run("INSERT INTO pending VALUES (?, ?)", identity, seq)
    return Hit(seq)


TAMPERINGS: tuple[Tampering, ...] = (
    flip_a_bit_of_a_record,
    alter_a_record,
    alter_a_record_and_its_hash,
    alter_a_record_and_every_hash,
    spell_a_record_otherwise,
    alter_a_column,
    alter_a_leaf,
    drop_a_record,
    drop_a_record_and_close_the_gap,
    reorder_two_records,
    swap_the_texts_of_two_records,
    repeat_a_record,
    truncate_the_file,
    overwrite_a_page,
    swap_two_pages,
    remove_the_newest,
    remove_the_newest_and_their_checkpoint,
    remove_the_newest_and_roll_the_checkpoint_back,
    remove_the_checkpoint,
    roll_the_checkpoint_back,
    alter_the_checkpoint,
    alter_a_bundle,
    remove_a_bundle,
    feign_retention,
    deny_retention,
    replace_by_another_log,
    remove_the_log,
    remove_the_log_and_its_keys,
    replace_the_keys,
    plant_in_the_schema,
    drop_a_legal_hold,
    narrow_a_legal_hold,
    renew_a_released_hold,
    forget_an_open_decision,
    reopen_a_decision,
)
