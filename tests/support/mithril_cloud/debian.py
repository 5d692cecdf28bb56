"""The disk of a machine with a kernel of its own: a small Debian with systemd, sshd and the real cloud-init."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.components import require

_WHY = "a machine boots by the real cloud-init"
_PACKAGES = (
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "dbus",
    "cloud-init",
    "netplan.io",
    "openssh-server",
    "python3",
    "sudo",
    "iproute2",
    "procps",
    "ca-certificates",
)
_MMDEBSTRAP = (
    "mmdebstrap",
    "--variant=minbase",
    '--aptopt=Acquire::Languages "none"',
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
)
# Who logs in is the cloud's user; there is no other source of data, which would be waited for.
_CLOUD_INIT = """\
datasource_list: [NoCloud, None]
locale: false
system_info:
  default_user: {name: ubuntu, shell: /bin/bash, sudo: ["ALL=(ALL) NOPASSWD:ALL"]}
"""
_DISK_MB = 4096  # sparse


@dataclass(frozen=True, slots=True)
class Image:
    """`disk` is copied for each machine. They lie in one folder."""

    disk: Path
    kernel: Path
    initrd: Path


def debian_image(cache: Path) -> Image:
    """Made where `cache` does not have it (65 s, 120 MB to get, 520 MB there); skips where it cannot be."""
    for program in ("mmdebstrap", "mkfs.ext4"):
        require(program, _WHY)
    recipe = repr((_PACKAGES, _MMDEBSTRAP, _CLOUD_INIT, _DISK_MB))
    folder = cache / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    image = Image(folder / "disk", folder / "vmlinuz", folder / "initrd.img")
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as own:
            _make(Path(own))
            with suppress(OSError):  # another has made it meanwhile
                (Path(own) / "image").rename(folder)
    return image


def _make(own: Path) -> None:
    root, image = own / "root", own / "image"
    words = [*_MMDEBSTRAP, f"--include={','.join(_PACKAGES)}", "bookworm", root]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(own)})
    require("Debian mirror", f"{_WHY}; mmdebstrap says: {done.stderr[-300:]}", found=done.returncode == 0)
    (root / "etc/cloud/cloud.cfg.d/50_cloud.cfg").write_text(_CLOUD_INIT)
    (root / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")  # qemu's own
    image.mkdir()
    for name in ("vmlinuz", "initrd.img"):
        (found,) = (root / "boot").glob(f"{name}-*")
        shutil.copy(found, image / name)
    with (image / "disk").open("wb") as file:
        file.truncate(_DISK_MB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-L", "root", "-d", root, image / "disk"], check=True)
