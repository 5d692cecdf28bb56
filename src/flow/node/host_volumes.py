"""The volumes of one host, as a client asks for them: a folder each. Standard library, Python 3.8 and up.

ROOT/volumes/ID has `volume.json`, `data/`, which tasks see, and `holders/TASK` for each task that uses it. Whether one
has ended the host does not know, since it may run elsewhere: a client says which of the holders count no more.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib
import json
import os
import shutil
import subprocess
import time
from typing import Any, Iterator, Mapping, Sequence

_PACKAGE = f"{__package__}." if __package__ else ""  # else they came along with it
answers = importlib.import_module(_PACKAGE + "answers")

DOOMED = ".doomed-"


def volumes(root: str) -> dict[str, Any]:
    """What is kept here, how this host is reached by others, and how much is free, in GB."""
    folder = _folder(root)
    found = []
    if os.path.isdir(folder):
        with _alone(folder):
            for name in os.listdir(folder):
                if name.startswith(DOOMED):
                    _remove(os.path.join(folder, name))
            found = list(_all(folder))
    return {"volumes": found, "way": _way(), "free_gb": shutil.disk_usage(_existing(folder)).free / 1e9}


def make(root: str, values: dict[str, Any]) -> dict[str, Any]:
    """An empty volume, made now by this clock; the one of its name, where that is here already."""
    folder = _folder(root)
    answers.make_private(folder)
    with _alone(folder):
        for one in _all(folder):
            if one["name"] == values["name"]:
                return one
        at = os.path.join(folder, values["volume_id"])
        for part in (at, os.path.join(at, "data"), os.path.join(at, "holders")):
            os.mkdir(part, 0o700)
        values = {**values, "created": time.time()}  # under the lock, which who lists them waits for
        answers.write(at, "volume.json", json.dumps(values), durably=True)  # last: it is there whole, or not at all
        return next(one for one in _all(folder) if one["volume_id"] == values["volume_id"])


def hold(
    root: str, volume_id: str, task_id: str, mark: dict[str, Any], others: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """Note that the task uses it, unless tasks do that are not among the others; None: any may. Who they are.

    mark: whose task it is (`client`), and whether it takes the volume with it when it has ended (`ephemeral`).
    """
    with _alone(_folder(root)):
        at = _at(root, volume_id)
        known = _holders(at)
        hindering = {name: one for name, one in known.items() if others is not None and name not in (task_id, *others)}
        if not hindering:
            answers.write(os.path.join(at, "holders"), task_id, json.dumps(mark))
        return hindering


def let_go(root: str, task_ids: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Tasks use these volumes no more, and the last to go takes an ephemeral one with it. What is kept then."""
    with _alone(_folder(root)):
        for volume_id in task_ids:
            _let_go(os.path.join(_folder(root), volume_id), task_ids[volume_id])
    return volumes(root)


def remove(root: str, volume_id: str) -> list[str]:
    """Take it away with all that is in it, unless tasks use it. Who they are."""
    with _alone(_folder(root)):
        at = _at(root, volume_id)
        holders = list(_holders(at))
        if not holders:
            _doom(at)
        return holders


def why_out_of_reach(root: str, source: str) -> str:
    """Why a volume of another host cannot be had here: see sshfs.py."""
    return str(importlib.import_module(_PACKAGE + "sshfs").why_out_of_reach(source))


def _folder(root: str) -> str:
    return os.path.join(os.path.abspath(os.path.expanduser(root)), "volumes")


def _at(root: str, volume_id: str) -> str:
    at = os.path.join(_folder(root), volume_id)
    if not os.path.isdir(at):
        raise answers.Refused("volume", volume_id)
    return at


def _existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    with open(os.path.join(folder, ".lock"), "a") as lock:
        answers.lock(lock)
        yield


def _all(folder: str) -> Iterator[dict[str, Any]]:
    for name in os.listdir(folder):
        text = answers.read(os.path.join(folder, name), "volume.json")
        if not text or name.startswith("."):
            continue
        at = os.path.join(folder, name)
        try:
            values = dict(json.loads(text))
        except ValueError as error:
            again = json.dumps({"volume_id": name, "name": "NAME", "size_gb": 100})
            raise answers.Refused(
                "file",
                f"the volume file `{at}/volume.json` cannot be read: {error}; write it again, as `{again}`: its `data` "
                "folder beside it is whole",
            ) from None
        holders = _holders(at)
        data = os.path.join(at, "data")
        yield {**values, "holders": holders, "folder": data, "is_empty": not holders and not os.listdir(data)}


def _holders(at: str) -> dict[str, dict[str, Any]]:
    """Who uses it, with what each has noted, and the seconds since then (`age`)."""
    found = {}
    for name in sorted(one for one in answers.listed(os.path.join(at, "holders")) if "." not in one):
        with contextlib.suppress(OSError, ValueError):
            age = time.time() - os.stat(os.path.join(at, "holders", name)).st_mtime
            found[name] = {**json.loads(answers.read(os.path.join(at, "holders"), name)), "age": age}
    return found


def _let_go(at: str, task_ids: Sequence[str]) -> None:
    marks, known = os.path.join(at, "holders"), _holders(at)
    ending = [known.pop(one) for one in task_ids if one in known]
    goes = any(one["ephemeral"] for one in ending)
    for one in task_ids:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(marks, one))
    if goes and known:
        left = min(known)
        answers.write(marks, left, json.dumps({**known[left], "ephemeral": True}))
    elif goes:
        _doom(at)


def _doom(at: str) -> None:
    """Take it out of sight at once."""
    doomed = os.path.join(os.path.dirname(at), DOOMED + os.path.basename(at))
    os.rename(at, doomed)
    _remove(doomed)


def _remove(doomed: str) -> None:
    """By a process that nobody waits for: a large folder takes its time. Never what a mount shows."""
    remove = 'rm -rf --one-file-system -- "$1" || { chmod -R u+rwX -- "$1"; rm -rf --one-file-system -- "$1"; }'
    script = ["sh", "-c", f"{{ {remove}; }} &", "sh", doomed]
    null = subprocess.DEVNULL
    subprocess.run(script, stdin=null, stdout=null, stderr=null, start_new_session=True, check=False)


def _way() -> str:
    """As who, where and at which port ssh gets here: as it did just now, in the words of this machine."""
    address, port = os.environ.get("SSH_CONNECTION", "").split()[2:4] or ("", "")
    return f"{getpass.getuser()}@{address}:{port}" if address else ""


if __name__ == "__main__":
    answers.answer(globals())
