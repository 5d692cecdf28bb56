"""What a machine of the cloud has on its disk: who may log in, and what stands in for cloud-init, systemd and NFS."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.containers import IMAGE, image_archive
from tests.support.mithril_cloud import systemctl
from tests.support.registries import HOST

SCRIPT = "var/lib/foundry/startup_script.sh"
LOG = "var/log/foundry/startup_script.log"
SIGNAL = "opt/mithril/MITHRIL_SIGNAL.yml"
# At each boot, when sshd answers. The script runs once in a disk's life, with as few variables as cloud-init leaves it.
_BOOT = f"""\
#!/bin/bash
exec </dev/null
. /usr/local/etc/boot
ip addr add "$private_ip/24" dev eth0
mkdir -p /run/systemd/system /mnt/local /dev/disk/by-id
for one in $devices; do
  IFS=: read -r name major minor volume <<<"$one"
  mknod "/dev/$name" b "$major" "$minor"
  ln -s "../../$name" "/dev/disk/by-id/virtio-$volume"
done
cd /
[ ! -e /etc/systemd/system/multi-user.target.wants ] || systemctl boot
[ ! -e /var/lib/foundry/booted ] || exit
touch /var/lib/foundry/booted
[ ! -e /{SCRIPT} ] || exec env -i PATH="$PATH" LANG=C.UTF-8 /bin/bash /{SCRIPT} >/{LOG} 2>&1
"""
# What is exported by such a name is a folder below /run/shares.
_MOUNT_NFS = """\
#!/bin/bash
source=$1 target=$2 name=${1#fileshare-}
name=${name%%.mithril.internal:*}
[ "$source" = "fileshare-$name.mithril.internal:/" ] && [ -d "/run/shares/$name" ] || {
  echo "mount.nfs4: Failed to resolve server ${source%%:*}: Name or service not known" >&2
  exit 32
}
exec mount -i --bind "/run/shares/$name" "$target"
"""
_DOCKER = f"""\
[Service]
EnvironmentFile=-/etc/default/docker
ExecStart=/usr/sbin/dockerd --bridge=none --iptables=false --ip-forward=false --insecure-registry={HOST}
ExecStartPost=/bin/sh -c 'until docker version; do sleep 0.05; done; docker import /var/cache/image.tar {IMAGE}'
[Install]
WantedBy=multi-user.target
"""
# NVIDIA's repository has what shows its GPUs to Docker; containers find no device here, but the variable.
_APT_GET = """\
#!/bin/bash
[[ $* == *" nvidia-container-toolkit" ]] || exec /usr/bin/apt-get "$@"
cat /etc/apt/sources.list.d/*.list >/tmp/sources
read -r _ key address place < <(grep https://nvidia.github.io/libnvidia-container/stable/deb/ /tmp/sources)
[ "$address$place" = https://nvidia.github.io/libnvidia-container/stable/deb/amd64/ ] && [ -s "${key:11:-1}" ] || {
  echo "E: Unable to locate package nvidia-container-toolkit" >&2
  exit 100
}
printf '#!/bin/sh\\n' >/usr/bin/nvidia-container-runtime-hook
chmod +x /usr/bin/nvidia-container-runtime-hook
"""
_CURL = """\
#!/bin/bash
[[ $* != *https://nvidia.github.io/libnvidia-container/gpgkey ]] || exec echo a key
exec /usr/bin/curl "$@"
"""
_PORT_FORWARDER = """\
#!/bin/bash
echo "port $1 is public"
exec sleep infinity
"""


@dataclass(frozen=True, slots=True)
class Attached:
    """What is attached for one boot: block devices of this machine, and folders."""

    devices: Mapping[str, int]  # their numbers by volume
    shares: Mapping[str, Path]  # by name


def furnish(folder: Path, keys: Sequence[str], script: str | None) -> None:
    """Add to a disk that was just installed what the cloud's image has, and what this bid gave it."""
    root, etc = folder / "root", folder / "etc.new"
    for name in ("var/lib/foundry", "var/log/foundry", "opt/mithril"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if script is not None:
        (root / SCRIPT).write_text(script)
    (etc / "ssh/authorized_keys").write_text("".join(f"{key}\n" for key in keys))
    (etc / "sudoers.d").mkdir(exist_ok=True)
    _program(etc / "sudoers.d/ubuntu", "ubuntu ALL=(ALL) NOPASSWD:ALL\n", 0o440)
    (etc / "systemd/system").mkdir(parents=True)
    os.setxattr(etc / "systemd/system", "trusted.overlay.opaque", b"y")  # no service of this machine's is there
    systemd = folder / "usr.new/bin/systemctl"
    shutil.copy(systemctl.__file__, systemd)
    _program(systemd, "#!/usr/bin/python3 -I\n" + systemd.read_text())
    for name in ("poweroff", "halt", "shutdown", "reboot"):
        (folder / "usr.new/sbin" / name).symlink_to("/usr/bin/systemctl")
    for name in ("mount.nfs", "mount.nfs4"):
        _program(folder / "usr.new/sbin" / name, _MOUNT_NFS)
    for name in ("sbin", "etc"):
        (folder / "local" / name).mkdir(exist_ok=True)
    _program(folder / "local/sbin/boot", _BOOT)
    _program(folder / "local/bin/foundrypf", _PORT_FORWARDER)
    _program(folder / "local/bin/curl", _CURL)
    _program(folder / "local/sbin/apt-get", _APT_GET)


def add_docker(folder: Path, variables: Mapping[str, str]) -> None:
    """One that runs from the first boot on, with a small image in it, and finds HOST where `variables` say."""
    (folder / "etc.new/default").mkdir(exist_ok=True)
    (folder / "etc.new/default/docker").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    (folder / "root/var/cache/image.tar").write_bytes(image_archive())
    units = folder / "etc.new/systemd/system"
    (units / "docker.service").write_text(_DOCKER)
    (units / "multi-user.target.wants").mkdir()
    (units / "multi-user.target.wants/docker.service").symlink_to("/etc/systemd/system/docker.service")


def prepare_boot(folder: Path, name: str, nodes: Mapping[str, str], attached: Attached, *, elsewhere: bool) -> None:
    """What is another at each boot; `nodes` has the private address of every node of the bid by its name.

    `elsewhere`: on another machine than before, which has a local disk of its own, and nothing was announced there.
    """
    hosts = [f"{address} {node}" for node, address in nodes.items()]
    (folder / "etc.new/hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
    (folder / "etc.new/hostname").write_text(f"{name}\n")
    devices = [
        f"vd{chr(ord('b') + at)}:{os.major(number)}:{os.minor(number)}:{volume}"
        for at, (volume, number) in enumerate(attached.devices.items())
    ]
    (folder / "local/etc/boot").write_text(f"private_ip={nodes[name]}\ndevices='{' '.join(devices)}'\n")
    shares = folder / "shares"
    shutil.rmtree(shares, ignore_errors=True)
    shares.mkdir()
    for share, exported in attached.shares.items():
        (shares / share).symlink_to(exported)
    if elsewhere:
        (folder / "root" / SIGNAL).unlink(missing_ok=True)
        shutil.rmtree(folder / "root/mnt/local", ignore_errors=True)


def announce(folder: Path, instance_status: str, bid_status: str, end_time: str | None) -> None:
    """The signal file, whole at once."""
    file = folder / "root" / SIGNAL
    new = file.with_suffix(".new")
    new.write_text(f"instance_status: {instance_status}\nbid_status: {bid_status}\nend_time: {end_time}\n")
    new.rename(file)


def _program(path: Path, text: str, mode: int = 0o755) -> None:
    path.write_text(text)
    path.chmod(mode)
