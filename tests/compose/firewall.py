"""What an engine changes in the host's network, and how to take back exactly that.

An engine leaves behind when it stops: its chains and rules, the policy of FORWARD, its bridge, and forwarding itself.
Rules and bridges that were there before, or that no engine makes, stay.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.compose.shell import run

_TOOLS = ("iptables", "ip6tables")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_INTERFACES = Path("/sys/class/net")
_BRIDGE = re.compile(r"docker0|br-[0-9a-f]{12}")
_OURS = re.compile(rf"DOCKER[A-Z0-9-]*|{_BRIDGE.pattern}")


@dataclass(frozen=True, slots=True)
class Network:
    """The host's network as far as an engine changes it."""

    rules: dict[str, str]
    """What `iptables-save` prints, and its sister for IPv6."""
    forwarding: str
    bridges: list[str]

    @classmethod
    def now(cls) -> "Network":
        rules = {tool: run(f"{tool}-save", check=False).out for tool in _TOOLS}
        bridges = sorted(each.name for each in _INTERFACES.iterdir() if _BRIDGE.fullmatch(each.name))
        return cls(rules, _FORWARDING.read_text().strip(), bridges)

    @classmethod
    def load(cls, file: Path) -> "Network":
        return cls(**json.loads(file.read_text()))

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))


@dataclass(slots=True)
class _Table:
    policies: dict[str, str] = field(default_factory=dict)
    rules: Counter[str] = field(default_factory=Counter)


def restore(before: Network) -> list[str]:
    """Take back what an engine has changed since; what it had left in the end, which should be nothing."""
    _take_back(before, Network.now())
    after = Network.now()
    left = [f"bridge {name}" for name in after.bridges if name not in before.bridges]
    for tool in _TOOLS:
        left += [f"{tool} {' '.join(each)}" for each in removals(before.rules[tool], after.rules[tool])]
    return left


def removals(before: str, after: str) -> list[list[str]]:
    """The arguments of `iptables` that take from `after` what an engine has added to `before`; in this order."""
    old, new = _tables(before), _tables(after)
    commands: list[list[str]] = []
    for name, table in new.items():
        known = old.get(name, _Table())
        added = [chain for chain in table.policies if chain not in known.policies and _OURS.fullmatch(chain)]
        for rule in (table.rules - known.rules).elements():
            words = rule.split()
            if words[1] not in added and any(_OURS.fullmatch(word) for word in words):
                commands.append(["-t", name, "-D", *words[1:]])
        commands += [["-t", name, "-F", chain] for chain in added]
        commands += [["-t", name, "-X", chain] for chain in added]
        was = known.policies.get("FORWARD", "ACCEPT")
        if name == "filter" and table.policies.get("FORWARD", was) != was:
            commands.append(["-t", name, "-P", "FORWARD", was])
    return commands


def _tables(saved: str) -> dict[str, _Table]:
    """What `iptables-save` printed, by table."""
    tables: dict[str, _Table] = {}
    table = _Table()
    for line in saved.splitlines():
        if line.startswith("*"):
            table = tables.setdefault(line[1:], _Table())
        elif line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            table.policies[chain] = policy
        elif line.startswith("-A "):
            table.rules[line] += 1
    return tables


def _take_back(before: Network, now: Network) -> None:
    for tool in _TOOLS:
        for arguments in removals(before.rules[tool], now.rules[tool]):
            run(tool, *arguments, check=False)
    for name in _gone(before.bridges, now.bridges):
        run("ip", "link", "delete", name, check=False)
    if before.forwarding == "0" and now.forwarding != "0":
        _FORWARDING.write_text("0\n")


def _gone(before: list[str], now: list[str]) -> Iterator[str]:
    return (name for name in now if name not in before)
