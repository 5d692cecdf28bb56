"""Real machines to ssh to, all on this one: each with processes, network, disk and sshd of its own."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import slow_link
from tests.support.components import require
from tests.support.processes import wait_until

_WHY = "machines are reached by ssh"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
_MASTERS = Path("/usr/share/base-passwd")  # the accounts of a fresh Debian
_NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL")
# Its programs and /etc are this machine's, with what it changes in layers of its own; all else is its own. The first
# process waits for the cable, and ends, and all others with it, when whoever made it is gone: stdin is a pipe.
_JOIN = 'for group; do echo 0 >"$group/cgroup.procs"; done; exec unshare --cgroup bash -e init "$@"'
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
cd root
pivot_root . mnt
umount -l mnt
[ -e /etc/ssh/host ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/host
mkdir /run/sshd
/usr/sbin/sshd
exec env -i PATH="$PATH" bash -c 'while read -r; do :; done' init
"""
_FOLDERS = ("dev", "proc", "sys", "run", "mnt", "srv", "opt", "root", "home", "usr", "etc")
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
_CLIENT = """\
Host {name}
  HostName {address}
  User {user}
  IdentityFile {folder}/user
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking accept-new
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
_SET_CLOCK = """
rm -f /etc/ld.so.preload
kill "$(cat /run/sshd.pid)"
echo "$1" >/etc/faketimerc
echo "$2" >/etc/ld.so.preload
"""
_CLEAN = """
rm -f /etc/ld.so.preload
kill -9 -1
find "$1" /tmp /var/tmp /dev/shm -xdev -mindepth 1 -delete
"""
_SERVE = """
rm -f /run/sshd.pid
while [ ! -e /run/sshd.pid ]; do # the one that was killed has to let go of the port first
  /usr/sbin/sshd
  sleep 0.01
