"""The base image: the one at hand, else the registry's, else, as root on Debian, one made here by debootstrap."""

import os
import shutil
import time
from pathlib import Path

from tests.compose.engine import HOME, Engine
from tests.compose.host import bundle
from tests.compose.report import Failure, Report
from tests.compose.shell import run

BASE = "python:3.11-slim"
_MADE_ELSEWHERE = "tidegate-compose-test/python:3.11-slim"
"""What ours is called in an engine that others use, who mean the registry's by the usual name."""
_SUITE = "bookworm"
"""The Debian that has Python 3.11, whichever one this is."""
_PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
_LEFT_OUT = ("dev", "proc", "sys", "tmp", "var/cache/apt", "var/lib/apt/lists")
_LEFT_OUT_TOO = tuple(f"usr/share/{name}" for name in ("doc", "info", "locale", "man"))
_TRUSTED = Path("etc/ssl/certs/ca-certificates.crt")


def base_image(report: Report, engine: Engine) -> str:
    """The name of an image to build on. `BASE_IMAGE` names another one than the usual."""
    if named := os.environ.get("BASE_IMAGE"):
        return named
    begun = time.monotonic()
    name = _found_or_made(report, engine)
    report.figure(f"base image {engine.megabytes(name)} MB in {time.monotonic() - begun:.0f} s")
    return name


def _found_or_made(report: Report, engine: Engine) -> str:
    made = BASE if engine.own else _MADE_ELSEWHERE
    with report.step(f"Base image {BASE}", 300):
        for name in dict.fromkeys((BASE, made)):
            if engine.docker("image", "inspect", "--format", "{{.Id}}", name, check=False):
                report.say(f"{name} is at hand")
                return name
        pulled = run("docker", "pull", "--quiet", BASE, env=engine.env, check=False)
        if pulled.status == 0:
            return BASE
        report.say(f"no registry has it: {' '.join(pulled.err.split())[:150]}")
    if os.geteuid() or not shutil.which("debootstrap"):
        raise Failure(f"no registry answers; name an image that you have: BASE_IMAGE=NAME, like {BASE}")
    with report.step("Making the base image by debootstrap", 400):
        _make(engine, made)
    return made


def _make(engine: Engine, name: str) -> None:
    HOME.mkdir(mode=0o700, exist_ok=True)
    root = HOME / "root"
    shutil.rmtree(root, ignore_errors=True)
    try:
        # In a mount namespace of its own: however it ends, none of its mounts stays.
        variant = ("--variant=minbase", f"--include={_PACKAGES}")
        run("unshare", "--mount", "debootstrap", *variant, _SUITE, str(root), *_mirror())
        for marker in root.glob("usr/lib/python3.*/EXTERNALLY-MANAGED"):
            marker.unlink()
        if trusted := bundle():
            shutil.copyfile(trusted, root / _TRUSTED)
        without = " ".join(f"--exclude='./{path}/*'" for path in (*_LEFT_OUT, *_LEFT_OUT_TOO))
        pack = f"tar -C {root} {without} --create ."
        run(
            "bash",
            "-c",
            f"set -o pipefail; {pack} | docker import --change 'CMD [\"python3\"]' - {name}",
            env=engine.env,
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _mirror() -> list[str]:
    """Where apt here gets Debian from, if it says so; else debootstrap knows."""
    columns = (
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Label: Debian",
        f"Codename: {_SUITE}",
    )
    return run("apt-get", *columns, check=False).out.split()[:1]
