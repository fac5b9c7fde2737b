"""Signed notes and checkpoints: published examples, notes that other logs signed, and whatever a stranger may send."""

import base64
import hashlib
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit.checkpoint import (
    MAX_NOTE_BYTES,
    MAX_SIGNATURES,
    Checkpoint,
    NoteError,
    VerifierKey,
    cosigned,
    cosigned_at,
    opened,
    sign,
)
from app.audit.merkle import EMPTY_ROOT, MAX_SIZE
from app.audit.record import timestamp

# The example of golang.org/x/mod/sumdb/note.
PETER_SEED = "YEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
PETER_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
BY_PETER = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
BY_ENOCH = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"

# The test vector of https://c2sp.org/signed-note.
EXAMPLE = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_NOTE = """This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
"""

# A checkpoint of the Go checksum database, and the key that the go command carries for it.
GO_SUM = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
GO_SUM_NOTE = """go.sum database tree
49189689
ftjbAOzaupaIvaPo/G+Dk63nxOZ2s1OPOKIaPtXs7S4=

— sum.golang.org Az3grlKZssqRoMNPpZfKt0TphbbcF+pzXqElURJKRNFKfaUAgqeI5k2AORH0QAhg/ebRwyIqD/OqP4oLtLnNumvOBAM=
"""

# A checkpoint of a Certificate Transparency log with a signature of another type, one by Ed25519, and cosignatures.
CT_LOG = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f"
CT_ROOT = "U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro="
CT_WITNESS = VerifierKey("remora.n621.de", base64.b64decode("BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2")[1:])
CT_NOTE = f"""arche2025h1.staging.ct.transparency.dev
1432088532
{CT_ROOT}

— arche2025h1.staging.ct.transparency.dev \
zTM8sQAAAZ5W0WdjBAMARjBEAiBjW5IQf9pvsYLfQFX6hoGREPMHbdQ3urbllzalApkptQIgIpwtEroeW2BXaHAI4kJXFbon5Ch9MNL5zRNZ55lvGt0=
— arche2025h1.staging.ct.transparency.dev \
ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=
— transparency.dev/DEV:witness-little-garden \
2AQqhwAAAABqEiEgzgFIqqhbUoDwjMWE6UP8nd8/KYTzwZ2rhIgcqoXHAwVkjZr4AscylP3v7sEodkRAErumC2q44vdgJY096st5BQ==
— remora.n621.de \
2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==
"""

LOG = "tidegate/eu-west/eu-west"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
ROOT = bytes(range(32))
TIME = timestamp(datetime(2026, 11, 22, 10, 0, 0, 5, tzinfo=UTC))
CHECKPOINT = Checkpoint(LOG, 42, ROOT, TIME)


def verifier(name, key):
    return VerifierKey(name, key.public_key().public_bytes_raw())


NOTE = sign(CHECKPOINT.text(), LOG, KEY)
KNOWN = [verifier(LOG, KEY)]


# --- keys


def test_a_verifier_key_is_read_and_written_as_published() -> None:
    for line in (PETER, ENOCH, EXAMPLE, GO_SUM, CT_LOG):
        key = VerifierKey.parse(line)
        assert key.line() == line
        assert key.key_id.hex() == line.split("+")[1]
    assert VerifierKey.parse(EXAMPLE).public.hex() == "e932791ae6e7a840a46164c904786426d5e7821dd8b29a00d61cae72afdd4da4"


def test_a_mangled_verifier_key_is_refused() -> None:
    mangled = {PETER[start:end] for start in range(len(PETER)) for end in range(start, len(PETER) + 1)} - {PETER}
    mangled |= {PETER[:at] + chr(ord(PETER[at]) + 1) + PETER[at + 1 :] for at in range(len(PETER))}
    mangled |= {f"{PETER}\n", f" {PETER}", f"{PETER}=", PETER.replace("c74f20a3", "C74F20A3"), f"\ud800{PETER}"}
    for line in mangled:
        with pytest.raises(NoteError):
            VerifierKey.parse(line)


