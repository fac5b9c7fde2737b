"""What a build has to know of this machine: where its pip looks for packages, and by which certificates.

Read from pip's own configuration and environment when a run begins; nothing of it is kept in the tree.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.compose.report import Report
from tests.compose.shell import run

ROOT = Path(__file__).resolve().parents[2]
_DEPLOY = ROOT / "deploy"
_CONFIGURED = re.compile(r"^(?::env:|global|install|download)\.([a-z-]+)='(.*)'$", re.MULTILINE)
_REMOTE = ("http://", "https://")
_BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)


def pip_settings() -> dict[str, str]:
    """The build arguments that have pip in a build look where pip here looks, local folders aside."""
    found = _configuration()
    extra = [url for url in found.get("extra-index-url", "").split() if url.startswith(_REMOTE)]
    wanted = {
        "PIP_INDEX_URL": found.get("index-url", ""),
        "PIP_EXTRA_INDEX_URL": " ".join(extra),
        "PIP_TRUSTED_HOST": " ".join(found.get("trusted-host", "").split()),
    }
    return {name: value for name, value in wanted.items() if value}


def bundle() -> Path | None:
    """The certificates that this machine trusts, in one file."""
    named = [_configuration().get("cert"), *map(os.environ.get, ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"))]
    return next((path for path in [*map(Path, filter(None, named)), *_BUNDLES] if path.is_file()), None)


@contextmanager
def build_files(report: Report) -> Iterator[None]:
    """Lay beside the Dockerfiles what a build here needs as files, and take it away again.

    The certificates; and torch, where pip here has it in a folder, which no build can look into.
    """
    laid: list[Path] = []
    try:
        trusted = bundle()
        if trusted:
            laid.append(_lay(trusted, "compose-test.crt"))
        with tempfile.TemporaryDirectory() as folder:
            pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet")
            run(*pip, "--no-index", "--no-deps", "--dest", folder, _torch(), check=False)
            for wheel in Path(folder).glob("*.whl"):
                report.say(f"{wheel.name}, from a folder of this machine")
                if not (_DEPLOY / wheel.name).exists():
                    laid.append(_lay(wheel, wheel.name))
        yield
    finally:
        for file in laid:
            file.unlink(missing_ok=True)


def _lay(file: Path, name: str) -> Path:
    target = _DEPLOY / name
    shutil.copyfile(file, target)
    return target


def _torch() -> str:
    lock = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")
    return next(line for line in lock.splitlines() if line.startswith("torch=="))


def _configuration() -> dict[str, str]:
    """pip's settings by name; the environment wins."""
    listed = run(sys.executable, "-m", "pip", "config", "list").out
    lines = sorted(listed.splitlines(), key=lambda line: line.startswith(":env:"))
    return dict(_CONFIGURED.findall("\n".join(lines)))
