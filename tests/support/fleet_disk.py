"""The disk of a machine of the fleet: plain folders, and layers over this machine's programs and its /etc."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ACCOUNTS = Path("/usr/share/base-passwd")  # those of a fresh Debian
_FOLDERS = ("dev", "proc", "sys", "run", "mnt", "srv", "opt", "root", "home", "usr", "etc")
# Run in namespaces of its own. The first process waits for the cable, and ends, and all others with it, when whoever
# made it is gone: its stdin is a pipe.
_BOOT = """
read -r
hostname "$name"
ip link set lo up
ip addr add "$address/24" dev eth0
ip link set eth0 up
ip neigh replace "$gateway" lladdr "$gateway_mac" dev eth0 nud permanent
ip route add default via "$gateway"
mount --bind root root
for one in usr etc; do
  mount -t overlay overlay -o "lowerdir=/$one,upperdir=$one.new,workdir=$one.work" "root/$one"
done
mount --bind local root/usr/local
[ ! -e disk ] || mount -o loop disk "root$home"
mount -t proc proc root/proc
cat /proc/sys/kernel/random/uuid >boot_id
mount --bind boot_id root/proc/sys/kernel/random/boot_id
mount -t sysfs sysfs root/sys
mount -t tmpfs -o mode=755 tmpfs root/sys/fs/cgroup
for group; do
  group=${group%/*}
  case ${group##*/} in
    systemd) options="-t cgroup -o none,name=systemd" ;;
    cgroup | unified) options="-t cgroup2" ;;
    *) options="-t cgroup -o ${group##*/}" ;;
  esac
  mkdir -p "root$group"
  mount $options cgroup "root$group"
done
mount -t tmpfs -o mode=755 tmpfs root/dev
for one in null zero full random urandom tty fuse; do
  touch "root/dev/$one"
  mount --bind "/dev/$one" "root/dev/$one"
done
mkdir root/dev/pts root/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts root/dev/pts
ln -s pts/ptmx root/dev/ptmx
ln -s /proc/self/fd root/dev/fd
ln -s fd/0 root/dev/stdin && ln -s fd/1 root/dev/stdout && ln -s fd/2 root/dev/stderr
for one in dev/shm run tmp; do mount -t tmpfs tmpfs "root/$one"; done
chmod 755 root/run
for one in $copies; do # what is deleted or changed there stays as it is here
  mkdir -p "root$one" "copies.new$one" "copies.work$one"
  mount -t overlay overlay -o "lowerdir=$one,upperdir=copies.new$one,workdir=copies.work$one" "root$one"
