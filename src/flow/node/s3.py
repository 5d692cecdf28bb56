"""Objects of S3 as a folder that a task can read: through a mount that tasks share, else through a copy.

Standard library, Python 3.8 and up; the copy needs boto3.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import select
import shutil
import sys
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from flow.node.s3_place import Place


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


fuse, folders, keeper, request = map(_beside, ("fuse", "s3_folders", "s3_keeper", "s3_request"))
CannotMount = _beside("mount_points").CannotMount
NO_PROGRAM = "no program that mounts S3 is on this machine: install `s3fs`, `rclone` or `mount-s3`"
LINGER_SECONDS = 60.0
BUSY_SECONDS = 90  # how long one that is just being started or ended by others is waited for


def attach(
    source: str, access: dict[str, str], cache: str, check: Callable[[], None] = lambda: None
) -> tuple[str, int]:
    """A folder in which the objects under `source` ("bucket/path") are read, and a descriptor that keeps it.

    While any process holds that descriptor, or a copy that it inherited, the folder stays. `access` is what
    `flow.aws.s3_access` gives. `cache`: a folder of this user's on this machine, for all tasks; what was read is kept
    in it. `check` is called while this waits, and may raise to give up. Raises CannotMount, before anything is mounted
    where the source or the credentials are wrong. The mount is made in the mount namespace of the caller, by a process
    that outlives it and unmounts when nobody has used it for FLOW_S3_LINGER_SECONDS. It is read-only; a copy is not,
    and must be shown to a task read-only.
    """
    try:
        place = request.find(source, access)
        os.makedirs(cache, mode=0o700, exist_ok=True)
        os.chmod(cache, 0o700)
        return _attached(place, access, os.path.realpath(cache), check)
    except CannotMount as error:
        raise CannotMount(f"cannot mount `s3://{source}`: {error}") from None
    except OSError as error:
        raise CannotMount(f"cannot mount `s3://{source}`: {error.filename or cache}: {error.strerror}") from None


def _attached(place: Place, access: dict[str, str], cache: str, check: Callable[[], None]) -> tuple[str, int]:
    """By the first program that can; as a copy where none is here."""
    hindrance, failures = fuse.hindrance(), []
    for tool in [] if hindrance else filter(shutil.which, _beside("s3_programs").COMMANDS):
        try:
            return _mounted(tool, place, access, cache, check)
        except CannotMount as error:
            failures.append(str(error))
    if failures:  # a copy may be much longer and larger than what was expected
        raise CannotMount("; ".join(failures))
    if not importlib.util.find_spec("boto3"):
        raise CannotMount(f"{hindrance or NO_PROGRAM}, or for a copy the Python package boto3")
    copied: tuple[str, int] = _beside("s3_copy").copied(place, access, cache, check)
    return copied


def _mounted(tool: str, place: Place, access: dict[str, str], cache: str, check: Callable[[], None]) -> tuple[str, int]:
    """The mount that there is already with these credentials, or a new one."""
    folder = folders.folder_of(cache, "mount", place, sorted(access.items()))
    at = os.path.join(folder, "fs")
    start = fuse.soon(lambda: fuse.locked(os.path.join(folder, "lock")), check, BUSY_SECONDS)
    if start is None:
        raise CannotMount("another task has been mounting it for too long")
    try:
        folders.touch(folder)
        keeper_lock = os.path.join(folder, "keeper")
        if not (fuse.is_locked(keeper_lock) and fuse.is_readable_mount(at)):
            # A program that died leaves a dead mount and a keeper about to clear it away.
            if not fuse.soon(lambda: not fuse.is_locked(keeper_lock), check, BUSY_SECONDS):
                raise CannotMount("its earlier mount broke, and does not go away")
            failure = _start_keeper(tool, place, access, folder, start=start, check=check)
            if failure:
                raise CannotMount(failure)
        return at, fuse.locked(os.path.join(folder, "users"), fuse.SHARED, wait=True)
    finally:
        os.close(start)


def _start_keeper(
    tool: str, place: Place, access: dict[str, str], folder: str, *, start: int, check: Callable[[], None]
) -> str:
    """Start it and hear whether it could mount: why not, or ""."""
    try:
        linger = float(os.environ.get("FLOW_S3_LINGER_SECONDS") or LINGER_SECONDS)
    except ValueError:
        raise CannotMount("FLOW_S3_LINGER_SECONDS is not a number of seconds") from None
    asked = {"tool": tool, "place": place, "access": access, "linger_seconds": linger}
    (its_stdin, to_it), (from_it, its_stdout) = os.pipe(), os.pipe()
    try:
        fuse.spawn_keeper([sys.executable, "-S", keeper.__file__, folder], folder, [its_stdin, its_stdout, start])
    finally:
        os.close(its_stdin)
        os.close(its_stdout)
    with open(from_it, "rb") as answer:
        with contextlib.suppress(BrokenPipeError), open(to_it, "w", encoding="utf-8") as question:
            json.dump(asked, question)
        while not select.select([answer], [], [], 0.05)[0]:
            check()
        line = answer.readline()
    return line.decode().strip() if line else "the process that would keep the mount died"
