"""The local provider's volumes: a folder each, below `$FLOW_HOME/volumes`; who holds one is a file in it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from flow.durable import Lock, sync_path, write_durably, writing
from flow.errors import ResourceNotFoundError, StorageError, ValidationError, did_you_mean
from flow.machines import Volume
from flow.plan import Plan

_DOOMED = ".doomed-"
_EPHEMERAL = "ephemeral"  # in the mark of a task that takes the volume with it
_UNKNOWN_SECONDS = 60.0  # how long a holder counts whose task is not on record: its client may be about to write that


class LocalVolumes:
    """Folders as volumes; their size is noted and not enforced, and they cost nothing.

    has_ended: whether a task, array or element has; None for one that is not on record.
    waits_for: the tasks whose end one waits for.
    """

    def __init__(
        self, home: Path, has_ended: Callable[[str], bool | None], waits_for: Callable[[Plan], set[str]]
    ) -> None:
        self.folder = home / "volumes"
        self._has_ended = has_ended
        self._waits_for = waits_for

    def create(
        self, name: str, size_gb: int, *, interface: str = "block", region: str | None = None, plan: Plan | None = None
    ) -> Volume:
        """Make an empty folder for it."""
        with self._alone():
            found = next((one for one in self._all() if one.name == name), None)
            if found and (found.size_gb, found.interface) == (size_gb, interface) and self._is_empty(found):
                return found
            if found:
                raise ValidationError(
                    f"there is a volume `{name}` already", suggestions=["take another name", "see `flow volume list`"]
                )
            now = time.time()
            volume = Volume(f"vol-{os.urandom(6).hex()}", name, size_gb, interface, region, now, 0.0)
            self._write(volume)
            return self._get(volume.volume_id)

    def price_per_month(self, size_gb: int, *, interface: str = "block", region: str | None = None) -> float:
        """Nothing."""
        return 0.0

    def list(self) -> Sequence[Volume]:
        """What there is; what an ended task should have taken with it goes now."""
        if not self.folder.is_dir():
            return []
        with self._alone():
            self._remove_doomed()
            return sorted(self._all(), key=lambda one: one.created or 0.0, reverse=True)

    def delete(self, volume_id: str) -> None:
        """Remove the folder, with what is in it."""
        with self._alone():
            volume = self._get(volume_id)
            if volume.used_by:
                raise ValidationError(
                    f"the volume `{volume.name}` is used by `{volume.used_by[0]}`",
                    suggestions=[f"end it first: `flow cancel {volume.used_by[0]}`"],
                )
            _doom(self.folder / volume_id)

    def attach(self, volume_id: str, plan: Plan, *, ephemeral: bool = False) -> str:
        """Leave the task's name in the volume's folder."""
        with self._alone():
            volume = self._get(volume_id)
            array = plan.task_id.partition("_")[0]
            others = set(volume.used_by) - {plan.task_id, array} - (self._waits_for(plan) if volume.used_by else set())
            if others and volume.interface == "block":
                holder = min(others)
                raise ValidationError(
                    f"the block volume `{volume.name}` is held by `{holder}`",
                    suggestions=[
                        f"start after it, with `depends_on: {holder}:ended`",
                        "share a volume made with `--interface file`",
                    ],
                )
            holders = self.folder / volume_id / "holders"
            (holders / plan.task_id).write_text(_EPHEMERAL if ephemeral else "")
            return str(volume_path(self.folder.parent, volume_id))

    def detach(self, volume_id: str, task_id: str) -> None:
        """Take the task's name away."""
        with self._alone():
            let_go(self.folder / volume_id, task_id)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with writing(self.folder):
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with Lock(self.folder / ".lock"):
                yield

    def _get(self, volume_id: str) -> Volume:
        volumes = list(self._all())
        for volume in volumes:
            if volume.volume_id == volume_id:
                return volume
        names = [word for one in volumes for word in (one.name, one.volume_id)]
        raise ResourceNotFoundError(
            f"there is no volume `{volume_id}`", suggestions=[*did_you_mean(volume_id, names), "see `flow volume list`"]
        )

    def _all(self) -> Iterator[Volume]:
        for file in self.folder.glob("vol-*/volume.json"):
            try:
                volume = Volume(**json.loads(file.read_text()))
            except FileNotFoundError:  # an ephemeral one that went just now
                continue
            except (OSError, ValueError, TypeError) as error:
                again = json.dumps({"volume_id": file.parent.name, "name": "NAME", "size_gb": 100})
                raise StorageError(
                    f"the volume file `{file}` cannot be read: {error}",
                    suggestions=[f"write it again, as `{again}`: its `data` folder beside it is whole"],
                ) from error
            used_by, folder = tuple(self._holders(volume.volume_id)), str(file.with_name("data"))
            if file.exists():  # an ephemeral one may have gone just now
                yield replace(volume, used_by=used_by, folder=folder)

    def _holders(self, volume_id: str) -> Iterator[str]:
        """The tasks that have not ended; the marks of the others are taken away."""
        for mark in sorted((self.folder / volume_id / "holders").glob("*")):
            has_ended = self._has_ended(mark.name)
            with contextlib.suppress(OSError):
                if has_ended is None:
                    has_ended = time.time() - mark.stat().st_mtime > _UNKNOWN_SECONDS
                if has_ended:
                    let_go(self.folder / volume_id, mark.name)
                else:
                    yield mark.name

    def _write(self, volume: Volume) -> None:
        """Whole, or not at all: `volume.json` comes last."""
        folder = self.folder / volume.volume_id
        for one in (folder, folder / "data", folder / "holders"):
            one.mkdir(mode=0o700)
        values = {name: value for name, value in asdict(volume).items() if name not in ("used_by", "folder")}
        write_durably(folder / "volume.json", json.dumps(values).encode())
        sync_path(str(self.folder))

    def _is_empty(self, volume: Volume) -> bool:
        return not volume.used_by and not any((self.folder / volume.volume_id / "data").iterdir())

    def _remove_doomed(self) -> None:
        for doomed in self.folder.glob(f"{_DOOMED}*"):
            _remove(doomed)


def volume_path(home: Path, volume_id: str) -> Path:
    """The folder that tasks see."""
    return home / "volumes" / volume_id / "data"


def let_go(folder: Path, task_id: str) -> None:
    """The task has ended for good: it holds the volume in `folder` no more, and takes an ephemeral one with it."""
    mark = folder / "holders" / task_id
    with contextlib.suppress(OSError):
        kind = mark.read_text()
        mark.unlink()
        others = sorted(mark.parent.iterdir())
        if kind == _EPHEMERAL and others:
            others[0].write_text(kind)
        elif kind == _EPHEMERAL:
            _doom(folder)


def _doom(folder: Path) -> None:
    """Take it out of sight at once."""
    doomed = folder.with_name(f"{_DOOMED}{folder.name}")
    folder.rename(doomed)
    _remove(doomed)


def _remove(doomed: Path) -> None:
    """By a process that nobody waits for: a large folder takes its time."""
    remove = 'rm -rf -- "$1" || { chmod -R u+rwX -- "$1"; rm -rf -- "$1"; }'  # folders may be read-only
    script = ["sh", "-c", f"{{ {remove}; }} </dev/null >/dev/null 2>&1 &", "sh", str(doomed)]
    with contextlib.suppress(OSError):  # the next `list` tries again
        os.waitpid(os.posix_spawn("/bin/sh", script, os.environ, setsid=True), 0)
