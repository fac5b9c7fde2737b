"""Files of keys: whole or absent, one winner, their owner's alone, whoever dies in between."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.stores import key_file
from app.stores.base import StoreError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "var" / "keys" / "eu-west.key"


def names(file):
    return sorted(each.name for each in file.parent.iterdir())


def test_a_key_is_made_once_and_for_its_owner_alone(file):
    key = key_file.obtain(file)
    assert len(key) == 32
    assert key_file.obtain(file) == key == key_file.read(file)
    assert names(file) == ["eu-west.key"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_the_modes_do_not_hang_on_the_umask(file):
    before = os.umask(0)
    try:
        key_file.obtain(file)
        key_file.replace(file)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_new_key_takes_the_old_ones_place(file):
    old = key_file.obtain(file)
    key_file.replace(file)
    assert key_file.read(file) != old
    assert names(file) == ["eu-west.key"]
    key_file.replace(file.with_name("us-east.key"))
    assert len(key_file.read(file.with_name("us-east.key"))) == 32


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
def test_a_damaged_key_is_an_error_and_stays(file, content):
    key_file.obtain(file)
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"eu-west\.key: not 32 bytes; restore it from a backup"):
        key_file.obtain(file)
    assert file.read_bytes() == content


def test_what_cannot_be_read_or_made_is_one_line_that_names_the_file(file):
    for use in (key_file.read, lambda each: key_file.read(each.parent)):
        with pytest.raises(StoreError, match=r"^key .*keys.*: No such file or directory; restore it from a backup$"):
            use(file)
    file.mkdir(parents=True)
    with pytest.raises(StoreError, match=r"^key .*eu-west\.key: Is a directory"):
        key_file.obtain(file)
    with pytest.raises(StoreError, match=r"^key .*eu-west\.key: Is a directory"):
        key_file.replace(file)
    beneath = file.with_name("plain") / "eu-west.key"
    beneath.parent.write_bytes(b"")
    for use in (key_file.obtain, key_file.replace):
        with pytest.raises(StoreError, match=r"^key .*eu-west\.key: "):
            use(beneath)


def test_of_many_makers_the_first_wins(file):
    script = """
import sys
from pathlib import Path
from app.stores import key_file
input()
for each in range(50):
    print(key_file.obtain(Path(sys.argv[1]) / f"{each}.key").hex())
"""
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", script, file.parent],
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
    said = [maker.communicate(timeout=60)[0].split() for maker in makers]
    assert [len(each) for each in said] == [50] * 4
    assert said[1:] == said[:1] * 3
    assert names(file) == sorted(f"{each}.key" for each in range(50))


def test_a_maker_does_not_mind_one_who_replaces(file):
    script = """
import sys
from pathlib import Path
from app.stores import key_file
directory, action = Path(sys.argv[1]), getattr(key_file, sys.argv[2])
input()
for each in range(150):
    action(directory / f"{each}.key")
"""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, file.parent, action], cwd=ROOT, stdin=subprocess.PIPE, text=True
        )
        for action in ("obtain", "replace")
    ]
    for each in both:
        each.stdin.write("\n")
        each.stdin.flush()
    for each in both:
        each.communicate(timeout=60)
    assert [each.returncode for each in both] == [0, 0]
    assert names(file) == sorted(f"{each}.key" for each in range(150))


_DIES = """
import shutil, sys
from pathlib import Path
from app.stores import key_file
from tests.stores.dying import at_every_line

file, action = Path(sys.argv[1]), sys.argv[2]
state = {}

def prepare():
    shutil.rmtree(file.parent, ignore_errors=True)
    state["old"] = key_file.obtain(file) if action == "replace" else None

def check():
    assert not file.exists() or len(file.read_bytes()) == 32
    assert file.exists() or action == "obtain"
    found = key_file.obtain(file)
    assert key_file.obtain(file) == found
    key_file.replace(file)
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert key_file.read(file) not in (found, state["old"])

print(at_every_line(prepare, lambda: getattr(key_file, action)(file), check, ("stores/key_file.py", "stores/files.py")))
"""


@pytest.mark.parametrize("action", ["obtain", "replace"])
def test_a_maker_may_die_at_any_line(file, action):
    ran = subprocess.run(
        [sys.executable, "-c", _DIES, file, action], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 20
