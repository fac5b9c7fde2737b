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
CONFIGS = [ROOT / "configs" / "compose" / f"{region}.yaml" for region in REGIONS]
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


def test_a_gateway_and_a_worker_for_each_region(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {f"{kind}-{region}" for kind in ("gateway", "worker") for region in REGIONS}


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
        assert service["restart"] == "unless-stopped", name
        assert int(service["user"].split(":")[0]) > 0, name
        assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys(), name


def test_every_service_says_whether_it_is_well(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        check = service["healthcheck"]
        assert check["test"][0] == "CMD", name
        assert {"interval", "timeout", "retries", "start_period"} <= check.keys(), name
    for region in REGIONS:
        waits = compose["services"][f"gateway-{region}"]["depends_on"]
        assert waits == {f"worker-{region}": {"condition": "service_healthy"}}


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
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith(".")
    ]
    assert sorted(mounted) == sorted(compose["volumes"])
    for region in REGIONS:
        volumes = compose["services"][f"gateway-{region}"]["volumes"]
        assert f"audit-{region}:/var/lib/tidegate" in volumes
        assert [volume for volume in volumes if volume.startswith(".")] == ["./configs/compose:/etc/tidegate:ro"]
        settings = load(ROOT / "configs" / "compose" / f"{region}.yaml")
        assert Path(settings["audit"]["path"]).parent == Path("/var/lib/tidegate")


def test_the_files_hold_no_key(compose: dict[str, Any]) -> None:
    for gateway in gateways(compose).values():
        assert re.fullmatch(r'\["\$\{TIDEGATE_KEY_HASH:\?.+\}"\]', gateway["environment"]["TIDEGATE_TENANTS__0__KEYS"])
    for path in (ROOT / "docker-compose.yml", *CONFIGS):
        assert not re.search(r"sha256:[0-9a-f]{64}|tidegate-demo", path.read_text(encoding="utf-8"))


def test_no_package_registry_is_named() -> None:
    for path in (ROOT / "docker-compose.yml", ROOT / ".dockerignore", *DOCKERFILES):
        assert not re.search(r"pypi\.|pytorch\.org|https://", path.read_text(encoding="utf-8")), path.name


def test_each_gateway_reads_its_own_region(compose: dict[str, Any]) -> None:
    files = dict(zip(REGIONS, map(load, CONFIGS), strict=True))
    for region, settings in files.items():
        assert settings["gateway"].pop("region") == region
        assert compose["services"][f"gateway-{region}"]["command"][-1] == f"/etc/tidegate/{region}.yaml"
        arguments = compose["services"][f"worker-{region}"]["command"]
        assert arguments[arguments.index("--region") + 1] == region
    assert files["us-east"] == files["eu-west"] == files["ap-southeast"]


def test_backends_are_the_services(compose: dict[str, Any]) -> None:
    for region in load(CONFIGS[0])["regions"]:
        [backend] = region["backends"]
        host, port = backend["url"].removeprefix("http://").split(":")
        arguments = compose["services"][host]["command"]
        assert (host, arguments[arguments.index("--port") + 1]) == (f"worker-{region['id']}", port)
    ports = load(CONFIGS[0])["gateway"]["public_urls"]
    assert {f"{url.removeprefix('http://')}:8080" for url in ports.values()} == {
        port for gateway in gateways(compose).values() for port in gateway["ports"]
    }


@pytest.mark.parametrize("path", CONFIGS, ids=REGIONS)
def test_tidegate_check_accepts_the_configuration(path: Path) -> None:
    assert check(path, KEY_HASH).returncode == 0


@pytest.mark.parametrize("path", CONFIGS, ids=REGIONS)
def test_the_demo_key_is_refused_there(path: Path) -> None:
    ran = check(path, DEMO_KEY_HASH)
    assert (ran.returncode, "tidegate-demo" in ran.stderr) == (2, True)


def check(path: Path, key_hash: str) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "TIDEGATE_TENANTS__0__KEYS": f'["{key_hash}"]'}
    command = [sys.executable, "-m", "app.cli", "check", str(path)]
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
    kept = {line[1:].split("/")[0] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(encoding="utf-8"), re.MULTILINE)
    sources = {source.split("/")[0] for line in copied for source in line.split() if not source.startswith("$")}
    assert sources <= kept
    assert all((ROOT / source).exists() for line in copied for source in line.split() if not source.startswith("$"))
