"""Sealed personal fields open with their key alone, in their record alone, and close to the bytes that were stored."""

import base64
import json

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit.record import canonical
from app.audit.seal import PERSONAL, SealError, closed, opened, sealed

KEY, NONCE, LOG = bytes(range(32)), bytes(range(12)), "eu-west"
PLAIN = {
    "id": "d1",
    "log": LOG,
    "seq": 7,
    "tenant": "demo",
    "subject": "a" * 64,
    "request_id": "ünïcode\n",
    "trace_id": None,
    "personal": None,
}

texts = st.none() | st.text(st.characters(codec="utf-8"))
plains = st.fixed_dictionaries(
    {
        "id": st.text(st.characters(codec="utf-8")),
        "subject": texts,
        "request_id": texts,
        "trace_id": texts,
        "personal": st.none(),
        "seq": st.integers(1, 2**53 - 1),
    }
)
keys, nonces = st.binary(min_size=32, max_size=32), st.binary(min_size=12, max_size=12)
pure = settings(deadline=None)


@pure
@given(plains, keys, nonces)
def test_what_is_sealed_opens_and_closes_to_the_same_bytes(plain, key, nonce):
    stored = sealed(plain, key, nonce, LOG)
    full = opened(stored, key, LOG)
    assert {**full, "personal": None} == plain
    assert canonical(closed(full)) == canonical(closed(stored)) == canonical(stored)
    assert opened(full, key, LOG) == full


def test_the_stored_form_is_the_documented_one():
    stored = sealed(PLAIN, KEY, NONCE, LOG)
    assert {name: stored[name] for name in PERSONAL} == dict.fromkeys(PERSONAL)
    assert {**stored, **{name: PLAIN[name] for name in PERSONAL}, "personal": None} == PLAIN
    text = base64.b64decode(stored["personal"])
    assert text[:12] == NONCE
    found = AESGCM(KEY).decrypt(NONCE, text[12:], b"eu-west\nd1")
    assert found == canonical({name: PLAIN[name] for name in PERSONAL})
    assert json.loads(found) == {name: PLAIN[name] for name in PERSONAL}


def test_no_personal_byte_is_in_the_stored_record():
    stored = canonical(sealed(PLAIN, KEY, NONCE, LOG))
    assert b"aaaa" not in stored
    assert b"code" not in stored


def test_sealing_changes_neither_record():
    plain = dict(PLAIN)
    stored = sealed(plain, KEY, NONCE, LOG)
    assert plain == PLAIN
    before = dict(stored)
    opened(stored, KEY, LOG)
    closed(opened(stored, KEY, LOG))
    assert stored == before


def test_without_sealed_fields_a_record_is_what_it_is():
    assert opened(PLAIN, KEY, LOG) == PLAIN == closed(PLAIN)


@pure
@given(st.binary(min_size=32, max_size=32).filter(lambda key: key != KEY))
def test_another_key_opens_nothing(key):
    with pytest.raises(SealError):
        opened(sealed(PLAIN, KEY, NONCE, LOG), key, LOG)


def test_the_text_is_bound_to_its_record_and_log():
    stored = sealed(PLAIN, KEY, NONCE, LOG)
    for wrong, log in (({**stored, "id": "d2"}, LOG), (stored, "us-east")):
        with pytest.raises(SealError, match=r"^record .*: its personal fields do not open with this key$"):
            opened(wrong, KEY, log)


@pure
@given(st.data())
def test_one_altered_bit_is_noticed(data):
    stored = sealed(PLAIN, KEY, NONCE, LOG)
    text = bytearray(base64.b64decode(stored["personal"]))
    bit = data.draw(st.integers(0, len(text) * 8 - 1))
    text[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealError):
        opened({**stored, "personal": base64.b64encode(text).decode()}, KEY, LOG)


def test_a_respelt_text_is_noticed():
    stored = sealed(PLAIN, KEY, NONCE, LOG)
    for text in (f" {stored['personal']}", f"{stored['personal']}\n", stored["personal"].replace("A", "A!", 1)):
        assert text != stored["personal"]
        with pytest.raises(SealError):
            opened({**stored, "personal": text}, KEY, LOG)


@pure
@given(st.text() | st.binary(max_size=64).map(lambda raw: base64.b64encode(raw).decode()) | st.integers())
def test_anything_else_in_its_place_is_an_error_of_ours(text):
    with pytest.raises(SealError):
        opened({**PLAIN, "personal": text}, KEY, LOG)


def test_errors_tell_nothing_secret():
    stored = sealed(PLAIN, KEY, NONCE, LOG)
    wrong = bytes(reversed(KEY))
    with pytest.raises(SealError) as failed:
        opened(stored, wrong, LOG)
    said = f"{failed.value!r} {failed.value!s}"
    for secret in (wrong.hex(), repr(wrong), PLAIN["subject"], stored["personal"]):
        assert secret not in said
    assert failed.value.__cause__ is None
    assert isinstance(failed.value.__context__, InvalidTag)


@pytest.mark.parametrize(("key", "nonce"), [(bytes(16), NONCE), (bytes(33), NONCE), (KEY, b""), (KEY, bytes(16))])
def test_weak_keys_and_odd_nonces_are_refused(key, nonce):
    with pytest.raises(ValueError, match="bytes"):
        sealed(PLAIN, key, nonce, LOG)
    if key != KEY:
        with pytest.raises(ValueError, match="bytes"):
            opened(sealed(PLAIN, KEY, NONCE, LOG), key, LOG)
