"""Who is calling, and from where: the far side of the trusted proxies, its country, and a point on Earth for it."""

import ipaddress
from collections.abc import Callable, Sequence
from typing import Final

import iptocc

from app.config import Settings
from app.types import Caller, Head, Place
from regions import catalogue

FORWARDED_FOR: Final = "X-Forwarded-For"
GEO_HINTS: Final = ("CF-IPCountry", "X-Vercel-IP-Country", "X-AppEngine-Country")

PLACE_HEADERS: Final = frozenset(name.lower() for name in (FORWARDED_FOR, *GEO_HINTS))
"""All of a head that `locate` reads, besides its peer."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Geo:
    """Country of an address by the registries' allocations: a table inside `iptocc`, 0.1 us a look-up, thread-safe.

    `lookup` maps an address to a country's code or None; another table can stand in for the embedded one.
    """

    def __init__(self, lookup: Callable[[str], str | None] = iptocc.country_code) -> None:
        self._lookup = lookup

    def country(self, address: str) -> str | None:
        """ISO 3166-1 code; None for private, loopback and unallocated addresses, and for blocks of no one country."""
        parsed = _parse(address)
        if parsed is None or not parsed.is_global:
            return None
        return country_code(self._lookup(str(parsed)))


def country_code(text: str | None) -> str | None:
    """The country that `text` names, or None: also for the markers of the unknown (XX, ZZ, T1) and for EU."""
    try:
        return None if text is None else catalogue.parse_code(text.strip()).country
    except ValueError:
        return None


def locate(head: Head, settings: Settings, geo: Geo) -> Caller:
    """The caller behind this request's peer.

    X-Forwarded-For and geo headers count only where the peer is a trusted proxy; otherwise their names are kept in
    `ignored_hints`. The place is the middle of the caller's country, else the gateway's own region, else unknown.
    """
    trusted = settings.gateway.trusted_proxies
    peer = _parse(head.peer or "")
    if peer is None or not _within(peer, trusted):
        ignored = tuple(name for name in (FORWARDED_FOR, *GEO_HINTS) if name in head.headers)
        address, hint = (None if peer is None else str(peer)), None
    else:
        ignored, hint = (), _hint(head)
        address = _behind_proxies(peer, head.headers.getlist(FORWARDED_FOR), trusted)
    country = hint or (geo.country(address) if address else None)
    return Caller(address, country, _place(country, settings), hint is not None, ignored)


def _behind_proxies(peer: _Address, forwarded: Sequence[str], trusted: tuple[_Network, ...]) -> str | None:
    """The rightmost address that no trusted proxy of ours has; None where a trusted proxy wrote no address there.

    What stands further left was written by the caller, who may write anything.
    """
    address = peer
    for entry in reversed(",".join(forwarded).split(",") if forwarded else []):
        hop = _parse(_without_port(entry.strip()))
        if hop is None:
            return None
        address = hop
        if not _within(hop, trusted):
            break
    return str(address)


def _hint(head: Head) -> str | None:
    """The country that a trusted proxy names; a header that came twice is nobody's word."""
    for name in GEO_HINTS:
        values = head.headers.getlist(name)
        code = country_code(values[0]) if len(values) == 1 else None
        if code:
            return code
    return None


def _place(country: str | None, settings: Settings) -> Place | None:
    point = catalogue.centroid(country) if country else None
    if point:
        return Place(*point)
    own = settings.region(settings.gateway.region) if settings.gateway.region else None
    return Place(own.latitude, own.longitude) if own else None


def _without_port(entry: str) -> str:
    """Some proxies write `192.0.2.1:4711` or `[2001:db8::1]:4711`."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _parse(text: str) -> _Address | None:
    """An address; an IPv4 one that comes mapped into IPv6, as on a dual-stack socket, as IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _within(address: _Address, networks: tuple[_Network, ...]) -> bool:
    return any(address in network for network in networks)
