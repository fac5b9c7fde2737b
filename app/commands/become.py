"""How a command of ours turns into one of the workers' programs, which the gateway never loads."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by `python -m module arguments`, without a shell."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - our own module
