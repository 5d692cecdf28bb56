"""Keeps one mount of S3: starts the program that makes it, and ends that when no task has used it for a while.

`python3 s3_keeper.py FOLDER`, by s3.py, which says the rest on stdin, so that no credential is on a command line, and
reads one line from stdout: nothing where it is mounted, else why not. It is a process of its own because the mount is
shared and outlives the task that asked first. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow.node.s3_request import Place


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


folders = _beside("s3_folders")
START_LOCK = 3  # the descriptor: s3.py's own, so that no one else starts it though s3.py be killed
START_SECONDS = 30
END_SECONDS = 5  # what the program has to end after it was unmounted
STEP_SECONDS = 0.5
MOST_LOG_BYTES = 1 << 20
SET_DEATH_SIGNAL = 1  # of prctl(2)
# How soon what changed in the bucket is seen, and how long a server that says nothing is waited for.
FRESH_SECONDS, CONNECT_SECONDS, SILENT_SECONDS, RETRIES = 10, 10, 30, 2


def main(folder: str) -> None:
    """Mount, say so, wait until nobody wants it, unmount."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    os.chdir("/")
    asked = json.load(sys.stdin)
    alive = folders.locked(os.path.join(folder, "keeper"))
    try:
        _keep(folder, asked)
    except (OSError, RuntimeError) as error:
        _say(str(error))
    finally:
        folders.remove_old(os.path.dirname(folder))
        os.close(alive)


def _keep(folder: str, asked: dict[str, Any]) -> None:
    at, log = os.path.join(folder, "fs"), os.path.join(folder, "log")
    os.makedirs(at, mode=0o700, exist_ok=True)
    objects, in_use = _cache_of(folder, asked["tool"], asked["place"])
    program = _start(asked, at, objects, log, keep_open=in_use)
    os.close(in_use)
    try:
        folders.soon(lambda: program.poll() is not None or folders.is_readable_mount(at), lambda: None, START_SECONDS)
        if folders.is_readable_mount(at):
            os.close(START_LOCK)
            _say("")
            _wait_for_the_last_user(folder, program, log, asked["linger_seconds"])
        else:
            _say(f"{asked['tool']} did not mount it: {_last_line(log)}")
    finally:
        folders.unmount(at)
        _end(program)
        folders.touch(objects)


def _cache_of(folder: str, tool: str, place: list[str]) -> tuple[str, int]:
    """The folder in which a program keeps these objects from task to task, and its lock, which goes to the program.

    One program at a time has it: what comes with other credentials meanwhile has one of its own.
    """
    cache = os.path.dirname(folder)
    for what in ([place[:3]], [place[:3], folder]):
        objects = folders.folder_of(cache, "objects", tool, *what)
        lock = folders.soon(lambda at=objects: folders.locked(os.path.join(at, "lock")), lambda: None, 1)
        if lock is not None:
            folders.touch(objects)
            return objects, lock
    raise RuntimeError("an earlier program still has its cache")


def _start(asked: dict[str, Any], at: str, objects: str, log: str, keep_open: int) -> subprocess.Popen[bytes]:
    space = os.statvfs(objects)
    free_megabytes = space.f_bavail * space.f_frsize >> 20
    place = _beside("s3_request").Place(*asked["place"])
    argv, env = COMMANDS[asked["tool"]](place, asked["access"], os.path.join(objects, "data"), free_megabytes)
    everyone = ["-o", "allow_other"] if asked["tool"] == "s3fs" else ["--allow-other"]
    argv = [*argv, at, *(everyone if os.geteuid() == 0 else [])]  # root's tasks may run as others in a container
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return subprocess.Popen(
        argv, env={**os.environ, **env}, cwd="/", stdin=subprocess.DEVNULL, stdout=fd, stderr=fd,
        pass_fds=(keep_open,), preexec_fn=_end_with_parent,  # noqa: PLW1509  # there are no threads here
    )  # fmt: skip


