"""The real machines behind instances: booted, powered off and destroyed, each in a thread of its own, step by step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from tests.support.fleet import Fleet, Host
from tests.support.fleet_disk import Machine, install, nvidia_smi
from tests.support.mithril_cloud.debian import Image
from tests.support.mithril_cloud.guest import Attached, add_docker, announce, furnish, prepare_boot
from tests.support.mithril_cloud.records import InstanceType, Volume
from tests.support.mithril_cloud.virtual import Virtual
from tests.support.processes import wait_until

Power = Literal["on", "down", "off", "gone"]  # down: as by its own `poweroff`; it keeps its address and is paid for
_CARDS = {
    "A100": ("NVIDIA A100-SXM4-80GB", 81_920),
    "H100": ("NVIDIA H100 80GB HBM3", 81_559),
    "H200": ("NVIDIA H200", 143_771),
    "B200": ("NVIDIA B200", 183_359),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What a machine is to be; `script` counts on its first boot only."""

    name: str
    kind: InstanceType
    keys: tuple[str, ...]
    script: str | None
    volumes: tuple[Volume, ...]
    nodes: Mapping[str, str]  # private addresses of the bid's nodes by name


@dataclass(slots=True)
class Slot:
    """One machine; its disk is there from the first boot until it is gone."""

    fid: str
    number: int | None = None
    setup: Setup | None = None
    host: Host | Virtual | None = None
    actual: Power = "gone"
    wanted: Power = "gone"
    at_work: bool = False
    is_elsewhere: bool = True  # than when it last booted
    announced: bool = False
    failure: str = ""
    loops: dict[str, int] = field(default_factory=dict)  # the open device of each block volume


