"""`tidegate audit prove`: shows that a record is in its log by a signed checkpoint, or checks such a proof."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import IO
from urllib.parse import quote

import click
import orjson
from rich.text import Text

from app.audit import record
from app.audit.check.log import LogFiles
from app.audit.check.verify import logs_in
from app.audit.checkpoint import Checkpoint, VerifierKey
from app.audit.merkle import leaf_hash
from app.audit.proof import Proof, ProofError, prove
from app.audit.seal import closed
from app.commands.audit_options import Where, located
from app.commands.audit_remote import Remote
from app.commands.tables import show, table
from app.stores.sqlite import SqliteAuditStore


@click.command("prove", short_help="Prove that a record is in the log, or check such a proof.")
@located
@click.argument("record_id", metavar="[ID]", required=False)
@click.option("--check", type=click.File("rb"), metavar="FILE", help="Check a proof that --json printed; needs no log.")
@click.option(
    "--public-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The log's public keys; else LOG.pub in the directory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the proof as JSON.")
def command(
    where: Where, record_id: str | None, check: IO[bytes] | None, public_key: Path | None, as_json: bool
) -> None:
    """Prove that the record ID (X-Audit-Id is a decision's) is in its log, by the log's newest signed checkpoint.

    The proof is checked before it is printed. What --json prints can be handed on: `prove --check FILE --public-key
    LOG.pub` checks it without the log. Exit 1 where nothing is proved.
    """
    if (record_id is None) == (check is None):
        raise click.UsageError("give the ID of a record, or --check FILE")
    keys = _keys_in(public_key) if public_key else None
    try:
        proof, keys = _given(where, check, keys) if check else _asked(where, str(record_id), keys)
        signed = proof.checked(keys)
    except ProofError as error:
        raise click.ClickException(f"nothing is proved: {error}") from error
    if as_json:
        click.echo(orjson.dumps(proof.as_json()))
    else:
        _print(proof, signed)


def _given(where: Where, file: IO[bytes], keys: Sequence[VerifierKey] | None) -> tuple[Proof, Sequence[VerifierKey]]:
    """A proof that someone has handed on, and the keys to check it with."""
    try:
        proof = Proof.parse(orjson.loads(file.read()))
    except orjson.JSONDecodeError as error:
        raise ProofError("the file holds no JSON") from error
    if keys:
        return proof, keys
    directory = where.files
    known = [key for each in logs_in(directory) if each.place.log == proof.record["log"] for key in each.keys]
    if not known:
        raise click.UsageError(
            f"no public keys of log {proof.record['log']} are in {directory}; give --public-key FILE"
        )
    return proof, known


def _asked(where: Where, record_id: str, keys: Sequence[VerifierKey] | None) -> tuple[Proof, Sequence[VerifierKey]]:
    """The proof of a record from the files or a gateway, and the keys to check it with."""
    if where.url is None:
        files, proof = _from_files(where.files, record_id)
        return proof, keys or files.keys
    if not keys:
        raise click.UsageError("--url needs --public-key FILE: a gateway's own word for its key proves nothing")
    with Remote(where.url, where.key) as remote:
        proof = Proof.parse(remote.get(f"/v1/audit/records/{quote(record_id, safe='')}/proof"))
    if proof.record["id"] != record_id:
        raise ProofError(f"the gateway answered with record {proof.record['id']}")
    return proof, keys


def _from_files(directory: Path, record_id: str) -> tuple[LogFiles, Proof]:
    time = record.time_of(record_id)
    if time is None:
        raise click.UsageError(f"{record_id!r} is no record's id; X-Audit-Id and the field `id` have them")
    for files in logs_in(directory):
        if not files.place.file.exists():
            continue
        with closing(SqliteAuditStore(files.place.file, readonly=True)) as store, store.snapshot():
            if row := store.find(time, record_id):
                return files, prove(store, orjson.loads(row.canonical))
    raise click.ClickException(f"no log in {directory} holds a record {record_id}")


def _keys_in(file: Path) -> Sequence[VerifierKey]:
    try:
        found = [VerifierKey.parse(line) for line in file.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--public-key {file}: {error}") from error
    if not found:
        raise click.UsageError(f"--public-key {file}: holds no key")
    return found


def _print(proof: Proof, signed: Checkpoint) -> None:
    fields = proof.record
    rows = table("proved", "")
    rows.add_row("record", Text(fields["id"]))
    rows.add_row("place", Text(f"{fields['log']} {fields['seq']}"))
    rows.add_row("leaf", leaf_hash(record.canonical(closed(fields))).hex())
    rows.add_row("path", f"{len(proof.hashes)} hashes")
    rows.add_row("root", f"{signed.root.hex()} of {signed.size} records")
    rows.add_row("signed by", Text(f"{signed.origin}{f' at {signed.time}' if signed.time else ''}"))
    show(rows)
