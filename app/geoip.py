"""Country of an address from a MaxMind DB file (`.mmdb`): GeoLite2, GeoIP2, DB-IP or IPinfo, by country or by city.

The file is mapped into memory: replace it by renaming another over it, which a running gateway then notices.
"""

from itertools import islice
from pathlib import Path
from typing import Any, Final

_SAMPLE: Final = 1000
"""Entries of which one at least must name a country; a file of networks' owners, say, names none."""


class Database:
    """An open file; look-ups take some microseconds and may come from any thread.

    Raises `ValueError` where the file cannot be read, is no such database or is one of something else.
    """

    def __init__(self, path: Path) -> None:
        import maxminddb  # noqa: PLC0415 - most gateways have no such file

        self._damaged = (maxminddb.InvalidDatabaseError, ValueError)
        try:
            self._reader = maxminddb.open_database(path)
            known = any(_country(record) for _, record in islice(self._reader, _SAMPLE))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}; name a MaxMind DB file (.mmdb)") from error
        except self._damaged as error:
            raise ValueError(f"{path} is no MaxMind DB file (.mmdb), or a damaged one") from error
        if not known:
            raise ValueError(f"{path} names no countries; a country or city database is needed")

    def country(self, address: str) -> str | None:
        """The code that the file has for an address: where it is used, else where its block is registered."""
        try:
            return _country(self._reader.get(address))
        except self._damaged:
            return None  # damaged just there, or an IPv6 address and a file of IPv4 only


def _country(record: Any) -> str | None:
    for name in ("country", "registered_country"):
        part = record.get(name) if isinstance(record, dict) else None
        code = part.get("iso_code") if isinstance(part, dict) else part
        if isinstance(code, str):
            return code
    return None
