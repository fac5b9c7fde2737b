"""`tidegate worker`: one region's router worker, by becoming `python -m regions.worker`."""

from pathlib import Path

import click

from app.commands.become import become


@click.command("worker")
@click.option("--region", required=True, metavar="ID", help="The region whose worker this is.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="File with a `worker` section.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Port on loopback.")
def command(region: str, config: Path | None, port: int | None) -> None:
    """Run one region's router worker alone.

    Replaces itself by `python -m regions.worker` with the same options.
    """
    given = {"--region": region, "--config": config, "--port": port}
    options = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    become("regions.worker", options)
