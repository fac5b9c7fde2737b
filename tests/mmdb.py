"""Writes small MaxMind DB files (https://maxmind.github.io/MaxMind-DB/, version 2.0), for tests that read them."""

import struct
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

_STRING, _MAP, _ARRAY, _UINT16, _UINT32, _UINT64 = 2, 7, 11, 5, 6, 9
_IPV4_IN_IPV6 = 96


def write(path: Path, networks: Mapping[str, Any], kind: str = "Test-Country", ip_version: int = 6) -> Path:
    """A database whose networks (none inside another) have these records."""
    width = 128 if ip_version == 6 else 32
    nodes: list[list[int | None]] = [[None, None]]
    data = bytearray()
    leaves: list[tuple[int, int, int]] = []
    for text, record in networks.items():
        network = ip_network(text)
        shift = _IPV4_IN_IPV6 if ip_version == 6 and network.version == 4 else 0
        leaves.append((*_leaf(nodes, int(network.network_address), network.prefixlen + shift, width), len(data)))
        data += _encode(record)
    for node, side, offset in leaves:
        nodes[node][side] = len(nodes) + 16 + offset
    tree = b"".join((len(nodes) if part is None else part).to_bytes(3, "big") for node in nodes for part in node)
    metadata = {
        "binary_format_major_version": (_UINT16, 2),
        "binary_format_minor_version": (_UINT16, 0),
        "build_epoch": (_UINT64, 1_790_000_000),
        "database_type": kind,
        "description": {"en": "made for a test"},
        "ip_version": (_UINT16, ip_version),
        "languages": ["en"],
        "node_count": (_UINT32, len(nodes)),
        "record_size": (_UINT16, 24),
    }
    path.write_bytes(tree + bytes(16) + bytes(data) + b"\xab\xcd\xefMaxMind.com" + _encode(metadata))
    return path


def countries(path: Path, networks: Mapping[str, str]) -> Path:
    """As GeoLite2-Country has them."""
    return write(path, {network: {"country": {"iso_code": code}} for network, code in networks.items()})


def _leaf(nodes: list[list[int | None]], address: int, length: int, width: int) -> tuple[int, int]:
    """The node and side at which a network ends, with the nodes on the way to it."""
    node = 0
    bits = [address >> (width - 1 - depth) & 1 for depth in range(length)]
    for bit in bits[:-1]:
        below = nodes[node][bit]
        if below is None:
            nodes.append([None, None])
            below = nodes[node][bit] = len(nodes) - 1
        node = below
    return node, bits[-1]


def _encode(value: Any) -> bytes:
    if isinstance(value, str):
        return _control(_STRING, len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return _control(_MAP, len(value)) + b"".join(_encode(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return _control(_ARRAY, len(value)) + b"".join(map(_encode, value))
    kind, number = value
    text = struct.pack(">Q", number).lstrip(b"\0")
    return _control(kind, len(text)) + text


def _control(kind: int, size: int) -> bytes:
    assert size < 29
    return bytes([kind << 5 | size]) if kind < 8 else bytes([size, kind - 7])
