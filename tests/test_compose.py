"""The compose file, the images and their configurations: what they promise, read from them; no engine is needed."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
REGIONS = ("us-east", "eu-west", "ap-southeast")
CONFIG = ROOT / "configs" / "compose" / "gateway.yaml"
LAID = "/etc/tidegate/gateway.yaml"
"""Where the containers find it, with the keys."""
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
KEY_HASH = "sha256:" + "5e" * 32
DEMO_KEY_HASH = "sha256:fcf3ee12ae7c1e141073831c0f518e99d64d8aecbc80c838e879155c233fa114"


def load(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load(ROOT / "docker-compose.yml")


def gateways(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in compose["services"].items() if name.startswith("gateway-")}


def workers(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in compose["services"].items() if name.startswith("worker-")}


def test_a_gateway_and_a_worker_for_each_region_and_one_that_makes_the_key(compose: dict[str, Any]) -> None:
    regional = {f"{kind}-{region}" for kind in ("gateway", "worker") for region in REGIONS}
    assert set(compose["services"]) == {"keys", *regional}


def test_compose_1_29_reads_it(compose: dict[str, Any]) -> None:
    """No top-level `name`, no `version`: the first is unknown to 1.29, the second makes it forget `depends_on`."""
    assert {key for key in compose if not key.startswith("x-")} == {"services", "networks", "volumes"}


def test_every_service_is_hardened(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["tmpfs"], name
        assert service["mem_limit"], name
        assert service["restart"] == ("no" if name == "keys" else "unless-stopped"), name
        assert int(service["user"].split(":")[0]) > 0, name
        assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & service.keys(), name
        assert service.get("network_mode") == ("none" if name == "keys" else None), name


def test_every_service_says_whether_it_is_well(compose: dict[str, Any]) -> None:
    """But the one that ends: that it ended well is waited for."""
    for name, service in compose["services"].items():
        check = service["healthcheck"]
        if name == "keys":
            assert check == {"disable": True}
        else:
            assert check["test"][0] == "CMD", name
            assert {"interval", "timeout", "retries", "start_period"} <= check.keys(), name
    for region in REGIONS:
        assert compose["services"][f"gateway-{region}"]["depends_on"] == {
            "keys": {"condition": "service_completed_successfully"},
            f"worker-{region}": {"condition": "service_healthy"},
        }


def test_one_published_port_for_each_gateway_and_none_for_a_worker(compose: dict[str, Any]) -> None:
    published = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert [published[f"gateway-{region}"] for region in REGIONS] == [
        [f"127.0.0.1:{port}:8080"] for port in (8080, 8081, 8082)
    ]
    assert not any(published[name] for name in workers(compose))


def test_a_worker_can_be_reached_from_gateways_only(compose: dict[str, Any]) -> None:
    """A network for each region, without a way outside: its worker is in it, the gateways, and no other worker."""
    for region in REGIONS:
        assert compose["services"][f"worker-{region}"]["networks"] == [region]
        assert compose["networks"][region] == {"internal": True}
    for name, gateway in gateways(compose).items():
        assert set(gateway["networks"]) == {"edge", *REGIONS}, name


def test_each_audit_trail_belongs_to_one_gateway(compose: dict[str, Any]) -> None:
    mounted = {name: service.get("volumes", []) for name, service in compose["services"].items()}
    for region in REGIONS:
        assert mounted[f"gateway-{region}"] == ["config:/etc/tidegate:ro", f"audit-{region}:/var/lib/tidegate"]
        assert mounted[f"worker-{region}"] == []
    assert mounted["keys"] == ["./configs/compose:/srv/compose:ro", "config:/etc/tidegate"]
    assert set(compose["volumes"]) == {"config", *(f"audit-{region}" for region in REGIONS)}
    assert Path(load(CONFIG)["audit"]["path"]).parent == Path("/var/lib/tidegate")


def test_a_key_is_made_in_a_volume_and_no_file_holds_one(compose: dict[str, Any]) -> None:
    command = compose["services"]["keys"]["command"]
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert command[:2] == ["keys", "new"]
    assert options == {"--tenant": "demo", "--config": LAID, "--template": "/srv/compose/gateway.yaml"}
    for path in (ROOT / "docker-compose.yml", CONFIG):
        assert not re.search(r"sha256:[0-9a-f]|tg_[A-Za-z0-9]|tidegate-demo", path.read_text(encoding="utf-8"))


def test_no_package_registry_is_named() -> None:
    for path in (ROOT / "docker-compose.yml", ROOT / ".dockerignore", *DOCKERFILES):
        assert not re.search(r"pypi\.|pytorch\.org|https://", path.read_text(encoding="utf-8")), path.name


def test_the_how_to_tells_of_every_volume_port_and_variable(compose: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "how-to" / "compose.md").read_text(encoding="utf-8")
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    volumes = {"audit-REGION" if name.startswith("audit-") else name for name in compose["volumes"]}
    ports = {port.split(":")[1] for gateway in gateways(compose).values() for port in gateway["ports"]}
    builds = set(re.findall(r"\$\{(\w+):-", text)) - {"TIDEGATE_VERSION", "CA_BUNDLE", "WHEELS"}
    assert [word for word in sorted(volumes | ports | builds) if word not in page] == []


def test_each_service_is_told_its_region(compose: dict[str, Any]) -> None:
    assert [region["id"] for region in load(CONFIG)["regions"]] == list(REGIONS)
    for region in REGIONS:
        command = compose["services"][f"gateway-{region}"]["command"]
        assert command == ["gateway", "--config", LAID, "--region", region]
        arguments = compose["services"][f"worker-{region}"]["command"]
        assert arguments[arguments.index("--region") + 1] == region


def test_backends_peers_and_public_urls_are_the_services(compose: dict[str, Any]) -> None:
    settings = load(CONFIG)
    for region in settings["regions"]:
        [backend] = region["backends"]
        host, port = backend["url"].removeprefix("http://").split(":")
        arguments = compose["services"][host]["command"]
        assert (host, arguments[arguments.index("--port") + 1]) == (f"worker-{region['id']}", port)
    assert settings["audit"]["peers"] == {region: f"http://gateway-{region}:8080" for region in REGIONS}
    assert {region: [f"{url.removeprefix('http://')}:8080"] for region, url in public_urls(settings).items()} == {
        region: compose["services"][f"gateway-{region}"]["ports"] for region in REGIONS
    }


def public_urls(settings: Any) -> dict[str, str]:
    return dict(settings["gateway"]["public_urls"])


def test_tidegate_check_accepts_the_configuration() -> None:
    assert check(KEY_HASH).returncode == 0


def test_the_demo_key_is_refused_there() -> None:
    ran = check(DEMO_KEY_HASH)
    assert (ran.returncode, "tidegate-demo" in ran.stderr) == (2, True)


def check(key_hash: str) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "TIDEGATE_TENANTS__0__KEYS": f'["{key_hash}"]'}
    command = [sys.executable, "-m", "app.cli", "check", str(CONFIG)]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


# --- images


def test_there_are_two_images() -> None:
    assert [path.name for path in DOCKERFILES] == ["gateway.Dockerfile", "worker.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    ran = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_small_pinned_and_run_as_nobody(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^ARG BASE_IMAGE=python:3\.\d+-slim$", text, re.MULTILINE)
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["${BASE_IMAGE} AS build", "${BASE_IMAGE}"]
    assert {"PIP_INDEX_URL", "CA_BUNDLE"} <= set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    assert text.index("install -c lock.txt -r wanted.txt") < text.index("COPY app app"), "dependencies before code"
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", last, re.MULTILINE)
    assert " install " not in last.replace("&& install -d", "")
    installs = re.findall(r"pip --python /srv/venv install (\S+)", text)
    assert installs
    assert set(installs) <= {"-c", "--no-deps"}


def test_the_gateway_image_holds_no_torch() -> None:
    text = (ROOT / "deploy" / "gateway.Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"optional-dependencies|model\.txt|^\s*&?&?.*pip install.*torch", text, re.MULTILINE)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_not_ignored(path: Path) -> None:
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:].split("/")[0] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(encoding="utf-8"), re.MULTILINE)
    sources = {source.split("/")[0] for line in copied for source in line.split() if not source.startswith("$")}
    assert sources <= kept
    assert all((ROOT / source).exists() for line in copied for source in line.split() if not source.startswith("$"))
