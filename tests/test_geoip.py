"""Countries from MaxMind DB files: what a file says, and files that say nothing."""

from pathlib import Path
from typing import Any

import pytest

from app.caller import Geo
from app.geoip import Database
from app.settings_file import ConfigInvalid, load
from tests.mmdb import countries, write

SMALL = """\
version: 1
gateway:
  geoip: {file}
regions: [{{id: eu, country: IE, latitude: 53.3, longitude: -6.3, operator: {{name: acme}}}}]
tenants: [{{id: one}}]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return countries(tmp_path / "geo.mmdb", {"88.217.0.0/16": "AT", "2003:e4::/32": "CH", "8.8.0.0/16": "EU"})


def configured(directory: Path, name: str) -> Path:
    written = directory / "tidegate.yaml"
    written.write_text(SMALL.format(file=name))
    return written


def test_a_file_stands_in_for_the_table(file: Path) -> None:
    geo = Geo(Database(file).country)
    assert geo.country("88.217.1.1") == "AT"
    assert geo.country("2003:e4::1") == "CH"
    assert geo.country("::ffff:88.217.1.1") == "AT"
    assert geo.country("8.8.8.8") is None, "EU is no country"
    assert geo.country("133.11.0.1") is None, "the table is not asked as well"
    assert geo.country("10.0.0.1") is None


@pytest.mark.parametrize(
    ("record", "country"),
    [
        ({"country": {"iso_code": "DE"}, "registered_country": {"iso_code": "US"}}, "DE"),
        ({"registered_country": {"iso_code": "US"}}, "US"),
        ({"country": "JP"}, "JP"),  # as IPinfo writes it
        ({"country": {"names": "Japan"}}, None),
        ({"city": "Tokyo"}, None),
        ("JP", None),
    ],
)
def test_where_an_entry_names_its_country(tmp_path: Path, record: Any, country: str | None) -> None:
    other = {"country": {"iso_code": "FR"}}
    assert Database(write(tmp_path / "x", {"1.0.0.0/8": record, "2.0.0.0/8": other})).country("1.2.3.4") == country


def test_a_file_of_ipv4_only_knows_no_ipv6_address(tmp_path: Path) -> None:
    database = Database(write(tmp_path / "x", {"88.0.0.0/8": {"country": {"iso_code": "DE"}}}, ip_version=4))
    assert database.country("88.217.1.1") == "DE"
    assert database.country("2003:e4::1") is None
    assert database.country("nonsense") is None


def test_a_path_is_relative_to_the_configuration(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert load(configured(file.parent, "geo.mmdb"), {}).gateway.geoip == file
    assert load(configured(file.parent, "null"), {}).gateway.geoip is None
    assert load(configured(file.parent, "null"), {"TIDEGATE_GATEWAY__GEOIP": "geo.mmdb"}).gateway.geoip == file


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory; name a MaxMind DB file (.mmdb)"),
        (b"", "is no MaxMind DB file (.mmdb), or a damaged one"),
        (b"not a database" * 1000, "is no MaxMind DB file (.mmdb), or a damaged one"),
        (
            {"1.0.0.0/8": {"autonomous_system_number": "AS1"}},
            "names no countries; a country or city database is needed",
        ),
        ({"1.0.0.0/8": "damaged"}, "names no countries; a country or city database is needed"),
    ],
)
def test_a_file_that_is_of_no_use_is_a_problem_at_its_line(tmp_path: Path, content: Any, problem: str) -> None:
    name = tmp_path / "geo.mmdb"
    if isinstance(content, bytes):
        name.write_bytes(content)
    elif content is not None:
        write(name, content)
    written = configured(tmp_path, "geo.mmdb")
    with pytest.raises(ConfigInvalid) as caught:
        load(written, {})
    assert [str(one) for one in caught.value.problems] == [f"{written}:3: gateway.geoip: {name} {problem}"]


def test_a_directory_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MaxMind DB file"):
        Database(tmp_path)


def test_half_a_database_is_damaged(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="or a damaged one"):
        Database(file)
