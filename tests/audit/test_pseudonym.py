"""Pseudonyms: keyed, of one region and one tenant, from keys that nobody else can read."""

import asyncio
import hmac
import stat

import pytest

from app.audit.keys import FileKeys
from app.audit.pseudonym import Pseudonyms, is_pseudonym
from app.config import AuditSettings
from app.errors import AuditUnavailable
from app.stores.base import StoreError


@pytest.fixture
def audit(tmp_path):
    return AuditSettings(path=tmp_path / "var" / "audit")


@pytest.fixture
def make(audit):
    return lambda: Pseudonyms(FileKeys(audit.key_directory))


async def test_the_same_id_is_one_pseudonym_in_a_region_and_another_elsewhere(make):
    first, second = make(), make()
    here = await first.of("eu-west", "demo", "anna")
    assert is_pseudonym(here)
    assert await second.of("eu-west", "demo", "anna") == here
    assert await first.of("us-east", "demo", "anna") != here
    assert await first.of("eu-west", "demo", "berta") != here


async def test_the_same_id_at_another_tenant_is_another_person(make):
    pseudonyms = make()
    made = [await pseudonyms.of("eu-west", *each) for each in (("demo", "anna"), ("other", "anna"), ("demoa", "nna"))]
    assert len(set(made)) == 3


async def test_a_pseudonym_is_the_documented_hmac(make, audit):
    made = await make().of("eu-west", "demo", "anna")
    key = (audit.key_directory / "eu-west.key").read_bytes()
    assert made == hmac.digest(key, b"demo\0anna", "sha256").hex()


@pytest.mark.parametrize(("tenant", "subject"), [("demo", None), ("demo", ""), (None, "anna")])
async def test_nobody_has_no_pseudonym_and_makes_no_key(make, audit, tenant, subject):
    assert await make().of("eu-west", tenant, subject) is None
    assert not audit.key_directory.exists()


async def test_keys_lie_outside_the_audit_directory_for_their_owner_alone(make, audit):
    await make().of("eu-west", "demo", "anna")
    directory = audit.key_directory
    assert not directory.is_relative_to(audit.path)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [(each.name, stat.S_IMODE(each.stat().st_mode)) for each in directory.iterdir()] == [("eu-west.key", 0o600)]


async def test_many_first_uses_agree_on_one_key(make):
    made = await asyncio.gather(*(make().of("eu-west", "demo", "anna") for _ in range(16)))
    assert len(set(made)) == 1


async def test_a_header_of_utf_8_bytes_and_the_text_that_they_mean_are_the_same_id(make):
    pseudonyms = make()
    header = "Jürgen 東".encode().decode("latin-1")
    assert await pseudonyms.of("eu-west", "demo", header) == await pseudonyms.of("eu-west", "demo", "Jürgen 東")


async def test_known_are_the_regions_with_a_key_at_the_tenants_named(make, audit):
    pseudonyms = make()
    mine = await pseudonyms.of("eu-west", "demo", "anna")
    others = await pseudonyms.of("eu-west", "other", "anna")
    fresh = make()
    assert fresh.known(["eu-west", "us-east"], ["demo"], "anna") == {mine}
    assert fresh.known(["eu-west", "us-east"], ["demo", "other"], "anna") == {mine, others}
    assert fresh.known(["us-east"], ["demo"], "anna") == frozenset()
    assert [each.name for each in audit.key_directory.iterdir()] == ["eu-west.key"]


async def test_a_damaged_key_fails_closed(make, audit):
    audit.key_directory.mkdir(parents=True)
    (audit.key_directory / "eu-west.key").write_bytes(b"short")
    with pytest.raises(AuditUnavailable):
        await make().of("eu-west", "demo", "anna")
    with pytest.raises(StoreError):
        make().known(["eu-west"], ["demo"], "anna")