@pytest.mark.parametrize(
    ("kind", "length", "problem"), [(4, 32, "unknown type: 4"), (1, 33, "reads"), (1, 31, "reads")]
)
def test_a_verifier_key_of_another_type_or_length_is_refused(kind, length, problem) -> None:
    encoded = bytes([kind]) + bytes(length)
    key_id = hashlib.sha256(b"name\n" + encoded).digest()[:4].hex()
    with pytest.raises(NoteError, match=problem):
        VerifierKey.parse(f"name+{key_id}+{base64.b64encode(encoded).decode()}")


BAD_NAMES = ["", "a b", "a+b", "a\nb", "a\tb", "a\u00a0b", "a\u2028b", "\ud800", "a" * 1025]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_one_word(name) -> None:
    with pytest.raises(NoteError):
        VerifierKey(name, bytes(32))
    with pytest.raises(NoteError):
        sign("text\n", name, KEY)
    with pytest.raises(NoteError):
        cosigned(NOTE, name, KEY, 0)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_public_key_has_32_bytes(length) -> None:
    with pytest.raises(NoteError, match="32 bytes"):
        VerifierKey("name", bytes(length))


# --- notes


def test_a_note_is_signed_as_published() -> None:
    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode("A" + PETER_SEED)[1:])
    assert sign(PETER_TEXT, "PeterNeumann", key) == f"{PETER_TEXT}\n{BY_PETER}"


def test_published_notes_open() -> None:
    peter, enoch = VerifierKey.parse(PETER), VerifierKey.parse(ENOCH)
    both = f"{PETER_TEXT}\n{BY_PETER}{BY_ENOCH}"
    for keys in ([peter], [enoch], [peter, enoch], [enoch, enoch]):
        assert opened(both, keys) == PETER_TEXT
    assert opened(EXAMPLE_NOTE, [VerifierKey.parse(EXAMPLE)]) == "This is an example message.\n"
    go_sum = Checkpoint.parse(opened(GO_SUM_NOTE, [VerifierKey.parse(GO_SUM)]))
    assert (go_sum.origin, go_sum.size, go_sum.time) == ("go.sum database tree", 49189689, None)


def test_a_checkpoint_of_another_log_opens_with_its_log_and_its_witness() -> None:
    read = Checkpoint.parse(opened(CT_NOTE, [VerifierKey.parse(CT_LOG)]))
    assert read == Checkpoint("arche2025h1.staging.ct.transparency.dev", 1432088532, base64.b64decode(CT_ROOT), None)
    assert cosigned_at(CT_NOTE, CT_WITNESS) == 0x6A122120
    changed = CT_NOTE.replace("1432088532", "1432088533")
    with pytest.raises(NoteError, match=r"signature by arche2025h1\S+ is wrong"):
        opened(changed, [VerifierKey.parse(CT_LOG)])
    with pytest.raises(NoteError, match=r"cosignature by remora\.n621\.de is wrong"):
        cosigned_at(changed, CT_WITNESS)


def test_a_note_that_no_known_key_signed_stays_closed() -> None:
    strangers = [verifier(LOG, OTHER), verifier("other", KEY), VerifierKey.parse(PETER)]
    for keys in ([], strangers):
        with pytest.raises(NoteError, match="no known key"):
            opened(NOTE, keys)


def test_a_wrong_signature_of_a_known_key_spoils_the_others() -> None:
    peter, enoch = VerifierKey.parse(PETER), VerifierKey.parse(ENOCH)
    wrong = BY_ENOCH.replace("/5n2t", "/5n3t")
    with pytest.raises(NoteError, match="signature by EnochRoot is wrong"):
        opened(f"{PETER_TEXT}\n{BY_PETER}{wrong}", [peter, enoch])
    assert opened(f"{PETER_TEXT}\n{BY_PETER}{wrong}", [peter]) == PETER_TEXT  # a stranger's, and so nobody's


@pytest.mark.parametrize("length", [1, 63, 65, 72])
def test_a_signature_of_another_length_is_wrong(length) -> None:
    signature = base64.b64encode(KNOWN[0].key_id + bytes(length)).decode()
    with pytest.raises(NoteError, match="is wrong"):
        opened(f"text\n\n— {LOG} {signature}\n", KNOWN)


