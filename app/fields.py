"""The header fields of a request, sorted by name once: some thirty questions are asked of them."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeVar, overload

Default = TypeVar("Default")


class Fields:
    """Values by name, in whatever case that is asked for; those of one name in the order in which they came."""

    __slots__ = ("_values",)

    def __init__(self, raw: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """`raw` is as ASGI has it; every byte stands for the Latin-1 character (RFC 9110, section 5.5)."""
        self._values: dict[str, list[str]] = {}
        for name, value in raw:
            self._values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: Default) -> str | Default: ...
    def get(self, name: str, default: Default | None = None) -> str | Default | None:
        """The first value, or `default` where there is none."""
        values = self._values.get(name.lower())
        return values[0] if values else default

    def getlist(self, name: str) -> Sequence[str]:
        """All values."""
        return self._values.get(name.lower(), ())

    def has_any(self, names: AbstractSet[str]) -> bool:
        """Whether one of these, in lower case, is there."""
        return not self._values.keys().isdisjoint(names)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._values
