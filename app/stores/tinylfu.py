"""W-TinyLFU (Einziger, Friedman, Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", ACM ToS 13(4), 2017).

A new entry passes through a small window; who leaves it gets into the main part only where it has been asked for more
often lately than whom it would drive out. So a scan, or a crowd of texts that come once, drives out nobody who is
asked for again. The main part is a segmented LRU: what is found there moves to its protected segment.

How large the window should be depends on whether texts come again soon or often. It is found by climbing (Einziger,
Eytan, Friedman, Manes, "Adaptive Software Cache Management", Middleware 2018): a step one way as long as more is found.
"""

from collections import OrderedDict
from struct import Struct
from typing import Final, Generic, TypeVar

WINDOW: Final = 0.05
"""Share of the capacity that is the window's to begin with."""
_STEP: Final = 0.0625
"""Of the capacity, by which the window first changes; less with every turn, until what is asked for changes."""
_CALM: Final = 0.98
_RESTART: Final = 0.05
"""Change of the hit rate at which the steps are large again."""
PROTECTED: Final = 0.8
"""Share of the main part that is its protected segment's."""
SAMPLE: Final = 10
"""Askings for each entry of the capacity after which all frequencies are halved (section 3.3)."""
_ROWS: Final = Struct("<4I")
_WIDEST: Final = 1 << 20
_COUNTERS: Final = 2
"""In each row, at least, for each entry of the capacity."""
_MOST: Final = 15
_HALVED: Final = bytes(count >> 1 for count in range(256))

Value = TypeVar("Value")


class Frequencies:
    """How often keys were asked for lately, about: a count-min sketch of four rows, counts up to 15, halved by and by.

    A key's first 16 bytes must be evenly distributed, as those of a digest are.
    """

    def __init__(self, entries: int) -> None:
        width = 1 << (_COUNTERS * min(entries, _WIDEST) + 63).bit_length()
        self._mask = width - 1
        self._rows = tuple(bytearray(width) for _ in range(4))
        self._left = self._sample = SAMPLE * max(entries, 1)

    def add(self, key: bytes) -> None:
        """It is asked for once more."""
        mask = self._mask
        for row, place in zip(self._rows, _ROWS.unpack_from(key), strict=True):
            count = row[place & mask]
            if count < _MOST:
                row[place & mask] = count + 1
        self._left -= 1
        if self._left <= 0:
            self._rows = tuple(row.translate(_HALVED) for row in self._rows)
            self._left = self._sample // 2

    def of(self, key: bytes) -> int:
        """The count, never too low but for halvings."""
        first, second, third, fourth = self._rows
        a, b, c, d = _ROWS.unpack_from(key)
        mask = self._mask
        count: int = min(first[a & mask], second[b & mask], third[c & mask], fourth[d & mask])
        return count


class TinyLfu(Generic[Value]):
    """Values by key, of any costs that add up to `capacity` at most; `entries` is about how many that will be."""

    def __init__(self, capacity: int, entries: int, window: float = WINDOW, *, climbing: bool = True) -> None:
        self._capacity = capacity
        self._share = window
        self._step = _STEP if climbing else 0.0
        self._period = self._left = max(entries, 1000)
        self._found, self._rate = 0, 0.0
        self._divide()
        self._asked = Frequencies(entries)
        self._window: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._probation: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._protected: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._window_cost = self._protected_cost = 0
        self.cost = 0
        """Of all that is held."""

    def __len__(self) -> int:
        return len(self._window) + len(self._probation) + len(self._protected)

    def get(self, key: bytes) -> Value | None:
        """The value, which is then further from being driven out."""
        self._asked.add(key)
        self._left -= 1
        if self._left <= 0:
            self._climb()
        for segment in (self._protected, self._window):
            if (found := segment.get(key)) is not None:
                segment.move_to_end(key)
                self._found += 1
                return found[0]
        found = self._probation.pop(key, None)
        if found is None:
            return None
        self._found += 1
        self._protected[key] = found
        self._protected_cost += found[1]
        while self._protected_cost > self._protected_room and len(self._protected) > 1:
            other, kept = self._protected.popitem(last=False)
            self._protected_cost -= kept[1]
            self._probation[other] = kept
        return found[0]

    def _climb(self) -> None:
        """Move the window's share on as long as more is found that way, else back, by less and less."""
        rate = self._found / self._period
        change = rate - self._rate
        if change < 0:
            self._step = -self._step
        self._step *= _CALM
        if abs(change) >= _RESTART and self._step:
            self._step = _STEP if self._step > 0 else -_STEP
        self._rate, self._found, self._left = rate, 0, self._period
        self._share = min(max(self._share + self._step, 0.01), 0.99)
        self._divide()

    def _divide(self) -> None:
        self._window_room = int(self._capacity * self._share)
        self._protected_room = int((self._capacity - self._window_room) * PROTECTED)

    def peek(self, key: bytes) -> Value | None:
        """The value, for nobody's sake."""
        found = self._protected.get(key) or self._window.get(key) or self._probation.get(key)
        return None if found is None else found[0]

    def put(self, key: bytes, value: Value, cost: int) -> list[Value]:
        """Take a value in, in place of an older one; returns those that had to go, which may be others or itself."""
        self.pop(key)
        if cost > self._capacity:
            return [value]
        self._window[key] = value, cost
        self._window_cost += cost
        self.cost += cost
        gone: list[Value] = []
        while self._window_cost > self._window_room and len(self._window) > 1:
            candidate, kept = self._window.popitem(last=False)
            self._window_cost -= kept[1]
            self._admit(candidate, kept, gone)
        while self.cost > self._capacity:
            self._drop(self._victim() or next(iter(self._window)), gone)
        return gone

    def pop(self, key: bytes) -> Value | None:
        """The value, no longer held."""
        if key in self._window:
            found = self._window.pop(key)
            self._window_cost -= found[1]
        elif key in self._protected:
            found = self._protected.pop(key)
            self._protected_cost -= found[1]
        elif key in self._probation:
            found = self._probation.pop(key)
        else:
            return None
        self.cost -= found[1]
        return found[0]

    def _admit(self, candidate: bytes, kept: tuple[Value, int], gone: list[Value]) -> None:
        """Into the main part, if it has been asked for more often than each that has to go for it."""
        while self.cost > self._capacity:
            victim = self._victim()
            if victim is None or not self._better(candidate, victim):
                self.cost -= kept[1]
                gone.append(kept[0])
                return
            self._drop(victim, gone)
        self._probation[candidate] = kept

    def _better(self, candidate: bytes, victim: bytes) -> bool:
        """Who draws level stays out, or what comes round in turn would drive itself out; but not among beginners."""
        asked, others = self._asked.of(candidate), self._asked.of(victim)
        return asked > others or asked == others <= 1

    def _victim(self) -> bytes | None:
        """Who is to leave the main part next."""
        return next(iter(self._probation or self._protected), None)

    def _drop(self, key: bytes, gone: list[Value]) -> None:
        value = self.pop(key)
        if value is not None:
            gone.append(value)
