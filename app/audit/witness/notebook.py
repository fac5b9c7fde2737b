"""What a witness keeps of others' logs: the last checkpoint that was good, the key under it, the first that was not."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.audit import checkpoint
from app.audit.check.saved import Saved
from app.audit.checkpoint import Checkpoint, NoteError, VerifierKey
from app.audit.keys import FileKeys
from app.audit.place import Place
from app.config import WITNESS, AuditSettings
from app.stores.base import StoreError
from app.stores.files import replace
from app.stores.key_file import make_directory


@dataclass(frozen=True, slots=True)
class Witnessed:
    """A log's last good checkpoint, when it was cosigned (seconds since 1970), and the key pinned for the log."""

    checkpoint: Checkpoint
    seconds: int
    key: VerifierKey | None


class Notebook:
    """The files `witness/<peer>/<log>.{note,pub,conflict}` of an audit directory, and `witness/witness.pub`.

    Notes are cosigned (https://c2sp.org/tlog-cosignature) as `tidegate/<standing>/witness`. Used by one process, and
    by one thread at a time for each log. Blocking; every method may raise `StoreError`.
    """

    def __init__(self, settings: AuditSettings, standing: str) -> None:
        self._directory = settings.path / WITNESS
        self._signer = FileKeys(settings.key_directory).signing_key(WITNESS)
        self._own = Place(self._directory, WITNESS, standing)
        with _named(self._directory):
            make_directory(self._directory)
        self._own.publish(VerifierKey(self._own.origin, self._signer.public_key().public_bytes_raw()))

    def last(self, peer: str, log: str) -> Witnessed | None:
        """The last good checkpoint of a log; None where the log was never witnessed."""
        place = self._place(peer, log)
        try:
            saved = Saved.read(self.file(peer, log))
            seconds = self._cosigned_at(saved, place.origin)
        except FileNotFoundError:
            return None
        except (NoteError, OSError) as error:
            raise StoreError(f"witnessed checkpoint: {error}; restore it, or move it away to begin anew") from error
        keys = place.verifiers()
        return Witnessed(saved.checkpoint, seconds, keys[-1] if keys else None)

    def keep(self, peer: str, log: str, note: str, key: VerifierKey, seconds: int) -> None:
        """Cosign a checkpoint that was verified at that time and keep it, durably, in the place of the last.

        Raises NoteError where the note cannot take one more signature.
        """
        cosigned = checkpoint.cosigned(note, self._own.origin, self._signer, seconds)
        place = self._place(peer, log)
        with _named(place.directory):
            make_directory(place.directory)
            if place.verifiers() != [key]:
                replace(place.public, f"{key.line()}\n".encode())
            replace(self.file(peer, log), cosigned.encode())

    def keep_conflict(self, peer: str, log: str, note: str) -> None:
        """Keep a checkpoint that contradicts the last good one, unless there is one already."""
        file = self.conflict_file(peer, log)
        with _named(file):
            if not file.exists():
                make_directory(file.parent)
                replace(file, note.encode())

    def file(self, peer: str, log: str) -> Path:
        """Where the last good checkpoint of a log is kept."""
        return self._place(peer, log).directory / f"{log}.note"

    def conflict_file(self, peer: str, log: str) -> Path:
        """Where the first checkpoint is kept that contradicted it."""
        return self._place(peer, log).directory / f"{log}.conflict"

    def _place(self, peer: str, log: str) -> Place:
        return Place(self._directory / peer, log, peer)

    def _cosigned_at(self, saved: Saved, origin: str) -> int:
        """When we cosigned this checkpoint of that log, under whichever of our keys; raises NoteError if never."""
        if saved.checkpoint.origin == origin:
            for key in self._own.verifiers():
                with suppress(NoteError):
                    return checkpoint.cosigned_at(saved.note, key)
        raise NoteError(f"{saved.source} is not as this gateway cosigned it")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"witness {path}: {error.strerror}") from error