def s3fs(place: Place, access: dict[str, str], cache: str, free_megabytes: int) -> tuple[list[str], dict[str, str]]:
    """Source: s3fs(1). The umask is for objects that carry a mode of their own."""
    options: dict[str, Any] = {
        "url": place.url,
        "endpoint": place.region,
        "use_cache": cache,
        "umask": "0222",
        "mp_umask": "0222",
    }
    options.update(stat_cache_expire=FRESH_SECONDS, connect_timeout=CONNECT_SECONDS, readwrite_timeout=SILENT_SECONDS)
    options.update(retries=RETRIES, ensure_diskfree=free_megabytes // 4)
    words = [f"{name}={str(value).translate(_ESCAPES)}" for name, value in options.items()] + ["ro"]
    words += ["use_path_request_style"] if place.has_bucket_in_path else []
    words += ["public_bucket=1"] if access.get("AWS_NO_SIGN_REQUEST") else []
    source = f"{place.bucket}:/{place.prefix.rstrip('/')}"
    env = {name: access[name] for name in KEYS if name in access}
    env.update({name.replace("_", ""): value for name, value in env.items()})  # as older releases know them
    return ["s3fs", source, "-f", "-o", ",".join(words)], env


def rclone(place: Place, access: dict[str, str], cache: str, free_megabytes: int) -> tuple[list[str], dict[str, str]]:
    """Source: rclone.org, "rclone mount" and "s3". Credentials by its own names, or it asks AWS's library."""
    argv = ["rclone", "mount", f":s3:{place.bucket}/{place.prefix}", "--config", "", "--read-only"]
    argv += ["--s3-provider", "Other" if place.endpoint else "AWS", "--s3-region", place.region]
    argv += ["--s3-endpoint", place.endpoint] if place.endpoint else []
    argv += ["--s3-force-path-style=" + ("true" if place.has_bucket_in_path else "false"), "--umask", "0222"]
    argv += ["--cache-dir", cache, "--vfs-cache-mode", "full", "--vfs-cache-max-age", f"{folders.KEPT_SECONDS}s"]
    argv += ["--vfs-cache-max-size", f"{free_megabytes // 4 * 3}M", "--dir-cache-time", f"{FRESH_SECONDS}s"]
    argv += ["--use-server-modtime", "--contimeout", f"{CONNECT_SECONDS}s", "--timeout", f"{SILENT_SECONDS}s"]
    argv += ["--low-level-retries", str(RETRIES), "--retries", "1"]
    env = {name.replace("AWS", "RCLONE_S3"): access[name] for name in KEYS if name in access}
    return argv, env


def mount_s3(place: Place, access: dict[str, str], cache: str, free_megabytes: int) -> tuple[list[str], dict[str, str]]:
    """Source: Mountpoint for Amazon S3, doc/CONFIGURATION.md. It keeps 5 % of the disk free by itself."""
    os.makedirs(cache, mode=0o700, exist_ok=True)
    argv = ["mount-s3", "--foreground", "--read-only", "--cache", cache, "--metadata-ttl", str(FRESH_SECONDS)]
    argv += ["--region", place.region, "--file-mode", "0444", "--dir-mode", "0555"]
    argv += ["--endpoint-url", place.endpoint] if place.endpoint else []
    argv += ["--force-path-style"] if place.has_bucket_in_path else []
    argv += ["--prefix", place.prefix] if place.prefix else []
    argv += ["--no-sign-request"] if access.get("AWS_NO_SIGN_REQUEST") else []
    return [*argv, place.bucket], {name: access[name] for name in KEYS if name in access}


# In this order: rclone keeps what it read from mount to mount, and what may not be read is an error; s3fs keeps it, but
# shows such an object as an empty file; mount-s3 keeps nothing.
COMMANDS = {"rclone": rclone, "s3fs": s3fs, "mount-s3": mount_s3}
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_ESCAPES = {ord("\\"): "\\\\", ord(","): "\\,"}  # in an option of FUSE


def _wait_for_the_last_user(folder: str, program: subprocess.Popen[bytes], log: str, linger_seconds: float) -> None:
    """Until nobody has used it for so long, or the program died; from then on nobody can begin to use it."""
    idle_since = time.monotonic()
    while program.poll() is None:
        if folders.is_locked(os.path.join(folder, "users")):
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since >= linger_seconds and _is_wanted_by_nobody(folder):
            return
        with contextlib.suppress(OSError):
            if os.stat(log).st_size > MOST_LOG_BYTES:
                os.truncate(log, 0)
        time.sleep(STEP_SECONDS)


def _is_wanted_by_nobody(folder: str) -> bool:
    """Whether that is so; the lock on its start is then held until this process is gone."""
    start = folders.locked(os.path.join(folder, "lock"))
    if start is None:
        return False
    if folders.is_locked(os.path.join(folder, "users")):
        os.close(start)
        return False
    return True


def _end(program: subprocess.Popen[bytes]) -> None:
    """It ends by itself once it is unmounted, unless another namespace has the mount still."""
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        program.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(END_SECONDS)
            return


def _end_with_parent() -> None:
    """In the child: SIGTERM where the keeper is killed, so that no program is left that nobody ends."""
    prctl = _beside("processes").PRCTL
    if prctl:
        prctl(SET_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)


def _last_line(log: str) -> str:
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1][:300] if lines else f"nothing was there after {START_SECONDS} s"


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
