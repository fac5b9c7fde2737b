"""The law files that ship, what the loader refuses, and what a configuration asks of the law in vain."""

import copy
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from app.config import Settings
from app.policy.rules import LawBook, LawInvalid
from app.settings_file import documents, load
from regions.catalogue import parse_code

DATA = Path(__file__).parents[1] / "data" / "residency"
DOCUMENTS = documents("default", DATA)
BOOK = LawBook.build(DOCUMENTS)
WORLD = load(DATA / "world.yaml", {})

SMALL = """
id: xx
name: A law
reviewed: 2026-01-01
reviewed_until: 2026-12-31
transfers: restricted
members:
  - {id: xx-home, places: [FR], valid: [2020-01-01, null], law: Art. 1}
rules:
  - {id: xx-de, kind: adequacy, to: [DE], valid: [2020-01-01, 2022-12-31], law: Art. 2}
  - {id: xx-scc, kind: scc, accepts: [xx], valid: [2020-01-01, null], law: Art. 3, tia_law: Art. 4}
  - {id: xx-cert, kind: certification, to: [US], certifications: [seal], valid: [2020-01-01, null], law: Art. 5}
  - {id: xx-no, kind: forbid, reason: DENY_GPC, gpc: true, valid: [2020-01-01, null], law: Art. 6}
"""


def small(change: Callable[[dict[str, Any]], object] = lambda _: None) -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe", pure=True).load(SMALL)
    change(content)
    return content


