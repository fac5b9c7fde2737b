"""SIGHUP means two things: reload; or the terminal has gone, and whoever was started from it has to end."""

import os
from typing import Final

_STANDARD: Final = (0, 1, 2)


class Terminal:
    """The terminal that this process was started from, if any."""

    def __init__(self) -> None:
        self._open = [descriptor for descriptor in _STANDARD if os.isatty(descriptor)]

    def hung_up(self) -> bool:
        """Whether there was one and it has gone; what is written to it goes nowhere then, instead of failing."""
        if not self._open or any(os.isatty(descriptor) for descriptor in self._open):
            return False
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in self._open:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        return True
