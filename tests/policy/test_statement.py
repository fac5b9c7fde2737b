"""Statements: their words, both ways, and what they mean in a configuration."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app.config import Settings
from app.policy.rules import LawBook, LawInvalid
from app.policy.statement import Meaning, Statement, StatementInvalid, parse, read
from app.settings_file import documents, load

DATA = Path(__file__).parents[1] / "data" / "residency"
BOOK = LawBook.build(documents("default", DATA))
WORLD = load(DATA / "world.yaml", {})
TODAY = date(2026, 11, 22)

KEYWORDS = {"or", "for", "until", "never", "only", "reaches"}
NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True).filter(
    lambda name: name not in KEYWORDS
)
STATEMENTS = st.builds(
    Statement,
    subject=NAMES,
    kind=st.sampled_from(["never", "only"]),
    places=st.lists(NAMES, min_size=1, max_size=4).map(tuple),
    tenant=st.none() | NAMES,
    until=st.none() | st.dates(),
)
BLANK = st.text(" \t\n", min_size=1, max_size=3)


@settings(deadline=None)
@given(STATEMENTS)
def test_what_is_written_is_read_again(statement: Statement) -> None:
    assert parse(str(statement)) == statement


@settings(deadline=None)
@given(STATEMENTS, st.data())
def test_blanks_and_the_word_between_places_are_free(statement: Statement, data: st.DataObject) -> None:
    between = [", ", ",", " , ", " or ", ", or "]
    places = statement.places[0] + "".join(data.draw(st.sampled_from(between)) + one for one in statement.places[1:])
    words = str(statement).replace(", ".join(statement.places), places, 1).split(" ")
    text = "".join(word + data.draw(BLANK) for word in words)
    assert parse(text) == statement


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    assume(" reaches " not in text)
    with pytest.raises(StatementInvalid) as caught:
        parse(text)
    assert len(str(caught.value).splitlines()) == 1


def test_the_words_of_a_tenant_are_never_taken_for_a_date() -> None:
    assert parse("DE never reaches US for until until 2027-01-01").tenant == "until"
    assert parse("DE never reaches US for until").tenant == "until"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write SUBJECT never|only reaches REGIONS-OR-COUNTRIES [for TENANT] [until DATE], such as: DE only"),
        ("DE", "'DE' is no statement"),
        ("DE always reaches US", "is no statement"),
        ("DE never reaches", "is no statement"),
        ("DE or FR never reaches US", "is no statement"),
        ("DE never reaches US CN", "'US CN' is not one place; put a comma or `or` between places"),
        ("DE never reaches US,, CN", "'' is not one place"),
        ("DE never reaches US until 2027-01-01 for demo", "'US until 2027-01-01' is not one place"),
        ("DE never reaches US until soon", "until: 'soon' is not a day; write YYYY-MM-DD"),
        ("DE never reaches US until 2027-02-29", "until: '2027-02-29' is not a day"),
        ("DE never reaches US until 20270101", "until: '20270101' is not a day"),
    ],
)
def test_the_form_is_refused(text: str, said: str) -> None:
    with pytest.raises(StatementInvalid) as caught:
        parse(text)
    assert said in str(caught.value)


def meaning(text: str, world: Settings = WORLD, book: LawBook = BOOK) -> Meaning:
    return read(parse(text), world, book, TODAY)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("de never reaches US", "subject: 'de' is unknown; codes are written in capitals: DE, an area (EEA, EU, UK)"),
        ("XX never reaches US", "subject: 'XX' is unknown; write an ISO 3166 code"),
        ("EL never reaches US", "subject: 'EL' is unknown; write GR"),
        ("DE never reaches Us", "'Us' is unknown; codes are written in capitals: US, an area (EEA, EU, UK), or a"),
        ("DE never reaches US, or", "'or' is unknown; write an ISO 3166 code"),
        ("DE never reaches mars", "'mars' is unknown; write an ISO 3166 code"),
        ("DE never reaches mars", "or a region: de, ie, uk, ch, us, us-dpf"),
        ("DE never reaches US-CA", "'US-CA' is a part of a country; name the country US, or regions by their ids"),
        ("DE never reaches US for nobody", "for: there is no tenant 'nobody'; configured: stay, move"),
        ("DE never reaches US until 2026-11-21", "until: 2026-11-21 has passed; write 2026-11-22 or a later day"),
    ],
)
def test_names_that_are_not_there_are_refused(text: str, said: str) -> None:
    with pytest.raises(StatementInvalid) as caught:
        meaning(text)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def named(text: str, world: Settings = WORLD, day: date = TODAY) -> list[str]:
    found = meaning(text, world)
    return [region.id for region in world.regions if found.inside(region, day)]


def changed(region: str, **values: Any) -> Settings:
    regions = tuple(one.model_copy(update=values) if one.id == region else one for one in WORLD.regions)
    return WORLD.model_copy(update={"regions": regions})


def test_a_country_is_all_its_regions_and_an_id_only_one() -> None:
    assert named("DE never reaches US") == ["us", "us-dpf", "us-full", "us-ads"]
    assert named("DE never reaches us") == ["us"]
    assert named("DE only reaches EEA, us-dpf or CH") == ["de", "ie", "ch", "us-dpf"]
    assert named("DE only reaches UK") == ["uk"]
    assert named("DE never reaches FR") == []


def test_an_id_that_reads_as_a_place_is_refused() -> None:
    world = changed("us", id="US")
    with pytest.raises(StatementInvalid, match="'US' is a place and the id of a region"):
        meaning("DE never reaches US", world)
    assert named("DE never reaches us-dpf", world) == ["us-dpf"]


def test_a_region_of_global_scope_never_helps_the_statement() -> None:
    world = changed("de", upstream_scope="global")
    assert named("US never reaches CN", world) == ["de", "cn"]
    assert named("US only reaches DE, IE", world) == ["ie"]
    assert named("US only reaches de", world) == ["de"]
    assert named("US never reaches ie", world) == ["ie"]


def test_membership_of_an_area_has_dates() -> None:
    world = changed("br", country="IS")
    assert "br" in named("DE only reaches EEA", world)
    assert "br" not in named("DE only reaches EU", world)
    assert "br" not in named("DE only reaches EEA", world, date(2018, 7, 19))


def test_an_area_of_parts_doubts_a_region_whose_part_is_unknown() -> None:
    west = {"id": "xx-west", "places": ["US-CA", "US-OR"], "areas": ["WEST"], "valid": [TODAY, None], "law": "Art. 1"}
    law = {"id": "xx", "name": "A law", "reviewed": TODAY, "reviewed_until": TODAY, "transfers": "open"}
    book = LawBook.build([("xx.yaml", law | {"members": [west]})])
    world = changed("us", subdivision=None)
    for kind, expected in (("never", ["us", "us-full", "us-ads"]), ("only", ["us-full", "us-ads"])):
        found = read(parse(f"US {kind} reaches WEST"), world, book, TODAY)
        assert [region.id for region in world.regions if found.inside(region, TODAY)] == expected


def test_an_area_has_a_name_that_is_no_code() -> None:
    for name in ("FR", "fr", "US-CA"):
        home = {"id": "xx-home", "places": ["FR"], "areas": [name], "valid": [TODAY, None], "law": "Art. 1"}
        law = {"id": "xx", "name": "A law", "reviewed": TODAY, "reviewed_until": TODAY, "transfers": "open"}
        with pytest.raises(LawInvalid, match="is an ISO 3166 code; an area needs a name of its own"):
            LawBook.build([("xx.yaml", law | {"members": [home]})])


def test_subjects_are_codes_by_which_a_law_knows_them() -> None:
    assert meaning("DE never reaches US").subjects(TODAY) == ("DE",)
    assert meaning("US never reaches CN").subjects(TODAY) == ("US", "US-CA")
    assert meaning("US-CA never reaches CN").subjects(TODAY) == ("US-CA",)
    assert {"DE", "FR", "NO"} <= set(meaning("EEA never reaches US").subjects(TODAY))
    assert "NO" not in meaning("EU never reaches US").subjects(TODAY)
    assert meaning("UK never reaches US").subjects(TODAY) == ("GB",)
    assert meaning("UK never reaches US").subjects(date(2020, 12, 31)) == ()


def test_the_horizon_is_two_years_or_the_day_that_is_named() -> None:
    assert (meaning("DE never reaches US").first, meaning("DE never reaches US").last) == (TODAY, date(2028, 11, 22))
    assert meaning("DE never reaches US until 2026-11-22").last == TODAY
    leap = date(2028, 2, 29)
    assert read(parse("DE never reaches US"), WORLD, BOOK, leap).last == date(2030, 2, 28)


def test_one_tenant_or_all() -> None:
    assert meaning("DE never reaches US").tenants == WORLD.tenants
    assert [tenant.id for tenant in meaning("DE never reaches US for scc").tenants] == ["scc"]
