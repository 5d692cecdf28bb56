"""Makes a machine that costs money ready at each boot, for guard.py, with Docker and volumes: many need neither.

Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import Any, Iterator

DEVICE_SECONDS = 120.0  # for a volume's device to appear
# Ubuntu does not have it; source: NVIDIA Container Toolkit, "Installing with apt".
TOOLKIT = """
at=https://nvidia.github.io/libnvidia-container key=/usr/share/keyrings/nvidia.asc
curl -fsSL $at/gpgkey >$key
echo "deb [signed-by=$key] $at/stable/deb/$(dpkg --print-architecture) /" >/etc/apt/sources.list.d/nvidia.list
"""


def prepare(machine: dict[str, Any], user: Any, run: Any) -> Iterator[str]:
    """What there is to say of it. user: who logs in, of pwd; run: runs a program."""
    if machine["docker"]:
        yield from _have_docker(user.pw_name, run)
    if any(one["share"] for one in machine["volumes"]) and not shutil.which("mount.nfs4"):
        yield _install("nfs-common", run)
    for volume in machine["volumes"]:
        yield from _have_volume(volume, user, run)


def _have_docker(user: str, run: Any) -> Iterator[str]:
    """Installed where it is missing, as what shows it GPUs, and open to the login user."""
    if not shutil.which("docker"):
        yield _install("docker.io", run)
    if shutil.which("nvidia-smi") and not shutil.which("nvidia-container-runtime-hook"):
        run("sh", "-c", TOOLKIT)
        yield _install("nvidia-container-toolkit", run)
        run("systemctl", "restart", "docker")  # it looks for it when it starts
    run("usermod", "-aG", "docker", user)


def _install(package: str, run: Any) -> str:
    done = run("sh", "-c", "export DEBIAN_FRONTEND=noninteractive; apt-get update -q; apt-get install -yq " + package)
    return f"{package} was installed: {done.returncode} {done.stderr[-200:]}"


def _have_volume(volume: dict[str, Any], user: Any, run: Any) -> Iterator[str]:
    """At its `path`, the login user's where nobody has written to it yet.

    What goes wrong is told to the task that needs it, too, by a file beside the mount.
    """
    at = volume["path"]
    os.makedirs(at, exist_ok=True)
    failed = "" if os.path.ismount(at) else _mount(volume, run)
    if failed:
        os.rmdir(at)
        with open(at + ".why", "w", encoding="utf-8") as file:
            file.write(failed)
        yield failed
        return
    if os.path.exists(at + ".why"):
        os.unlink(at + ".why")
    if not set(os.listdir(at)) - {"lost+found"} and os.stat(at).st_uid == 0:
        with contextlib.suppress(OSError):  # a share whose server lets no root in
            os.chown(at, user.pw_uid, user.pw_gid)


def _mount(volume: dict[str, Any], run: Any) -> str:
    """Why it could not be; "" where it is there."""
    at = volume["path"]
    if volume["share"]:
        done = run("mount", "-t", "nfs4", "-o", volume["options"], volume["share"], at)
        said = done.stderr.strip() or f"exit {done.returncode}"
        return f"{volume['share']}: {said}" if done.returncode else ""
    end = time.monotonic() + DEVICE_SECONDS
    while not os.path.exists(volume["device"]):
        if time.monotonic() > end:
            return f"its device `{volume['device']}` did not appear"
        time.sleep(0.5)
    kind = run("blkid", "-p", "-o", "value", "-s", "TYPE", volume["device"])
    if kind.returncode == 2:  # nothing that it knows: formatted only if there is nothing at all
        if not _is_blank(volume["device"]):
            return f"`{volume['device']}` holds data and no file system: it is left as it is"
        made = run("mkfs.ext4", "-q", volume["device"])
        if made.returncode:
            return made.stderr.strip() or "mkfs.ext4 failed"
    uuid = run("blkid", "-p", "-o", "value", "-s", "UUID", volume["device"]).stdout.strip()
    named = run("mount", f"UUID={uuid}", at) if uuid else None
    done = named if named and not named.returncode else run("mount", volume["device"], at)
    return done.stderr.strip() if done.returncode else ""


def _is_blank(device: str) -> bool:
    """Whether there are only zeros in the first and the last MiB."""
    with open(device, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        for at in (0, max(0, size - (1 << 20))):
            file.seek(at)
            if any(file.read(1 << 20)):
                return False
    return True
