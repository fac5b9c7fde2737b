"""What another gateway says of its log: read back as it was sent, and taken for an extension only where it is one."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit.checkpoint import MAX_SIGNATURES, NoteError, VerifierKey, cosigned, sign
from app.audit.witness.extension import (
    Conflict,
    Extension,
    listed,
    nothing_of,
    require_extension,
    signed,
    verifier_keys,
)
from tests.audit.peers import Log, body

ORIGIN = "tidegate/eu-west/eu-west"
HASH = base64.b64encode(bytes(32)).decode()


def names(size: int) -> list[str]:
    return [f"record {number}" for number in range(size)]


def judge(old: Log, new: Log) -> None:
    """What a witness that holds the checkpoint of `old` makes of the answer of `new`."""
    size = len(old.records)
    proof = new.proof(size) if size <= len(new.records) else []
    extension = Extension.parse(body(size, proof, new.note()), size)
    require_extension(old.checkpoint(), extension, *signed(extension.note, ORIGIN, verifier_keys(new.keys(), ORIGIN)))


@given(old=st.integers(0, 80), more=st.integers(0, 80))
@settings(deadline=None)
def test_a_log_that_grew_extends_itself(old, more):
    judge(Log(ORIGIN, names(old)), Log(ORIGIN, names(old + more)))


@given(old=st.integers(1, 40), new=st.integers(0, 80), data=st.data())
@settings(deadline=None)
def test_a_log_that_lost_or_changed_anything_does_not(old, new, data):
    after = Log(ORIGIN, names(new))
    if new >= old:
        altered = data.draw(st.integers(0, old - 1))
        after.records[altered] = data.draw(st.sampled_from(["altered", f"record {altered + 1}"]))
    with pytest.raises(Conflict) as caught:
        judge(Log(ORIGIN, names(old)), after)
    assert (caught.value.note, caught.value.key) == (after.note(), after.key)


@pytest.mark.parametrize(
    ("old", "new", "how"),
    [
        (names(5), names(3), "it covers 3 records where 5 were witnessed: the newest are gone"),
        (names(5), [*names(4), "x"], "its 5 records are others than those witnessed"),
        (names(5), [*names(4), "x", "y"], "its 6 records are not shown to begin with the 5 witnessed"),
    ],
)
def test_a_conflict_says_what_happened(old, new, how):
    with pytest.raises(Conflict) as caught:
        judge(Log(ORIGIN, old), Log(ORIGIN, new))
    assert str(caught.value) == how


def test_a_checkpoint_without_its_proof_shows_nothing_but_itself():
    old, grown = Log(ORIGIN, names(5)), Log(ORIGIN, names(6))
    require_extension(old.checkpoint(), Extension(old.note()), old.checkpoint(), old.key)
    with pytest.raises(Conflict, match="not shown to begin"):
        require_extension(old.checkpoint(), Extension(grown.note()), grown.checkpoint(), grown.key)


def test_every_tree_extends_nothing():
    log = Log(ORIGIN, names(9))
    require_extension(nothing_of(ORIGIN), Extension(log.note()), log.checkpoint(), log.key)


@given(size=st.integers(0, 2**63 - 1), proof=st.lists(st.binary(min_size=32, max_size=32), max_size=63))
@settings(deadline=None)
def test_a_body_is_read_as_it_was_written(size, proof):
    note = Log(ORIGIN, names(3)).note()
    assert Extension.parse(body(size, proof, note), size) == Extension(note, tuple(proof))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "old 5",
        "old 5\n",
        "old 6\n\nnote",
        "old 05\n\nnote",
        "old  5\n\nnote",
        "old 5\r\n\r\nnote",
        "Old 5\n\nnote",
        f"{HASH}\nold 5\n\nnote",
        "old 5\nnot base64\n\nnote",
        f"old 5\n{HASH[:-4]}\n\nnote",
        f"old 5\n{HASH} \n\nnote",
        "old 5\n" + f"{HASH}\n" * 64 + "\nnote",
        '{"error": "no"}',
        "<html>\n\n</html>",
    ],
)
def test_a_body_of_another_form_is_refused(text):
    with pytest.raises(NoteError):
        Extension.parse(text, 5)


@given(st.text())
@settings(deadline=None)
def test_whatever_comes_is_read_or_refused(text):
    for read in (lambda: Extension.parse(text, 0), lambda: verifier_keys(text, ORIGIN)):
        try:
            read()
        except NoteError:
            continue


def test_keys_are_read_as_they_were_listed_the_newest_of_them():
    log = Log(ORIGIN)
    for _ in range(MAX_SIGNATURES + 3):
        log.rotate()
    assert verifier_keys(log.keys(), ORIGIN) == [*log.former, log.key][-MAX_SIGNATURES:]
    assert verifier_keys(listed([]), ORIGIN) == []


def test_keys_of_another_log_are_refused():
    with pytest.raises(NoteError, match="tidegate/us-east/eu-west"):
        verifier_keys(Log("tidegate/us-east/eu-west").keys(), ORIGIN)


def test_the_key_that_signed_is_named_and_others_are_passed_over():
    log, other = Log(ORIGIN, names(2)), Log(ORIGIN, seed=b"\2" * 32)
    note = cosigned(log.note(), "tidegate/us-east/witness", other.signer, 1)
    assert signed(note, ORIGIN, [other.key, log.key]) == (log.checkpoint(), log.key)
    for keys in ([], [other.key], [VerifierKey("tidegate/eu-west/gateway", log.key.public)]):
        with pytest.raises(NoteError):
            signed(note, ORIGIN, keys)


def test_a_checkpoint_of_another_log_is_refused_whoever_signed_it():
    log, other = Log(ORIGIN), Log("tidegate/eu-west/gateway", names(2))
    note = sign(other.checkpoint().text(), ORIGIN, log.signer)
    with pytest.raises(NoteError, match="tidegate/eu-west/gateway"):
        signed(note, ORIGIN, [log.key])


def test_a_wrong_signature_of_a_known_key_is_refused():
    log = Log(ORIGIN, names(2))
    text, _, signatures = log.note().rpartition("\n\n")
    with pytest.raises(NoteError, match="wrong"):
        signed(f"{text.replace('2', '3', 1)}\n\n{signatures}", ORIGIN, [log.key])
