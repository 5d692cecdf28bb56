"""Tasks of one host, as a client asks for them: submitted, looked at, ended. Standard library, Python 3.8 and up.

Sent there as a program. `host_keeper.py` gives them their turn; the files are in docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import time
from typing import Any, Sequence

_PACKAGE = f"{__package__}." if __package__ else ""  # else they lie beside this file, or came along with it
answers, remains = (importlib.import_module(_PACKAGE + one) for one in ("answers", "remains"))

OWN = "each host needs a folder of its own, so let `ssh.folder` name one that they do not share"


def submit(root: str, request: dict[str, Any]) -> dict[str, Any]:
    """Take a task in: {}; or {"missing": true} where code of it is not here yet. Taken again, it is the same.

    Raises OSError.
    """
    root, job = os.path.expanduser(root), request["job"]
    base = os.path.join(root, "tasks", request["task_id"])
    manifest = request["bundle"] and os.path.join(root, "manifests", request["bundle"] + ".json")
    tools = os.path.join(root, "node", request["version"])
    if not (os.path.exists(os.path.join(tools, "whole")) and (manifest is None or answers.is_there(manifest))):
        return {"missing": True}
    owner = answers.read(root, "host")
    if owner not in ("", os.uname().nodename):
        raise answers.Refused("flow", f"`{root}` belongs to the host {owner}: {OWN}")
    if not owner:
        answers.write(root, "host", os.uname().nodename)
    for folder in (os.path.join(base, "inbox"), os.path.join(root, "queue"), os.path.join(root, "asked")):
        answers.make_private(folder)
    with open(os.path.join(base, "lock"), "w") as lock:
        answers.lock(lock)
        known = json.loads(answers.read(base, "meta.json") or "{}")
        if known and any(known[one] != request["meta"][one] for one in ("rank", "indices")):
            raise answers.Refused("flow", f"another part of `{request['task_id']}` is in `{root}` already: {OWN}")
        if not known:
            if manifest:
                job["code"] = {"manifest": manifest, "blobs": os.path.join(root, "blobs")}
            for name, text in request["inbox"].items():
                answers.write(os.path.join(base, "inbox"), name, text)
            answers.write(os.path.join(root, "queue"), request["task_id"], "")  # nothing, until the rest is there
            answers.write(base, "job.json", json.dumps(job), durably=True)
            meta = {**request["meta"], "arrived": time.time_ns(), "not_before": time.time() + request["begin_seconds"]}
            for name, mark in request["marks"]:
                os.makedirs(os.path.join(root, "tasks", name), mode=0o700, exist_ok=True)
                answers.write(os.path.join(root, "tasks", name), mark, "")
            answers.write(base, "meta.json", json.dumps(meta), durably=True)
    _wake(root, tools, request["task_id"])
    return {}


def look(root: str, ids: Sequence[str] | None) -> dict[str, Any]:
    """What is known here of tasks, elements one by one; unknown ids are left out. And the time by this clock.

    `task+` is all that came here of a task after it was lost elsewhere, see providers/ssh/places.py. `host`: this
    machine, the same to all its users. `is_ready`: a machine that is rented gives its task a turn.
    """
    root = os.path.expanduser(root)
    tasks = os.path.join(root, "tasks")
    if ids is None:
        ids = sorted((name for name in answers.listed(tasks) if "_" not in name), reverse=True)
    _revive(root)
    queue = _Turns(root)
    found = [one for task_id in ids for one in (_parts if task_id.endswith("+") else _entries)(tasks, task_id, queue)]
    gate = answers.read(root, "gate").strip()
    is_ready = bool(gate) and os.path.exists(gate)
    return {"now": time.time(), "host": host_facts().identity(), "is_ready": is_ready, "tasks": found}


def release(root: str, task_ids: Sequence[str]) -> None:
    """End tasks, arrays or elements. What runs is told to, and has its grace time."""
    for task_id in _known(root, task_ids):
        _note(root, task_id, "cancel", is_set=True)


def hold(root: str, task_id: str, is_held: bool) -> None:
    """Keep what waits from starting, or let it go."""
    for one in _known(root, [task_id]):
        _note(root, one, "hold", is_set=is_held)


def lease(root: str, task_id: str, is_given: bool) -> None:
    """Let a node of a task of several have its turn, to wait for the others and `deliver`; or take it back."""
    _note(root, task_id, "lease", is_set=is_given)


def deliver(root: str, task_id: str, name: str, text: str) -> None:
    """Put a file into the inbox of what has its turn."""
    for folder in _ranks(os.path.join(os.path.expanduser(root), "tasks", task_id)):
        answers.write(os.path.join(folder, "inbox"), name, text)


def ask(root: str, task_id: str, line: str) -> None:
    """Leave a line for the runner of each rank that runs here of a task, an array or an element: see asked.py."""
    root = os.path.join(os.path.expanduser(root), "tasks")
    for unit in _units(root, task_id):
        for folder in _ranks(os.path.join(root, unit)):
            pid = answers.read_status(folder).get("runner_pid")
            if pid and remains.is_locked(os.path.join(folder, "runner.lock")):
                importlib.import_module(_PACKAGE + "asked").ask(folder, line)
                os.kill(pid, signal.SIGUSR1)


def add_mount(root: str, task_id: str, mount: dict[str, Any]) -> None:
    """Have later attempts of a task see one thing more; again, it is one."""
    base = os.path.join(os.path.expanduser(root), "tasks", task_id)
    with open(os.path.join(base, "lock"), "w") as lock:
        answers.lock(lock)
        job = json.loads(answers.read(base, "job.json"))
        others = [one for one in job.get("mounts", []) if one["target"] != mount["target"]]
        answers.write(base, "job.json", json.dumps({**job, "mounts": [*others, mount]}), durably=True)


def keep(root: str) -> None:
    """Start a keeper where some task has not ended and none is alive: asked by the guard, where there is a gate."""
    _revive(os.path.expanduser(root), is_guard=True)


def facts(root: str) -> dict[str, Any]:
    """What this machine has, what of it is taken or waited for, and what a task may need of it."""
    root = os.path.expanduser(root)
    waiting, running = _needs(root)
    return {**host_facts().facts(root), "waiting": waiting, "running": running}


def host_facts() -> Any:
    """The module, loaded when it is needed."""
    return importlib.import_module(_PACKAGE + "host_facts")


# -- what is known of tasks


class _Turns:
    """Who waits here, by arrival; read when first asked for."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._arrivals: list[tuple[int, int]] | None = None

    def before(self, meta: dict[str, Any]) -> int:
        """How many tasks that have not ended come before that one."""
        if self._arrivals is None:
            tasks = os.path.join(self._root, "tasks")
            texts = [answers.read(os.path.join(tasks, one), "meta.json") for one in queued(self._root)]
            self._arrivals = [turn(json.loads(text)) for text in texts if text]
        return sum(one < turn(meta) for one in self._arrivals)


