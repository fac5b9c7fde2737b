"""Which processes the local topology consists of: one worker a region with a managed backend, and the gateways."""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app.child import Spec
from app.config import Settings
from app.ports import free_ports

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a wildcard is reached by


@dataclass(frozen=True, slots=True)
class Topology:
    """What to start, where the first gateway is reached, and where the logs lie."""

    workers: tuple[Spec, ...]
    gateways: tuple[Spec, ...]
    url: str
    ports: tuple[int, ...]
    logs: Path


def plan(settings: Settings, config: Path, port: int | None, environ: Mapping[str, str], *, regional: bool) -> Topology:
    """The processes for `config`, its gateway on `port` (that of the file where None; a free one where 0).

    With `regional` one gateway for each region follows on the next ports, each with an audit directory of its own.
    """
    regions = [region.id for region in settings.regions] if regional else []
    host = settings.gateway.host
    first = settings.gateway.port if port is None else port
    first = first or free_ports(1 + len(regions), host)
    logs = settings.audit.path.parent / "log"
    managed = [region.id for region in settings.regions if any(backend.managed for backend in region.backends)]
    worker_port = free_ports(max(1, len(managed)))
    addresses = {region: f"http://127.0.0.1:{worker_port + index}" for index, region in enumerate(managed)}
    reached = _url(_WILDCARDS.get(host, host), first)

    shared = dict(environ)
    if regional:
        urls = {region: _url(_WILDCARDS.get(host, host), first + 1 + index) for index, region in enumerate(regions)}
        shared["TIDEGATE_GATEWAY__PUBLIC_URLS"] = json.dumps(urls)
    make = _Maker(config, addresses, logs, _WILDCARDS.get(host, host))
    gateways = [make.gateway("gateway", first, shared)]
    for index, region in enumerate(regions):
        own = {
            **shared,
            "TIDEGATE_AUDIT__PATH": str((settings.audit.path / region).absolute()),
            "TIDEGATE_AUDIT__KEYS": str(settings.audit.key_directory / region),
        }
        gateways.append(make.gateway(f"gateway {region}", first + 1 + index, own, "--region", region))
    workers = tuple(make.worker(region, worker_port + index, environ) for index, region in enumerate(managed))
    ports = tuple(range(first, first + 1 + len(regions)))
    return Topology(workers, tuple(gateways), reached, ports, logs)


@dataclass(frozen=True, slots=True)
class _Maker:
    """What the specs have in common."""

    config: Path
    addresses: Mapping[str, str]
    logs: Path
    host: str

    def gateway(self, name: str, port: int, environ: Mapping[str, str], *options: str) -> Spec:
        backends = [text for region, url in self.addresses.items() for text in ("--backend", f"{region}={url}")]
        argv = (*_tidegate(), "gateway", "--config", str(self.config), "--port", str(port), *options, *backends)
        url = _url(self.host, port)
        return Spec(name, argv, environ, self._log(name), health=f"{url}/readyz", alive=f"{url}/livez")

    def worker(self, region: str, port: int, environ: Mapping[str, str]) -> Spec:
        name = f"worker {region}"
        options = ("--region", region, "--config", str(self.config), "--port", str(port))
        argv = (sys.executable, "-m", "regions.worker", *options)
        return Spec(name, argv, environ, self._log(name), health=f"{self.addresses[region]}/v2/health/ready")

    def _log(self, name: str) -> Path:
        return self.logs / f"{name.replace(' ', '-')}.log"


def _tidegate() -> tuple[str, ...]:
    """How to run ourselves so that `ps` shows `tidegate`: the installed script, run by this interpreter."""
    beside = Path(sys.executable).with_name("tidegate")
    script = str(beside) if beside.is_file() else shutil.which("tidegate")
    return (sys.executable, script) if script else (sys.executable, "-m", "app.cli")


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
