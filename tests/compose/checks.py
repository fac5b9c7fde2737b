"""What must hold of the running project: who may see what, and what the death or the pause of a region does."""

import json
from collections.abc import Callable, Sequence

from tests.compose.checks_audit import audits_verify, no_pseudonym_where_data_may_not_enter
from tests.compose.project import REGIONS, SERVICES
from tests.compose.report import until
from tests.compose.scene import Scene, readme_requests, url

_WORKER_PORT = 9000
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)"


def readme(scene: Scene) -> None:
    """The README's requests, through each gateway: the nearest region, the person's own, the refusal in German."""
    body, (plain, german, german_in_usa) = readme_requests()
    for at in REGIONS:
        answer = scene.send(at, body, plain)
        scene.report.check((answer.status, answer.region) == (200, at), f"{at}: an embedding from {at}", answer)
        answer = scene.send(at, body, german)
        if at == "eu-west":
            good = (answer.status, answer.region, answer.reason) == (200, at, "ALLOW_INTRA")
            scene.report.check(good, f"{at}: a person in Germany is served there", answer)
        else:
            named = (answer.status, answer.error.get("hosts")) == (421, [url("eu-west")])
            scene.report.check(named, f"{at}: a person in Germany is sent on to {url('eu-west')}", answer)
        answer = scene.send(at, body, german_in_usa)
        told = str(answer.error.get("message")).startswith("Nach geltendem Recht")
        refused = answer.status == 451 and told and answer.headers.get("content-language") == "de"
        scene.report.check(refused, f"{at}: asked for in the USA it is refused with 451, in German", answer)


def apart(scene: Scene) -> None:
    """A worker is reached from gateways only, and an audit volume belongs to one gateway."""
    services = {name: scene.project.inspect(name) for name in SERVICES}
    for region in REGIONS:
        worker = services[f"worker-{region}"]
        [network] = worker["NetworkSettings"]["Networks"].values()
        address = network["IPAddress"]
        for name in SERVICES[1:]:
            if name != f"worker-{region}":
                tried = scene.project.inside(name, "python3", "-c", _CONNECT, address, str(_WORKER_PORT), check=False)
                gateway = name.startswith("gateway")
                what = f"{name} {'reaches' if gateway else 'cannot reach'} worker-{region}"
                scene.report.check((tried.status == 0) == gateway, what, tried.tail)
        holders = [name for name, each in services.items() if _mounts(each, f"audit-{region}")]
        scene.report.check(holders == [f"gateway-{region}"], f"only gateway-{region} holds its audit volume", holders)


def hardened(scene: Scene) -> None:
    """What each container really runs with."""
    for name in SERVICES:
        host = scene.project.inspect(name)["HostConfig"]
        found = (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"], host["Memory"] > 0)
        scene.report.check(found == (True, ["ALL"], False, True), f"{name}: read-only, no capability, bounded", found)
    for name in SERVICES[1:]:
        status = scene.project.inside(name, "cat", "/proc/self/status").out
        wanted = ("Uid:\t10001", "CapEff:\t0000000000000000", "NoNewPrivs:\t1")
        scene.report.check(all(each in status for each in wanted), f"{name}: runs as nobody with no privilege", status)


def killed(scene: Scene) -> None:
    """A worker's process killed: the restart policy brings it back. (It does not follow `docker kill`.)"""
    service, region = "worker-ap-southeast", "ap-southeast"
    before = scene.project.inspect(service)["RestartCount"]
    # -1: all that this user may signal, but for the init process, which ends with its child.
    scene.project.inside(service, "sh", "-c", "kill -9 -1", check=False)
    until(lambda: scene.project.inspect(service)["RestartCount"] > before)
    scene.report.check(True, "the worker of ap-southeast was killed and is started again")
    until(lambda: scene.project.health(service) == "healthy" and scene.up(region))
    answer = scene.embed(region, X_Data_Subject="SG")
    scene.report.check((answer.status, answer.region) == (200, region), "a person in Singapore is served again", answer)


def paused(scene: Scene) -> None:
    """A region that hangs: its own people get 503, others are served elsewhere, and all is well after it."""
    prefer = {"X_Region_Prefer": "eu-west"}
    answer = scene.embed("us-east", **prefer)
    scene.report.check(answer.region == "eu-west", "a request from the USA may prefer eu-west, and gets it", answer)
    scene.project.compose("pause", "worker-eu-west")
    try:
        until(lambda: scene.down("eu-west"))
        answer = scene.embed("eu-west", X_Data_Subject="DE")
        refused = (answer.status, answer.error.get("code")) == (503, "no_healthy_region")
        scene.report.check(refused, "eu-west paused: a person in Germany gets 503", answer)
        answer = scene.embed("us-east", **prefer)
        scene.report.check((answer.status, answer.region) == (200, "us-east"), "others fail over to us-east", answer)
        answer = scene.embed("eu-west")
        elsewhere = answer.status == 200 and answer.region in {"us-east", "ap-southeast"}
        scene.report.check(elsewhere, "others who ask there fail over too", answer)
    finally:
        scene.project.compose("unpause", "worker-eu-west")
    until(lambda: scene.up("eu-west"))
    answer = scene.embed("eu-west", X_Data_Subject="DE")
    scene.report.check((answer.status, answer.region) == (200, "eu-west"), "unpaused: served in eu-west again", answer)


def again(scene: Scene) -> None:
    """A second `up` runs `keys` once more, which is how edits reach the gateways, and makes no second key."""
    before = scene.project.inspect("keys")["State"]["StartedAt"]
    scene.project.compose("up", "--detach")
    until(lambda: scene.project.health("keys") == "exited 0")
    after = scene.project.inspect("keys")["State"]["StartedAt"]
    scene.report.check(after != before, "a second `up` runs `keys` again", after)
    scene.report.check(scene.project.key() == scene.key, "a second `up` prints no other key")
    listed = json.loads(
        scene.project.inside(
            "gateway-us-east", "tidegate", "keys", "list", "--json", "--config", "/etc/tidegate/gateway.yaml"
        ).out
    )
    scene.report.check(len(listed) == 1, "there is one key, as a hash", listed)
    answer = scene.embed("us-east")
    scene.report.check(answer.status == 200, "and it is still good", answer)


def _mounts(container: dict[str, list[dict[str, str]]], volume: str) -> bool:
    return any(each.get("Name", "").endswith(f"_{volume}") for each in container["Mounts"])


CHECKS: Sequence[tuple[str, int, Callable[[Scene], None]]] = (
    ("The README's requests through each gateway, with the key printed", 60, readme),
    ("No name of a person where their data may not enter", 60, no_pseudonym_where_data_may_not_enter),
    ("Who reaches whom", 90, apart),
    ("What the containers may do", 60, hardened),
    ("A worker killed", 120, killed),
    ("A region paused", 180, paused),
    ("Audit trails verified, and witnessed by each other", 120, audits_verify),
    ("A second `up`", 60, again),
)
"""Each with the seconds that it may take."""