def turn(meta: dict[str, Any]) -> tuple[int, int]:
    """What the order of those that wait goes by."""
    return (-meta["priority"], meta["arrived"])


def queued(root: str) -> list[str]:
    """The tasks and arrays that have not ended, or are being written."""
    return [name for name in answers.listed(os.path.join(root, "queue")) if "." not in name]


def _known(root: str, task_ids: Sequence[str]) -> list[str]:
    tasks = os.path.join(os.path.expanduser(root), "tasks")
    return [one for one in task_ids if os.path.isdir(os.path.join(tasks, one.partition("_")[0]))]


def _units(tasks: str, task_id: str) -> list[str]:
    """What has a folder of its own: the task itself, or the elements that are meant."""
    base, _, only = task_id.partition("_")
    text = answers.read(os.path.join(tasks, base), "meta.json")
    indices = json.loads(text)["indices"] if text else []
    if only:
        return [task_id] if int(only) in indices else []
    return [f"{base}_{index}" for index in indices] or [base]


def _ranks(folder: str) -> list[str]:
    """The task folders of the last attempt."""
    starts = answers.attempts(folder)
    at = os.path.join(folder, str(starts[-1])) if starts else ""
    return [os.path.join(at, name) for name in sorted(answers.listed(at)) if name.isdigit()] if at else []


def _entries(tasks: str, task_id: str, queue: _Turns) -> list[dict[str, Any]]:
    base = task_id.partition("_")[0]
    text = answers.read(os.path.join(tasks, base), "meta.json")
    if not text:
        return []
    meta = json.loads(text)
    return [_entry(tasks, unit, meta, queue) for unit in _units(tasks, task_id)]


def _parts(tasks: str, task_id: str, queue: _Turns) -> list[dict[str, Any]]:
    names = [name for name in answers.listed(tasks) if name.startswith(task_id) and "_" not in name]
    return [one for name in sorted(names) for one in _entries(tasks, name, queue)]


def _entry(tasks: str, unit: str, meta: dict[str, Any], queue: _Turns) -> dict[str, Any]:
    folder = os.path.join(tasks, unit)
    starts, ranks = answers.attempts(folder), _ranks(folder)
    one: dict[str, Any] = {"id": unit, "hash": meta["hash"], "created": meta["created"], "folder": folder}
    one.update(attempt=starts[-1] if starts else meta["first_attempt"] - 1, ended=bool(answers.read(folder, "ended")))
    one.update(reports=_reports(ranks))
    one.update(cancelled=is_noted(folder, "cancel"), held=is_noted(folder, "hold"))
    one["free"] = _free_attempts(folder, starts[:-1], meta["rank"])
    one["leased"] = os.path.exists(os.path.join(folder, "lease"))
    one["runs"] = not one["ended"] and any(remains.is_alive(rank) for rank in ranks)
    if not one["ended"] and not one["runs"] and has_begun(one["reports"]):
        one.update(ended=bool(answers.read(folder, "ended")), reports=_reports(ranks))  # it may have ended just now
    if not one["ended"] and not one["runs"]:
        one.update(before=queue.before(meta), waits_until=meta["not_before"])
    return one


