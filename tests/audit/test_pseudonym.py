"""Pseudonyms: keyed, of one region, from keys that nobody else can read."""

import asyncio
import stat

import pytest

from app.audit.pseudonym import Pseudonyms, is_pseudonym
from app.config import AuditSettings
from app.errors import AuditUnavailable
from app.stores.base import StoreError


@pytest.fixture
def audit(tmp_path):
    return AuditSettings(path=tmp_path / "var" / "audit")


async def test_the_same_id_is_one_pseudonym_in_a_region_and_another_elsewhere(audit):
    first, second = Pseudonyms(audit), Pseudonyms(audit)
    here = await first.of("eu-west", "anna")
    assert is_pseudonym(here)
    assert await second.of("eu-west", "anna") == here
    assert await first.of("us-east", "anna") != here
    assert await first.of("eu-west", "berta") != here


async def test_no_id_has_no_pseudonym_and_makes_no_key(audit):
    assert await Pseudonyms(audit).of("eu-west", None) is None
    assert not audit.key_directory.exists()


async def test_keys_lie_outside_the_audit_directory_for_their_owner_alone(audit):
    await Pseudonyms(audit).of("eu-west", "anna")
    directory = audit.key_directory
    assert not directory.is_relative_to(audit.path)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [(each.name, stat.S_IMODE(each.stat().st_mode)) for each in directory.iterdir()] == [("eu-west.key", 0o600)]


async def test_many_first_uses_agree_on_one_key(audit):
    made = await asyncio.gather(*(Pseudonyms(audit).of("eu-west", "anna") for _ in range(16)))
    assert len(set(made)) == 1


async def test_a_header_of_utf_8_bytes_and_the_text_that_they_mean_are_the_same_id(audit):
    pseudonyms = Pseudonyms(audit)
    header = "Jürgen 東".encode().decode("latin-1")
    assert await pseudonyms.of("eu-west", header) == await pseudonyms.of("eu-west", "Jürgen 東")


async def test_known_regions_are_those_with_a_key(audit):
    pseudonyms = Pseudonyms(audit)
    mine = await pseudonyms.of("eu-west", "anna")
    assert Pseudonyms(audit).known(["eu-west", "us-east"], "anna") == {mine}
    assert [each.name for each in audit.key_directory.iterdir()] == ["eu-west.key"]


async def test_a_damaged_key_fails_closed(audit):
    audit.key_directory.mkdir(parents=True)
    (audit.key_directory / "eu-west.key").write_bytes(b"short")
    with pytest.raises(AuditUnavailable):
        await Pseudonyms(audit).of("eu-west", "anna")
    with pytest.raises(StoreError):
        Pseudonyms(audit).known(["eu-west"], "anna")
