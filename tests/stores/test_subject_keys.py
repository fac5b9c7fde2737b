"""The keys of data subjects in their real files: made once, read by several, destroyed without a trace."""

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from app.stores.base import StoreError
from app.stores.subject_keys import SubjectKeys

ROOT = Path(__file__).resolve().parents[2]
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
ANNA, BERTA, CARLA = "a" * 64, "b" * 64, "c" * 64


def opened(directory, **options):
    return SubjectKeys(directory / "eu-west.subjects.db", directory / "eu-west.wrap", "eu-west", **options)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "var" / "keys"


@pytest.fixture
def keys(directory):
    store = opened(directory)
    yield store
    store.close()


@pytest.fixture
def reader(directory):
    store = opened(directory, readonly=True)
    yield store
    store.close()


def everything(directory):
    return b"".join(each.read_bytes() for each in directory.iterdir())


def wrapped(directory, pseudonym):
    with sqlite3.connect(directory / "eu-west.subjects.db") as db:
        row = db.execute("SELECT wrapped FROM subjects WHERE pseudonym = ?", (pseudonym,)).fetchone()
    db.close()
    return row and row[0]


def change(directory, statement, *values):
    with sqlite3.connect(directory / "eu-west.subjects.db") as db:
        db.execute(statement, values)
    db.close()


def run(script, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        **options,
    )


# --- made and read


def test_a_subject_has_one_key_and_no_other_has_it(keys, directory):
    made = keys.obtain([ANNA, BERTA, ANNA])
    assert set(made) == {ANNA, BERTA}
    assert {len(key) for key in made.values()} == {32}
    assert made[ANNA] != made[BERTA]
    assert keys.obtain([BERTA, CARLA]) == {BERTA: made[BERTA], CARLA: keys.get(CARLA)}
    keys.close()
    again = opened(directory)
    assert {each: again.get(each) for each in made} == made
    assert again.get("d" * 64) is None
    again.close()


def test_many_new_subjects_take_one_durable_commit(keys):
    statements = []
    keys._db.connection.set_trace_callback(statements.append)
    keys.obtain([f"{each:064x}" for each in range(500)])
    assert statements.count("COMMIT") == 1
    assert keys._db.connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert keys._db.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    statements.clear()
    keys.obtain([f"{each:064x}" for each in range(500)])
    assert "COMMIT" not in statements


def test_keys_are_right_beyond_what_is_remembered_and_that_is_bounded(keys):
    names = [f"{each:064x}" for each in range(10_500)]
    made = keys.obtain(names)
    assert len(keys._remembered) == 10_000
    assert keys.obtain(reversed(names)) == made


def test_the_files_are_their_owners_alone(keys, directory):
    keys.obtain([ANNA])
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {each.name for each in directory.iterdir()} == {
        "eu-west.wrap",
        "eu-west.subjects.db",
        "eu-west.subjects.db-wal",
        "eu-west.subjects.db-shm",
    }
    assert {stat.S_IMODE(each.stat().st_mode) for each in directory.iterdir()} == {0o600}


def test_no_key_lies_there_in_the_open(keys, directory):
    key = keys.obtain([ANNA])[ANNA]
    bytes_there = everything(directory)
    assert wrapped(directory, ANNA) in bytes_there
    assert key not in bytes_there


def test_a_reader_sees_what_the_writer_makes_and_destroys(keys, reader):
    assert reader.get(ANNA) is None
    key = keys.obtain([ANNA])[ANNA]
    assert [reader.get(ANNA), reader.get(ANNA)] == [key, key]
    keys.destroy([ANNA])
    assert reader.get(ANNA) is None


def test_a_reader_makes_nothing_and_finds_what_is_made_later(directory):
    reader = opened(directory, readonly=True)
    assert reader.get(ANNA) is None
    assert not directory.exists()
    with pytest.raises(StoreError):
        reader.obtain([ANNA])
    writer = opened(directory)
    key = writer.obtain([ANNA])[ANNA]
    assert reader.get(ANNA) == key
    for change_it in (lambda: reader.obtain([BERTA]), lambda: reader.destroy([ANNA]), reader.rotate):
        with pytest.raises(StoreError, match="reading only"):
            change_it()
    reader.close()
    writer.close()


