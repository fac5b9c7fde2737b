"""A gateway of another region whose logs do as a test says: trees that grow, shrink, fork and change their key."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.audit.checkpoint import Checkpoint, VerifierKey, sign
from app.audit.merkle import Frontier, consistency_proof, leaf_hash
from app.audit.witness.extension import KEYS_HEADER, listed
from tests.fleet.servers import Request, reply

EMPTY = Frontier(0, ())


@dataclass
class Log:
    """A log that signs whatever records it is said to have; `seed` makes its key, `former` are keys before."""

    origin: str
    records: list[str] = field(default_factory=list)
    seed: bytes = b"\1" * 32
    former: list[VerifierKey] = field(default_factory=list)

    @property
    def signer(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def key(self) -> VerifierKey:
        return VerifierKey(self.origin, self.signer.public_key().public_bytes_raw())

    @property
    def leaves(self) -> list[bytes]:
        return [leaf_hash(record.encode()) for record in self.records]

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.origin, len(self.records), EMPTY.appended(self.leaves).root(), None)

    def note(self) -> str:
        return sign(self.checkpoint().text(), self.origin, self.signer)

    def proof(self, old: int) -> list[bytes]:
        leaves = self.leaves

        def subtree(level: int, index: int) -> bytes:
            return EMPTY.appended(leaves[index << level : (index + 1) << level]).root()

        return consistency_proof(old, len(leaves), subtree)

    def rotate(self) -> None:
        self.former.append(self.key)
        self.seed = bytes([self.seed[0] + 1]) * 32

    def keys(self) -> str:
        return listed([*self.former, self.key])


def body(old: int, proof: Sequence[bytes], note: str) -> str:
    return "".join([f"old {old}\n", *(f"{base64.b64encode(each).decode()}\n" for each in proof), "\n", note])


class Peer:
    """Answers for its logs as a gateway does; what is in `instead` comes in place of a log's own answer."""

    def __init__(self, region: str, logs: Sequence[str]) -> None:
        self.logs = {log: Log(f"tidegate/{region}/{log}") for log in logs}
        self.instead = {}
        self.asked: list[tuple[str, str | None]] = []
        self.at_once = self.most_at_once = 0

    async def respond(self, writer: asyncio.StreamWriter, request: Request) -> None:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            url = urlsplit(request.line.split(" ")[1])
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            assert url.path == "/v1/audit/checkpoint"
            self.asked.append((query["region"], query.get("old")))
            answer = self.instead.get(query["region"]) or self.answer(self.logs[query["region"]], query.get("old"))
            await answer(writer, request)
        finally:
            self.at_once -= 1

    def answer(self, log: Log, old: str | None):
        if old is not None and int(old) > len(log.records):
            return reply(400)
        text = log.note() if old is None else body(int(old), log.proof(int(old)), log.note())
        return reply(200, text.encode(), f"{KEYS_HEADER}: {log.keys()}")
