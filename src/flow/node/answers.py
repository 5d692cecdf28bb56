"""The far side of a conversation: answers questions, and takes files into a folder. Standard library,
Python 3.8 and up.

A question is a line of JSON, [verb, folder, …]: a function of a program, whose answer is a line {"answer": …}.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Mapping, Sequence

if TYPE_CHECKING:
    import tarfile


class Refused(Exception):  # noqa: N818  # an answer, if not the one hoped for
    """Which program said no, and what it said: ("sbatch", "sbatch: error: …")."""


def answer(verbs: Mapping[str, Any]) -> None:
    """Answer the questions: {"answer": …}, {"refused": [...]} or {"failed": [...]} for an OSError.

    The first may be a word of the program's; the others are on standard input.
    """
    for line in itertools.chain(sys.argv[1:], iter(sys.stdin.buffer.readline, b"")):
        print(json.dumps(_told(verbs, *json.loads(line))), flush=True)  # noqa: T201


def _told(verbs: Mapping[str, Any], verb: str, root: str, *rest: Any) -> dict[str, Any]:
    try:
        if verb == "receive":
            import tarfile  # which few questions need

            with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as files:
                return {"answer": receive(root, files)}
        return {"answer": {"missing": missing, **verbs}[verb](*([root] if root else []), *rest)}
    except Refused as refused:
        return {"refused": refused.args}
    except OSError as error:
        return {"failed": [error.errno, error.strerror, error.filename]}


def missing(root: str, names: Sequence[str]) -> list[str]:
    """Which of these files are not in the folder yet."""
    root = os.path.expanduser(root)
    return [name for name in names if not is_there(os.path.join(root, name))]


def is_there(path: str) -> bool:
    """Whether a file is, and not what a power cut leaves of one: its name. Asked for, it is not swept away now."""
    try:
        if os.stat(path).st_size == 0:
            return False
        os.utime(path)
        return True
    except FileNotFoundError:
        return False


def receive(root: str, files: tarfile.TarFile) -> int:
    """Take in files that are missing; each has its name once it is whole, in the order in which they come. How many."""
    import shutil  # as above

    root, count = os.path.expanduser(root), 0
    for one in files:
        source = files.extractfile(one)
        if source is not None:
            path = os.path.join(root, one.name)
            make_private(os.path.dirname(path))
            new = f"{path}.{os.getpid()}"
            try:
                with open(new, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                    if not one.name.startswith(
                        "blobs/"
                    ):  # these are many, and looked at once more before they are used
                        os.fsync(target.fileno())
                os.rename(new, path)
            except BaseException:  # the connection was cut, or the disk is full
                if os.path.exists(new):
                    os.unlink(new)
                raise
            count += 1
    return count


def make_private(folder: str) -> None:
    """Make a folder, and those above it that are not there, for nobody but this user."""
    if not os.path.isdir(folder):
        make_private(os.path.dirname(folder))
        os.makedirs(folder, mode=0o700, exist_ok=True)


def read(folder: str, name: str) -> str:
    """The text of a small file; "" where there is none."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def read_status(folder: str) -> dict[str, Any]:
    """What the runner of a task folder said last; {} where that cannot be read."""
    try:
        status: dict[str, Any] = json.loads(read(folder, "status.json"))
        return status
    except ValueError:
        return {}


def write(folder: str, name: str, text: str, *, durably: bool = False) -> None:
    """Put a whole file in place; `durably`: what must survive a power cut, as nobody could find it out again."""
    path = os.path.join(folder, name)
    fd = os.open(f"{path}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        if durably:
            file.flush()
            os.fsync(fd)
    os.rename(f"{path}.{os.getpid()}", path)
    if durably:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(fd)
        os.close(fd)


def listed(folder: str) -> list[str]:
    """The names in a folder; none where it is not there."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def attempts(folder: str) -> list[int]:
    """The starts of a task that have a folder, oldest first."""
    return sorted(int(name) for name in listed(folder) if name.isdigit())


def lock(file: Any) -> None:
    """Wait until nobody else holds the lock, on a file system that has such."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # then two clients at once may clash
        pass
