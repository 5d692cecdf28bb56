"""Tasks of a Slurm cluster, seen from its login node: submitted, looked at, ended, by Slurm's own commands.

Called as it stands where that is this machine, else sent there as a program. Standard library, Python 3.8 and up; the
files are in docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from typing import Any, Collection, Sequence

LOST_SECONDS = 20  # how long the report of a job that ended may take to be seen from here: NFS
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"REVOKED", "TIMEOUT"}
_FIELDS = ("JobID", "ArrayJobID", "ArrayTaskID", "State", "Reason", "RestartCnt", "EndTime", "Dependency", "Comment")
_OVER = ("Invalid job id", "already comp", "already finished")  # what is said of a job that has ended


class Refused(Exception):  # noqa: N818  # an answer, if not the one hoped for
    """What a command of Slurm said, and which: ("sbatch", "sbatch: error: …")."""


def submit(root: str, request: dict[str, Any]) -> dict[str, Any]:
    """Have Slurm run a task: {"number": its job's}; or {"missing": true} where code of it is not here yet.

    Submitted again, it is the same job. Raises Refused, OSError.
    """
    root = os.path.expanduser(root)
    base, job = os.path.join(root, "tasks", request["task_id"]), request["job"]
    manifest = request["bundle"] and os.path.join(root, "manifests", request["bundle"] + ".json")
    tools = os.path.join(root, "node", request["version"])
    if not (os.path.exists(os.path.join(tools, "whole")) and (manifest is None or os.path.exists(manifest))):
        return {"missing": True}
    os.makedirs(base, mode=0o700, exist_ok=True)
    with open(os.path.join(base, "lock"), "w") as lock:  # sbatch inherits it: it is free when that has ended, too
        _lock(lock)
        number = read(base, "number") or (_find(request["comment"]) if read(base, "meta.json") else "")
        if not number:
            if manifest:
                job["code"] = {"manifest": manifest, "blobs": os.path.join(root, "blobs")}
            os.makedirs(os.path.join(base, "inbox"), mode=0o700, exist_ok=True)
            for name, text in request["inbox"].items():
                write(os.path.join(base, "inbox"), name, text)
            waits = _dependencies(os.path.dirname(base), request["after"], is_any=request["after_any"])
            write(base, "job.json", json.dumps(job))
            write(base, "meta.json", json.dumps({**request["meta"], "after": waits}))
            number = _sbatch(request, base, tools, waits=waits, lock=lock.fileno())
        write(base, "number", number)
    return {"number": int(number)}


def missing(root: str, names: Sequence[str]) -> list[str]:
    """Which of these files are not in the folder yet."""
    root = os.path.expanduser(root)
    return [name for name in names if not os.path.exists(os.path.join(root, name))]


def receive(root: str, files: tarfile.TarFile) -> int:
    """Take in files that are missing; each has its name once it is whole, in the order in which they come. How many."""
    root, count = os.path.expanduser(root), 0
    for one in files:
        source = files.extractfile(one)
        if source is not None:
            path = os.path.join(root, one.name)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(f"{path}.{os.getpid()}", "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            os.rename(f"{path}.{os.getpid()}", path)
            count += 1
    return count


def look(root: str, ids: Sequence[str] | None) -> list[dict[str, Any]]:
    """What Slurm and the folders say of tasks, elements one by one; unknown ids are left out. Raises Refused."""
    root = os.path.join(os.path.expanduser(root), "tasks")
    if ids is None:
        ids = [name for name in sorted(_listed(root), reverse=True) if "_" not in name]
    rows = _squeue(root, ids) if ids else {}
    found = [one for task_id in ids for one in _entries(root, task_id, rows)]
    gone = [one for one in found if one["state"] is None and not one["ended"]]
    known = _sacct([one["job"] for one in gone]) if gone else {}
    for one in gone:
        one.update(known.get(one["job"], {"state": "GONE"}))
    for one in found:
        one["end"] = _seconds(one["end"])
    return found


def release(root: str, task_id: str) -> None:
    """End a task, an array or an element. A running one is told to, and has its grace time. Raises Refused."""
    root = os.path.join(os.path.expanduser(root), "tasks")
    if not os.path.isdir(os.path.join(root, task_id.partition("_")[0])):
        return
    os.makedirs(os.path.join(root, task_id), mode=0o700, exist_ok=True)
    write(
        os.path.join(root, task_id), "cancel", ""
    )  # before the signal: a job that just starts misses that, or sees this
    job = _job(root, task_id)
    if job:
        _scancel("--state=PENDING", job)
        _scancel("--state=SUSPENDED", job)
        _scancel("--state=RUNNING", "--batch", "--signal=TERM", job)


def scontrol(root: str, task_id: str, verb: str) -> None:
    """Have a task, an array or an element held (`uhold`), let go (`release`) or requeued. Raises Refused."""
    job = _job(os.path.join(os.path.expanduser(root), "tasks"), task_id)
    done = _run(["scontrol", verb, job]) if job else None
    if done and done.returncode and not any(one in done.stderr for one in _OVER):
        raise Refused("scontrol", done.stderr)


def send_signal(root: str, task_id: str, number: int, to: str) -> None:
    """Send a signal to what runs of a task: to its steps, or through its runners to all or the command. Raises Refused.

    Slurm itself reaches no command but on the first node, and ends the runners with it where all are meant.
    """
    root = os.path.join(os.path.expanduser(root), "tasks")
    base, _, index = task_id.partition("_")
    job, meta = _job(root, task_id), json.loads(read(os.path.join(root, base), "meta.json") or "{}")
    if not job:
        return
    words = ["--signal=" + str(number)]
    if to != "steps" or meta["nodes"] > 1:
        words = ["--batch", "--signal=USR1"]  # upon which the batch step tells the runners to look
        for one in [task_id] if index or not meta["indices"] else [f"{base}_{one}" for one in meta["indices"]]:
            starts = attempts(os.path.join(root, one))
            for rank in range(meta["nodes"] if starts else 0):
                with open(os.path.join(root, one, str(starts[-1]), str(rank), "asked"), "a") as file:
                    file.write(f"signal {number} {to}\n")
    _scancel("--state=RUNNING", *words, job)


def forget(root: str, task_ids: Sequence[str]) -> None:
    """Remove what is kept of tasks that have ended."""
    root = os.path.join(os.path.expanduser(root), "tasks")
    names = set(_listed(root)) if task_ids else ()
    for name in names:
        if name.partition("_")[0] in task_ids:
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)


def sinfo() -> str:
    """The nodes of each partition: its name (`*`: the default), GPUs and the like, CPUs, memory in MB, count, state."""
    done = _run(["sinfo", "-h", "-o", "%P|%G|%c|%m|%D|%T"])
    if done.returncode:
        raise Refused("sinfo", done.stderr)
    return done.stdout


# -- files


def read(folder: str, name: str) -> str:
    """The text of a small file; "" where there is none."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def write(folder: str, name: str, text: str) -> None:
    """Put a whole file in place, on disk when it has its name."""
    path = os.path.join(folder, name)
    fd = os.open(f"{path}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.rename(f"{path}.{os.getpid()}", path)


def attempts(folder: str) -> list[int]:
    """The starts that have a folder, oldest first."""
    return sorted(int(name) for name in _listed(folder) if name.isdigit())


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _lock(file: Any) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: then two clients at once may clash
        pass


# -- Slurm's commands


def _seconds(text: str) -> float | None:
    """A time as Slurm writes it here; None where there is none, as before the end."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _run(argv: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            **more,
        )
    except FileNotFoundError:
        raise Refused(argv[0], argv[0] + ": command not found") from None


def _sbatch(request: dict[str, Any], base: str, tools: str, *, waits: Collection[str], lock: int) -> str:
    words = [request["python"], os.path.join(tools, "slurm_job.py"), base]
    script = f"#!/bin/sh\nexec {shlex.join(words)}\n"
    options = list(request["options"])
    if waits:
        options.append("--dependency=" + ("?" if request["after_any"] else ",").join(waits))
    if not request["job"]["is_batch"]:  # what goes wrong before a runner has started is told there
        options.append(
            "--output=" + os.path.join(base, "slurm-%A_%a.out" if request["meta"]["indices"] else "slurm-%j.out")
        )
    cwd = request["folder"] if os.path.isdir(request["folder"]) else base
    done = _run(["sbatch", "--parsable", *options], input=script, cwd=cwd, pass_fds=[lock])
    if done.returncode:
        raise Refused("sbatch", done.stderr)
    return done.stdout.strip().partition(";")[0]


def _scancel(*words: str) -> None:
    done = _run(["scancel", *words])
    if done.returncode and done.stderr and not any(one in done.stderr for one in _OVER):
        raise Refused("scancel", done.stderr)


def _job(root: str, task_id: str) -> str:
    """What Slurm calls a task, an array or an element; "" where it was not given to it."""
    base, _, index = task_id.partition("_")
    number = read(os.path.join(root, base), "number")
    return number + ("_" + index if number and index else "")


def _dependencies(root: str, after: Sequence[Sequence[str]], *, is_any: bool) -> dict[str, str]:
    """What Slurm is to wait for, in its words and in ours.

    What it does not know any more has ended, and is judged here: Slurm would take all of that for met.
    """
    numbers = [read(os.path.join(root, one[0].partition("_")[0]), "number") for one in after]
    waits, unmet, rows = {}, "", _rows([number for number in numbers if number])
    for (task_id, kind, delay, words), number in zip(after, numbers):
        base, _, index = task_id.partition("_")
        known = [row["ArrayTaskID"] for row in rows.get(base, ())]
        if not task_id:
            waits[kind] = words
        elif not number:
            raise Refused("flow", f"`{task_id}` is not known to this cluster")
        elif index in known or (known and not index):
            of = "_" + (index or "*") if "N/A" not in known else ""
            waits[f"{kind}:{number}{of}{delay}"] = words
        elif _was_met(root, task_id, kind):
            if is_any:
                return {}
        else:
            unmet = words
    if unmet and not (is_any and waits):
        raise Refused("never", f"waited for {unmet}, which cannot be any more")
    return waits


def _was_met(root: str, task_id: str, kind: str) -> bool:
    """Whether what ended so long ago that Slurm has forgotten it came to what it is waited for."""
    index = task_id.partition("_")[2]
    found = [one for one in look(os.path.dirname(root), [task_id]) if index == one["id"].partition("_")[2] or not index]
    codes = [json.loads(read(os.path.join(root, one["id"]), "ended") or "{}").get("code") for one in found]
    completed = [code == 0 or one["state"] == "COMPLETED" for one, code in zip(found, codes)]
    if kind in ("afterok", "aftercorr"):
        return all(completed)
    return kind != "afternotok" or not all(completed)


def _squeue(root: str, ids: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """What Slurm knows of jobs of ours, by task: those that wait or run, and that ended a while ago."""
    if len(ids) > 1:
        return _rows(None)
    number = read(os.path.join(root, ids[0].partition("_")[0]), "number")
    return _rows([number] if number else [])


def _rows(numbers: Sequence[str] | None) -> dict[str, list[dict[str, str]]]:
    """The same, of these jobs; None: of all of this user's."""
    if numbers is not None and not numbers:
        return {}
    only = "--user=" + getpass.getuser() if numbers is None else "--job=" + ",".join(numbers)
    form = ",".join(one + ":|" for one in _FIELDS)
    done = _run(["squeue", "--noheader", "--array", "--states=all", "--Format=" + form, only])
    if done.returncode and "Invalid job id" not in done.stderr:
        raise Refused("squeue", done.stderr)
    found: dict[str, list[dict[str, str]]] = {}
    for line in done.stdout.splitlines():
        row = dict(zip(_FIELDS, line.split("|")))
        ours, _, rest = row.get("Comment", "").partition(":")
        if ours == "flow":
            found.setdefault(rest.partition(":")[0], []).append(row)
    return found


def _find(comment: str) -> str:
    """The job that was submitted by who did not live to write its number down; "" where there is none."""
    done = _run(
        ["squeue", "--noheader", "--states=all", "--Format=ArrayJobID:|,Comment:|", "--user=" + getpass.getuser()]
    )
    if done.returncode:
        raise Refused("squeue", done.stderr)
    found = [line.split("|")[0] for line in done.stdout.splitlines() if line.split("|")[1:2] == [comment]]
    return found[0] if found else ""


def _sacct(jobs: Sequence[str]) -> dict[str, dict[str, str]]:
    """What accounting still knows of jobs; nothing where there is none."""
    words = [
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        "--format=JobID,State,End",
        "--jobs=" + ",".join(jobs),
    ]
    try:
        done = _run(words)
    except Refused:
        return {}
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 2]
    return {job: {"state": state.partition(" ")[0], "end": end} for job, state, end in rows}


def _entries(root: str, task_id: str, rows: dict[str, list[dict[str, str]]]) -> list[dict[str, Any]]:
    """What is known of a task, or of the elements of an array."""
    base, _, only = task_id.partition("_")
    by_index = {row["ArrayTaskID"]: row for row in rows.get(base, ())}
    alone = by_index.get("N/A")
    is_plain = alone and alone["State"] == "PENDING" and alone["RestartCnt"] == "0"
    if alone and is_plain and not alone["Reason"].startswith("Dependency"):  # no file need be read
        return [_entry(base, alone, {"hash": alone["Comment"].rpartition(":")[2]}, alone["JobID"])]
    text = read(os.path.join(root, base), "meta.json")
    number = read(os.path.join(root, base), "number") if text else ""
    if not number:
        return []
    meta = json.loads(text)
    found = []
    for index in meta["indices"] or [None]:
        if only not in ("", str(index)):
            continue
        row = by_index.get("N/A" if index is None else str(index))
        one = (
            _entry(base, row, meta, number)
            if index is None
            else _entry(f"{base}_{index}", row, meta, f"{number}_{index}")
        )
        if row is None or row["State"] != "PENDING" or row["RestartCnt"] != "0":
            _look_into(os.path.join(root, one["id"]), one, meta["nodes"])
        found.append(one)
    return found


def _entry(task_id: str, row: dict[str, str] | None, meta: dict[str, Any], job: str) -> dict[str, Any]:
    one: dict[str, Any] = {"id": task_id, "job": job, "hash": meta["hash"], "created": meta.get("created")}
    one.update(attempt=0, ended=False, state=row and row["State"], reason=row["Reason"] if row else "")
    one.update(end=row["EndTime"] if row else "", nodes=[], reports=[], folder="", cancelled=False, said="")
    one.update(ranks=meta.get("ranks", 1), waits=_waits(row, meta.get("after", {})) if row else "")
    return one


def _waits(row: dict[str, str], after: dict[str, str]) -> str:
    """What a job waits for, or waits for in vain; "" where it does not."""
    stands = {"Dependency": "(unfulfilled)", "DependencyNeverSatisfied": "(failed)"}.get(row["Reason"])
    parts = re.split("[,?]", row["Dependency"]) if stands else []
    found = [
        after[part[: -len(stands)]]
        for part in parts
        if stands and part.endswith(stands) and part[: -len(stands)] in after
    ]
    return (" or " if "?" in row["Dependency"] else ", ").join(found)


def _look_into(folder: str, one: dict[str, Any], nodes: int) -> None:
    """What the folder of a task or element tells: its attempts and their reports."""
    starts = attempts(folder)
    one["ended"] = bool(read(folder, "ended"))
    one["cancelled"] = any(os.path.exists(at + "/cancel") for at in (folder, folder.rpartition("_")[0] or folder))
    one["folder"] = folder
    if starts:
        at = os.path.join(folder, str(starts[-1]))
        one["attempt"] = starts[-1]
        one["nodes"] = [line.split() for line in read(at, "nodes").splitlines()]
        one["reports"] = [read(os.path.join(at, str(rank)), "status.json") for rank in range(nodes)]
    else:
        said = read(folder.partition("_")[0], f"slurm-{one['job']}.out")
        one["said"] = said.strip().rpartition("\n")[2]


def main() -> None:
    """The question on the first line of standard input; the answer as JSON: {"answer": …}, or {"refused": [...]}."""
    verb, root, *rest = json.loads(sys.stdin.buffer.readline())
    try:
        if verb == "receive":
            with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as files:
                told: dict[str, Any] = {"answer": receive(root, files)}
        else:
            told = {"answer": globals()[verb](*([root] if root else []), *rest)}
    except Refused as refused:
        told = {"refused": refused.args}
    except OSError as error:
        told = {"failed": [error.errno, error.strerror, error.filename]}
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main()
