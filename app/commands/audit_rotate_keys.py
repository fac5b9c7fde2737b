"""`tidegate audit rotate-keys`: new signing and wrapping keys for every log, while no gateway runs."""

import asyncio
from typing import Any

import click
import orjson
from rich.text import Text

from app.audit.rights.offline import rotate
from app.commands.audit_options import Where, located
from app.commands.audit_rights import found, told
from app.commands.tables import show, table
from app.telemetry import logging


@click.command("rotate-keys", short_help="New keys for every log.")
@located
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(where: Where, as_json: bool) -> None:
    """Give every log a new signing key and a new key that wraps those of the persons, while no gateway runs.

    The old public keys stay beside each log, so that whatever they signed still verifies; the old private keys are
    gone, that of the cosignatures as well. Pseudonyms stay as they are. Each log gets a record of it.
    """
    logging.configure("error")
    renewed: list[dict[str, Any]] = []
    for site in found(where):
        with told():
            keys = asyncio.run(rotate(site))
        renewed += [{"trail": str(site.audit.path), "log": log, "key": key} for log, key in keys.items()]
    if as_json:
        click.echo(orjson.dumps({"logs": renewed}))
        return
    columns = table("trail", "log", "new public key")
    for each in renewed:
        columns.add_row(*(Text(str(each[name])) for name in ("trail", "log", "key")))
    show(columns)