done
"""


class Fleet:
    """`with Fleet(folder) as fleet: host = fleet.boot("gpu1", gpus=4)`, and `ssh -F {fleet.config} gpu1` gets there.

    Fleets do not clash: each has a network of its own, claimed by a socket that is free again when this process ends,
    however it does. The machines end then, too; what stays of their network is swept away by whoever comes next.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.hosts = folder, dict[str, Host]()
        self.config = folder / "config"  # for `ssh -F`; every machine is a name there

    def __enter__(self) -> Fleet:
        _require_machines()
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "user"], check=True)
        self.config.touch()
        self._claim, self.number = _claim_network()
        self.bridge, self.gateway = f"fleet{self.number}", f"198.18.{self.number}.1"
        self.mac = _mac(self.number, 1)
        _ip(
            f"link add {self.bridge} address {self.mac} type bridge",
            f"addr add {self.gateway}/24 dev {self.bridge}",
            f"link set {self.bridge} up",
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for host in self.hosts.values():
            host.reap()
        _sweep(self.number)
        self._claim.close()

    def boot(self, name: str, **options: Any) -> Host:
        """A new machine, which answers; `options` are the fields of `Host`."""
        return self.boot_all(name, **options)[0]

    def boot_all(self, *names: str, **options: Any) -> list[Host]:
        """As `boot`, all at once."""
        hosts = [Host(self, name, number, **options) for number, name in enumerate(names, len(self.hosts) + 2)]
        for host in hosts:
            self.hosts[host.name] = host
            host.plug_in()
        for host in hosts:
            host.wait()
        words = {"folder": self.folder}
        entries = [
            _CLIENT.format(name=one.name, address=one.address, user=one.user, **words) for one in self.hosts.values()
        ]
        self.config.write_text("".join(entries))
        return hosts


@dataclass
class Host:
    """One machine. Its disk stays over `reboot`; `without` names programs that it does not have (`python3`)."""

    fleet: Fleet
    name: str
    number: int
    gpus: int = 0
    gpu: str = "NVIDIA A100-SXM4-80GB"
    gpu_memory_mib: int = 81920
    user: str = "root"  # who logs in
    memory_mb: int | None = None
    disk_mb: int | None = None  # of the user's home, where it is to get full
    without: tuple[str, ...] = ()
    sshd: Mapping[str, str | int] = field(default_factory=dict)  # MaxSessions and the like
    _link: str = "up"
    _shell: subprocess.Popen[str] | None = None
    _slow: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.folder, self.address = self.fleet.folder / self.name, f"198.18.{self.fleet.number}.{self.number}"
        self.home = "/root" if self.user == "root" else f"/home/{self.user}"
        self._cable, self._mac = f"{self.fleet.bridge}h{self.number}", _mac(self.fleet.number, self.number)
        self._group = f"{self.fleet.bridge}-{self.number}"

    def run(self, script: str, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """What a shell script did as root on its console, which no network is needed for; `$1` is the first word."""
        enter = ["nsenter", "--target", self._init(), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        environment = {"PATH": _PATH, "HOME": "/root"}
        argv = [*enter, "sh", "-c", script, "sh", *words]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0 or not check, f"{script}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def cut(self) -> None:
        """No frame gets to it or from it any more, and nobody is told."""
        self._set_link("down")

    def heal(self) -> None:
        self._set_link("up")

    def slow(self, ms: float, loss_percent: float = 0) -> None:
        """So much longer there and back, of which each way loses so much; connections stay. `slow(0)`: as before."""
        bridge, ends = f"{self.fleet.bridge}s{self.number}", [f"{self.fleet.bridge}{end}{self.number}" for end in "ab"]
        if self._slow:
            _ip(f"link set {self._cable} master {self.fleet.bridge}", f"link del {bridge}")
            self._slow.kill()
            self._slow.communicate()
            self._slow = None
        if ms or loss_percent:
            argv = [sys.executable, slow_link.__file__, *ends, str(ms / 2000), str(loss_percent / 100)]
            self._slow = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._slow.stdout and self._slow.stdout.readline() == "ready\n"
            _ip(
                f"link add {bridge} type bridge",
                f"link set {bridge} up",
                f"link set {ends[0]} master {self.fleet.bridge} up",
                f"link set {ends[1]} master {bridge} up",
                f"link set {self._cable} master {bridge}",
            )

    def set_clock(self, seconds: float) -> None:
        """So far off for whatever starts from now on, until `clean`; but the kernel writes the right time to files."""
        require("libfaketime", "clocks are set wrong", found=Path(_FAKETIME).exists())
        self.run(_SET_CLOCK + _SERVE, f"{seconds:+}", _FAKETIME)

    def reboot(self) -> None:
        """All its processes are killed, with /tmp; its disk, address and host key stay. Returns when it answers."""
        self.power_off()
        self.start()

    def power_off(self) -> None:
        """At once, so that nobody hears of it."""
        if not self._shell:
            return
        if first := self._init():
            _ip(f"link set {self._cable} down")
            os.kill(int(first), signal.SIGKILL)
        self._shell.communicate(timeout=20)
        self._shell = None
        _delete_link(self._cable)
        _remove_groups(self._group)

    def start(self) -> None:
        """Returns when it answers."""
        self.plug_in()
        self.wait()

    def reap(self) -> None:
        """Gone for good, and its disk with it; `start` would make another with its name and address."""
        self.power_off()
        self.slow(0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def clean(self) -> None:
        """As it was, but for what was changed outside of the user's home and of places for temporary files."""
        self.slow(0)
        self.heal()
        if not self._init():
            self.reboot()
        self.run(_CLEAN + _SERVE, self.home)

    def plug_in(self) -> None:
        """Begin to boot; `wait` waits until it answers."""
        if not self.folder.exists():
            self._install()
        environment = {
            "PATH": _PATH,
            "HOME": "/root",
            "name": self.name,
            "home": self.home,
            "address": self.address,
            "gateway": self.fleet.gateway,
            "gateway_mac": self.fleet.mac,
        }
        argv = ["unshare", *_NAMESPACES, "bash", "-ec", _JOIN, "bash", *_make_groups(self._group, self.memory_mb)]
        with (self.folder / "console").open("ab") as console:
            self._shell = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=console, stderr=console, cwd=self.folder, env=environment, text=True
            )
        assert wait_until(lambda: bool(self._init() or self._shell.poll()), every=0.001) and self._init(), (
            self._console()
        )
        bridge = f"{self.fleet.bridge}s{self.number}" if self._slow else self.fleet.bridge
        _ip(
            f"link add {self._cable} type veth peer name eth0 address {self._mac} netns {self._init()}",
            f"link set {self._cable} master {bridge} {self._link}",
            f"neigh replace {self.address} lladdr {self._mac} dev {self.fleet.bridge} nud permanent",
        )
        self._shell.stdin.write("\n")
        self._shell.stdin.flush()

    def wait(self) -> None:
        """Until its sshd answers, to whom there is a way to it."""
        answers = Path(f"/proc/{self._init()}/root/run/sshd.pid")
        assert wait_until(answers.exists, seconds=30), f"{self.name} does not boot:\n{self._console()}"

    def _set_link(self, state: str) -> None:
        self._link = state
        if self._init():
            _ip(f"link set {self._cable} {state}")

    def _console(self) -> str:
        return (self.folder / "console").read_text()

    def _init(self) -> str:
        """The pid of its first process, as this machine counts; empty while there is none."""
        pid = self._shell.pid if self._shell else 0
        with suppress(OSError):
            return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()
        return ""

    def _install(self) -> None:
        """Its disk: plain folders, and layers over those of this machine."""
        root, etc = self.folder / "root", self.folder / "etc.new"
        for name in (*_FOLDERS, "var/lib", "var/log", "var/cache", self.home[1:]):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("tmp", "var/tmp"):
            (root / name).mkdir()
            (root / name).chmod(0o1777)
        (root / "var/run").symlink_to("/run")
        for link in Path("/").iterdir():
            if link.is_symlink() and str(link.readlink()).startswith("usr/"):  # bin, lib and so on
                (root / link.name).symlink_to(link.readlink())
        for name in ("usr.work", "etc.work", "etc.new/ssh", "usr.new/bin", "usr.new/sbin", "local/bin"):
            (self.folder / name).mkdir(parents=True)
        os.setxattr(etc / "ssh", "trusted.overlay.opaque", b"y")  # nothing of this machine's is there
        accounts = (_MASTERS / "passwd.master").read_text() + "sshd:*:100:65534::/run/sshd:/usr/sbin/nologin\n"
        groups = (_MASTERS / "group.master").read_text()
        if self.user != "root":
            accounts += f"{self.user}:*:1000:1000::{self.home}:/bin/bash\n"
            groups += f"{self.user}:*:1000:\n"
            os.chown(root / self.home[1:], 1000, 1000)
        names = [line.partition(":")[0] for line in accounts.splitlines()]
        (etc / "passwd").write_text(accounts)
        (etc / "group").write_text(groups)
        (etc / "shadow").write_text("".join(f"{name}:*:20000::::::\n" for name in names))
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "machine-id").write_text(f"{secrets.token_hex(16)}\n")
        (etc / "resolv.conf").touch()  # no name is asked for in vain
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (etc / "ssh/sshd_config").write_text(_SSHD + "".join(f"{key} {value}\n" for key, value in self.sshd.items()))
        (self.folder / "init").write_text(_BOOT)
        shutil.copy(self.fleet.folder / "user.pub", etc / "ssh/authorized_keys")
        for folder in ("bin", "sbin"):
            for program in (path for name in self.without for path in Path("/usr", folder).glob(f"{name}*")):
                os.mknod(self.folder / "usr.new" / folder / program.name, stat.S_IFCHR, os.makedev(0, 0))  # a whiteout
        if self.gpus:
            smi = self.folder / "local/bin/nvidia-smi"
            smi.write_text(_NVIDIA_SMI.format(gpus=self.gpus, gpu=self.gpu, memory=self.gpu_memory_mib))
            smi.chmod(0o755)
        if self.disk_mb:
            disk = self.folder / "disk"
            disk.touch()
            os.truncate(disk, self.disk_mb << 20)
            owner = (root / self.home[1:]).stat().st_uid
            subprocess.run(["mkfs.ext4", "-q", "-m0", "-E", f"root_owner={owner}:{owner}", disk], check=True)


def _require_machines() -> None:
    for program in ("ip", "ssh", "ssh-keygen", "nsenter", "mkfs.ext4"):
        require(program, _WHY)
    require("sshd", _WHY, found=os.access("/usr/sbin/sshd", os.X_OK))
    separate = subprocess.run(["unshare", "--cgroup", *_NAMESPACES, "true"], capture_output=True).returncode == 0
    require("root with namespaces", _WHY, found=separate and os.geteuid() == 0 and _MASTERS.exists())


def _claim_network() -> tuple[socket.socket, int]:
    """A number that is ours while the socket is open; what a dead process had of it, or of any other, is gone."""
    for number in {int(found[1]) for _, link in socket.if_nameindex() if (found := re.match(r"fleet(\d+)", link))}:
        if claim := _claim(number):
            _sweep(number)
            claim.close()
    for number in range(256):
        if claim := _claim(number):
            return claim, number
    raise AssertionError("there are 256 fleets already")


def _claim(number: int) -> socket.socket | None:
    one = socket.socket(socket.AF_UNIX)
    try:
        one.bind(f"\0flow-test-fleet-{number}")  # no file: known where the network is known, and gone with the process
    except OSError:
        one.close()
        return None
    return one


def _sweep(number: int) -> None:
    """Remove the network and the control groups of a fleet whose machines have ended."""
    for _, link in socket.if_nameindex():
        if re.fullmatch(rf"fleet{number}(\D\d+)?", link):
            _delete_link(link)
    _remove_groups(f"fleet{number}-*")


def _ip(*lines: str) -> None:
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True)
    assert done.returncode == 0, f"{lines}: {done.stderr}"


def _delete_link(name: str) -> None:
    """It is gone, be it with its other end, which a moment after their death goes with the machine's processes."""
    subprocess.run(["ip", "link", "del", name], capture_output=True)


def _mac(fleet: int, number: int) -> str:
    """The same after a reboot, or whoever knew it would look for it for half a minute."""
    return f"02:00:f1:ee:{fleet:02x}:{number:02x}"


def _hierarchies() -> list[Path]:
    """Where the control groups are: one folder in version 2, one a controller in version 1."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(at) for _, at, kind, *_ in lines if kind in ("cgroup", "cgroup2")]


def _make_groups(name: str, memory_mb: int | None) -> list[Path]:
    groups = [folder / name for folder in _hierarchies()]
    for group in groups:
        group.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (group / file).exists() and not (group / file).read_text().strip():
                (group / file).write_text((group.parent / file).read_text())
        for file in ("memory.limit_in_bytes", "memory.max"):
            if memory_mb and (group / file).exists():
                (group / file).write_text(str(memory_mb << 20))
    return groups


def _remove_groups(pattern: str) -> None:
    """Their processes have ended, or are about to."""

    def remove() -> bool:
        for group in (one for folder in _hierarchies() for one in folder.glob(pattern)):
            for folder in [*sorted(group.rglob("*/"), reverse=True), group]:
                with suppress(OSError):
                    folder.rmdir()
        return not any(one for folder in _hierarchies() for one in folder.glob(pattern))

    assert wait_until(remove), f"control groups {pattern} have processes"
