"""`tidegate audit`: the commands that read, check and act on the audit trail, a file each."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import click

from app.commands.lazy import LazyGroup

_COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        name: f"app.commands.audit_{name.replace('-', '_')}"
        for name in (
            "verify",
            "tail",
            "export",
            "prove",
            "report",
            "erase",
            "access",
            "hold",
            "rotate-keys",
        )
    }
)


@click.group("audit", cls=LazyGroup, modules=_COMMANDS, short_help="Read and check the audit trail.")
def command() -> None:
    """Read and check the audit trail, from its files or over a running gateway's API."""