def _free_attempts(folder: str, starts: Sequence[int], rank: int) -> list[int]:
    """Those of them that were requeued or preempted, which count for nothing against the retries."""
    ends = {number: answers.read_status(os.path.join(folder, str(number), str(rank))) for number in starts}
    return [number for number, end in ends.items() if end.get("cause") == "requeue"]


def _reports(ranks: Sequence[str]) -> dict[str, str]:
    return {os.path.basename(rank): answers.read(rank, "status.json") for rank in ranks}


def has_begun(reports: dict[str, str]) -> bool:
    """Whether an attempt has done more than wait for what it needs, by what its ranks report."""
    return any('"waiting"' not in text for text in reports.values())


def is_noted(folder: str, name: str) -> bool:
    """Whether `hold` or `cancel` was asked of a task or element, or of the whole of its array."""
    return any(os.path.exists(one) for one in notes(folder, name))


def notes(folder: str, name: str) -> list[str]:
    """The files by which that is asked."""
    return [os.path.join(one, name) for one in {folder, folder.rpartition("_")[0] or folder}]


def _needs(root: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What waits and what runs here: a number of tasks, and what each of them needs."""
    tasks = os.path.join(root, "tasks")
    waiting: list[dict[str, Any]] = []
    running: list[dict[str, Any]] = []
    for task_id in queued(root):
        text = answers.read(os.path.join(tasks, task_id), "meta.json")
        if not text:
            continue
        meta = json.loads(text)
        states = [one for one in look(root, [task_id])["tasks"] if not one["ended"]]
        needs = {name: meta[name] for name in ("cpus", "memory_gb", "gpus", "gpu_kind")}
        for found, is_running in ((running, True), (waiting, False)):
            count = sum(one["runs"] is is_running for one in states)
            found.extend([{**needs, "count": count}] if count else [])
    return waiting, running


# -- the keeper


def _note(root: str, task_id: str, name: str, *, is_set: bool) -> None:
    root = os.path.expanduser(root)
    folder = os.path.join(root, "tasks", task_id)
    if is_set:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        answers.write(folder, name, "")
    elif os.path.exists(os.path.join(folder, name)):
        os.unlink(os.path.join(folder, name))
    answers.write(os.path.join(root, "asked"), task_id, "")
    if not _tell(root):
        _revive(root)


def _wake(root: str, tools: str, task_id: str) -> None:
    """Have the keeper see what is new; it starts where none is alive."""
    answers.write(os.path.join(root, "asked"), task_id, "")
    with open(os.path.join(root, "start.lock"), "a") as lock:
        answers.lock(lock)  # one that just goes, having nothing to do, does so under this lock
        if not _tell(root):
            _start(root, tools)


def _tell(root: str) -> bool:
    """Whether there was a keeper to be woken."""
    if not remains.is_locked(os.path.join(root, "keeper.lock")):
        return False
    try:
        fd = os.open(os.path.join(root, "wake"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):  # it looks at everything when it has started
            return True
        raise
    try:
        os.write(fd, b".")
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
    return True


def _revive(root: str, *, is_guard: bool = False) -> None:
    """Start a keeper where some task has not ended and none is alive, as after the host was restarted."""
    if remains.is_locked(os.path.join(root, "keeper.lock")) or not queued(root):
        return
    versions = [os.path.join(root, "node", name) for name in answers.listed(os.path.join(root, "node"))]
    whole = [one for one in versions if os.path.exists(os.path.join(one, "whole"))]
    if whole:
        with open(os.path.join(root, "start.lock"), "a") as lock:
            answers.lock(lock)
            _start(root, max(whole, key=os.path.getmtime), is_guard=is_guard)


def _start(root: str, tools: str, *, is_guard: bool = False) -> None:
    """Of two, the second finds the lock taken, and goes. Where there is a gate, its guard alone starts any."""
    if answers.read(root, "gate") and not is_guard:
        return
    import subprocess  # few questions start one

    with open(os.path.join(root, "keeper.log"), "ab") as log:
        subprocess.Popen(
            [sys.executable, os.path.join(tools, "host_keeper.py"), root],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
        )  # fmt: skip


if __name__ == "__main__":
    answers.answer(globals())
