"""`tidegate up`: the local topology, gateway and workers, as supervised children in the foreground."""

import asyncio
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from app.child import LOG_LIMIT
from app.config import DEMO_KEY, DEMO_KEY_HASH, Settings, Tenant, environment
from app.dry_run import ExplainRequest, Malformed, all_up, explain
from app.law import load_reviewed
from app.policy.explain import Explanation
from app.policy.ground import Ground
from app.ports import listen
from app.reload import LOGGER
from app.supervisor import Supervisor
from app.topology import Topology, plan

_DEFAULT = Path("configs/local.yaml")
_TEXT_MODELS: Final = ("minilm", "minilm-moe")
"""Of our models, those that embed text; what others' servers do with theirs is not known here."""


@click.command("up", short_help="Start gateway and workers, until Ctrl-C.")
@click.option("--config", type=click.Path(path_type=Path), default=_DEFAULT, show_default=True, metavar="FILE")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Port of the gateway; else that of the file.")
@click.option("--regional", is_flag=True, help="One gateway for each region as well, on the ports that follow.")
@click.option("--verbose", is_flag=True, help="Show what the children log.")
def command(config: Path, port: int | None, regional: bool, verbose: bool) -> None:
    """Start the gateway and one worker for each managed backend, and keep them running until Ctrl-C."""
    environ = environment()
    settings, law, warnings = load_reviewed(config, environ, datetime.now(UTC).date())
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    topology = plan(settings, config, port, environ, regional=regional)
    for wanted in topology.ports:
        listen(settings.gateway.host, wanted).close()
    greeting = welcome(settings, Ground.lay(law, settings.regions), topology)
    with _alone(topology.logs), _Terminal(topology, greeting, verbose=verbose) as report:
        asyncio.run(_run(topology, report))


@contextmanager
def _alone(logs: Path) -> Iterator[None]:
    """Keep a second `tidegate up` away from the children's logs, which it would begin anew under the first."""
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (logs / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.ClickException(f"another `tidegate up` is running on {logs}; stop that one first") from None
        yield


async def _run(topology: Topology, report: "_Terminal") -> None:
    await Supervisor(topology.workers, topology.gateways, report).run()


class _Terminal:
    """Tells what happens: one line an event, and on a terminal a last line that counts the seconds of what is slow."""

    def __init__(self, topology: Topology, welcome: Sequence[str], *, verbose: bool) -> None:
        self._topology = topology
        self._welcome = welcome
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
        """What a child has logged, with --verbose; without, how a reload went, in the words of the first gateway."""
        for line in lines:
            if self._verbose:
                self.say(f"[{name}] {line}")
            elif name == self._topology.gateways[0].name and (news := _of_reload(line)):
                self.say(f"{name}: {news}")

    def ready(self) -> None:
        """The address, the demo key and requests to paste."""
        for line in self._welcome:
            self.say(line)


def _of_reload(line: str) -> str | None:
    """What a line of a gateway's log says of a reload; None for any other line."""
    if LOGGER not in line:
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    ours = isinstance(entry, dict) and entry.get("logger") == LOGGER
    return ": ".join(entry[name] for name in ("event", "problem") if name in entry) if ours else None


def welcome(settings: Settings, ground: Ground, topology: Topology) -> list[str]:
    """The lines that greet a user: addresses, a key, and requests to paste that hold under this configuration."""
    tenant = _tenant(settings)
    key, told = DEMO_KEY, f"Demo key: {DEMO_KEY}"
    if DEMO_KEY_HASH not in tenant.keys:
        key, told = "$TIDEGATE_KEY", f"Set TIDEGATE_KEY to a key of tenant {tenant.id}; `tidegate keys new` makes one."
    authorized = f'-H "Authorization: Bearer {key}"'
    examples = list(_examples(settings, ground, tenant, f"{topology.url}/v1/embeddings {authorized}"))
    return [
        "",
        f"Tidegate is ready: {topology.url}",
        *(f"  {spec.name}: {spec.health.removesuffix('/readyz')}" for spec in topology.gateways[1:]),
        told,
        "",
        *(examples or ["The models, and where:", f"  curl -sS -i {topology.url}/v1/models {authorized}"]),
        "",
        "Ctrl-C stops everything.",
    ]


def _tenant(settings: Settings) -> Tenant:
    """Whose requests are shown: of those that may infer who holds the demo key, else the first."""
    return min(settings.tenants, key=lambda one: ("infer" not in one.scopes, DEMO_KEY_HASH not in one.keys))


def _examples(settings: Settings, ground: Ground, tenant: Tenant, target: str) -> Iterator[str]:
    """Requests to paste, each after what it shows, and only those that will show it."""
    serving = {
        model: {
            region.id
            for region in settings.regions
            for backend in region.backends
            if model in backend.models and backend.protocol != "kserve"
        }
        for model in _TEXT_MODELS
    }
    model = next((name for name in _TEXT_MODELS if serving[name]), None)
    if model is None:
        return
    body = f"""-d '{{"model": "{model}", "input": "Where does the tide go?"}}'"""
    request = f'{target} -H "Content-Type: application/json" {body}'
    german = '-H "X-Data-Subject: DE"'
    if serving[model].intersection(_explained(settings, ground, tenant).ranked):
        yield "An embedding, from the best region:"
        yield f"  curl -sS -i {request}"
    if serving[model].intersection(_explained(settings, ground, tenant, subject="DE").ranked):
        yield "One for a person in Germany; the headers say which region served it:"
        yield f"  curl -sS -D - -o /dev/null {german} {request}"
    for region in settings.regions:
        if _explained(settings, ground, tenant, subject="DE", region=region.id).code == "residency_denied":
            yield f"A German's data asked for in {region.id}, by a caller who reads German:"
            yield f'  curl -sS -i -H "X-Region: {region.id}" {german} -H "Accept-Language: de-AT, en;q=0.5" {request}'
            return


def _explained(settings: Settings, ground: Ground, tenant: Tenant, **options: str) -> Explanation:
    """What becomes of such a request once every region is up."""
    answer = explain(
        ExplainRequest.model_validate(options),
        settings=settings,
        ground=ground,
        tenant=tenant,
        states=all_up(settings),
        origin=None,
        today=datetime.now(UTC).date(),
    )
    if isinstance(answer, Malformed):
        raise answer.error  # the options are our own
    return answer
