"""Real machines to ssh to, all on this one: each with processes, network, disk and sshd of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import slow_link
from tests.support.components import require
from tests.support.containers import IMAGE, image_archive
from tests.support.fleet_disk import ACCOUNTS, Machine, install
from tests.support.fleet_kernel import claim_network, delete_link, ip, mac, make_groups, remove_groups, sweep
from tests.support.processes import wait_until

_WHY = "machines are reached by ssh"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL")
_JOIN = 'for group; do echo 0 >"$group/cgroup.procs"; done; exec unshare --cgroup bash -e init "$@"'
_CLIENT = """\
Host {0}
  HostName {1}
  User {2}
  IdentityFile {3}/user
  IdentitiesOnly yes
  UserKnownHostsFile {3}/known_hosts
  StrictHostKeyChecking accept-new
"""
_SET_CLOCK = """
rm -f /etc/ld.so.preload
kill "$(cat /run/sshd.pid)"
echo "$1" >/etc/faketimerc
echo "$2" >/etc/ld.so.preload
"""
_START_DOCKER = """
dockerd --bridge=none --iptables=false --ip-forward=false </dev/null >/var/log/docker.log 2>&1 &
until docker version; do
  kill -0 $! || { tail -3 /var/log/docker.log; exit 1; }
  sleep 0.05
done
"""
_CLEAN = """
rm -f /etc/ld.so.preload
left=300 # what dies may still make a file
while kill -9 -1 2>/dev/null && [ "$left" -gt 0 ]; do
  left=$((left - 1))
  sleep 0.01
done
for one in "$1" /tmp /var/tmp /dev/shm; do # for -xdev goes into what is mounted from the same disk
  while at=$(awk -v below="$one/" 'index($5, below) == 1 { print $5; exit }' /proc/self/mountinfo) && [ -n "$at" ]; do
    umount -l "$at" || exit
  done
