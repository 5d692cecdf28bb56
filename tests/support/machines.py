"""Machines of our own: a shell that is root in namespaces of its own, with a real Docker, and disks that outlive it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.components import require
from tests.support.processes import wait_until
from tests.support.registries import HOST

_WHY = "volumes are mounted on a machine that is the task's own"
# What Docker and we would write to is the machine's own; its first process waits to be killed.
_BOOT = """
set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log && mount -t tmpfs tmpfs /mnt
mount --bind "$0/lib" /var/lib
if [ -e /etc/init.d/docker ]; then
  mount -t tmpfs tmpfs /etc/docker && mount --bind "$0/options" /etc/default/docker
  sed 's/ulimit/: &/' /etc/init.d/docker >"$0/init"  # in a container limits cannot be raised
  chmod +x "$0/init" && mount --bind "$0/init" /etc/init.d/docker
fi
touch "$0/up"
while :; do sleep 1000 & wait $!; done  # a shell reaps what others leave, as the first process must
"""
# Networks of its own are for others; a registry that the tests have is found without TLS.
_OPTIONS = ("--bridge=none", "--iptables=false", "--ip-forward=false", f"--insecure-registry={HOST}")


class Machine:
    """One that is up. Its network is that of the tests. `variables`: for its Docker."""

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        self.folder, self.group = folder, f"flow-test-{os.getpid()}-{folder.name}"
        self.options = [*_OPTIONS, f"--cgroup-parent={self.group}"]
        (folder / "lib/docker").mkdir(parents=True)
        exports = "".join(f"export {name}={value}\n" for name, value in (variables or {}).items())
        (folder / "options").write_text(f'{exports}DOCKER_OPTS="{" ".join(self.options)}"\n')
        words = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=SIGKILL"]
        boot = [*words, "--propagation", "private", "bash", "-c", _BOOT, folder]
        with (folder / "console").open("wb") as console:
            self._shell = subprocess.Popen(boot, stdout=console, stderr=console, stdin=subprocess.DEVNULL)
        wait_until(lambda: (folder / "up").exists() or self._shell.poll() is not None)
        is_up, said = (folder / "up").exists(), (folder / "console").read_text()
        require("machine of namespaces", f"{_WHY}; it says: {said}", found=is_up)
        children = Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children").read_text()
        self._enter = ["nsenter", "--target", children.strip(), "--mount", "--pid", "--ipc", "--uts"]

    def run(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """What a program on it did and said."""
        done = subprocess.run([*self._enter, *argv], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0 or not check, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def start_docker(self) -> None:
        """As its init system does. Leaves the test out where no container can be run so."""
        for program in ("dockerd", "service"):
            require(program, "images are kept on a volume, by a real Docker")
        self.run("service", "docker", "start")
        answers = wait_until(lambda: self.run("docker", "version", check=False).returncode == 0, seconds=60)
        said = self.run("tail", "-3", "/var/log/docker.log", check=False).stdout
        require("working Docker", f"images are kept on a volume; it says: {said}", found=answers)

    def end(self) -> None:
        """As by a power cut: everything on it is killed; what is on disks stays."""
        if self._shell.poll() is None:
            self._shell.kill()
            self._shell.wait(10)
        assert wait_until(self._remove_cgroups), "a container outlives its machine"

    def _remove_cgroups(self) -> bool:
        """Whether those of its containers are gone; some hierarchies have them below our own."""
        with suppress(FileNotFoundError):  # those of other machines go while they are listed
            for group in Path("/sys/fs/cgroup").rglob(self.group):
                for folder in [*sorted(group.rglob("*/"), reverse=True), group]:
                    with suppress(OSError):  # its processes are still ending
                        folder.rmdir()
            return not any(Path("/sys/fs/cgroup").rglob(self.group))
        return False


@contextmanager
def disk(file: Path, size_mb: int = 64) -> Iterator[str]:
    """A block device that is all zeros; leaves the test out where there is no loop device to be had."""
    for program in ("unshare", "losetup", "mkfs.ext4", "blkid"):
        require(program, _WHY)
    with file.open("wb") as content:
        content.truncate(size_mb << 20)
    made = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True)
    require("loop device", f"{_WHY}; it says: {made.stderr}", found=made.returncode == 0)
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
