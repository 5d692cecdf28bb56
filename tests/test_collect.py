"""What a task left on its machines is copied into its record whole, or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flow.channel import Channel
from flow.collect import collect
from flow.errors import ProviderError, StorageError
from flow.machines import Allocation, Machines, Node
from flow.record import Records

TASK = "task-0000000000aaaa"
# As a machine that goes away while it is asked: so many bytes of the answer come.
CUT = ("sh", "-c", '"$@" | head -c 100000; exit 1', "machine")


@dataclass
class Machine:
    """Stands for a provider whose machines are all this one, by way of `prefix`."""

    prefix: tuple[str, ...] = ("env",)

    def channel(self, *_: Any) -> Channel:
        return Channel(self.prefix)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The task folder on the machine."""
    folder = tmp_path / "machine" / "tasks" / TASK / "1" / "0"
    (folder / "output").mkdir(parents=True)
    (folder / "stdout.log").write_bytes(os.urandom(300_000))
    (folder / "output" / "result.json").write_text("1")
    (folder / "workspace").mkdir()
    (folder / "output" / "workspace").mkdir()
    (folder / "output" / "workspace" / "model.pt").write_text("2")
    return folder


def taken(machine: Machine, left: Path, records: Records) -> None:
    allocation = Allocation(TASK, 1, Machines.UP, nodes=(Node(0, "m", "10.0.0.1", folder=str(left)),))
    collect(machine, records, [allocation])  # type: ignore[arg-type]


def test_all_but_the_code_is_copied(left: Path, tmp_path: Path) -> None:
    records = Records(tmp_path / "home")
    taken(Machine(), left, records)
    folder = records.folder(TASK, 1, 0)
    assert sorted(one.name for one in folder.iterdir()) == ["output", "stdout.log"]
    assert (folder / "stdout.log").read_bytes() == (left / "stdout.log").read_bytes()
    assert (folder / "output" / "result.json").read_text() == "1"
    assert (folder / "output" / "workspace" / "model.pt").read_text() == "2"


def test_a_copy_that_is_cut_short_leaves_what_another_has_copied(left: Path, tmp_path: Path) -> None:
    records = Records(tmp_path / "home")
    with pytest.raises(ProviderError, match="cannot be copied"):
        taken(Machine(CUT), left, records)
    assert not records.folder(TASK, 1, 0).exists()
    taken(Machine(), left, records)
    with pytest.raises(ProviderError, match="cannot be copied"):
        taken(Machine(CUT), left, records)
    assert (records.folder(TASK, 1, 0) / "stdout.log").read_bytes() == (left / "stdout.log").read_bytes()
    assert [one.name for one in (records.home / "record").iterdir()] == [TASK]


def test_it_may_be_copied_twice_and_what_a_killed_client_began_goes(left: Path, tmp_path: Path) -> None:
    records = Records(tmp_path / "home")
    killed = records.home / "record" / ".collecting-old"
    killed.mkdir(parents=True)
    os.utime(killed, (0, 0))
    for text in ("first", "second"):
        (left / "stdout.log").write_text(text)
        taken(Machine(), left, records)
    assert (records.folder(TASK, 1, 0) / "stdout.log").read_text() == "second"
    assert [one.name for one in (records.home / "record").iterdir()] == [TASK]


def test_a_disk_without_room_for_many_files_is_told(left: Path, small_disk: Path) -> None:
    for number in range(3000):
        (left / "output" / f"a-file-of-some-length-{number:05}").write_bytes(b"x" * 5000)
    with pytest.raises(StorageError, match="no space left on device"):
        taken(Machine(), left, Records(small_disk))
