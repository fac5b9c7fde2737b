"""Checkpoints kept outside of the log that they are about: by an auditor, or by a gateway that witnesses it."""

from dataclasses import dataclass
from pathlib import Path

from app.audit.checkpoint import MAX_NOTE_BYTES, Checkpoint, NoteError, claimed


@dataclass(frozen=True, slots=True)
class Saved:
    """A signed note and what it says of a log; whether it is signed at all has not been looked at."""

    source: str
    note: str
    checkpoint: Checkpoint

    @classmethod
    def read(cls, file: Path) -> "Saved":
        """The checkpoint in a file. Raises NoteError for one that holds none, OSError where it cannot be read."""
        with file.open("rb") as stream:
            raw = stream.read(MAX_NOTE_BYTES + 1)
        try:
            note = raw.decode()
            return cls(str(file), note, claimed(note))
        except ValueError as error:
            raise NoteError(f"{file} holds no checkpoint: {error}") from error

    @property
    def log(self) -> str:
        """The name of the log that it is about."""
        return self.checkpoint.origin.rpartition("/")[2]
