"""What a rank may leave behind whose runner died: processes, a container. Standard library, Python 3.8 and up."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from typing import Iterator, Mapping

ENGINE_SECONDS = 20.0  # for one answer of docker or podman


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Whether some process holds the lock; False where the file does not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not see each other
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also where a child was forked meanwhile
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_alive(folder: str) -> bool:
    """Whether the runner of a task folder, or a process of its command, is."""
    return is_locked(os.path.join(folder, "runner.lock")) or is_locked(os.path.join(folder, "command.lock"))


def unmarked(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without the mark of a task, by which its processes are found: for what is no part of it."""
    return {name: value for name, value in environ.items() if not name.startswith("FLOW_TASK_")}


def task_of(name: str) -> str:
    """The task or element to which a folder of this name belongs: `task+1`, `task+1+7_7` are what a host was given."""
    base, _, rest = name.partition("+")
    return base + "".join(rest.partition("_")[1:])


def kill_left_over(folder: str) -> bool:
    """SIGKILL every process of this rank: those that carry its marks, or the command's lock. Whether there were any."""
    task, attempt, rank = folder.rsplit("/", 2)
    marks = {f"FLOW_TASK_ID={task_of(os.path.basename(task))}", f"FLOW_ATTEMPT={attempt}", f"FLOW_NODE_RANK={rank}"}
    lock = os.path.join(folder, "command.lock")
    left = _marked({mark.encode() for mark in marks})
    if not left and is_locked(lock):
        left = _holders(lock)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    return bool(left) or is_locked(lock)


def remove_container(folder: str) -> bool:
    """Remove the rank's container, if it has one; False until the engine says that there is none."""
    import subprocess  # the local scheduler would pay for `threading` at each of its forks

    try:
        with open(os.path.join(folder, "task.json"), encoding="utf-8") as file:
            job = json.load(file)
        if job.get("image") and job.get("engine"):
            engine, name = job["engine"], f"flow-{job['task_id']}-{job['attempt']}-{job['rank']}"
            subprocess.run([engine, "rm", "-f", name], capture_output=True, timeout=ENGINE_SECONDS, check=False)
            named = [engine, "ps", "--all", "--quiet", "--filter", f"name=^{name}$"]
            left = subprocess.run(named, capture_output=True, timeout=ENGINE_SECONDS, check=False)
            return left.returncode == 0 and not left.stdout.strip()
    except subprocess.TimeoutExpired:
        return False
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # a damaged file, or an engine that is no longer there: nothing more can be done
    return True


def _marked(marks: set[bytes]) -> list[int]:
    """Processes started with all of `marks` in their environment (Linux: /proc)."""
    found = []
    for pid in _pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if marks <= set(file.read().split(b"\0")):
                    found.append(pid)
        except OSError:
            continue
    return found


def _holders(lock: str) -> list[int]:
    """Processes that inherited the lock, whatever environment they gave themselves; not who merely reads the file."""
    locked, found = os.stat(lock), []
    for pid in _pids():
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), locked) and _is_flocked(pid, name):
                    found.append(pid)
        except OSError:
            continue
    return found


def _is_flocked(pid: int, descriptor: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{descriptor}", "rb") as file:
        return b"FLOCK" in file.read()


def _pids() -> Iterator[int]:
    try:
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return