done
for one in shares/*; do # folders that several machines see
  [ ! -d "$one" ] || { mkdir -p "root/run/$one" && mount --bind "$one" "root/run/$one"; }
done
cd root
pivot_root . mnt
umount -l mnt
[ -e /etc/ssh/host ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/host
mkdir /run/sshd
/usr/sbin/sshd
[ ! -x /usr/local/sbin/boot ] || /usr/local/sbin/boot &
exec env -i PATH="$PATH" bash -c 'while read -r; do :; done' init
"""
_SSHD = """\
HostKey /etc/ssh/host
AuthorizedKeysFile /etc/ssh/authorized_keys
UsePAM no
UseDNS no
PermitRootLogin prohibit-password
PasswordAuthentication no
Subsystem sftp internal-sftp
SetEnv FAKETIME_DONT_FAKE_MONOTONIC=1
"""
# The formats are those of driver 550.
_NVIDIA_SMI = """\
#!/bin/sh
for word; do case $word in --query-gpu=*) fields=${{word#*=}} ;; --format=*) format=${{word#*=}} ;; esac; done
index=0
while [ "$index" -lt {gpus} ]; do
  uuid=GPU-00000000-0000-0000-0000-00000000000$index
  line=
  for one in $(echo "$fields" | tr , ' '); do
    case $one in
      index) value=$index ;;
      name) value="{gpu}" ;;
      uuid) value=$uuid ;;
      driver_version) value=550.54.15 ;;
      memory.total) value="{memory} MiB" ;;
      memory.used) value="1 MiB" ;;
      utilization.gpu) value="0 %" ;;
      *) echo "Field \\"$one\\" is not a valid field to query." && exit 2 ;;
    esac
    case $format in *nounits*) value=${{value% MiB}} value=${{value% %}} ;; esac
    line="$line, $value"
  done
  [ -n "$fields" ] || line="--GPU $index: {gpu} (UUID: $uuid)"
  echo "${{line#??}}"
  index=$((index + 1))
done
"""


@dataclass(frozen=True)
class Machine:
    """What is asked for."""

    name: str
    address: str
    gpus: int = 0
    gpu: str = "NVIDIA A100-SXM4-80GB"
    gpu_memory_mib: int = 81920
    user: str = "root"  # who logs in
    memory_mb: int | None = None
    disk_mb: int | None = None  # of the user's home, where it is to get full
    copies: tuple[str, ...] = ()  # folders of this machine of which it has a copy
    without: tuple[str, ...] = ()  # programs that are not there, such as `python3`
    sshd: Mapping[str, str | int] = field(default_factory=dict)  # MaxSessions and the like

    @property
    def home(self) -> str:
        return "/root" if self.user == "root" else f"/home/{self.user}"


def install(machine: Machine, folder: Path, key: Path) -> None:
    """Fill `folder`, for `bash init` there to boot it; whoever has the `key` gets in."""
    root, etc = folder / "root", folder / "etc.new"
    for name in (*_FOLDERS, "var/lib", "var/log", "var/cache", machine.home[1:]):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir()
        (root / name).chmod(0o1777)
    (root / "var/run").symlink_to("/run")
    for link in Path("/").iterdir():
        if link.is_symlink() and str(link.readlink()).startswith("usr/"):  # bin, lib and so on
            (root / link.name).symlink_to(link.readlink())
    for name in ("usr.work", "etc.work", "etc.new/ssh", "usr.new/bin", "usr.new/sbin", "local/bin"):
        (folder / name).mkdir(parents=True)
    os.setxattr(etc / "ssh", "trusted.overlay.opaque", b"y")  # nothing of this machine's is there
    _add_accounts(machine, root, etc)
    (etc / "hostname").write_text(f"{machine.name}\n")
    (etc / "machine-id").write_text(f"{secrets.token_hex(16)}\n")
    (etc / "resolv.conf").touch()  # no name is asked for in vain
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{machine.address} {machine.name}\n")
    (etc / "ssh/sshd_config").write_text(_SSHD + "".join(f"{word} {value}\n" for word, value in machine.sshd.items()))
    (folder / "init").write_text(_BOOT)
    shutil.copy(key, etc / "ssh/authorized_keys")
    for program in (path for name in machine.without for path in Path("/usr").glob(f"*bin/{name}*")):
        os.mknod(folder / "usr.new" / program.relative_to("/usr"), stat.S_IFCHR, os.makedev(0, 0))  # not in any layer
    if machine.gpus:
        program = folder / "local/bin/nvidia-smi"
        program.write_text(nvidia_smi(machine.gpus, machine.gpu, machine.gpu_memory_mib))
        program.chmod(0o755)
    if machine.disk_mb:
        disk = folder / "disk"
        disk.touch()
        os.truncate(disk, machine.disk_mb << 20)
        owner = (root / machine.home[1:]).stat().st_uid
        subprocess.run(["mkfs.ext4", "-q", "-m0", "-E", f"root_owner={owner}:{owner}", disk], check=True)


def nvidia_smi(count: int, name: str, memory_mib: int) -> str:
    """A program that tells of so many GPUs."""
    return _NVIDIA_SMI.format(gpus=count, gpu=name, memory=memory_mib)


def _add_accounts(machine: Machine, root: Path, etc: Path) -> None:
    """Nobody has a password, and everybody may log in."""
    accounts = (ACCOUNTS / "passwd.master").read_text() + "sshd:*:100:65534::/run/sshd:/usr/sbin/nologin\n"
    groups = (ACCOUNTS / "group.master").read_text()
    if machine.user != "root":
        accounts += f"{machine.user}:*:1000:1000::{machine.home}:/bin/bash\n"
        groups += f"{machine.user}:*:1000:\ndocker:*:999:{machine.user}\n"
        os.chown(root / machine.home[1:], 1000, 1000)
    names = [line.partition(":")[0] for line in accounts.splitlines()]
    (etc / "passwd").write_text(accounts)
    (etc / "group").write_text(groups)
    (etc / "shadow").write_text("".join(f"{name}:*:20000::::::\n" for name in names))
