"""`tidegate check`: whether a configuration is sound, the law files that it names included."""

import json
from pathlib import Path

import click

from app.config import environment
from app.law import load_all
from app.yaml_source import ConfigInvalid


@click.command("check", short_help="Validate a configuration.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.pass_context
def command(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Validate the configuration FILE; exit 0 where it is sound, 2 where it is not.

    Every problem is printed as FILE:LINE: path.to.key: what is wrong, what would be right.
    """
    try:
        settings, law = load_all(file, environment())
    except ConfigInvalid as error:
        if not as_json:
            raise
        problems = [{"file": p.file, "line": p.line, "key": p.key, "message": p.message} for p in error.problems]
        click.echo(json.dumps({"file": str(file), "sound": False, "problems": problems}, ensure_ascii=False))
        ctx.exit(2)
    counts = {"regions": len(settings.regions), "tenants": len(settings.tenants), "laws": len(law.laws)}
    if as_json:
        click.echo(json.dumps({"file": str(file), "sound": True, "problems": [], **counts}))
    else:
        said = ", ".join(f"{n} {name if n != 1 else name.removesuffix('s')}" for name, n in counts.items())
        click.echo(f"{file}: sound ({said})")