def test_a_reader_in_another_process_reads_at_the_same_time(keys, directory):
    script = f"""
import sys
from pathlib import Path
from app.stores.subject_keys import SubjectKeys
directory = Path(sys.argv[1])
reader = SubjectKeys(directory / "eu-west.subjects.db", directory / "eu-west.wrap", "eu-west", readonly=True)
print(reader.get("{ANNA}").hex(), flush=True)
input()
print(reader.get("{ANNA}"))
reader.close()
"""
    key = keys.obtain([ANNA])[ANNA]
    with subprocess.Popen(
        [sys.executable, "-c", script, directory], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline().strip() == key.hex()
        assert keys.destroy([ANNA])
        assert other.communicate("\n", timeout=60)[0].strip() == "None"


def test_first_makers_agree(directory):
    script = f"""
import sys
from pathlib import Path
from app.stores.subject_keys import SubjectKeys
directory = Path(sys.argv[1])
input()
store = SubjectKeys(directory / "eu-west.subjects.db", directory / "eu-west.wrap", "eu-west", patience=30)
print(store.obtain(["{ANNA}"])["{ANNA}"].hex())
store.close()
"""
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", script, directory],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for maker in makers:
        maker.stdin.write("\n")
        maker.stdin.flush()
    said = [maker.communicate(timeout=100)[0].strip() for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0, 0, 0]
    assert len(set(said)) == 1
    assert len(said[0]) == 64


# --- destroyed


def test_destroying_leaves_no_byte_of_the_key(keys, directory):
    keys.obtain([ANNA, BERTA])
    gone = wrapped(directory, ANNA)
    assert gone in everything(directory)
    assert keys.destroy([ANNA]) == 1
    assert keys.scrub()
    bytes_there = everything(directory)
    assert (directory / "eu-west.subjects.db-wal").stat().st_size == 0
    for part in (gone, gone[:12], gone[12:44], gone[44:], ANNA.encode()):
        assert part not in bytes_there
    assert wrapped(directory, BERTA) in bytes_there
    assert keys.get(ANNA) is None
    assert not keys.destroy([ANNA])


def test_no_key_stays_behind_where_pages_split_and_merge(directory, keys):
    """Rows move between pages as others come and go; what is destroyed must not stay where it once lay."""
    draw = random.Random(4)
    alive = {}
    gone = []
    for _ in range(12):
        keys.obtain([draw.randbytes(32).hex() for _ in range(150)])
        alive.update(keys._db.connection.execute("SELECT pseudonym, wrapped FROM subjects").fetchall())
        for each in draw.sample(sorted(alive), 30):
            gone.append(alive.pop(each))
            assert keys.destroy([each]) == 1
    assert keys.scrub()
    bytes_there = everything(directory)
    assert [each for each in gone if each[12:44] in bytes_there] == []
    assert all(bytes_there.count(each) == 1 for each in alive.values())


def test_a_new_key_after_an_erasure_is_another(keys):
    before = keys.obtain([ANNA])[ANNA]
    keys.destroy([ANNA])
    assert keys.obtain([ANNA])[ANNA] != before


def test_a_reader_in_the_way_is_said_and_the_next_attempt_ends_it(directory):
    keys = opened(directory, patience=0.05)
    keys.obtain([ANNA])
    gone = wrapped(directory, ANNA)
    keys.obtain([BERTA])
    other = sqlite3.connect(directory / "eu-west.subjects.db", isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM subjects").fetchone()
    assert keys.destroy([ANNA]) == 1
    assert not keys.scrub()
    assert keys.get(ANNA) is None
    other.execute("COMMIT")
    other.close()
    assert keys.scrub()
    assert gone not in everything(directory)
    keys.close()


# --- rotated


def test_rotation_keeps_every_key_and_no_old_text(keys, reader, directory):
    names = [f"{each:064x}" for each in range(2_500)]
    made = keys.obtain(names)
    assert reader.get(names[7]) == made[names[7]]
    old_key, old_text = (directory / "eu-west.wrap").read_bytes(), wrapped(directory, names[7])
    keys.rotate()
    assert (directory / "eu-west.wrap").read_bytes() != old_key
    assert old_key not in everything(directory)
    assert old_text not in everything(directory)
    assert reader.get(names[7]) == made[names[7]]
    assert keys.obtain(names) == made
    again = opened(directory)
    assert again.obtain(names) == made
    again.close()


def test_a_writer_goes_on_when_another_has_rotated(keys, directory):
    made = keys.obtain([ANNA])
    other = opened(directory)
    other.rotate()
    made |= keys.obtain([BERTA])
    other.rotate()
    assert other.obtain([ANNA, BERTA]) == made == keys.obtain([ANNA, BERTA])
    other.close()


def test_a_damaged_row_stops_a_rotation_and_harms_no_key(keys, directory):
    made = keys.obtain([ANNA, BERTA])
    change(directory, "UPDATE subjects SET wrapped = zeroblob(60) WHERE pseudonym = ?", BERTA)
    with pytest.raises(StoreError, match="damaged"):
        keys.rotate()
    assert keys.get(ANNA) == made[ANNA]
    keys.destroy([BERTA])
    keys.rotate()
    assert keys.get(ANNA) == made[ANNA]
    assert not list(directory.glob("*.next"))


_DIES = """
import shutil, sys
from pathlib import Path
from app.stores.base import StoreError
from app.stores.subject_keys import SubjectKeys
from tests.stores.dying import at_every_line

directory, kept = Path(sys.argv[1]), Path(sys.argv[1] + ".kept")
FILES = ("stores/subject_keys.py", "stores/key_file.py", "stores/files.py", "stores/database.py")
NAMES = [f"{each:064x}" for each in range(3)]

def opened(**options):
    return SubjectKeys(directory / "eu-west.subjects.db", directory / "eu-west.wrap", "eu-west", **options)

def known(**options):
    store = opened(**options)
    found = {each: store.get(each) for each in NAMES}
    store.close()
    return found

def everything():
    return b"".join(each.read_bytes() for each in directory.iterdir())

def again():
    shutil.rmtree(directory, ignore_errors=True)
    if kept.exists():
        shutil.copytree(kept, directory)

def keep():
    store = opened()
    made = store.obtain(NAMES)
    store.close()
    directory.rename(kept)
    return made
"""

_DIES_ROTATING = (
    _DIES
    + """
made = keep()
old = (kept / "eu-west.wrap").read_bytes()

def check():
    assert known(readonly=True) == made
    assert known() == made
    assert not list(directory.glob("*.next"))
    store = opened()
    store.rotate()
    store.close()
    assert known() == made
    assert old not in everything()
    assert sorted(each.name for each in directory.iterdir()) == ["eu-west.subjects.db", "eu-west.wrap"]

print(at_every_line(again, lambda: opened().rotate(), check, FILES))
"""
)

_DIES_DESTROYING = (
    _DIES
    + """
import sqlite3
made = keep()
db = sqlite3.connect(kept / "eu-west.subjects.db")
(gone,) = db.execute("SELECT wrapped FROM subjects WHERE pseudonym = ?", (NAMES[1],)).fetchone()
db.close()

def check():
    found = known()
    assert found in (made, {**made, NAMES[1]: None})
    store = opened()
    store.destroy([NAMES[1]])
    assert store.scrub()
    assert gone not in everything()
    store.close()
    assert known() == {**made, NAMES[1]: None}

print(at_every_line(again, lambda: opened().destroy([NAMES[1]]), check, FILES))
"""
)

_DIES_BEGINNING = (
    _DIES
    + """
def check():
    found = known(readonly=True)
    store = opened()
    made = store.obtain(NAMES)
    store.close()
    assert found == made or set(found.values()) == {None}

print(at_every_line(again, lambda: opened().obtain(NAMES), check, FILES))
"""
)


@pytest.mark.parametrize(
    ("script", "lines"),
    [(_DIES_ROTATING, 90), (_DIES_DESTROYING, 40), (_DIES_BEGINNING, 80)],
    ids=["rotate", "destroy", "begin"],
)
def test_a_process_may_die_at_any_line(script, lines):
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:  # killing loses nothing that a disk would have kept
        ran = run(script, Path(directory) / "keys")
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > lines


def test_a_process_may_die_at_any_time_in_a_rotation(directory):
    script = """
import sys
from pathlib import Path
from app.stores.subject_keys import SubjectKeys
directory = Path(sys.argv[1])
store = SubjectKeys(directory / "eu-west.subjects.db", directory / "eu-west.wrap", "eu-west", patience=10)
print("ready", flush=True)
while True:
    store.rotate()
"""
    names = [f"{each:064x}" for each in range(400)]
    writer = opened(directory)
    made = writer.obtain(names)
    writer.close()
    draw = random.Random(4)
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", script, directory], cwd=ROOT, stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            reader = opened(directory, readonly=True, patience=10)
            for each in draw.sample(names, draw.randrange(1, 60)):
                assert reader.get(each) == made[each]
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
            assert {each: reader.get(each) for each in names} == made
            reader.close()


# --- damaged, lost, replaced


def test_a_row_for_another_subject_or_log_does_not_open(keys, directory):
    keys.obtain([ANNA, BERTA])
    text = wrapped(directory, ANNA)
    change(directory, "UPDATE subjects SET wrapped = ? WHERE pseudonym = ?", text, BERTA)
    with pytest.raises(StoreError, match=r"eu-west\.subjects\.db: a subject's key is damaged"):
        keys.get(BERTA)
    other = SubjectKeys(directory / "eu-west.subjects.db", directory / "eu-west.wrap", "us-east", readonly=True)
    with pytest.raises(StoreError, match="damaged"):
        other.get(ANNA)
    other.close()


@pytest.mark.parametrize("text", [b"", b"short", bytes(60), "text" * 15, 7])
def test_a_damaged_row_is_named_and_tells_no_key(keys, directory, text):
    made = keys.obtain([ANNA, BERTA])
    change(directory, "UPDATE subjects SET wrapped = ? WHERE pseudonym = ?", text, ANNA)
    with pytest.raises(StoreError) as failed:
        keys.obtain([BERTA, ANNA])
    said = "".join(traceback.format_exception(failed.value)) + repr(keys)
    assert "damaged" in str(failed.value)
    assert "\n" not in str(failed.value)
    secrets = [*made.values(), (directory / "eu-west.wrap").read_bytes()]
    assert [each for each in secrets if each.hex() in said or repr(each) in said] == []
    assert keys.get(BERTA) == made[BERTA]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda there: (there / "eu-west.subjects.db").write_bytes(b"no database" * 1000), "file is not a database"),
        (lambda there: (there / "eu-west.wrap").write_bytes(b"short"), r"eu-west\.wrap: not 32 bytes; restore it"),
        (lambda there: (there / "eu-west.wrap").write_bytes(bytes(32)), "another key than .*restore both"),
        (lambda there: (there / "eu-west.wrap").unlink(), r"eu-west\.wrap: No such file.*; restore it"),
        (
            lambda there: (there / "eu-west.subjects.db").unlink(),
            r"subjects\.db: missing, though eu-west\.wrap is there",
        ),
        (lambda there: change(there, "PRAGMA user_version = 7"), "schema version 7 is not 1"),
        (lambda there: change(there, "DELETE FROM wrapping"), "restore both"),
        (lambda there: change(there, "UPDATE wrapping SET key_id = 7"), "restore both"),
    ],
    ids=["db", "short", "other", "no-wrap", "no-db", "version", "no-id", "bad-id"],
)
def test_what_is_lost_or_damaged_is_said_at_the_start_and_never_made_anew(directory, spoil, said):
    writer = opened(directory)
    writer.obtain([ANNA])
    writer.close()
    spoil(directory)
    before = {each.name: each.read_bytes() for each in directory.iterdir()}
    for _ in range(2):
        with pytest.raises(StoreError, match=said) as failed:
            opened(directory)
        assert "\n" not in str(failed.value)
    assert {name: (directory / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("ending", ["", "-wal"])
def test_nothing_is_written_to_files_that_were_replaced(keys, directory, ending):
    keys.obtain([ANNA])
    file = directory / f"eu-west.subjects.db{ending}"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    for write in (lambda: keys.obtain([BERTA]), lambda: keys.destroy([ANNA]), keys.rotate):
        with pytest.raises(StoreError, match="replaced"):
            write()


def test_a_closed_store_opens_nothing_again(keys):
    keys.obtain([ANNA])
    keys.close()
    keys.close()
    for use in (lambda: keys.get(ANNA), lambda: keys.obtain([ANNA]), lambda: keys.destroy([ANNA])):
        with pytest.raises(StoreError):
            use()