def problems(*contents: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(LawInvalid) as caught:
        LawBook.build([(f"{number}.yaml", content) for number, content in enumerate(contents)])
    assert all(f"{file}: {message}" in str(caught.value) for file, message in caught.value.problems)
    return caught.value.problems


def test_the_laws_that_ship() -> None:
    assert [law.id for law in BOOK.laws] == [
        *("ch_fadp", "cn_pipl", "gdpr", "jp_appi", "kr_pipa", "my_pdpa"),
        *("sg_pdpa", "th_pdpa", "uk_gdpr", "us", "us_ca_ccpa"),
    ]
    assert BOOK.purposes == {"bulk_sensitive"}
    assert {"eu-us-dpf", "uk-extension", "swiss-us-dpf", "cbpr"} <= BOOK.certifications
    assert {"eu-us-dpf", "gdpr-scc"} <= BOOK.switches
    assert "ccpa-opt-out" not in BOOK.switches


def test_the_european_economic_area_has_thirty_states() -> None:
    gdpr = next(law for law in BOOK.laws if law.id == "gdpr")
    today = date(2026, 11, 22)
    inside = {place for place in gdpr.groups if gdpr.group(place, today)}
    assert len(inside - {"AX", "GF", "GP", "MF", "MQ", "RE", "YT"}) == 30
    assert {"NO", "IS", "LI", "HR"} <= inside
    assert not inside & {"GB", "CH", "GL", "SJ"}
    assert all(parse_code(place).code == place for place in inside)


def test_nothing_that_ships_waits_for_review_and_all_of_it_will() -> None:
    assert BOOK.stale(date(2026, 11, 22)) == []
    assert BOOK.stale(date(2027, 5, 31)) == []
    assert [law.id for law in BOOK.stale(date(2027, 6, 1))] == [law.id for law in BOOK.laws]


def test_the_small_law_is_sound() -> None:
    book = LawBook.build([("0.yaml", small())])
    assert [law.id for law in book.laws] == ["xx"]
    assert book.switches == {"xx-de", "xx-scc", "xx-cert"}


def _rule(position: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["rules"][position].update(values)


def _member(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["members"][0].update(values)


def _added(section: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[section].append(values)


FROM_2020 = [date(2020, 1, 1), None]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (_member(places=["UK"]), ("xx-home", "places.0", "'UK'", "write GB")),
        (_member(places=["FR", "EL"]), ("xx-home", "places.1", "'EL'", "write GR")),
        (_rule(0, to=["UK"]), ("xx-de", "to.0", "write GB")),
        (_rule(0, to=["US-CA"]), ("xx-de", "to.0", "subdivision")),
        (_rule(0, to=["Germany"]), ("xx-de", "ISO 3166")),
        (_rule(0, to=[]), ("xx-de", "to")),
        (_rule(0, valid=[date(2023, 1, 1), date(2022, 1, 1)]), ("xx-de", "2022-01-01", "2023-01-01")),
        (_rule(0, valid=[None, date(2022, 1, 1)]), ("xx-de", "valid.0")),
        (_rule(0, until=2030), ("xx-de", "until", "Extra")),
        (_rule(0, members=["xx-elsewhere"]), ("xx-de", "'xx-elsewhere'", "xx-home")),
        (_rule(1, accepts=["yy"]), ("xx-scc", "'yy'", "xx")),
        (_rule(3, reason="DENY_TENANT"), ("xx-no", "reason")),
        (_rule(0, kind="blessing"), ("xx-de", "blessing")),
        (_rule(0, id="xx-cert"), ("xx-cert", "stands already")),
        (_rule(0, id="xx"), ("xx", "stands already")),
        (_rule(2, law=""), ("xx-cert", "law")),
        (lambda content: content.update(reviewed_until=date(2025, 1, 1)), ("reviewed_until", "2025-01-01")),
        (lambda content: content.update(transfers="open"), ("xx-de", "open")),
        (lambda content: content.update(members=[]), ("members",)),
        (lambda content: content.update(author="me"), ("author",)),
        (lambda content: content["rules"][0].pop("id"), ("rules.0", "id")),
        (lambda content: content["rules"].append("text"), ("rules.4",)),
        (
            _added("rules", id="xx-2", kind="adequacy", to=["JP", "DE"], valid=[date(2022, 12, 31), None], law="A"),
            ("xx-2", "overlaps xx-de", "DE"),
        ),
        (
            _added("rules", id="xx-2", kind="adequacy", to=["DE"], members=["xx-home"], valid=FROM_2020, law="A"),
            ("xx-2", "overlaps xx-de"),
        ),
        (
            _added("rules", id="xx-2", kind="certification", certifications=["seal"], valid=FROM_2020, law="A"),
            ("xx-2", "overlaps xx-cert", "seal"),
        ),
        (
            _added("rules", id="xx-2", kind="scc", accepts=["xx"], valid=FROM_2020, law="A", tia_law="A"),
            ("xx-2", "overlaps xx-scc"),
        ),
        (
            _added("rules", id="x2", kind="forbid", reason="DENY_GPC", gpc=True, to=["US"], valid=FROM_2020, law="A"),
            ("x2", "overlaps xx-no"),
        ),
        (
            _added("members", id="xx-2", places=["FR"], valid=[date(2026, 1, 1), None], law="A"),
            ("xx-2", "overlaps xx-home", "FR"),
        ),
    ],
)
def test_the_loader_refuses(change: Callable[[dict[str, Any]], object], names: tuple[str, ...]) -> None:
    found = problems(small(change))
    assert {file for file, _ in found} == {"0.yaml"}
    assert any(all(name in message for name in names) for _, message in found), found


@pytest.mark.parametrize(
    "change",
    [
        _added("rules", id="xx-2", kind="adequacy", to=["DE"], valid=[date(2023, 1, 1), None], law="A"),
        _added("rules", id="xx-2", kind="certification", to=["US"], certifications=["b"], valid=FROM_2020, law="A"),
        _added("rules", id="xx-2", kind="forbid", reason="DENY_GPC", to=["US"], valid=FROM_2020, law="A"),
        _added("members", id="xx-2", places=["BE"], valid=FROM_2020, law="A"),
    ],
)
def test_the_loader_takes_what_does_not_overlap(change: Callable[[dict[str, Any]], object]) -> None:
    LawBook.build([("0.yaml", small(change))])


def test_every_problem_of_every_file_is_reported() -> None:
    bad = small(_rule(0, to=["UK"]))
    worse = small(_rule(0, valid=[date(2023, 1, 1), date(2022, 1, 1)]))
    worse["rules"][1]["law"] = ""
    assert [file for file, _ in problems(bad, worse)] == ["0.yaml", "1.yaml", "1.yaml"]


def test_the_same_law_twice_is_refused() -> None:
    found = problems(small(), small())
    assert {"xx", "xx-home", "xx-de"} <= {message.partition(":")[0] for _, message in found}
    assert {file for file, _ in found} == {"1.yaml"}


def test_the_digest_follows_the_content_alone() -> None:
    book = LawBook.build([("0.yaml", small())])
    reordered = small(lambda content: content["rules"].reverse())
    assert LawBook.build([("elsewhere.yaml", reordered)]).digest == book.digest
    changed = small(_rule(0, valid=[date(2020, 1, 1), date(2022, 12, 30)]))
    assert LawBook.build([("0.yaml", changed)]).digest != book.digest
    swapped = LawBook.build(list(reversed(DOCUMENTS)))
    assert swapped.digest == BOOK.digest


# What a configuration asks in vain


def world(change: Callable[[dict[str, Any]], object]) -> Settings:
    data = copy.deepcopy(YAML(typ="safe", pure=True).load((DATA / "world.yaml").read_text()))
    change(data)
    return Settings.model_validate(data)


def _region(name: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: next(one for one in data["regions"] if one["id"] == name).update(values)


def _instrument(**values: Any) -> Callable[[dict[str, Any]], object]:
    valid = [date(2026, 1, 1), date(2027, 12, 31)]
    return lambda data: data["tenants"][0].update(instruments=[{"id": "new", "valid": valid, **values}])


def _both(*changes: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda data: [change(data) for change in changes]


def test_the_shared_world_asks_nothing_in_vain() -> None:
    assert BOOK.check(WORLD) == []


@pytest.mark.parametrize(
    ("change", "key", "names"),
    [
        (
            lambda data: data["residency"].update(disabled=["eu-us-dpf", "eu-us-privacy-shield"]),
            ("residency", "disabled", 1),
            ("eu-us-privacy-shield", "eu-us-dpf"),
        ),
        (lambda data: data["residency"].update(disabled=["ccpa-opt-out"]), ("residency", "disabled", 0), ("ccpa",)),
        (
            _region("us", operator={"name": "a", "certifications": [{"id": "gold", "valid": ["2026-01-01"] * 2}]}),
            ("regions", 4, "operator", "certifications", 0, "id"),
            ("'gold'", "eu-us-dpf"),
        ),
        (_instrument(type="contract", to=["US"]), ("tenants", 0, "instruments", 0, "law"), ("'gdpr'", "sg_pdpa")),
        (_instrument(type="bcr", law="mars", group="a"), ("tenants", 0, "instruments", 0, "law"), ("'mars'", "gdpr")),
        (_instrument(type="scc", to=["US"]), ("tenants", 0, "instruments", 0, "tia_valid"), ("assessment",)),
        (_instrument(type="consent"), ("tenants", 0, "instruments", 0, "to"), ("consent",)),
        (_instrument(type="bcr"), ("tenants", 0, "instruments", 0, "group"), ("group",)),
        (_region("de", upstream_scope="global"), ("regions", 0, "upstream_scope"), ("gdpr-eu", "regional")),
        (_region("br", upstream_scope="global"), ("regions", 10, "upstream_scope"), ("gdpr-adequacy-br",)),
        (_region("us-dpf", upstream_scope="global"), ("regions", 5, "upstream_scope"), ("eu-us-dpf",)),
        (_region("us", upstream_scope="global"), ("regions", 4, "upstream_scope"), ("scc-us",)),
        (
            _region("cn", country="IN", upstream_scope="global", operator={"name": "zhong", "group": "acme"}),
            ("regions", 11, "upstream_scope"),
            ("bcr-acme",),
        ),
    ],
)
def test_what_is_asked_in_vain(
    change: Callable[[dict[str, Any]], object], key: tuple[str | int, ...], names: tuple[str, ...]
) -> None:
    found = BOOK.check(world(change))
    assert [at for at, _ in found] == [key]
    assert all(name in found[0][1] for name in names), found


def test_a_registered_instrument_may_be_switched_off() -> None:
    assert BOOK.check(world(lambda data: data["residency"].update(disabled=["scc-us"]))) == []


def test_global_scope_is_fine_where_no_rule_relies_on_the_place() -> None:
    assert BOOK.check(world(_region("cn", country="IN", upstream_scope="global"))) == []
    staying = _both(
        _region("br", upstream_scope="global"),
        _region("us-dpf", upstream_scope="global"),
        lambda data: [tenant.update(posture="residency") for tenant in data["tenants"]],
    )
    assert BOOK.check(world(staying)) == []
