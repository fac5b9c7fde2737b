import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.caller import Geo, locate
from app.config import Settings
from app.fields import Fields
from app.types import Caller, Head
from regions.catalogue import centroid

GERMAN, AMERICAN, JAPANESE = "88.217.1.1", "8.8.8.8", "133.11.0.1"
PROXY = "10.0.0.1"


def settings_for(region=None):
    return Settings.model_validate(
        {
            "version": 1,
            "gateway": {"region": region, "trusted_proxies": ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32"]},
            "regions": [
                {"id": "eu", "country": "IE", "latitude": 53.3, "longitude": -6.3, "operator": {"name": "acme"}}
            ],
            "tenants": [{"id": "demo"}],
        }
    )


def found(peer, *headers, region=None) -> Caller:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return locate(Head("POST", "/v1/embeddings", Fields(raw), peer), settings_for(region), Geo())


def test_a_direct_caller_is_its_peer():
    caller = found(GERMAN)
    assert (caller.address, caller.country, caller.ignored_hints) == (GERMAN, "DE", ())
    assert (caller.place.latitude, caller.place.longitude) == centroid("DE")
    assert not caller.hinted


def test_what_an_untrusted_peer_says_counts_for_nothing_and_is_recorded():
    caller = found(GERMAN, ("X-Forwarded-For", AMERICAN), ("CF-IPCountry", "US"), ("X-AppEngine-Country", "JP"))
    assert (caller.address, caller.country) == (GERMAN, "DE")
    assert caller.ignored_hints == ("X-Forwarded-For", "CF-IPCountry", "X-AppEngine-Country")


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ([GERMAN], GERMAN),
        ([f"{AMERICAN}, {GERMAN}"], GERMAN),  # what stands left of it, the caller wrote
        ([f"{AMERICAN}, {GERMAN}, 10.1.2.3,192.0.2.7"], GERMAN),  # two proxies of ours in a row
        ([AMERICAN, GERMAN, "10.1.2.3"], GERMAN),  # several fields are one list
        ([f"{GERMAN}:4711"], GERMAN),
        (["[2003:e4::1]:4711"], "2003:e4::1"),
        (["2003:e4::1"], "2003:e4::1"),
        ([f"::ffff:{GERMAN}"], GERMAN),
        ([f"{GERMAN}, unknown"], None),  # our own proxy did not know
        ([f"{GERMAN}, "], None),
        (["10.9.9.9, 10.1.2.3"], "10.9.9.9"),  # a caller among our own machines
        ([], PROXY),
        ([f"{AMERICAN}, 2003:e4::1, 2001:db8:1::9, ::ffff:10.3.3.3"], "2003:e4::1"),  # hops of both families
        (["2003:E4:0:0:0:0:0:1"], "2003:e4::1"),
        (["[2003:e4::1]"], "2003:e4::1"),
        ([f"[::ffff:{GERMAN}]:443"], GERMAN),
        ([f"  {GERMAN}  ,\t10.1.2.3 "], GERMAN),
        ([f"{AMERICAN}, {GERMAN}:4711, 10.1.2.3:80, [2001:db8::7]:443"], GERMAN),
        ([f"{AMERICAN}, , 10.1.2.3"], None),
        ([f"{AMERICAN}, for={GERMAN}"], None),  # RFC 7239's form belongs in another header
        ([f"{AMERICAN}, {GERMAN}/24"], None),
        ([f"{AMERICAN}, 088.217.001.001"], None),  # octal or not, nobody knows
        ([f"{AMERICAN}, 1481179393"], None),
        ([f"{AMERICAN}, 2003:e4::1:4711:80:1:2:3:4:5"], None),
        ([f"{AMERICAN}, [2003:e4::1"], "2003:e4::1"),
        ([f"{AMERICAN}, \u00b2\u00b2.1.1.1"], None),
        ([""], None),
    ],
)
def test_forwarded_for_is_walked_from_the_right_through_trusted_proxies(forwarded, address):
    caller = found(PROXY, *(("X-Forwarded-For", value) for value in forwarded))
    assert caller.address == address
    assert caller.ignored_hints == ()


