"""Programs of tests in a mount namespace of their own, which only their process tree sees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_mounted(mount: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python `code` once the shell commands `mount` have succeeded; skips the test where nobody may mount."""
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if "unshare" in ran.stderr or "mount:" in ran.stderr:
        pytest.skip(f"only root may mount a file system: {ran.stderr.strip()}")
    return ran
