"""What a test needs to be refused something for real: a small disk, a read-only one, a user without rights."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.components import require


@contextlib.contextmanager
def small_disk(folder: Path, *, megabytes: int = 1) -> Iterator[Path]:
    """A file system of so many megabytes at `folder`; skips the test where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    require("right to mount", "a small disk is filled", found=mounted)
    try:
        yield folder
    finally:
        while folder.is_mount():
            subprocess.run(["umount", "-l", str(folder)], check=True)


def make_read_only(disk: Path) -> None:
    """No one, root neither, writes to this `small_disk` from now on."""
    subprocess.run(
        ["mount", "--bind", str(disk), str(disk)], check=True
    )  # works while files are open, a remount does not
    subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)


def run_as_nobody(code: str, below: Path) -> str:
    """What Python code prints for a user whom permissions hold back, who may pass through to `below`."""
    if os.geteuid() != 0:
        return subprocess.check_output([sys.executable, "-c", code], text=True)
    for folder in [below, *below.parents]:
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    load = "import flow.bundle, flow.record, os\n"  # while it may still read them
    drop = "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    return subprocess.check_output([sys.executable, "-c", load + drop + code], text=True)
