"""`tidegate up`: the local topology, gateway and workers, as supervised children in the foreground."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from app.child import LOG_LIMIT
from app.config import DEMO_KEY, DEMO_KEY_HASH, Settings, environment
from app.law import load_all
from app.ports import listen
from app.supervisor import Supervisor
from app.topology import Topology, plan

_DEFAULT = Path("configs/local.yaml")


@click.command("up", short_help="Start gateway and workers, until Ctrl-C.")
@click.option("--config", type=click.Path(path_type=Path), default=_DEFAULT, show_default=True, metavar="FILE")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Port of the gateway; else that of the file.")
@click.option("--regional", is_flag=True, help="One gateway for each region as well, on the ports that follow.")
@click.option("--verbose", is_flag=True, help="Show what the children log.")
def command(config: Path, port: int | None, regional: bool, verbose: bool) -> None:
    """Start the gateway and one worker for each managed backend, and keep them running until Ctrl-C."""
    environ = environment()
    settings, _ = load_all(config, environ)
    topology = plan(settings, config, port, environ, regional=regional)
    for wanted in topology.ports:
        listen(settings.gateway.host, wanted).close()
    with _Terminal(settings, topology, verbose=verbose) as report:
        asyncio.run(_run(topology, report))


async def _run(topology: Topology, report: "_Terminal") -> None:
    await Supervisor(topology.workers, topology.gateways, report).run()


class _Terminal:
    """Tells what happens: one line an event, and on a terminal a last line that counts the seconds of what is slow."""

    def __init__(self, settings: Settings, topology: Topology, *, verbose: bool) -> None:
        self._settings = settings
        self._topology = topology
        self._verbose = verbose
        self._console = Console(highlight=False)
        # Refreshed by our own loop: no thread runs while children are being forked.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._line = ""

    def __enter__(self) -> Self:
        bound = 2 * LOG_LIMIT >> 20
        where = os.path.relpath(self._topology.logs)
        self.say(f"logs: {where}/ (begun anew at each start, at most {bound} MiB a process)")
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """One event, in one line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def waiting(self, seconds: Mapping[str, float]) -> None:
        """Counts the seconds of children that are not ready, where the line can be drawn again."""
        said = ", ".join(f"{name} {for_s:.0f} s" for name, for_s in seconds.items())
        line = f"waiting for {said}" if said else ""
        if self._live.is_started and line != self._line:
            self._line = line
            self._live.update(Text(line), refresh=True)

    def wrote(self, name: str, lines: Sequence[str]) -> None:
        """What a child has logged, with --verbose."""
        if self._verbose:
            for line in lines:
                self.say(f"[{name}] {line}")

    def ready(self) -> None:
        """The address, the demo key and three requests to paste."""
        for line in _welcome(self._settings, self._topology):
            self.say(line)


def _welcome(settings: Settings, topology: Topology) -> list[str]:
    demo = any(DEMO_KEY_HASH in tenant.keys for tenant in settings.tenants)
    key = DEMO_KEY if demo else "$TIDEGATE_KEY"
    primary = settings.regions[0]
    models = [model for region in settings.regions for backend in region.backends for model in backend.models]
    body = f"""-d '{{"model": "{models[0] if models else "minilm"}", "input": "Where does the tide go?"}}'"""
    request = (
        f'{topology.url}/v1/embeddings -H "Authorization: Bearer {key}" -H "Content-Type: application/json" {body}'
    )
    german = '-H "X-Data-Subject: DE"'
    refused = f'-H "X-Region: {primary.id}" {german} -H "Accept-Language: de-AT, en;q=0.5"'
    return [
        "",
        f"Tidegate is ready: {topology.url}",
        *(f"  {spec.name}: {spec.health.removesuffix('/readyz')}" for spec in topology.gateways[1:]),
        f"Demo key: {DEMO_KEY}" if demo else "Set TIDEGATE_KEY to a key; `tidegate keys new` makes one.",
        "",
        "An embedding, from the best region:",
        f"  curl -sS -i {request}",
        "The same for a person in Germany; the headers say which region served it:",
        f"  curl -sS -D - -o /dev/null {german} {request}",
        f"A German's data asked for in {primary.id}, by a caller who reads German:",
        f"  curl -sS -i {refused} {request}",
        "",
        "Ctrl-C stops everything.",
    ]
