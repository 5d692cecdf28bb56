"""What a task left on this machine -> an object of S3, so that the machine can end.

By the machine's guard, which asks on standard input: `tasks`, their folder; `task_id`; `source`, `access`, as s3.py has
them; `names`, the objects of all machines of the task, of which this one's is at `own`. Ends with 0 once all of them
are there, with OTHERS while only this one's is. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

_PACKAGE = f"{__package__}." if __package__ else ""
answers, objects = (importlib.import_module(_PACKAGE + one) for one in ("answers", "objects"))
OTHERS = 3
STILL_SECONDS = 3600  # after which a copy that does not go on is ended
STAYS = ("workspace", "inbox", "task.json", "env.json")  # of a task folder: code, secrets, variables


def main() -> int:
    """Copy it, unless that was done."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGALRM, _leave)
    signal.alarm(STILL_SECONDS)
    asked = json.load(sys.stdin)
    folder, name = os.path.join(asked["tasks"], asked["task_id"]), asked["names"][asked["own"]]
    try:
        place = objects.locate(asked["source"], asked["access"])
        if not os.path.exists(os.path.join(folder, "copied")):
            with tempfile.TemporaryFile() as names:
                names.write("\0".join(files_of(asked["tasks"], asked["task_id"])).encode(errors="surrogateescape"))
                names.seek(0)
                packed = Packed(asked["tasks"], names)
                objects.put(place, asked["access"], name, packed)
            if packed.said():  # of what could not be read
                print(packed.said(), file=sys.stderr)  # noqa: T201
            answers.write(folder, "copied", "")
        others = [one for one in asked["names"] if one != name]
        return 0 if all(objects.is_there(place, asked["access"], one) for one in others) else OTHERS
    except objects.Failed as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1


def _leave(*_: Any) -> None:
    """What was begun in parts is ended at S3, as it is billed; `timeout` tells us twice, then as one of its group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


class Packed:
    """A tar of files in `folder`, compressed, to be read; without those that may not be read.

    names: a file of their names, a NUL between two.
    """

    def __init__(self, folder: str, names: Any) -> None:
        words = ["tar", "-cz", "--ignore-failed-read", "-C", folder, "--null", "-T", "-", "-f", "-"]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe is full at 64 KB, and tar would wait
        self._process = subprocess.Popen(words, stdin=names, stdout=subprocess.PIPE, stderr=self._said)

    def read(self, size: int) -> bytes:
        """So much, less only at its end. Raises objects.Failed where not all could be packed."""
        assert self._process.stdout
        data = self._process.stdout.read(size)
        signal.alarm(STILL_SECONDS)
        if len(data) < size and self._process.wait() not in (0, 1):  # 1: a file has changed meanwhile
            raise objects.Failed(f"what the task left cannot be packed: {self.said()}")
        return data

    def said(self) -> str:
        """The last line of what tar had to say; "" if nothing."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip().rpartition("\n")[2]


def files_of(tasks: str, task_id: str) -> list[str]:
    """What tells of a task, or of the elements of an array: their folders but what stays, and that they have ended.

    Raises objects.Failed where that is too little.
    """
    found = [f"{task_id}/meta.json"]
    if not os.path.exists(os.path.join(tasks, found[0])):  # nothing of it could be read back
        raise objects.Failed(f"what the task left cannot be packed: `{found[0]}` is not there")
    for unit in (one for one in answers.listed(tasks) if one.partition("_")[0] == task_id):
        folder = os.path.join(tasks, unit)
        found += [f"{unit}/ended"] if os.path.exists(os.path.join(folder, "ended")) else []
        for attempt in answers.attempts(folder):
            for rank in (one for one in answers.listed(os.path.join(folder, str(attempt))) if one.isdigit()):
                inner = f"{unit}/{attempt}/{rank}"
                found += [f"{inner}/{one}" for one in answers.listed(os.path.join(tasks, inner)) if one not in STAYS]
    return found


if __name__ == "__main__":
    sys.exit(main())
