"""Files that hold one secret key of 32 random bytes each: they appear whole or not at all, for their owner only."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from app.stores import files
from app.stores.base import StoreError

KEY_SIZE = 32
"""Bytes: of an HMAC-SHA256 key, an AES-256 key and an Ed25519 seed alike."""


def read(file: Path) -> bytes:
    """The key in a file; `StoreError` where it is missing, cannot be read or has another length."""
    try:
        key = file.read_bytes()
    except OSError as error:
        raise StoreError(f"key {file}: {error.strerror}; restore it from a backup") from error
    if len(key) != KEY_SIZE:
        raise StoreError(f"key {file}: not {KEY_SIZE} bytes; restore it from a backup")
    return key


def exists(file: Path) -> bool:
    """Whether there is such a file; `StoreError` where that cannot be said."""
    try:
        return file.exists()
    except OSError as error:
        raise StoreError(f"key {file}: {error.strerror}") from error


def obtain(file: Path) -> bytes:
    """The key in a file, made where there is none: of several who make it at the same time, the first wins."""
    if not exists(file):
        try:
            make_directory(file.parent)
            _make(file)
        except OSError as error:
            raise StoreError(f"key {file}: {error.strerror}") from error
    return read(file)


def replace(file: Path) -> None:
    """Put a new key in the place of one; readers see the one or the other."""
    try:
        make_directory(file.parent)
        files.replace(file, secrets.token_bytes(KEY_SIZE))
        sweep(file)
    except OSError as error:
        raise StoreError(f"key {file}: {error.strerror}") from error


def sweep(file: Path) -> None:
    """Delete what makers of a file left behind when they were killed: a copy of an old key would outlive it."""
    for draft in file.parent.glob(f".{file.name}.*"):
        draft.unlink(missing_ok=True)


def make_directory(directory: Path) -> None:
    """A directory for keys, its owner's only, where there is none."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        files.sync_directory(directory.parent)


def _make(file: Path) -> None:
    draft = _draft(file)
    try:
        os.link(draft, file)
    except (FileExistsError, FileNotFoundError):  # another was first, or has replaced and swept since
        if not file.exists():
            raise
    finally:
        draft.unlink(missing_ok=True)
    files.sync_directory(file.parent)  # also where another was first: its key is used now, so its name must last


def _draft(file: Path) -> Path:
    """A new key, on the disk under a name of its own."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(secrets.token_bytes(KEY_SIZE))
        stream.flush()
        os.fsync(stream.fileno())
    return draft
