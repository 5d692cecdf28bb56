"""What an installation takes: distributions and megabytes, of the base package alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.figures import Figure

_ROOT = Path(__file__).resolve().parents[1]
_NOT_OURS = ("pip", "setuptools")  # what `venv` itself puts there


def measure(*, quick: bool) -> list[Figure]:
    """Install into an empty environment, and look at what is there then. Needs the package index."""
    with tempfile.TemporaryDirectory(prefix="flow-bench-") as folder:
        python = Path(folder) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", "--no-compile", str(_ROOT)], check=True)
        listing = subprocess.run([*pip, "list", "--format=json"], check=True, capture_output=True)
        names = [one["name"] for one in json.loads(listing.stdout) if one["name"] not in _NOT_OURS]
        site = next(Path(folder).glob("lib/python*/site-packages"))
        size = sum(path.stat().st_size for path in site.rglob("*") if _is_counted(path.relative_to(site), path))
    return [
        Figure("distributions installed", len(names), "", aim=14, key="distributions"),
        Figure("installed, without bytecode", size / 1e6, "MB", aim=21, key="size"),
    ]


def _is_counted(inside: Path, path: Path) -> bool:
    is_ours = not inside.parts[0].startswith((*_NOT_OURS, "_distutils_hack", "distutils-precedence"))
    return is_ours and path.suffix != ".pyc" and path.is_file()
