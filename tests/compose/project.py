"""The compose project of a run: its services built, started, looked into, and taken down to the last volume."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tests.compose.engine import Engine
from tests.compose.host import ROOT
from tests.compose.report import Failure, Report, until
from tests.compose.shell import Ended, run

NAME = "tidegate-compose-test"
REGIONS: Mapping[str, int] = {"us-east": 8080, "eu-west": 8081, "ap-southeast": 8082}
"""The regions with the port of each one's gateway."""
SERVICES = ("keys", *(f"{kind}-{region}" for kind in ("gateway", "worker") for region in REGIONS))
_OWN = f"label=com.docker.compose.project={NAME}"
_KEY = re.compile(r"\btg_[A-Za-z0-9_-]{43}\b")


class Project:
    """`docker-compose` on the repository's own file, as a project apart from any that a user has."""

    def __init__(self, engine: Engine, settings: Mapping[str, str]) -> None:
        self.engine = engine
        self.command = engine.compose()
        # Images of a name of their own: a user's are not written over.
        self._env = {**engine.env, **settings, "TIDEGATE_VERSION": "compose-test"}

    def compose(self, *arguments: str, check: bool = True) -> Ended:
        file = ("--project-name", NAME, "--file", str(ROOT / "docker-compose.yml"))
        return run(*self.command, *file, *arguments, env=self._env, check=check)

    def inside(self, service: str, *command: str, given: str = "", check: bool = True) -> Ended:
        """Run a command in a service's container."""
        return run("docker", "exec", "-i", self.container(service), *command, env=self._env, given=given, check=check)

    def container(self, service: str) -> str:
        """The id of a service's container."""
        label = f"label=com.docker.compose.service={service}"
        found = self.engine.docker("ps", "--all", "--quiet", "--filter", _OWN, "--filter", label).split()
        if not found:
            raise Failure(f"there is no container of {service}; `docker-compose up` should have made it")
        return found[0]

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        found: list[dict[str, Any]] = json.loads(self.engine.docker("inspect", self.container(service)))
        return found[0]

    def health(self, service: str) -> str:
        state = self.inspect(service)["State"]
        return str(state.get("Health", {}).get("Status", f"{state['Status']} {state['ExitCode']}"))

    def await_health(self, report: Report) -> None:
        """Wait until every service is well, and say what becomes so."""
        wanted = {name: "exited 0" if name == "keys" else "healthy" for name in SERVICES}

        def well() -> bool:
            for name in [name for name, state in wanted.items() if self.health(name) == state]:
                report.say(f"{name}: {wanted.pop(name)}")
            return not wanted

        until(well)

    def key(self) -> str:
        """The API key, as the service `keys` printed it."""
        printed = self.compose("logs", "--no-color", "keys").out
        found: set[str] = set(_KEY.findall(printed))
        if len(found) != 1:
            raise Failure(f"`keys` should print one key; it printed {len(found)}")
        return found.pop()

    def version(self) -> str:
        return run(*self.command, "version", "--short", env=self._env).out.strip()

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "20")

    def left(self) -> list[str]:
        """What there is of this project: containers, volumes, networks."""
        kinds = (("container", "ls", "--all"), ("volume", "ls"), ("network", "ls"))
        return [
            f"{kind[0]} {each}"
            for kind in kinds
            for each in self.engine.docker(*kind, "--quiet", "--filter", _OWN).split()
        ]

    def tell(self, report: Report) -> None:
        """What helps to see why a run has failed; not what `keys` printed."""
        report.say(self.compose("ps", check=False).out.replace("\n", "\n    "))
        for name in SERVICES[1:]:
            lines = self.compose("logs", "--no-color", "--tail=12", name, check=False).out.splitlines()
            lines = [line[:400] for line in lines if '"event":"request"' not in line]
            report.say("\n    ".join(lines[-6:]))