def lines_of(count):
    return "".join(f"— witness{number} {base64.b64encode(bytes(68)).decode()}\n" for number in range(count))


def test_sixteen_signatures_are_read_and_no_more() -> None:
    assert opened(NOTE + lines_of(MAX_SIGNATURES - 1), KNOWN) == CHECKPOINT.text()
    with pytest.raises(NoteError, match="at most 16 signatures"):
        opened(NOTE + lines_of(MAX_SIGNATURES), KNOWN)
    with pytest.raises(NoteError, match="at most 16 signatures"):
        cosigned(NOTE + lines_of(MAX_SIGNATURES - 1), "witness", OTHER, 0)


def test_a_note_is_bounded_in_bytes() -> None:
    around = len(sign("\n", LOG, KEY).encode()) - 1
    longest = "é" * ((MAX_NOTE_BYTES - around - 1) // 2) + "\n"
    assert opened(sign(longest, LOG, KEY), KNOWN) == longest
    for longer in (f"éé{longest}", "x" * MAX_NOTE_BYTES + "\n"):
        with pytest.raises(NoteError, match="at most 65536 bytes"):
            sign(longer, LOG, KEY)


def test_the_last_empty_line_divides_text_and_signatures() -> None:
    for text in ("\n", "\n\n", "one\n\ntwo\n", "one\n\n", NOTE):
        assert opened(sign(text, LOG, KEY), KNOWN) == text


@pytest.mark.parametrize("text", ["", "text", "a\tb\n", "a\r\n", "a\0\n", "\x1f\n", "\ud800\n"])
def test_what_no_note_may_hold_is_not_signed(text) -> None:
    with pytest.raises(NoteError):
        sign(text, LOG, KEY)


MALFORMED = [
    "",
    "\n",
    "\n\n",
    CHECKPOINT.text(),
    CHECKPOINT.text() + "\n",
    NOTE.replace("\n\n", "\n"),
    NOTE.rstrip(),
    NOTE + "\n",
    NOTE + NOTE.split("\n\n")[1].rstrip(),
    sign("\n", LOG, KEY).lstrip(),
    "\x01" + NOTE,
    "\udcff" + NOTE,
]


@pytest.mark.parametrize("note", MALFORMED)
def test_a_malformed_note_is_refused(note) -> None:
    with pytest.raises(NoteError):
        opened(note, KNOWN)
    with pytest.raises(NoteError):
        cosigned_at(note, KNOWN[0])
    with pytest.raises(NoteError):
        cosigned(note, "witness", OTHER, 0)


SIGNED = BY_PETER.removeprefix("— PeterNeumann ").strip()
MALFORMED_LINES = [
    "more",
    "—",
    f"- PeterNeumann {SIGNED}",
    f"\N{EN DASH} PeterNeumann {SIGNED}",
    f"—PeterNeumann {SIGNED}",
    f"—  PeterNeumann {SIGNED}",
    f" — PeterNeumann {SIGNED}",
    f"—  {SIGNED}",
    f"— {SIGNED}",
    "— PeterNeumann",
    "— PeterNeumann ",
    f"— Peter Neumann {SIGNED}",
    f"— Peter+Neumann {SIGNED}",
    f"— Peter\u2028Neumann {SIGNED}",
    f"— PeterNeumann {SIGNED} ",
    f"— PeterNeumann\u00a0{SIGNED}",
    f"— PeterNeumann {SIGNED}\r",
    f"— PeterNeumann {SIGNED}=",
    f"— PeterNeumann {SIGNED[:-1]}",
    f"— PeterNeumann {SIGNED[:-2]}N=",  # the same bytes, other bits in the padding
    f"— PeterNeumann {SIGNED[:40]}-{SIGNED[41:]}",
    f"— PeterNeumann {SIGNED[:40]}é{SIGNED[41:]}",
    "— PeterNeumann x08gow==",  # an id, and no signature
    "— PeterNeumann x08g",
]


@pytest.mark.parametrize("line", MALFORMED_LINES)
def test_a_malformed_signature_spoils_a_note_whosever_it_is(line) -> None:
    assert opened(NOTE + BY_PETER, KNOWN) == CHECKPOINT.text()
    with pytest.raises(NoteError):
        opened(f"{NOTE}{line}\n", KNOWN)


letters = st.characters(exclude_categories=["Cs"], exclude_characters=[chr(code) for code in range(32)])
texts = st.text(letters | st.just("\n"), max_size=60).map(lambda text: text + "\n")
names = st.text(letters, min_size=1, max_size=20).filter(
    lambda name: "+" not in name and not any(map(str.isspace, name))
)


@settings(deadline=None)
@given(text=texts, name=names, seed=st.binary(min_size=32, max_size=32))
def test_what_is_signed_opens_with_its_key_alone(text, name, seed) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    note = sign(text, name, key)
    parsed = VerifierKey.parse(verifier(name, key).line())
    assert opened(note, [parsed]) == text
    with pytest.raises(NoteError, match="no known key"):
        opened(note, KNOWN)


@settings(deadline=None)
@given(at=st.integers(0, len(NOTE) - 1), instead=st.characters(), whole=st.sampled_from(["", "{}{}", "{}"]))
def test_an_altered_note_does_not_open(at, instead, whole) -> None:
    altered = NOTE[:at] + whole.format(instead, NOTE[at]) + NOTE[at + 1 :]
    if altered != NOTE:
        with pytest.raises(NoteError):
            opened(altered, KNOWN)


# --- cosignatures


def test_a_cosignature_is_a_line_more() -> None:
    note = cosigned(NOTE, "witness", OTHER, 1679315147)
    assert note.startswith(NOTE)
    assert opened(note, KNOWN) == CHECKPOINT.text()
    assert cosigned_at(note, verifier("witness", OTHER)) == 1679315147


def test_a_cosignature_has_the_published_form() -> None:
    line = cosigned(NOTE, "witness", OTHER, 1679315147).removeprefix(NOTE)
    dash, name, encoded = line.removesuffix("\n").split(" ")
    data, public = base64.b64decode(encoded), OTHER.public_key()
    assert (dash, name, len(data)) == ("\N{EM DASH}", "witness", 76)
    assert data[:4] == hashlib.sha256(b"witness\n\x04" + public.public_bytes_raw()).digest()[:4]
    assert data[4:12] == (1679315147).to_bytes(8, "big")
    public.verify(data[12:], b"cosignature/v1\ntime 1679315147\n" + CHECKPOINT.text().encode())


def test_a_later_cosignature_takes_the_place_of_the_earlier() -> None:
    both = cosigned(cosigned(NOTE, "witness", OTHER, 1), "other", OTHER, 2)
    again = cosigned(both, "witness", OTHER, 3)
    assert (both.count("— witness "), again.count("— witness "), again.count("— other ")) == (1, 1, 1)
    assert cosigned_at(again, verifier("witness", OTHER)) == 3
    assert cosigned_at(again, verifier("other", OTHER)) == 2


def test_of_several_cosignatures_by_a_key_the_latest_counts() -> None:
    lines = [cosigned(NOTE, "witness", OTHER, seconds).removeprefix(NOTE) for seconds in (1, 3, 2)]
    assert cosigned_at(NOTE + "".join(lines), verifier("witness", OTHER)) == 3


def test_a_signature_is_no_cosignature_and_the_other_way_round() -> None:
    with pytest.raises(NoteError, match="has not cosigned"):
        cosigned_at(NOTE, KNOWN[0])
    note = cosigned(NOTE, LOG, KEY, 5)
    assert (opened(note, KNOWN), cosigned_at(note, KNOWN[0])) == (CHECKPOINT.text(), 5)
    only = CHECKPOINT.text() + "\n" + note.removeprefix(NOTE)
    assert cosigned_at(only, KNOWN[0]) == 5
    with pytest.raises(NoteError, match="no known key"):
        opened(only, KNOWN)


@pytest.mark.parametrize("key", [verifier("witness", KEY), verifier("other", OTHER)])
def test_a_cosignature_by_another_does_not_count(key) -> None:
    with pytest.raises(NoteError, match="has not cosigned"):
        cosigned_at(cosigned(NOTE, "witness", OTHER, 5), key)


def cosignature(name, key, data):
    key_id = hashlib.sha256(name.encode() + b"\n\x04" + key.public_key().public_bytes_raw()).digest()[:4]
    return f"— {name} {base64.b64encode(key_id + data).decode()}\n"


@settings(deadline=None)
@given(bit=st.integers(0, 72 * 8 - 1))
def test_an_altered_cosignature_is_wrong(bit) -> None:
    """Its time as well: the eight bytes before the signature are signed with the text."""
    line = cosigned(NOTE, "witness", OTHER, 1679315147).removeprefix(NOTE)
    data = bytearray(base64.b64decode(line.split(" ")[2])[4:])
    assert NOTE + cosignature("witness", OTHER, data) == NOTE + line
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(NoteError, match="cosignature by witness is wrong"):
        cosigned_at(NOTE + cosignature("witness", OTHER, data), verifier("witness", OTHER))


@pytest.mark.parametrize("length", [1, 8, 9, 64, 71, 73])
def test_a_cosignature_of_another_length_is_wrong(length) -> None:
    with pytest.raises(NoteError, match="cosignature by witness is wrong"):
        cosigned_at(NOTE + cosignature("witness", OTHER, bytes(length)), verifier("witness", OTHER))


def test_a_cosignature_has_a_time_that_can_be() -> None:
    latest = (1 << 63) - 1
    assert cosigned_at(cosigned(NOTE, "witness", OTHER, latest), verifier("witness", OTHER)) == latest
    for seconds in (-1, latest + 1):
        with pytest.raises(NoteError, match="out of range"):
            cosigned(NOTE, "witness", OTHER, seconds)
    signature = OTHER.sign(f"cosignature/v1\ntime {latest + 1}\n{CHECKPOINT.text()}".encode())
    late = NOTE + cosignature("witness", OTHER, (latest + 1).to_bytes(8, "big") + signature)
    with pytest.raises(NoteError, match="cosignature by witness is wrong"):
        cosigned_at(late, verifier("witness", OTHER))


def test_only_a_checkpoint_is_cosigned() -> None:
    with pytest.raises(NoteError, match="checkpoint"):
        cosigned(sign("some other text\n", LOG, KEY), "witness", OTHER, 0)
    with pytest.raises(NoteError, match="signatures"):
        cosigned(CHECKPOINT.text() + "\n", "witness", OTHER, 0)


# --- checkpoints


def test_a_checkpoint_reads_as_published() -> None:
    root = base64.b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    assert Checkpoint("example.com/behind-the-sofa", 20852163, root, None).text() == text
    assert CHECKPOINT.text() == f"{LOG}\n42\n{base64.b64encode(ROOT).decode()}\ntime 2026-11-22T10:00:00.000005Z\n"
    assert Checkpoint(LOG, 0, EMPTY_ROOT, None).text().split("\n")[1] == "0"


origins = st.text(letters, min_size=1, max_size=40)
times = st.none() | st.datetimes(timezones=st.just(UTC)).map(timestamp)


@settings(deadline=None)
@given(origin=origins, size=st.integers(0, MAX_SIZE), root=st.binary(min_size=32, max_size=32), time=times)
def test_a_checkpoint_is_read_as_it_was_written(origin, size, root, time) -> None:
    written = Checkpoint(origin, size, root, time)
    assert Checkpoint.parse(written.text()) == written


def test_extension_lines_are_opaque_but_for_the_time() -> None:
    bare = Checkpoint(LOG, 42, ROOT, None)
    assert Checkpoint.parse(bare.text() + "other line\ntimes are changing\n") == bare
    assert Checkpoint.parse(bare.text() + f"other line\ntime {TIME}\n") == CHECKPOINT
    with pytest.raises(NoteError, match="one time"):
        Checkpoint.parse(CHECKPOINT.text() + f"time {TIME}\n")


ROOT_LINE = base64.b64encode(ROOT).decode()
SIZES = [
    "",
    "042",
    "00",
    "+1",
    "-1",
    "1.0",
    "1e3",
    " 1",
    "1 ",
    "0x1",
    "1_000",
    "٤٢",
    "½",
    str(MAX_SIZE + 1),
    "9" * 5000,
]
ROOTS = ["", ROOT_LINE[:-1], ROOT_LINE + "=", ROOT_LINE.replace("A", "-", 1), ROOT_LINE[:-2] + "9=", f" {ROOT_LINE}"]
ROOTS += [base64.b64encode(bytes(length)).decode() for length in (0, 31, 33, 64)] + [ROOT.hex()]
TIMES = ["", "now", "2026-11-22", "2026-11-22T10:00:00", "2026-11-22 10:00:00Z", "2026-13-22T10:00:00Z", "1679315147"]
TIMES += [
    "2026-11-22T10:00:60Z",
    "2026-11-22T24:00:00Z",
    "2026-11-22T10:00:00+99:00",
    f"{TIME} ",
    "٢026-11-22T10:00:00Z",
]
BAD_TEXTS = {
    "",
    "\n",
    "\n\n\n",
    LOG,
    f"{LOG}\n42\n",
    f"{LOG}\n42\n{ROOT_LINE}",
    f"{LOG}\n42\n{ROOT_LINE}\ntime {TIME}",
    f"\n42\n{ROOT_LINE}\n",
    f"{LOG}\n42\n{ROOT_LINE}\n\n",
    f"{LOG}\n42\n{ROOT_LINE}\n\nmore\n",
    f"{LOG}\r\n42\r\n{ROOT_LINE}\r\n",
    f"{LOG}\n\n42\n{ROOT_LINE}\n",
    f"\ud800\n42\n{ROOT_LINE}\n",
    *(f"{LOG}\n{size}\n{ROOT_LINE}\n" for size in SIZES),
    *(f"{LOG}\n42\n{root}\n" for root in ROOTS),
    *(f"{LOG}\n42\n{ROOT_LINE}\ntime {time}\n" for time in TIMES),
}


@pytest.mark.parametrize("text", sorted(BAD_TEXTS))
def test_a_text_that_is_no_checkpoint_is_refused(text) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "values",
    [
        ("", 1, ROOT, None),
        ("two\nlines", 1, ROOT, None),
        ("a\tb", 1, ROOT, None),
        (LOG, -1, ROOT, None),
        (LOG, MAX_SIZE + 1, ROOT, None),
        (LOG, 1, ROOT[:31], None),
        (LOG, 1, ROOT, ""),
        (LOG, 1, ROOT, f"{TIME}\nmore"),
    ],
)
def test_a_checkpoint_without_a_text_cannot_be_made(values) -> None:
    with pytest.raises(NoteError):
        Checkpoint(*values)


