"""Tasks of a Slurm cluster, seen from its login node: submitted, looked at, ended, by Slurm's own commands.

Called as it stands where that is this machine, else sent there as a program. Standard library, Python 3.8 and up; the
files are in docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import getpass
import importlib
import json
import os
import shlex
import subprocess
import time
from typing import Any, Sequence

_PACKAGE = f"{__package__}." if __package__ else ""  # else it lies beside this file, or came along with it
answers = importlib.import_module(_PACKAGE + "answers")
Refused: Any = answers.Refused
attempts, read, write = answers.attempts, answers.read, answers.write

MADE_BY = "# Made by `flow slurm install-commands`."  # in commands of ours that have Slurm's names
LOST_SECONDS = 20  # how long the report of a job that ended may take to be seen from here: NFS
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"REVOKED", "TIMEOUT"}
_FIELDS = (
    "JobID",
    "ArrayJobID",
    "ArrayTaskID",
    "State",
    "Reason",
    "RestartCnt",
    "EndTime",
    "Partition",
    "NodeList",
    "Comment",
)
_OVER = ("Invalid job id", "already comp", "already finished")  # what is said of a job that has ended
_WAITS = ("Dependency", "DependencyNeverSatisfied")
_DONE = {"afterok": (True, False), "afternotok": (False, True), "afterany": (True, True), "after": (True, True)}


class NeverMet(Exception):  # noqa: N818  # an end of its own
    """What a task waits for can never be: the dependency."""


def submit(root: str, request: dict[str, Any]) -> dict[str, Any]:
    """Have Slurm run a task: {"number": its job's}; or {"missing": true} where code of it is not here yet.

    Without a number it is known, and there is no job: what it waits for can never be.

    Submitted again, it is the same job. Raises Refused, OSError.
    """
    root = os.path.expanduser(root)
    base, job = os.path.join(root, "tasks", request["task_id"]), request["job"]
    manifest = request["bundle"] and os.path.join(root, "manifests", request["bundle"] + ".json")
    tools = os.path.join(root, "node", request["version"])
    if not (os.path.exists(os.path.join(tools, "whole")) and (manifest is None or answers.is_there(manifest))):
        return {"missing": True}
    os.makedirs(base, mode=0o700, exist_ok=True)
    with open(os.path.join(base, "lock"), "w") as lock:  # sbatch inherits it: it is free when that has ended, too
        answers.lock(lock)
        if read(base, "never"):
            return {"number": None}
        number = read(base, "number") or (_find(request["comment"]) if read(base, "meta.json") else "")
        if not number:
            if manifest:
                job["code"] = {"manifest": manifest, "blobs": os.path.join(root, "blobs")}
            try:
                sbatch = _start_sbatch(request, base, lock.fileno())
            except NeverMet as never:  # and Slurm may not know that any more
                write(base, "meta.json", json.dumps(request["meta"]))
                write(base, "never", json.dumps(never.args[0]))
                return {"number": None}
            with sbatch:  # gets ready meanwhile; without a script it submits nothing
                os.makedirs(os.path.join(base, "inbox"), mode=0o700, exist_ok=True)
                for name, text in request["inbox"].items():
                    write(os.path.join(base, "inbox"), name, text)
                write(base, "job.json", json.dumps(job))
                write(base, "meta.json", json.dumps(request["meta"]))
                words = [request["python"], os.path.join(tools, "slurm_job.py"), base]
                said, mistakes = sbatch.communicate(f"#!/bin/sh\nexec {shlex.join(words)}\n")
            if sbatch.returncode:
                raise Refused("sbatch", mistakes)
            number = said.strip().partition(";")[0]
        write(base, "number", number)
    return {"number": int(number)}


def look(root: str, ids: Sequence[str] | None) -> list[dict[str, Any]]:
    """What Slurm and the folders say of tasks, elements one by one; unknown ids are left out. Raises Refused."""
    root = os.path.join(os.path.expanduser(root), "tasks")
    if ids is None:
        ids = [name for name in sorted(answers.listed(root), reverse=True) if "_" not in name]
    rows = _squeue(_only(root, ids)) if ids else {}
    found = [one for task_id in ids for one in _entries(root, task_id, rows)]
    return _with_ends(found)


def look_at_jobs(root: str, numbers: dict[str, str]) -> list[dict[str, Any]]:
    """What Slurm alone says of tasks, by the numbers of their jobs: the folder knows nothing of them. Raises Refused.

    "unknown": whether that is not to be relied on, as where the folder is not mounted, or this is another cluster.
    """
    has_folder = os.path.isdir(os.path.join(os.path.expanduser(root), "tasks"))
    rows, found = _squeue(["--job=" + ",".join(numbers.values())]), []
    for task_id, number in numbers.items():
        own = rows.get(task_id, [])
        row = next((one for one in own if one["State"] not in ENDED), own[-1] if own else None)
        one = _entry(task_id, row, {"hash": ""}, number)
        one["attempt"] = int(one["state"] != "PENDING")
        one["unknown"] = row is None or (one["state"] in ENDED - {"CANCELLED"} and not has_folder)
        found.append(one)
    return _with_ends(found)


def _with_ends(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is known of tasks, with what accounting says of those that `squeue` does not have."""
    gone = [one for one in found if one["state"] is None and not one["ended"]]
    known = _sacct([one["job"] for one in gone]) if gone else {}
    for one in gone:
        one.update(known.get(one["job"], {"state": "GONE"}))
    for one in found:
        one["end"] = _seconds(one["end"]) if one["state"] in ENDED else None  # of others it is a guess
    return found


def release(root: str, task_ids: Sequence[str], numbers: dict[str, str]) -> list[str]:
    """End tasks, arrays or elements. What runs is told to, and has its grace time. Raises Refused.

    `numbers`: by which their jobs are ended where the folder does not have them. Which of those are not known here.
    """
    root = os.path.join(os.path.expanduser(root), "tasks")
    lost = [one for one in task_ids if not os.path.isdir(os.path.join(root, one.partition("_")[0]))]
    task_ids = [one for one in task_ids if one not in lost]
    for one in task_ids:  # before the signal: a job that just starts misses that, or sees this
        os.makedirs(os.path.join(root, one), mode=0o700, exist_ok=True)
        write(os.path.join(root, one), "cancel", "")
    found = [job for job in (_job(root, one) for one in task_ids) if job]
    elements = [job for job in found if "_" in job]
    if elements:  # one that waits must stand by itself, else Slurm 22.05 ends all that wait with it
        _run(["scontrol", "uhold", ",".join(elements)])
    if found:
        _scancel("--state=PENDING", *found)
        _scancel("--state=SUSPENDED", *found)
        _scancel("--state=RUNNING", "--batch", "--signal=TERM", *found)
    lost = [one for one in lost if one in numbers]
    rows = _squeue(["--job=" + ",".join(numbers[one].partition("_")[0] for one in lost)] if lost else [])
    ours = [numbers[one] for one in lost if one.partition("_")[0] in rows]
    if ours:
        _scancel(*ours)
    return [one for one in lost if numbers[one] not in ours]


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


def sinfo() -> str:
    """The nodes of each partition: its name (`*`: the default), GPUs and the like, CPUs, memory in MB, count, state."""
    code, out, err = call(["sinfo", "-h", "-o", "%P|%G|%c|%m|%D|%T"])
    if code:
        raise Refused("sinfo", err)
    return out


def call(words: Sequence[str]) -> tuple[int, str, str]:
    """Slurm's own command: its exit code and what it said. Raises Refused where it is not there."""
    done = _run(words)
    return done.returncode, done.stdout, done.stderr


# -- Slurm's commands


def _seconds(text: str) -> float | None:
    """A time as Slurm writes it here; None where there is none, as before the end."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def program(name: str) -> str:
    """Where Slurm's own command lies: not one of ours by its name, which would ask us; the name where it is nowhere."""
    paths = [os.path.join(folder, name) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    return next((path for path in paths if os.access(path, os.X_OK) and not is_ours(path)), name)


def is_ours(path: str) -> bool:
    """Whether `flow slurm install-commands` made it."""
    try:
        with open(path, "rb") as file:
            return MADE_BY.encode() in file.read(200)
    except OSError:
        return False


def _start(argv: Sequence[str], **more: Any) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            [program(argv[0]), *argv[1:]], stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace", **more
        )
    except FileNotFoundError:
        raise Refused(argv[0], argv[0] + ": command not found") from None


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    with _start(argv) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _scancel(*words: str) -> None:
    done = _run(["scancel", *words])
    if done.returncode and done.stderr and not any(one in done.stderr for one in _OVER):
        raise Refused("scancel", done.stderr)


def _job(root: str, task_id: str) -> str:
    """What Slurm calls a task, an array or an element; "" where it was not given to it."""
    base, _, index = task_id.partition("_")
    number: str = read(os.path.join(root, base), "number")
    return number + ("_" + index if number and index else "")


def _start_sbatch(request: dict[str, Any], base: str, lock: int) -> subprocess.Popen[str]:
    """It waits for its script. Raises NeverMet, Refused."""
    options = [*request["options"], *_dependency(os.path.dirname(base), request)]
    if not request["job"]["is_batch"]:  # what goes wrong before a runner has started is told there
        options.append(
            "--output=" + os.path.join(base, "slurm-%A_%a.out" if request["meta"]["indices"] else "slurm-%j.out")
        )
    cwd = request["folder"] if os.path.isdir(request["folder"]) else base
    environment = {name: value for name, value in os.environ.items() if name not in ("SBATCH_ARRAY_INX", "SBATCH_WAIT")}
    return _start(["sbatch", "--parsable", *options], stdin=subprocess.PIPE, cwd=cwd, pass_fds=[lock], env=environment)


def _dependency(root: str, request: dict[str, Any]) -> list[str]:
    """What Slurm is to wait for. What was met is left out: Slurm takes any job that it forgot for met.

    Raises NeverMet.
    """
    meta = request["meta"]
    asked = [one["task_id"] for one in meta["after"]]
    states = {one["id"]: one["state"] for one in (look(os.path.dirname(root), asked) if asked else ())}
    found = [(one, _is_met(root, one, states)) for one in meta["after"]]
    found = [(one, None if one["minutes"] and is_met else is_met) for one, is_met in found]  # and Slurm counts those
    unmet = [one for one, is_met in found if is_met is False]
    if unmet and len(unmet) >= (len(found) if meta["after_any"] else 1):
        raise NeverMet(unmet[0])
    is_enough = meta["after_any"] and any(is_met for _, is_met in found)
    parts = [_dependency_on(root, **one) for one, is_met in found if is_met is None and not is_enough]
    parts += ["singleton"] * meta["singleton"]
    if not parts:
        return []
    kill = "no" if meta["waits_in_vain"] else "yes"
    return ["--dependency=" + ("?" if meta["after_any"] else ",").join(parts), "--kill-on-invalid-dep=" + kill]


def _dependency_on(root: str, task_id: str, kind: str, minutes: int, **more: Any) -> str:
    base, _, index = task_id.partition("_")
    number = read(os.path.join(root, base), "number")
    if not number:
        raise Refused("flow", f"`{task_id}` is not known to this cluster")
    return f"{kind}:{number}" + ("_" + index if index else "") + (f"+{minutes}" if minutes else "")


def _is_met(root: str, dependency: dict[str, Any], states: dict[str, str]) -> bool | None:
    """Whether a dependency holds; None while that is open, or Slurm's to say. `states`: as Slurm told them."""
    task_id, kind = dependency["task_id"], dependency["kind"]
    base, _, index = task_id.partition("_")
    text = read(os.path.join(root, base), "meta.json")
    indices = json.loads(text)["indices"] if text and not index else []
    ids = [f"{base}_{one}" for one in indices] or [task_id]
    codes = [_end_code(os.path.join(root, one), states.get(one, "")) for one in ids]
    if None in codes:
        return None
    if kind == "aftercorr":
        return None if any(codes) else True
    return _DONE[kind][any(codes)]


def _end_code(folder: str, state: str) -> int | None:
    """How a task or element ended, as far as its folder or its state tells: 0 only where it completed."""
    ended = read(folder, "ended")
    if ended:
        return int(json.loads(ended)["code"] or 0)
    if state in ENDED or state == "GONE":
        return int(state != "COMPLETED")
    return 1 if _is_cancelled(folder) and not attempts(folder) else None


def _is_cancelled(folder: str) -> bool:
    return any(os.path.exists(one + "/cancel") for one in (folder, folder.rpartition("_")[0] or folder))


def _only(root: str, ids: Sequence[str]) -> list[str]:
    """For `squeue`: what these tasks are among; nothing where it knows of none."""
    if len(ids) > 1:
        return ["--user=" + getpass.getuser()]
    number = read(os.path.join(root, ids[0].partition("_")[0]), "number")
    return ["--job=" + number] if number else []


def _squeue(only: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """What Slurm knows of jobs of ours, by task: those that wait or run, and that ended a while ago."""
    if not only:
        return {}
    form = ",".join(one + ":|" for one in _FIELDS)
    done = _run(["squeue", "--noheader", "--array", "--states=all", "--Format=" + form, *only])
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
    if alone and alone["State"] == "PENDING" and alone["RestartCnt"] == "0" and alone["Reason"] not in _WAITS:
        return [_entry(base, alone, {"hash": alone["Comment"].rpartition(":")[2]}, alone["JobID"])]
    text = read(os.path.join(root, base), "meta.json")
    meta = json.loads(text) if text else {}
    number = read(os.path.join(root, base), "number") if text else ""
    never = read(os.path.join(root, base), "never") if text and not number else ""
    if not number and not never:
        return []
    found = []
    for index in meta["indices"] or [None]:
        if only not in ("", str(index)):
            continue
        row = by_index.get(str(index), alone)  # of an array that was cancelled as a whole there is but one
        one = (
            _entry(base, row, meta, number)
            if index is None
            else _entry(f"{base}_{index}", row, meta, f"{number}_{index}")
        )
        if never or (row and row["Reason"] in _WAITS):
            _look_at_waits(root, one, meta, json.loads(never) if never else None)
        if not never and (row is None or row["State"] != "PENDING" or row["RestartCnt"] != "0"):
            _look_into(os.path.join(root, one["id"]), one, meta["nodes"])
        found.append(one)
    return found


def _entry(task_id: str, row: dict[str, str] | None, meta: dict[str, Any], job: str) -> dict[str, Any]:
    known: dict[str, Any] = row or {
        "State": None,
        "Reason": "",
        "JobID": job,
        "Partition": "",
        "NodeList": "",
        "EndTime": "",
    }
    return {
        "id": task_id, "job": job, "hash": meta["hash"], "created": meta.get("created"), "ranks": meta.get("ranks", 1),
        "attempt": 0, "unknown": False, "ended": False, "cancelled": False, "said": "", "waits": "", "never": None,
        "nodes": [], "reports": [], "folder": "", "state": known["State"], "reason": known["Reason"],
        "raw": known["JobID"], "partition": known["Partition"], "node_list": known["NodeList"], "end": known["EndTime"],
    }  # fmt: skip


def _look_at_waits(root: str, one: dict[str, Any], meta: dict[str, Any], never: dict[str, Any] | None) -> None:
    """What a task waits for, or has waited for in vain."""
    if never:
        is_open = meta["waits_in_vain"] and not _is_cancelled(os.path.join(root, one["id"]))
        one.update(state="PENDING" if is_open else "CANCELLED", reason="DependencyNeverSatisfied")
        one["cancelled"] = meta["waits_in_vain"] and not is_open
    if one["reason"] == "DependencyNeverSatisfied":
        unmet = [never] if never else [found for found in meta["after"] if _is_met(root, found, {}) is False]
        one["never"] = (unmet or meta["after"] or [{}])[0].get("text")
    texts = [found["text"] for found in meta["after"]]
    texts += ["all earlier ones of its name to be ended"] * meta["singleton"]
    one["waits"] = (" or " if meta["after_any"] else ", ").join(texts)


def _look_into(folder: str, one: dict[str, Any], nodes: int) -> None:
    """What the folder of a task or element tells: its attempts and their reports."""
    starts = attempts(folder)
    one["ended"] = bool(read(folder, "ended"))
    one["cancelled"] = _is_cancelled(folder)
    one["folder"] = folder
    if starts:
        at = os.path.join(folder, str(starts[-1]))
        one["srun"] = program("srun")
        one["attempt"] = starts[-1]
        one["nodes"] = [line.split() for line in read(at, "nodes").splitlines()]
        one["reports"] = [read(os.path.join(at, str(rank)), "status.json") for rank in range(nodes)]
    else:
        said = read(folder.partition("_")[0], f"slurm-{one['job']}.out")
        one["said"] = said.strip().rpartition("\n")[2]


if __name__ == "__main__":
    answers.answer(globals())
