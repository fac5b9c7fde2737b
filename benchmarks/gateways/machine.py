"""What the figures were taken on, in words and as part of a file's name."""

import os
import platform
import re
import subprocess
from pathlib import Path


def kind() -> str:
    """The processor's name."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return model[1].strip() if model else platform.machine()


def described(directory: Path) -> str:
    """Processor, cores, kernel, what the disk behind a directory is formatted with, and how busy all of it was."""
    found = subprocess.run(["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True, check=False)
    disk = found.stdout.strip() or "unknown"
    system = f"Linux {platform.release()}, Python {platform.python_version()}, audit on {disk}"
    return f"{kind()}, {os.cpu_count()} cores, {system}, load {os.getloadavg()[0]:.1f} before"


def slug() -> str:
    """As `amd-epyc-2-cores`."""
    words = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", "", kind().lower())
    return f"{re.sub(r'[^a-z0-9]+', '-', words).strip('-')}-{os.cpu_count()}-cores"