done
find "$1" /tmp /var/tmp /dev/shm -xdev -mindepth 1 -delete
"""
_GIVE_KEY = """
mkdir -p -m 700 "$1/.ssh"
printf %s "$2" >"$1/.ssh/id_ed25519"
chmod 600 "$1/.ssh/id_ed25519"
chown -R "$3:" "$1/.ssh"
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
        self._claim, self.number = claim_network()
        self.bridge, self.gateway = f"fleet{self.number}", f"198.18.{self.number}.1"
        self.mac = mac(self.number, 1)
        ip(
            f"link add {self.bridge} address {self.mac} type bridge",
            f"addr add {self.gateway}/24 dev {self.bridge}",
            f"link set {self.bridge} up",
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for host in self.hosts.values():
            host.hang_up()
            host.reap()
        sweep(self.number)
        self._claim.close()

    def boot(self, name: str, **options: Any) -> Host:
        """A new machine, which answers; `options` are fields of `Machine`."""
        return self.boot_all(name, **options)[0]

    def boot_all(self, *names: str, **options: Any) -> list[Host]:
        """As `boot`, all at once."""
        begin = len(self.hosts) + 2
        machines = [Machine(name, f"198.18.{self.number}.{begin + at}", **options) for at, name in enumerate(names)]
        hosts = [Host(self, machine, begin + at) for at, machine in enumerate(machines)]
        for host in hosts:
            self.hosts[host.name] = host
            host.plug_in()
        for host in hosts:
            host.wait()
        words = [(host.name, host.address, host.machine.user, self.folder) for host in self.hosts.values()]
        self.config.write_text("".join(_CLIENT.format(*one) for one in words))
        return hosts

    def acquaint(self) -> None:
        """Have who logs in to a machine get from there to the others by himself, until `clean`."""
        key = (self.folder / "user").read_text()
        for host in self.hosts.values():
            host.run(_GIVE_KEY, host.home, key, host.machine.user)

    def clean(self) -> None:
        """Every machine as it was, see `Host.clean`, and unknown to everybody."""
        for host in self.hosts.values():
            host.clean()
        (self.folder / "known_hosts").unlink(missing_ok=True)


class Host:
    """One machine. Its disk stays over `reboot`."""

    def __init__(self, fleet: Fleet, machine: Machine, number: int) -> None:
        self.fleet, self.machine = fleet, machine
        self.name, self.address, self.home = machine.name, machine.address, machine.home
        self.folder = fleet.folder / machine.name
        self._group = f"{fleet.bridge}-{number}"
        self._cable, self._slow_bridge, *self._slow_ends = (f"{fleet.bridge}{kind}{number}" for kind in "hsab")
        self._mac = mac(fleet.number, number)
        self._link = "up"
        self._shell: subprocess.Popen[str] | None = None
        self._slow: subprocess.Popen[str] | None = None

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
        """Returns when it is reached again, or off."""
        was_cut = self._link == "down"
        self._set_link("up")
        if was_cut:
            wait_until(lambda: self._is_reached() or not self._init())

    def slow(self, ms: float, loss_percent: float = 0) -> None:
        """So much longer there and back, and each way loses so much; connections stay. `slow(0)`: as before."""
        if self._slow:
            self._slow.kill()
            self._slow.communicate()
            self._slow = None
            ip(f"link del {self._slow_bridge}")
        if ms or loss_percent:
            argv = [sys.executable, "-I", slow_link.__file__, *self._slow_ends, str(ms / 2000), str(loss_percent / 100)]
            self._slow = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._slow.stdout and self._slow.stdout.readline() == "ready\n"
            ip(
                f"link add {self._slow_bridge} type bridge",
                f"link set {self._slow_bridge} up",
                f"link set {self._slow_ends[0]} master {self.fleet.bridge} up",
                f"link set {self._slow_ends[1]} master {self._slow_bridge} up",
            )
        if self._init():
            self._attach()

    def set_clock(self, seconds: float) -> None:
        """So far off for whatever starts from now on, until `clean`; but the kernel writes the right time to files."""
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
        require("libfaketime", "clocks are set wrong", found=bool(library))
        self.run(_SET_CLOCK + _SERVE, f"{seconds:+}", str(library))

    def start_docker(self) -> None:
        """A real one, until it reboots, with IMAGE in it; its containers have the host's network or none."""
        why = "containers run on machines that are reached by ssh"
        require("dockerd", why)
        done = self.run(_START_DOCKER, check=False)
        require("working Docker", f"{why}; it says: {done.stdout}", found=done.returncode == 0)
        (self.folder / "root/image.tar").write_bytes(image_archive())
        self.run('docker import /image.tar "$1"; rm /image.tar', IMAGE)

    def reboot(self) -> None:
        """All its processes are killed, with /tmp; its disk, address and host key stay. Returns when it answers."""
        self.power_off()
        self.start()

    def hang_up(self) -> None:
        """All its processes are killed, and whoever is connected to one hears of it."""
        if self._init():
            self.run("kill -9 -1; while pgrep -x sshd; do sleep 0.01; done", check=False)

    def power_off(self) -> None:
        """At once, so that nobody hears of it."""
        if not self._shell:
            return
        if first := self._init():
            ip(f"link set {self._cable} down")
            os.kill(int(first), signal.SIGKILL)
        self._shell.communicate(timeout=20)
        self._shell = None
        delete_link(self._cable)
        remove_groups(self._group)

    def start(self) -> None:
        """Returns when it answers."""
        self.plug_in()
        self.wait()

    def ended(self) -> int | None:
        """By which signal it went down by itself: SIGINT for `poweroff`, SIGHUP for `reboot`; None while it is on."""
        code = self._shell.poll() if self._shell else None
        return None if code is None else abs(code)

    def reap(self) -> None:
        """Gone for good, and its disk with it; `start` would make another with its name and address."""
        self.slow(0)
        self.power_off()
        shutil.rmtree(self.folder, ignore_errors=True)

    def clean(self) -> None:
        """As it was, but for what was changed outside of the user's home and of places for temporary files."""
        self.slow(0)
        self._set_link("up")
        if not self._init():
            self.reboot()
        self.run(_CLEAN + _SERVE, self.home)

    def plug_in(self) -> None:
        """Begin to boot; `wait` waits until it answers."""
        if not self.folder.exists():
            install(self.machine, self.folder, self.fleet.folder / "user.pub")
        environment = {
            "PATH": _PATH,
            "HOME": "/root",
            "name": self.name,
            "home": self.home,
            "address": self.address,
            "gateway": self.fleet.gateway,
            "gateway_mac": self.fleet.mac,
            "copies": " ".join(self.machine.copies),
        }
        groups = make_groups(self._group, self.machine.memory_mb)
        argv = ["unshare", *_NAMESPACES, "bash", "-ec", _JOIN, "bash", *map(str, groups)]
        with (self.folder / "console").open("ab") as console:
            shell = self._shell = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=console, stderr=console, cwd=self.folder, env=environment, text=True
            )
        wait_until(lambda: bool(self._init()) or shell.poll() is not None, every=0.001)
        assert self._init(), self._console()
        ip(
            f"link add {self._cable} type veth peer name eth0 address {self._mac} netns {self._init()}",
            f"neigh replace {self.address} lladdr {self._mac} dev {self.fleet.bridge} nud permanent",
        )
        self._attach()
        assert shell.stdin
        shell.stdin.write("\n")
        shell.stdin.flush()

    def wait(self) -> None:
        """Until its sshd answers, to whom there is a way to it."""
        answers = Path(f"/proc/{self._init()}/root/run/sshd.pid")
        assert wait_until(answers.exists, seconds=30), f"{self.name} does not boot:\n{self._console()}"

    def _set_link(self, state: str) -> None:
        self._link = state
        if self._init():
            self._attach()

    def _attach(self) -> None:
        bridge = self._slow_bridge if self._slow else self.fleet.bridge
        ip(f"link set {self._cable} master {bridge} {self._link}")

    def _is_reached(self) -> bool:
        with suppress(OSError), socket.create_connection((self.address, 22), timeout=1):
            return True
        return False

    def _console(self) -> str:
        return (self.folder / "console").read_text()

    def _init(self) -> str:
        """The pid of its first process, as this machine counts; empty while there is none."""
        pid = self._shell.pid if self._shell else 0
        with suppress(OSError):
            return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()
        return ""


def _require_machines() -> None:
    for program in ("ip", "ssh", "ssh-keygen", "nsenter", "mkfs.ext4"):
        require(program, _WHY)
    require("sshd", _WHY, found=os.access("/usr/sbin/sshd", os.X_OK))
    separate = subprocess.run(["unshare", "--cgroup", *_NAMESPACES, "true"], capture_output=True).returncode == 0
    require("root with namespaces", _WHY, found=separate and os.geteuid() == 0 and ACCOUNTS.exists())
