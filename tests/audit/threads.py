"""What the threads of this process do."""

import sys

from app.stores import files


def replacing() -> int:
    """Threads that are putting a file in the place of another right now."""
    return sum(frame.f_code is files.replace.__code__ for frame in sys._current_frames().values())