class Machines:
    """`changed` guards all of it, and is notified when a machine is as it is wanted."""

    def __init__(self, fleet: Fleet, changed: threading.Condition) -> None:
        self.docker: Mapping[str, str] | None = None  # the variables of that on disks that are made from now on
        self.image: Image | None = None  # with which they have kernels of their own from now on
        self.files: Mapping[str, str] = {}  # that those have
        self.lacks_gpus = False  # as where the driver does not find them
        self.pretended = False  # no machine is booted; instances only say so
        self._fleet, self._changed = fleet, changed
        self._slots: dict[str, Slot] = {}
        self._numbers = deque(range(2, 255))

    def __getitem__(self, fid: str) -> Slot:
        return self._slots.setdefault(fid, Slot(fid))

    def place(self, fid: str) -> str:
        """Give it an address, another than it had before; its private address."""
        slot = self[fid]
        slot.number = self._numbers.popleft()  # the one that was given back the longest ago
        if self.pretended:
            self._numbers.append(slot.number)
        slot.is_elsewhere, slot.announced = True, False
        return f"10.66.{self._fleet.number}.{slot.number}"

    def destination(self, fid: str, *, with_port: bool) -> str:
        """As ssh is told of it; a port that is the usual one may be left out."""
        slot = self[fid]
        if isinstance(slot.host, Virtual):
            return f"{slot.host.address}:{slot.host.port}"
        return self._address(slot) + (":22" if with_port else "")

    def _address(self, slot: Slot) -> str:
        network = "203.0.113" if self.pretended else f"198.18.{self._fleet.number}"
        return f"{network}.{slot.number}"

    def bring(self, fid: str, wanted: Power, setup: Setup | None = None) -> None:
        """Returns at once."""
        slot = self[fid]
        slot.wanted, slot.setup = wanted, setup or slot.setup
        if slot.wanted != slot.actual and not slot.at_work:
            slot.at_work = True
            threading.Thread(target=self._work, args=(slot,), daemon=True, name=f"machine {fid}").start()

    def is_settled(self, fid: str) -> bool:
        slot = self[fid]
        return not slot.at_work and slot.wanted == slot.actual

    def announce(self, fid: str, instance_status: str, bid_status: str, end_time: str | None) -> None:
        """Write the signal file once, where there is somebody to read it."""
        slot = self[fid]
        if slot.actual == "on" and isinstance(slot.host, Host) and not slot.announced:
            announce(slot.host.folder, instance_status, bid_status, end_time)
            slot.announced = True

    def went_down(self, fid: str) -> int | None:
        """See `Host.ended`; once."""
        slot = self[fid]
        if slot.at_work or slot.actual != "on" or not slot.host or (number := slot.host.ended()) is None:
            return None
        slot.actual = slot.wanted = "down"
        return number

    def crash(self, fid: str) -> None:
        """As by a power cut, unknown to everybody."""
        slot = self[fid]
        with self._changed:
            slot.actual = slot.wanted = "down"
        if slot.host:
            slot.host.power_off()

    def close(self) -> None:
        """Every machine is gone when this returns."""
        with self._changed:
            for fid in list(self._slots):
                self.bring(fid, "gone")
        settled = wait_until(lambda: all(self.is_settled(fid) for fid in list(self._slots)), seconds=60)
        assert settled, [slot.failure for slot in self._slots.values()]
        self._slots.clear()

    def _work(self, slot: Slot) -> None:
        while True:
            with self._changed:
                wanted = slot.wanted
                if slot.actual == wanted:
                    slot.at_work = False
                    self._changed.notify_all()
                    return
            try:
                if not self.pretended or slot.host:
                    self._boot(slot) if wanted == "on" else self._end(slot, gone=wanted == "gone")
            except BaseException:
                slot.failure = traceback.format_exc()
                print(slot.failure, file=sys.stderr)
                with self._changed:
                    slot.wanted = slot.actual = "down"
                continue
            with self._changed:
                slot.actual = wanted

    def _boot(self, slot: Slot) -> None:
        assert slot.setup
        if slot.host:
            slot.host.power_off()  # what is left of one that went down by itself
        slot.host = self._virtual(slot, slot.setup) if self.image else self._namespaced(slot, slot.setup)
        self._fleet.hosts[slot.fid] = slot.host  # type: ignore[assignment]  # to be ended with the others
        slot.is_elsewhere = False
        slot.host.start()

    def _namespaced(self, slot: Slot, setup: Setup) -> Host:
        assert slot.number
        card, memory = _card(setup.kind)
        machine = Machine(
            setup.name,
            self._address(slot),
            gpus=0 if self.lacks_gpus else setup.kind.gpus,
            gpu=card,
            gpu_memory_mib=memory,
            user="ubuntu",
            sshd={"AllowUsers": "ubuntu"},
        )
        host = Host(self._fleet, machine, slot.number)
        host.folder = self._fleet.folder / slot.fid  # a name comes again
        if not host.folder.exists():
            install(machine, host.folder, self._fleet.folder / "user.pub")
            furnish(host.folder, setup.keys, setup.script)
            if self.docker is not None:
                add_docker(host.folder, self.docker)
        attached = self._attach(slot, setup.volumes)
        prepare_boot(host.folder, setup.name, setup.nodes, attached, elsewhere=slot.is_elsewhere)
        return host

    def _virtual(self, slot: Slot, setup: Setup) -> Virtual:
        assert self.image
        host = Virtual(self._fleet.folder / slot.fid, self.image, self._fleet.gateway, self._fleet.folder / "user")
        host.volumes = setup.volumes
        if not host.folder.exists():
            gpus = nvidia_smi(setup.kind.gpus, *_card(setup.kind))
            host.install(setup.name, setup.keys, setup.script, {"/usr/bin/nvidia-smi": gpus, **self.files})
        return host

    def _end(self, slot: Slot, *, gone: bool) -> None:
        if slot.host:
            slot.host.power_off()
        for device in slot.loops.values():
            os.close(device)
        slot.loops.clear()
        if gone and slot.host:
            slot.host.reap()
            self._fleet.hosts.pop(slot.fid, None)
            slot.host = None
        with self._changed:
            if slot.number and not self.pretended:
                self._numbers.append(slot.number)
            slot.number = None

    def _attach(self, slot: Slot, volumes: tuple[Volume, ...]) -> Attached:
        for volume in volumes:
            if volume.interface == "Block" and volume.fid not in slot.loops:
                assert wait_until(partial(self._is_free, volume.fid)), f"{volume.fid} is attached elsewhere"
                slot.loops[volume.fid] = _open_device(volume.backing)
        shares = {one.name: one.backing for one in volumes if one.interface == "File"}
        return Attached({fid: os.fstat(one).st_rdev for fid, one in slot.loops.items()}, shares)

    def _is_free(self, volume: str) -> bool:
        """Whether the machine that had it last has let go of it."""
        return not any(volume in one.loops for one in list(self._slots.values()))


def _card(kind: InstanceType) -> tuple[str, int]:
    """What its driver calls each GPU, and the memory of one in MiB."""
    return _CARDS.get(kind.gpu, (kind.gpu, kind.memory_gb * 1024))


def make_backing(folder: Path, fid: str, interface: str, size_gb: int) -> Path:
    """Where a volume's content is. A device has a MB for each GB, or a test would wait for its formatting."""
    path = folder / fid
    if interface == "File":
        path.mkdir(parents=True)
        path.chmod(0o777)
        return path
    folder.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(max(16, size_gb) << 20)
    return path


def _open_device(backing: Path) -> int:
    """A loop device that is gone when this, and whoever mounted it, lets go of it: it does not outlive the tests."""
    words: list[str | Path] = ["losetup", "--find", "--show", backing]
    found: list[str] = []

    def attach() -> bool:
        done = subprocess.run(words, capture_output=True, text=True)
        found[:] = [done.stdout.strip() if done.returncode == 0 else done.stderr]
        return done.returncode == 0

    assert wait_until(attach, every=0.1), found  # again, where somebody else took the one that it found free
    (device,) = found
    opened = os.open(device, os.O_RDONLY)
    subprocess.run(["losetup", "--detach", device], check=True)
    return opened


def remove_backing(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