def test_a_trusted_proxys_country_goes_before_the_address():
    caller = found(PROXY, ("X-Forwarded-For", GERMAN), ("CF-IPCountry", "fr"))
    assert (caller.address, caller.country, caller.hinted) == (GERMAN, "FR", True)
    assert (caller.place.latitude, caller.place.longitude) == centroid("FR")


@pytest.mark.parametrize("header", ["CF-IPCountry", "X-Vercel-IP-Country", "X-AppEngine-Country"])
def test_each_geo_header_is_read(header):
    assert found(PROXY, (header, "JP")).country == "JP"


@pytest.mark.parametrize("hint", ["XX", "ZZ", "T1", "EU", "", "Germany", "UK", "??"])
def test_a_hint_that_names_no_country_is_none(hint):
    assert found(PROXY, ("X-Forwarded-For", GERMAN), ("CF-IPCountry", hint)).country == "DE"
    assert found(PROXY, ("CF-IPCountry", hint), ("X-Vercel-IP-Country", "FR")).country == "FR"


def test_a_hint_that_came_twice_is_nobodys_word():
    assert found(PROXY, ("CF-IPCountry", "US"), ("CF-IPCountry", "DE")).country is None


@pytest.mark.parametrize("peer", ["127.0.0.1", "192.168.1.1", "::1", "fe80::1%eth0", "100.64.0.1", None, "testclient"])
def test_a_caller_of_no_country_is_placed_with_the_gateway(peer):
    assert found(peer).country is None
    assert found(peer).place is None
    place = found(peer, region="eu").place
    assert (place.latitude, place.longitude) == (53.3, -6.3)


def test_a_peer_on_a_dual_stack_socket_is_known_by_its_ipv4_address():
    assert found(f"::ffff:{PROXY}", ("X-Forwarded-For", JAPANESE)).country == "JP"
    assert found(f"::ffff:{GERMAN}").address == GERMAN


@pytest.mark.parametrize("peer", ["2001:db8::1", "2001:db8:ffff::1%eth0", f"::ffff:{PROXY}", "::FFFF:0A00:0001"])
def test_proxies_of_either_family_are_trusted_in_every_spelling(peer):
    caller = found(peer, ("X-Forwarded-For", GERMAN), ("CF-IPCountry", "FR"))
    assert (caller.address, caller.country, caller.ignored_hints) == (GERMAN, "FR", ())


@pytest.mark.parametrize(
    "peer", ["2001:db9::1", "11.0.0.1", "::10.0.0.1", "192.0.2.8", "::ffff:192.0.2.6", None, "junk"]
)
def test_whoever_stands_just_outside_is_not_trusted(peer):
    caller = found(peer, ("X-Forwarded-For", GERMAN), ("CF-IPCountry", "FR"))
    assert caller.country not in ("DE", "FR")
    assert caller.ignored_hints == ("X-Forwarded-For", "CF-IPCountry")


@pytest.mark.parametrize(
    ("address", "country"),
    [
        ("2001:4860:4860::8888", "US"),
        ("2a02:8070::1", "DE"),
        ("81.2.69.142", "GB"),
        (JAPANESE, "JP"),
        ("0.0.0.0", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_the_embedded_table(address, country):
    assert Geo().country(address) == country


def test_another_table_can_stand_in():
    geo = Geo({GERMAN: "EU", AMERICAN: "us"}.get)
    assert [geo.country(address) for address in (GERMAN, AMERICAN, JAPANESE)] == [None, "US", None]


texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)
entries = st.lists(st.ip_addresses().map(str) | texts | st.just(PROXY), max_size=6)


@given(entries, st.ip_addresses(v=4).map(str))
@settings(deadline=None)
def test_nothing_written_left_of_the_callers_own_address_counts(entries, caller):
    spoofed = found(PROXY, ("X-Forwarded-For", ", ".join([*entries, caller])))
    if not caller.startswith("10.") and caller != "192.0.2.7":
        assert spoofed == found(PROXY, ("X-Forwarded-For", caller))


@given(st.lists(st.tuples(st.sampled_from(["X-Forwarded-For", "CF-IPCountry", "X-Vercel-IP-Country"]), texts)))
@settings(deadline=None)
def test_an_untrusted_peer_cannot_move_itself(headers):
    caller = found(GERMAN, *headers)
    assert (caller.address, caller.country) == (GERMAN, "DE")
    assert set(caller.ignored_hints) == {name for name, _ in headers}
