"""Where what belongs to one log lies, and what its checkpoints are called."""

from dataclasses import dataclass
from pathlib import Path

from app.audit.checkpoint import VerifierKey
from app.stores.base import StoreError
from app.stores.files import replace

EDGE = "edge"
"""Where a gateway stands that is configured to stand in no region."""


def log_file(directory: Path, log: str) -> Path:
    """The file of a log's records."""
    return directory / f"{log}.db"


@dataclass(frozen=True, slots=True)
class Place:
    """One log of one audit directory; `standing` is the region in which its gateway stands, or `edge`."""

    directory: Path
    log: str
    standing: str

    @property
    def file(self) -> Path:
        return log_file(self.directory, self.log)

    @property
    def public(self) -> Path:
        """The file of the keys that its checkpoints are verified with, one a line, the newest last."""
        return self.directory / f"{self.log}.pub"

    @property
    def origin(self) -> str:
        """The name of its checkpoints and of their signer."""
        return f"tidegate/{self.standing}/{self.log}"

    @property
    def floor_origin(self) -> str:
        """The name of the notes under which retention has deleted records."""
        return f"{self.origin}/floor"

    def verifiers(self) -> list[VerifierKey]:
        """The keys in `public`, none where there is no such file; raises `StoreError` for what is no key."""
        try:
            return [VerifierKey.parse(line) for line in self.public.read_text().splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise StoreError(f"audit keys {self.public}: {error}") from error

    def publish(self, key: VerifierKey) -> None:
        """Add a key to `public` unless it is the newest there already; raises `StoreError`."""
        known = self.verifiers()
        if known and known[-1] == key:
            return
        try:
            replace(self.public, "".join(f"{each.line()}\n" for each in [*known, key]).encode())
        except OSError as error:
            raise StoreError(f"audit keys {self.public}: {error.strerror}") from error