@pytest.mark.parametrize(
    "time", ["2026-11-22T10:00:00Z", "2026-11-22T10:00:00.123456789Z", "2026-11-22T10:00:00-03:30"]
)
def test_a_time_is_rfc_3339(time) -> None:
    assert Checkpoint.parse(Checkpoint(LOG, 1, ROOT, time).text()).time == time


PIECES = [*NOTE.split("\n"), *GO_SUM_NOTE.split(" "), "\n", "\n\n", "— ", " ", "+", "=", LOG, PETER, "time ", "0", "A"]
strange = st.text() | st.text(st.characters()) | st.lists(st.sampled_from(PIECES) | st.text(max_size=3)).map("".join)


@settings(deadline=None, max_examples=300)
@given(text=strange)
def test_whatever_a_stranger_sends_is_read_or_is_a_note_error(text) -> None:
    for read in (Checkpoint.parse, VerifierKey.parse):
        with suppress(NoteError):
            assert read(text)
    with suppress(NoteError):
        assert opened(text, KNOWN)
    with suppress(NoteError):
        assert cosigned(text, "witness", OTHER, 0)
    with suppress(NoteError):
        assert sign(text, text, KEY)
    with pytest.raises(NoteError):
        cosigned_at(text, KNOWN[0])


def test_an_error_shows_no_letter_that_a_terminal_would_obey() -> None:
    for read, text in (
        (VerifierKey.parse, PETER.replace("Peter", "\u202e\x9b")),
        (lambda note: opened(note, KNOWN), "text\n\n— \u202e\x9b AAAA\n"),
    ):
        with pytest.raises(NoteError, match=r"'\\u202e\\x9b") as refused:
            read(text)
        assert str(refused.value).isprintable()
