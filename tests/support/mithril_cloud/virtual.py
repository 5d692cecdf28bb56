"""A machine of the cloud with a kernel of its own, by qemu; at its first boot the real cloud-init sets it up."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.components import require
from tests.support.mithril_cloud.debian import Image
from tests.support.mithril_cloud.records import Volume
from tests.support.processes import free_port, wait_until

_BOOT_SECONDS = 600  # all is emulated, and this machine has other work
# Ends with whoever started it: its stdin is a pipe.
_KEEP = '"$@" </dev/null & vm=$!; { read -r; kill -9 $vm; } <&0 & wait $vm; code=$?; kill $!; exit $code'
_QEMU = ("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024")
_BARE = ("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-device", "virtio-rng-pci")


def require_virtual() -> None:
    """Leaves the test out where there can be none."""
    for program in ("qemu-system-x86_64", "genisoimage"):
        require(program, "a machine boots by the real cloud-init")


class Virtual:
    """It has what the cloud asks of a `Host`, and is reached at `port` of `address`, which is this machine's.

    From there it gets to whatever this machine gets to. `script` is its user data; `key`: by which `run` logs in.
    """

    def __init__(self, folder: Path, image: Image, address: str, key: Path) -> None:
        self.folder, self.address, self.port = folder, address, 0
        self._image, self._key = image, key
        self._shell: subprocess.Popen[bytes] | None = None
        self.volumes: tuple[Volume, ...] = ()

    def install(self, name: str, keys: Sequence[str], script: str | None, files: Mapping[str, str]) -> None:
        """A disk that never booted, and what its first boot is told; `files` are there before the script runs."""
        seed = self.folder / "seed"
        seed.mkdir(parents=True)
        subprocess.run(["cp", "--sparse=always", self._image.disk, self.folder / "disk"], check=True)
        all_keys = [*keys, self._key.with_suffix(".pub").read_text().strip()]
        told = {"instance-id": self.folder.name, "local-hostname": name, "public-keys": all_keys}
        (seed / "meta-data").write_text(json.dumps(told))
        (seed / "user-data").write_text(script or "")
        written = [{"path": at, "permissions": "0755", "content": text} for at, text in files.items()]
        (seed / "vendor-data").write_text(f"#cloud-config\n{json.dumps({'write_files': written})}\n")
        words = ["genisoimage", "-quiet", "-V", "cidata", "-r", "-J", "-o", self.folder / "seed.iso", seed]
        subprocess.run(words, check=True)

    def start(self) -> None:
        """Returns when its sshd answers; what runs at its first boot may not have begun by then."""
        self.port = free_port()
        words = [*_QEMU, *_BARE, "-kernel", self._image.kernel, "-initrd", self._image.initrd]
        words += ["-append", "root=LABEL=root rw console=ttyS0 net.ifnames=0 panic=-1"]
        words += ["-drive", f"file={self.folder}/disk,if=virtio,format=raw,cache=unsafe"]
        words += ["-drive", f"file={self.folder}/seed.iso,if=virtio,format=raw,readonly=on"]
        for one in self.volumes:
            words += ["-drive", f"file={one.backing},if=none,id={one.fid},format=raw,cache=unsafe"]
            words += ["-device", f"virtio-blk-pci,drive={one.fid},serial={one.fid[:20]}"]  # it takes no more
        words += ["-netdev", f"user,id=net,hostfwd=tcp:{self.address}:{self.port}-:22"]
        words += ["-device", "virtio-net-pci,netdev=net"]
        with (self.folder / "console").open("ab") as console:
            self._shell = subprocess.Popen(
                ["bash", "-c", _KEEP, "bash", *words], stdin=subprocess.PIPE, stdout=console, stderr=console
            )
        assert wait_until(self._answers, seconds=_BOOT_SECONDS, every=0.2), self._console()

    def run(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """What a shell script did as root, by way of ssh."""
        words = ["ssh", "-i", self._key, "-p", str(self.port), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
        words += ["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=300", f"ubuntu@{self.address}"]
        done = subprocess.run([*words, "sudo sh"], input=script, capture_output=True, text=True)
        assert done.returncode == 0 or not check, f"{script}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def ended(self) -> int | None:
        """See `Host.ended`."""
        code = self._shell.poll() if self._shell else None
        return None if code is None else signal.SIGINT if code == 0 else signal.SIGKILL

    def hang_up(self) -> None:
        """Nobody is told more than that a machine is gone."""

    def power_off(self) -> None:
        """At once."""
        if self._shell:
            assert self._shell.stdin
            self._shell.stdin.close()
            self._shell.wait(20)
            self._shell = None

    def reap(self) -> None:
        """Gone for good."""
        self.power_off()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._shell and self._shell.poll() is None, self._console()
        with suppress(OSError), socket.create_connection((self.address, self.port), timeout=5) as one:
            return one.recv(4) == b"SSH-"
        return False

    def _console(self) -> str:
        return (self.folder / "console").read_text(errors="replace")[-4000:]
