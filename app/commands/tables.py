"""How commands print tables, and text that others have written."""

from rich.console import Console
from rich.table import Table

_UNBOUNDED = 10_000


def table(*columns: str) -> Table:
    """A table without rules, whose columns a script can split as well."""
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def show(what: Table) -> None:
    """Prints a table; a terminal's width bounds it, where no terminal is nothing is wrapped or cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_UNBOUNDED)
    console.print(what)


def printable(text: str) -> str:
    """What others have written must not steer the terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)
