"""A real podman with storage of its own, and a small image made of busybox."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.components import require

IMAGE = "localhost/flow-test/busybox:1"
_PROGRAMS = ("cat", "echo", "env", "false", "id", "kill", "ls", "pwd", "sh", "sleep", "test", "true")
_WHY = "tasks run in containers"


@contextmanager
def podman(folder: Path) -> Iterator[dict[str, str]]:
    """The variables with which podman keeps everything in `folder` and knows IMAGE; leaves the test out without it."""
    for program in ("podman", "busybox"):
        require(program, _WHY)
    variables = _configure(folder)
    environment = os.environ | variables
    try:
        made = subprocess.run(
            ["podman", "import", "-", IMAGE], input=image_archive(), capture_output=True, env=environment
        )
        tried = subprocess.run(["podman", "run", "--rm", IMAGE, "true"], capture_output=True, env=environment)
        told = (made.stderr + tried.stderr).decode(errors="replace").strip()
        require("working podman", f"{_WHY}; it says: {told}", found=tried.returncode == 0)
        yield variables
    finally:
        subprocess.run(["podman", "rm", "--all", "--force"], capture_output=True, env=environment)
        subprocess.run(["umount", folder / "graph" / "overlay"], capture_output=True)


def _configure(folder: Path) -> dict[str, str]:
    """Where podman is itself in a container, crun finds no cgroups and the default limits cannot be set."""
    folder.mkdir(parents=True, exist_ok=True)
    runtime = 'runtime = "runc"\n' if shutil.which("runc") else ""
    (folder / "containers.conf").write_text(
        f'[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\ntmp_dir = "{folder}/tmp"\n{runtime}'
        '[containers]\nlog_driver = "k8s-file"\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    return {
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
    }


def import_python_image(environment: dict[str, str]) -> str:
    """The name of an image that holds the system's own Python, made where podman does not have it yet."""
    name = "localhost/flow-test/python:1"
    if subprocess.run(["podman", "image", "exists", name], env=environment).returncode != 0:
        subprocess.run(["podman", "import", "-", name], input=_python_image(), env=environment, check=True)
    return name


def _python_image() -> bytes:
    """busybox, Python, its modules and the libraries that it is linked with."""
    python = os.path.realpath("/usr/bin/python3")
    linked = subprocess.run(["ldd", python], capture_output=True, text=True, check=True).stdout
    archive = io.BytesIO(image_archive())
    with tarfile.open(fileobj=archive, mode="a") as tar:
        tar.add(python, "usr/bin/python3")
        for library in re.findall(r"(/\S+) \(0x", linked):
            tar.add(os.path.realpath(library), library[1:])
        modules = f"usr/lib/{Path(python).name}"
        tar.add(f"/{modules}", modules, filter=lambda entry: None if "/test" in entry.name else entry)
    return archive.getvalue()


def image_archive() -> bytes:
    """A file system with busybox and its names, as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("bin", "tmp", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(os.path.realpath(str(shutil.which("busybox"))), "bin/busybox")
        for name in _PROGRAMS:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return archive.getvalue()
