"""Other Pythons of this machine, for what must run on them: the runner promises 3.8 and newer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_SYSTEM = "/usr/bin/python3"


def old_pythons() -> list[str]:
    """Programs that are Python 3.8 to 3.10, as far as there are any, oldest first; and the system's own, the last."""
    found: dict[str, str] = {}
    for program in _candidates():
        if version := _version(program):
            found.setdefault(version, program)
    old = [found[version] for version in ("3.8", "3.9", "3.10") if version in found]
    return [*(program for program in old if program != _SYSTEM), _SYSTEM]


def new_python() -> str | None:
    """A program that is Python 3.13 or 3.12, if there is one."""
    found = {version: program for program in _candidates() if (version := _version(program))}
    return found.get("3.13") or found.get("3.12")


def _candidates() -> list[str]:
    named = [shutil.which(f"python3.{minor}") for minor in (8, 9, 10, 12, 13)]
    # pyenv's names on PATH start only what was chosen; beside them lies all that there is.
    pyenv = Path(shutil.which("pyenv") or "/nowhere/bin/pyenv").parents[1]
    kept = sorted(str(path) for path in pyenv.glob("versions/3.*/bin/python3"))
    return [*filter(None, named), *kept, _SYSTEM]


def _version(program: str) -> str | None:
    """As "3.8"; None where the program does not start."""
    asked = [program, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True)
    except OSError:
        return None
    return told.stdout.strip() if told.returncode == 0 else None
