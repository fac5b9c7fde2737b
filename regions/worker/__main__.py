"""The command `python -m regions.worker`: one region's worker as a process of its own."""

from pathlib import Path

import click

from regions.worker.server import CannotListen, run
from regions.worker.settings import ConfigError, from_environment


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--region", required=True, metavar="ID", help="The region that this worker stands in.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration file.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one.")
@click.option("--models", metavar="A,B", help="Models to serve, in place of those that the file lists.")
def main(region: str, config: Path | None, host: str, port: int, models: str | None) -> None:
    """Serve one region's models over KServe v2 and OpenAI embeddings.

    Logs, on standard error, are JSON lines; the event `listening` names the port, `ready` says that the models answer.
    """
    names = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
    try:
        worker = from_environment(region, config, names)
        code = run(worker, host=host, port=port)
    except (ConfigError, CannotListen) as error:
        click.echo(f"worker: {error}", err=True)
        raise SystemExit(2) from error
    raise SystemExit(code)


if __name__ == "__main__":
    main(prog_name="python -m regions.worker")
