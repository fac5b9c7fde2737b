"""Units and the small rules of single settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.config import Backend, GatewaySettings, Rate, Region, Size
from regions.settings import Duration

DURATION, SIZE = TypeAdapter(Duration), TypeAdapter(Size)
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@settings(deadline=None)
@given(st.integers(1, 10**6), st.sampled_from(sorted(SECONDS)), st.sampled_from(["", " "]))
def test_duration_is_seconds(number: int, unit: str, gap: str) -> None:
    assert DURATION.validate_python(f"{number}{gap}{unit}") == pytest.approx(number * SECONDS[unit])


@settings(deadline=None)
@given(st.integers(1, 10**6), st.sampled_from(sorted(BYTES)))
def test_size_is_bytes(number: int, unit: str) -> None:
    assert SIZE.validate_python(f"{number}{unit}") == number * BYTES[unit]


@settings(deadline=None)
@given(st.integers(1, 10**9), st.sampled_from([("second", 1), ("minute", 60), ("hour", 3600), ("day", 86400)]))
def test_rate_bursts_to_the_full_amount_unless_given(number: int, unit: tuple[str, int]) -> None:
    rate = Rate.model_validate(f"{number}/{unit[0]}")
    assert (rate.amount, rate.seconds, rate.burst) == (number, unit[1], number)
    assert Rate.model_validate({"amount": number, "seconds": unit[1]}) == rate
    assert Rate.model_validate({"amount": number, "seconds": 1, "burst": 1}).burst == 1


@pytest.mark.parametrize("text", ["5", "5 min", "-5s", "5S", "1e3s", "", "five s", "0s"])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(text)


@pytest.mark.parametrize("text", ["16MB", "-1", "1.5MiB", "", "0"])
def test_not_a_size(text: str) -> None:
    with pytest.raises(ValidationError):
        SIZE.validate_python(text)


@pytest.mark.parametrize("value", ["5", "5/fortnight", "0/minute", 5, None, ["5/minute"], {"amount": 5}])
def test_not_a_rate(value: object) -> None:
    with pytest.raises(ValidationError):
        Rate.model_validate(value)


@pytest.mark.parametrize(
    ("listen", "host", "port", "loopback"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("[::1]:0", "::1", 0, True),
        ("localhost:1", "localhost", 1, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
        ("example.org:80", "example.org", 80, False),
    ],
)
def test_listen(listen: str, host: str, port: int, loopback: bool) -> None:
    gateway = GatewaySettings(listen=listen)
    assert (gateway.host, gateway.port, gateway.on_loopback) == (host, port, loopback)


@pytest.mark.parametrize("listen", ["8080", ":8080", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:65536", ""])
def test_not_an_address(listen: str) -> None:
    with pytest.raises(ValidationError):
        GatewaySettings(listen=listen)


def test_backend_stands_in_one_place() -> None:
    assert Backend(managed=True, models=("m",)).url is None
    assert Backend(url="https://x.example/", models=("m",)).url == "https://x.example"
    for wrong in ({}, {"managed": True, "url": "https://x.example"}, {"url": "ftp://x"}, {"url": "https://u:p@x"}):
        with pytest.raises(ValidationError):
            Backend.model_validate({"models": ["m"], **wrong})


@pytest.mark.parametrize("name", ["", "-a", "a-", "a/b", "..", "a b", "gateway", "x" * 65])
def test_not_a_region_id(name: str) -> None:
    place = {"country": "IE", "latitude": 0, "longitude": 0, "operator": {"name": "x"}}
    assert Region.model_validate({"id": "a.B_9-c", **place}).id == "a.B_9-c"
    with pytest.raises(ValidationError):
        Region.model_validate({"id": name, **place})
