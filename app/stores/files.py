"""Files of the stores: made for their owner only, their names durable."""

import os
from contextlib import suppress
from pathlib import Path


def make(path: Path) -> None:
    """An empty file of mode 0600 where there is none (SQLite copies the mode to its side files), its name durable."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Put a file of mode 0600 in the place of another, durably: readers see the one or the other."""
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)
    draft.replace(path)
    sync_directory(path.parent)
