"""The private keys of the trail, in their files: one set a log, outside the trail, each made when first needed."""

import stat
import traceback

import pytest

from app.audit.keys import FileKeys
from app.stores.base import StoreError

ANNA = "a" * 64


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "var" / "keys"


@pytest.fixture
def keys(directory):
    return FileKeys(directory)


def names(directory):
    return sorted(each.name for each in directory.iterdir())


def subject_key(keys, log="eu-west", pseudonym=ANNA):
    store = keys.subject_keys(log)
    try:
        return store.obtain([pseudonym])[pseudonym]
    finally:
        store.close()


def seed(keys, log="eu-west"):
    return keys.signing_key(log).private_bytes_raw()


def test_each_key_is_made_when_it_is_first_needed_and_stays(keys, directory):
    assert not keys.has_pseudonym_key("eu-west")
    assert not directory.exists()
    made = keys.pseudonym_key("eu-west")
    assert names(directory) == ["eu-west.key"]
    assert keys.has_pseudonym_key("eu-west")
    signing = seed(keys)
    assert names(directory) == ["eu-west.ed25519", "eu-west.key"]
    wrapped = subject_key(keys)
    assert names(directory) == ["eu-west.ed25519", "eu-west.key", "eu-west.subjects.db", "eu-west.wrap"]
    again = FileKeys(directory)
    assert (again.pseudonym_key("eu-west"), seed(again), subject_key(again)) == (made, signing, wrapped)


def test_the_files_are_their_owners_alone(keys, directory):
    keys.pseudonym_key("eu-west"), seed(keys), subject_key(keys)
    keys.rotate("eu-west")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in directory.iterdir()} == {0o600}


def test_logs_share_no_key(keys):
    everything = {
        each
        for log in ("eu-west", "us-east", "gateway")
        for each in (keys.pseudonym_key(log), seed(keys, log), subject_key(keys, log))
    }
    assert len(everything) == 9


def test_a_signature_is_one_of_the_stored_seed(keys, directory):
    public = keys.signing_key("eu-west").public_key()
    public.verify(keys.signing_key("eu-west").sign(b"note"), b"note")
    assert seed(keys) == (directory / "eu-west.ed25519").read_bytes()


def test_rotation_renews_what_signs_and_wraps_and_keeps_what_names_and_seals(keys, directory):
    named, signing, sealing = keys.pseudonym_key("eu-west"), seed(keys), subject_key(keys)
    wrapping = (directory / "eu-west.wrap").read_bytes()
    other = seed(keys, "us-east")
    keys.rotate("eu-west")
    assert (keys.pseudonym_key("eu-west"), subject_key(keys), seed(keys, "us-east")) == (named, sealing, other)
    assert seed(keys) != signing
    assert (directory / "eu-west.wrap").read_bytes() != wrapping


def test_rotation_of_a_log_without_subjects_makes_nothing_for_them(keys, directory):
    keys.rotate("gateway")
    first = seed(keys, "gateway")
    keys.rotate("gateway")
    assert seed(keys, "gateway") != first
    assert names(directory) == ["gateway.ed25519"]


def test_rotation_leaves_the_signing_key_where_the_wrapping_key_is_lost(keys, directory):
    signing = seed(keys)
    subject_key(keys)
    (directory / "eu-west.wrap").unlink()
    with pytest.raises(StoreError, match=r"eu-west\.wrap"):
        keys.rotate("eu-west")
    assert seed(keys) == signing


def test_a_reader_of_subject_keys_makes_no_file(keys, directory):
    reader = keys.subject_keys("eu-west", readonly=True)
    assert reader.get(ANNA) is None
    assert not directory.exists()
    made = subject_key(keys)
    assert reader.get(ANNA) == made
    reader.close()


@pytest.mark.parametrize(
    ("ending", "use"), [("key", FileKeys.pseudonym_key), ("ed25519", FileKeys.signing_key), ("wrap", subject_key)]
)
def test_a_damaged_key_is_one_line_that_names_the_file_and_tells_no_key(keys, directory, ending, use):
    directory.mkdir(parents=True)
    (directory / f"eu-west.{ending}").write_bytes(b"\x07secret" * 4)
    if ending == "wrap":
        (directory / "eu-west.subjects.db").touch()
    with pytest.raises(
        StoreError, match=rf"^key .*eu-west\.{ending}: not 32 bytes; restore it from a backup$"
    ) as failed:
        use(keys, "eu-west")
    said = "".join(traceback.format_exception(failed.value)) + repr(keys)
    assert "secret" not in said
    assert b"\x07secret".hex() not in said
