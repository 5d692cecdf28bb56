"""Who submits: the name this machine knows, and the address git knows."""

from __future__ import annotations

import functools
import getpass
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class User:
    """Who submitted a task. `email` is "" where git knew none in the folder it was submitted from."""

    username: str
    email: str = ""


def submitter(folder: Path) -> User:
    """Who we are, in this project."""
    return User(username(), _git_email(folder))


def username() -> str:
    """Our name on this machine."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # nobody gave this number a name, as in a container
        return str(os.getuid())


@functools.lru_cache(maxsize=64)  # a sweep submits a thousand tasks from one folder; asking git takes 1.5 ms
def _git_email(folder: Path) -> str:
    """What git would sign a commit with; a project may have its own."""
    try:
        asked = subprocess.run(
            ["git", "config", "--get", "user.email"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""
