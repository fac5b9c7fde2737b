"""`tidegate check`: whether a configuration is sound, the law files that it names included."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from app.config import environment
from app.law import load_reviewed
from app.yaml_source import ConfigInvalid, Problem


@click.command("check", short_help="Validate a configuration.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.pass_context
def command(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Validate the configuration FILE; exit 0 where it is sound, 2 where it is not.

    Every problem is printed as FILE:LINE: path.to.key: what is wrong, what would be right. A law whose review has run
    out is one where gateway.security is strict, else a warning.
    """
    try:
        settings, law, warnings = load_reviewed(file, environment(), datetime.now(UTC).date())
    except ConfigInvalid as error:
        if not as_json:
            raise
        found = {"file": str(file), "sound": False, "problems": _listed(error.problems), "warnings": []}
        click.echo(json.dumps(found, ensure_ascii=False))
        ctx.exit(2)
    counts = {"regions": len(settings.regions), "tenants": len(settings.tenants), "laws": len(law.laws)}
    if as_json:
        sound = {"file": str(file), "sound": True, "problems": [], "warnings": _listed(warnings), **counts}
        click.echo(json.dumps(sound, ensure_ascii=False))
    else:
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)
        said = ", ".join(f"{n} {name if n != 1 else name.removesuffix('s')}" for name, n in counts.items())
        click.echo(f"{file}: sound ({said})")


def _listed(problems: Sequence[Problem]) -> list[dict[str, str | int | None]]:
    return [{"file": p.file, "line": p.line, "key": p.key, "message": p.message} for p in problems]
