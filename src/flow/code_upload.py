"""The project as it is now -> the workspace of a running task: only what changed since the last upload travels."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from flow.access import node_of
from flow.blobs import blob_path, manifest_path, store_lock
from flow.bundle import Bundle, make_bundle, read_manifest
from flow.channel import UNREACHABLE, Channel
from flow.durable import private
from flow.errors import FlowError, StorageError, ValidationError
from flow.machines import Allocation
from flow.node import sync

if TYPE_CHECKING:
    from flow.task import Task

_Request = Callable[[], Mapping[str, Any]]  # made when it is put
_OURS = ".flow/"  # what a submission adds to a project


@dataclass(frozen=True, slots=True)
class Upload:
    """What became of the files of a workspace, by their paths in the project.

    `kept`: the project has them no longer, but they were changed over there.
    """

    updated: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Reading(threading.Thread):
    """A project that is read while something else is waited for: `bundle`, once joined; None where that failed."""

    def __init__(self, source: Path, home: Path) -> None:
        super().__init__(daemon=True)
        self.source, self._home = source, home
        self._bundle: Bundle | None = None

    def run(self) -> None:
        """See above."""
        with contextlib.suppress(FlowError):  # who needs it reads again, and says why
            self._bundle = make_bundle(self.source, self._home)

    @property
    def bundle(self) -> Bundle | None:
        """What was read, unless it was pruned since."""
        self.join()
        is_there = self._bundle and manifest_path(self._home, self._bundle.id).exists()
        return self._bundle if is_there else None


def upload_code(
    task: Task, allocation: Allocation | None, home: Path, source: Path, *, node: int, reading: Reading | None = None
) -> Upload:
    """What `Task.upload_code` promises, of a task that has these machines while it runs.

    reading: of `source`, where that has begun a moment ago.
    """
    place = node_of(task, allocation, node, "an upload")
    assert allocation
    if task.plan.in_place:
        raise ValidationError(
            f"`{task.task_id}` runs in the folder it was submitted from, and sees its files as they are"
        )
    if source.resolve() in (Path.home(), Path(source.anchor)):
        raise ValidationError(f"`{source}` is not a project", suggestions=["name its folder by `--source`"])
    with store_lock(home), _last_uploads(home / "record" / task.task_id.partition("_")[0]) as uploads:
        bundle = (reading and reading.bundle) or make_bundle(source, home)
        if uploads.last.get(place.node.folder) == bundle.id:  # an upload would touch nothing
            return Upload((), (), (), bundle.notes)
        manifest = read_manifest(home, bundle.id)
        requests = [lambda: _whole(manifest, _submitted(task, home))]
        if base := _manifest(home, uploads.last.get(place.node.folder)):
            requests.insert(0, lambda: _since(base, manifest))
        digests = {name: digest for name, _, digest, _ in manifest["files"]}
        channel = task.channel(allocation, node)  # what reaches its files is enough
        uploads.note(place.node.folder, None)
        done = _talk(channel, place.node.folder, requests, home, digests)
        uploads.note(place.node.folder, bundle.id)
    return Upload(tuple(done["updated"]), tuple(done["removed"]), tuple(done["kept"]), bundle.notes)


@contextlib.contextmanager
def _last_uploads(record: Path) -> Iterator[_Uploads]:
    """What a task was brought up to; one upload at a time."""
    with open(record / "uploads.json", "a+", opener=private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield _Uploads(file)


class _Uploads:
    """The bundle of the last upload by the task folder it went to, where that was whole."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        file.seek(0)
        try:
            self.last: dict[str, str] = json.loads(file.read() or "{}")
        except ValueError:  # its writer was killed
            self.last = {}

    def note(self, folder: str, bundle_id: str | None) -> None:
        """On disk when this returns, so that what is cut off now is begun anew."""
        self.last.pop(folder, None)
        self.last.update({folder: bundle_id} if bundle_id else {})
        self._file.truncate(0)
        self._file.write(json.dumps(self.last))
        self._file.flush()


def _whole(manifest: Mapping[str, Any], submitted: Mapping[str, Any]) -> Mapping[str, Any]:
    """The project, and where it was different when the task was submitted."""
    now = _entries(manifest)
    was = {name: entry for name, entry in submitted.items() if name in now or not name.startswith(_OURS)}
    return {"manifest": manifest, "was": {name: was.get(name) for name in _changed(was, now)}}


def _since(base: Mapping[str, Any], manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """How it differs from the last upload, of which that machine has a note with the digest `base`."""
    was, now = _entries(base), _entries(manifest)
    changed = {name: now.get(name) for name in _changed(was, now)}
    return {"base": sync.digest_of(was), "changed": changed, "dirs": manifest["dirs"]}


def _changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in {**was, **now} if was.get(name) != now.get(name)]


def _submitted(task: Task, home: Path) -> Mapping[str, Any]:
    """What the task was submitted with; nothing where that is not known any more."""
    manifest = _manifest(home, task.plan.bundle)
    return _entries(manifest) if manifest else {}


def _manifest(home: Path, bundle_id: str | None) -> Mapping[str, Any] | None:
    try:
        return read_manifest(home, bundle_id) if bundle_id else None
    except StorageError:  # pruned
        return None


def _entries(manifest: Mapping[str, Any]) -> dict[str, Any]:
    files = {name: [mode, digest, size] for name, mode, digest, size in manifest["files"]}
    return {**files, **dict(manifest["links"])}


def _talk(
    channel: Channel, folder: str, requests: Sequence[_Request], home: Path, digests: Mapping[str, str]
) -> Mapping[str, Any]:
    argv = channel.python_command(Path(sync.__file__).read_text(), folder)
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as there:
            assert there.stdin and there.stdout
            try:
                told = _exchange(there.stdin, there.stdout, requests, home, digests)
            except (BrokenPipeError, json.JSONDecodeError):  # it ended; why is what it said
                told = None
        said.seek(0)
        why = said.read().decode(errors="replace").strip()
    if there.returncode == UNREACHABLE and channel.prefix:
        raise channel.unreachable(why)
    if there.returncode or told is None:
        raise FlowError(f"the upload is not whole: {why.rpartition(chr(10))[2]}", suggestions=["upload again"])
    return told


def _exchange(
    to: IO[bytes], of: IO[bytes], requests: Sequence[_Request], home: Path, digests: Mapping[str, str]
) -> Mapping[str, Any]:
    """requests: the last one is always understood."""
    lacked = None
    for request in requests:
        to.write(json.dumps(request()).encode() + b"\n")
        to.flush()
        lacked = json.loads(of.readline())
        if lacked is not None:
            break
    for name in lacked or ():
        with blob_path(home, digests[name]).open("rb") as blob:
            shutil.copyfileobj(blob, to, 1 << 20)
    to.close()
    done: Mapping[str, Any] = json.loads(of.readline())
    return done
