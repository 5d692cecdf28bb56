"""What a task left on its machines -> its record here: output, logs and reports, so that they outlive the machines."""

from __future__ import annotations

import contextlib
import errno
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import IO

from flow.channel import Channel
from flow.durable import writing
from flow.errors import ProviderError, StorageError
from flow.machines import Allocation
from flow.node import sweep
from flow.providers import Provider
from flow.record import Records
from flow.status import is_given_up

_PART, _STALE_SECONDS = ".collecting-", 86_400.0
# The folders are given, a line each; one that is not there fails all of it.
_PACK = """cd {root} && names=$(cat) || exit 3
for one in $names; do [ -d "$one" ] || {{ echo "$one is not there" >&2; exit 3; }}; done
for one in $names; do find "$one" -mindepth 1 -maxdepth 1 {left_out}; done | tar -c {zipped} -f - -T -"""
_LEFT_OUT = 2  # with what tar ends where it could not read some files; source: GNU tar's manual, "Synopsis"
_STAYS = ("workspace", "inbox")  # in a task folder: the code that was sent there, and secrets


def collect(provider: Provider, records: Records, allocations: Collection[Allocation]) -> list[str]:
    """Copy all attempts of these ended tasks or elements into the record; again, where that was cut short.

    What could not be read there, as the command forbade it, is left out: a sentence each.
    Raises ProviderError where a machine is out of reach, StorageError where there is no room here.
    """
    places: dict[tuple[Channel, str, Path], list[str]] = {}
    for allocation in allocations:
        for node in allocation.nodes:
            folder, record = (
                PurePosixPath(node.folder),
                records.folder(allocation.task_id or "", 1, node.rank).parents[1],
            )
            task, at = folder.parents[1], ""
            if task.name == record.name:  # tasks that lie there under their own names are copied together
                task, record, at = task.parent, record.parent, f"{task.name}/"
            names = [f"{at}{number}/{node.rank}" for number in range(node.first_attempt, allocation.attempt + 1)]
            places.setdefault((provider.channel(allocation, node.rank), str(task), record), []).extend(names)
    left_out: list[str] = []
    for (channel, root, record), names in places.items():
        with writing(records.home):
            record.mkdir(mode=0o700, parents=True, exist_ok=True)
        left_out += _copy(channel, root, names, str(record))
    return left_out


def is_collected(records: Records, allocation: Allocation) -> bool:
    """Whether that was done of the element of an array, which is once it has ended: what comes last is there."""
    unit = allocation.task_id or ""
    at = [records.folder(unit, allocation.attempt, node.rank) for node in allocation.nodes]
    return "_" in unit and all((one / "status.json").exists() for one in at)


def forget(provider: Provider, allocations: Collection[Allocation]) -> None:
    """Remove what ended tasks left on their machines, and code that is not used there any more.

    Raises ProviderError where one is out of reach.
    """
    places: dict[tuple[Channel, str], set[str]] = {}
    for allocation in allocations:
        for node in allocation.nodes:
            task = PurePosixPath(node.folder).parents[1]
            places.setdefault((provider.channel(allocation, node.rank), str(task.parent)), set()).add(task.name)
    for (channel, tasks), names in places.items():
        python = sys.executable if channel.is_here else channel.python
        words = [python, "-c", Path(sweep.__file__).read_text(), tasks]
        channel.ask(f"exec {shlex.join(words)}", stdin="\n".join(sorted(names)).encode())


def _copy(channel: Channel, root: str, names: list[str], into: str) -> list[str]:
    """Each of these folders is there whole or not at all, whoever is killed and whoever else copies it meanwhile."""
    for left in Path(into).glob(f"{_PART}*"):  # by who was killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left)
    with writing(Path(into)), tempfile.TemporaryDirectory(dir=into, prefix=_PART, ignore_cleanup_errors=True) as part:
        left_out = _unpack(channel, root, names, part)
        for number, name in enumerate(names):
            _take_in(Path(part, name), Path(into, name), aside=Path(part, f"old-{number}"))
    return left_out


def _take_in(new: Path, place: Path, *, aside: Path) -> None:
    """Put a folder in its place; what another client has put there goes `aside`.

    Raises ProviderError where that is the word that this attempt was given up: then it runs again elsewhere.
    """
    for folder in (new, place.parent):
        folder.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            new.rename(place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if is_given_up(place):
            raise ProviderError("it was given up as lost meanwhile")
        with contextlib.suppress(FileNotFoundError):
            place.rename(aside)


def _unpack(channel: Channel, root: str, names: list[str], into: str) -> list[str]:
    """What could not be read there. Raises where not all else came, as far as tar can tell."""
    left_out = " ".join(f"! -name {name}" for name in _STAYS)  # of a task folder itself, not of what lies deeper
    script = _PACK.format(root=shlex.quote(root), left_out=left_out, zipped="" if channel.is_here else "-z")
    unpack = ["tar", "-x", *([] if channel.is_here else ["-z"]), "-f", "-", "-C", into, "--no-same-owner"]
    with tempfile.TemporaryFile() as far, tempfile.TemporaryFile() as near:  # a pipe would fill up
        with (
            subprocess.Popen(
                channel.command(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=far
            ) as there,
            subprocess.Popen(unpack, stdin=there.stdout, stderr=near) as here,
        ):
            assert there.stdin and there.stdout
            there.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                there.stdin.write("\n".join(names).encode())
                there.stdin.close()
        said, why = (_text_of(file) for file in (far, near))
    if here.returncode and "space" in why:
        raise StorageError(
            f"what the task left cannot be copied to `{into}`: no space left on device",
            suggestions=["make room there: `flow prune` removes what old tasks left", f"it lies in `{root}` meanwhile"],
        )
    if there.returncode == 255 and channel.prefix:
        raise channel.unreachable(said)
    lines = [line.removeprefix("tar: ") for line in said.splitlines() if line.startswith(("tar: ", "find: "))]
    complaints = [line for line in lines if not line.startswith("Exiting with failure")]
    if here.returncode or there.returncode not in (0, _LEFT_OUT):
        first = next(iter([*complaints, *said.splitlines()[-1:]]), why.strip().partition("\n")[0])
        raise ProviderError(
            f"what the task left in `{root}` cannot be copied: {first}", suggestions=["try again in a moment"]
        )
    return complaints if there.returncode else []


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
