"""Server-sent events passing through: where the closing `data: [DONE]` begins, however the network cuts the bytes."""

import re
from dataclasses import dataclass

_DONE = re.compile(rb"(?:\A|(?<=[\r\n]))data: ?\[DONE\][ \t]*[\r\n]")
_LINES = (b"data: [DONE]", b"data:[DONE]")
_LONGEST = 64
"""Bytes of a line that may still turn out to be the closing one, blanks after it included."""


@dataclass(slots=True)
class EndOfStream:
    """Holds back the closing event of a stream, and nothing before it (HTML Living Standard, 9.2: lines of an event).

    A line that has only begun is held for as long as it may become the closing one; text inside an event that spells
    the marker is no line of its own and passes.
    """

    held: bytes = b""
    """The closing event and what came after it; or the beginning of a line that may become it."""
    found: bool = False
    _line_start: bool = True

    def feed(self, chunk: bytes) -> bytes:
        """What may be passed on now."""
        if self.found:
            self.held += chunk
            return b""
        line_start = self._line_start
        data = self.held + chunk
        self.held = b""
        done = _DONE.search(data)
        while done is not None and done.start() == 0 and not line_start:
            done = _DONE.search(data, done.end())
        if done is not None:
            self.found, self.held = True, data[done.start() :]
            return data[: done.start()]
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        tail = data[cut:]
        self._line_start = cut > 0 or line_start
        if tail and self._line_start and _may_close(tail):
            self.held = tail
            return data[:cut]
        self._line_start = self._line_start and not tail
        return data


def _may_close(tail: bytes) -> bool:
    bare = tail.rstrip(b" \t")
    return len(tail) <= _LONGEST and any(line.startswith(tail) or bare == line for line in _LINES)
