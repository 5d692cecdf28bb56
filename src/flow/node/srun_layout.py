"""What a step of `srun` becomes: how many tasks, on which nodes, with which GPUs, variables and files.

Standard library, Python 3.8 and up. Source: srun(1) of Slurm 22.05, and what it does.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import time
from typing import Any, Iterable

BUSY_SECONDS = 0.05  # between two looks for room


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


hostlist, layout, ledger, options, patterns = map(_beside, ("hostlist", "layout", "ledger", "srun_options", "patterns"))


class Refused(Exception):  # noqa: N818  # said in srun's own words
    """Why no step is made: all that is printed."""


def say(*lines: str) -> None:
    """On stderr, each line beginning with `srun: `."""
    os.write(2, "".join(f"srun: {line}\n" for line in lines).encode())


class Layout:
    """What a step is asked to be, and what it becomes: how many tasks on which nodes with which GPUs."""

    def __init__(self, task: dict[str, Any], asked: dict[str, str], given: set[str], command: list[str]) -> None:
        self.task, self.asked, self.given, self.command = task, asked, given, command
        self.job = task["slurm"]["number"]
        self.names: list[str] = hostlist.names_of(task)
        self.cpus = max(1, int(-(-task.get("cpus", 1) // 1)))
        self.gpus = len(task.get("given_gpus") or [])
        self._check()
        self.nodes, self.tasks = self._counts()
        self.programs = self._programs() if "multi-prog" in asked else None
        self._fit()
        self.cpus_per_task = self._number("cpus-per-task") or 1
        self.is_exact = bool({"exact", "exclusive", "cpus-per-task"} & asked.keys())
        self.taken: dict[str, Any] = {}

    def enter(self, folder: str) -> tuple[int, int]:
        """Take what the step needs once it is free: its number, and the descriptor that holds what it has."""
        self.choose([])  # raises Refused where it is never free
        told = 0.0
        while True:
            entered = ledger.enter(os.path.join(folder, "steps"), self.choose)
            if entered:
                if told:
                    say(f"Step created for job {self.job}")
                number, held, self.taken = entered
                return number, held
            if "immediate" in self.asked:
                raise Refused(f"error: Unable to create step for job {self.job}: Requested nodes are busy")
            if not told:
                told = time.monotonic()
                say(f"Job {self.job} step creation temporarily disabled, retrying (Requested nodes are busy)")
            time.sleep(BUSY_SECONDS)

    def choose(self, living: list[dict[str, Any]]) -> dict[str, Any] | None:
        """What the step takes: `order` (each task's node), `cpus` and `gpus` of each node; None: wait."""
        is_first = not living
        others = [] if "overlap" in self.asked else living
        free = dict.fromkeys(self._allowed(), self.cpus)
        free_gpus = {place: list(range(self.gpus)) for place in free}
        for step in others:
            for place in free:
                free[place] -= step["cpus"].get(str(place), 0)
                busy = step["gpus"].get(str(place), [])
                free_gpus[place] = [one for one in free_gpus[place] if one not in busy]
        least = self.cpus_per_task if self.is_exact else self.cpus
        is_small = "overcommit" in self.asked
        places = [place for place in free if free[place] >= (1 if is_small and self.is_exact else least)]
        places = sorted(sorted(places, key=lambda place: self.names[place] not in self._wanted())[: self.nodes])
        room = [free[place] // self.cpus_per_task for place in places]
        if len(places) < self.nodes or (sum(room) < self.tasks and not is_small):
            if is_first:
                raise Refused(
                    f"error: Unable to create step for job {self.job}: More processors requested than permitted"
                )
            return None
        order = layout.spread(self.tasks, room, self._distribution())
        counts = [order.count(place) for place in range(len(places))]
        gpus = self._gpus(counts)
        if any(len(free_gpus[place]) < need for place, need in zip(places, gpus)):
            return None
        held = {"cpus": {}, "gpus": {}} if "overlap" in self.asked else {
            "cpus": {place: min(free[place], count * self.cpus_per_task) if self.is_exact else self.cpus
                     for place, count in zip(places, counts)},
            "gpus": {place: free_gpus[place][:need] for place, need in zip(places, gpus)},
        }  # fmt: skip
        seen = [free_gpus[place][:need] for place, need in zip(places, gpus)]
        return {**held, "places": places, "order": order, "seen": seen}

    def specs(self, step: int, folder: str, env: dict[str, str], port: int) -> Iterable[tuple[int, dict[str, Any]]]:
        """What each node of the step is told, with the node's place in the task."""
        places, order = self.taken["places"], self.taken["order"]
        counts = [order.count(node) for node in range(len(places))]
        common = self._environment(step, places, counts, env, port)
        streams = {name: self._pattern(name, step) for name in ("stdin", "stdout", "stderr")}
        for node, place in enumerate(places):
            numbers = [number for number, one in enumerate(order) if one == node]
            is_per_task = self._gpus_per_task()
            own = dict(common, SLURM_NODEID=str(node), SLURMD_NODENAME=self.names[place])
            own.update(SLURM_TOPOLOGY_ADDR=self.names[place], SLURM_GTIDS=",".join(map(str, numbers)))
            own["SLURM_CPUS_ON_NODE"] = str(counts[node] * self.cpus_per_task if self.is_exact else self.cpus)
            gpus = self.taken["seen"][node]
            own.pop("SLURM_GPUS_ON_NODE", None)
            if gpus:
                own["SLURM_GPUS_ON_NODE"] = str(len(gpus))
            tasks = []
            for local, number in enumerate(numbers):
                begin = local * is_per_task % len(gpus) if is_per_task and gpus else 0
                tasks.append({
                    "number": number, "local": local,
                    "argv": self.programs[number] if self.programs else None,
                    "gpus": (gpus[begin : begin + is_per_task] if is_per_task else gpus) if self.gpus else None,
                    **{name: make(number, node, self.names[place]) for name, make in streams.items()},
                })  # fmt: skip
            yield place, {
                "token": self.task.get("token", ""), "node": node, "env": own, "argv": self.command, "tasks": tasks,
                "cwd": os.path.join(os.getcwd(), self.asked.get("chdir", "")).rstrip("/") or "/", "folder": folder,
                "label": len(str(self.tasks - 1)) if "label" in self.asked else 0,
                "unbuffered": "unbuffered" in self.asked, "size": _terminal_size() if "pty" in self.asked else None,
                "is_appended": self.asked.get("open-mode") == "append",
            }  # fmt: skip

    def whole_file(self, name: str) -> str | None:
        """The one file that srun itself reads (`stdin`) or writes for all tasks; None where there is none."""
        text = self._text(name)
        if text is None or _is_of_each(text) or text == "none" or text.isdecimal():
            return None
        return text

    # -- what is asked

    def _check(self) -> None:
        if ":" in self.command or self.asked.get("het-group", "0") != "0":
            highest = self.asked.get("het-group", "1")
            raise Refused(f"error: Requested het-group offset exceeds highest hetjob index ({highest} > 0)")
        if not self.command:
            raise Refused("fatal: No command given to execute.")
        if self.asked.get("jobid", str(self.job)) != str(self.job):
            raise Refused("error: only steps of this job can be started here, not of {jobid}".format(**self.asked))
        if self.task.get("rank", 0):
            raise Refused("error: Unable to create step: only the first node of a task starts steps")
        if "pty" in self.asked and not os.isatty(0):
            say("error: ioctl(TIOCGWINSZ): Inappropriate ioctl for device")
            say("error: Not using a pseudo-terminal, disregarding --pty option")
            del self.asked["pty"]
        if "pty" in self.asked:
            self.asked["ntasks"] = self.asked["nodes"] = "1"

    def _counts(self) -> tuple[int, int]:
        """How many nodes and tasks are asked for."""
        least = self._whole("nodes", self.asked.get("nodes", "").partition("-")[0])
        nodes = max(least or 1, len(self._wanted()))
        return nodes, self._number("ntasks") or nodes * (self._number("ntasks-per-node") or 1)

    def _fit(self) -> None:
        """Say what of it cannot be kept. Raises Refused where the task has not so many nodes."""
        nodes, tasks, each = self.nodes, self.tasks, self._number("ntasks-per-node")
        is_asked = "nodes" in self.given or tasks < nodes
        if tasks < nodes:
            say(f"Warning: can't run {tasks} processes on {nodes} nodes, setting nnodes to {tasks}")
            self.nodes = nodes = tasks
        if each and tasks > each and each != tasks // nodes:
            say(f"Warning: can't honor --ntasks-per-node set to {each} which doesn't match the requested tasks {tasks}"
                f" with the number of requested nodes {nodes}. Ignoring --ntasks-per-node.")  # fmt: skip
        first = self._number("relative", zero=True) or 0
        if nodes > len(self.names):
            raise Refused(f"error: Only allocated {len(self.names)} nodes asked for {nodes}")
        if first and first + nodes > len(self.names):
            raise Refused(
                f"error: --relative and {'--nodes' if is_asked else 'SLURM_JOB_NUM_NODES'} option incompatible with"
                f" count of allocated nodes ({first}+{nodes}>{len(self.names)})"
            )

    def _wanted(self) -> list[str]:
        return self._hosts("nodelist")

    def _hosts(self, name: str) -> list[str]:
        text = self.asked.get(name, "")
        try:
            if "/" in text:
                with open(text, encoding="utf-8") as file:
                    text = ",".join(file.read().split())
            hosts: list[str] = hostlist.expand(text)
        except (OSError, ValueError):
            raise Refused(f"error: Invalid node name specified: {text}") from None
        unknown = [host for host in hosts if host not in self.names]
        if unknown and name == "nodelist":
            raise Refused(
                f"error: Unable to create step for job {self.job}: Requested node configuration is not available"
            )
        return list(dict.fromkeys(hosts))

    def _allowed(self) -> list[int]:
        first, out = self._number("relative", zero=True) or 0, self._hosts("exclude")
        return [place for place, name in enumerate(self.names) if place >= first and name not in out]

    def _number(self, name: str, *, zero: bool = False) -> int | None:
        return self._whole(name, self.asked.get(name, ""), zero=zero)

    def _whole(self, name: str, text: str, *, zero: bool = False) -> int | None:
        if text == "":
            return None
        if not text.isdecimal() or (int(text) == 0 and not zero):
            raise Refused(f'error: Invalid numeric value "{text}" for --{name}.')
        return int(text)

    def _distribution(self) -> str:
        text = self.asked.get("distribution", "").partition(":")[0].partition(",")[0]
        if text.startswith("plane"):
            return text if re.fullmatch(r"plane=[1-9]\d*", text) else "plane=1"
        return "cyclic" if text == "cyclic" else "block"

    def _gpus(self, counts: list[int]) -> list[int]:
        """How many GPUs the step has of each node. Raises Refused where the task has less."""
        asked = {name: _gpu_count(self.asked[name]) for name in options.GPUS.values() if name in self.asked}
        if "gpus-per-task" in asked:
            found = [count * asked["gpus-per-task"] for count in counts]
        elif "gres" in asked or "gpus-per-node" in asked:
            found = [asked.get("gres", asked.get("gpus-per-node", 0))] * len(counts)
        elif "gpus" in asked and ("gpus" in self.given or asked["gpus"] < self.gpus * len(self.names)):
            found = layout.shares(asked["gpus"], len(counts))
        else:
            found = [self.gpus] * len(counts)
        if self.task["slurm"].get("emulated"):  # the script asks for what this machine does not have
            return [min(one, self.gpus) for one in found]
        if max(found) > self.gpus == 0:
            raise Refused(
                "error: Step requested GRES but job doesn't have GRES",
                f"error: Unable to create step for job {self.job}: Invalid generic resource (gres) specification",
            )
        if max(found) > self.gpus:
            raise Refused(
                f"error: Step requested gres=gpu:{sum(found)} is more than the job's gres=gpu:{self.gpus}",
                f"error: Unable to create step for job {self.job}: Invalid generic resource (gres) specification",
            )
        return found

    def _gpus_per_task(self) -> int:
        """How many GPUs each task sees; 0: all that the step has of its node."""
        bound = re.fullmatch(r"(?:verbose,)?(single|per_task):(\d+)", self.asked.get("gpu-bind", ""))
        if bound:
            return 1 if bound[1] == "single" else int(bound[2])
        return _gpu_count(self.asked["gpus-per-task"]) if "gpus-per-task" in self.asked else 0

    def _programs(self) -> list[list[str]]:
        """What each task runs, by the file of `--multi-prog`."""
        path, more = self.command[0], self.command[1:]
        found: dict[int, list[str]] = {}
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines = [line for line in file.read().splitlines() if line.strip() and not line.startswith("#")]
            for line in lines:
                numbers, *words = shlex.split(line)
                for offset, number in enumerate(_task_numbers(numbers, self.tasks, found)):
                    filled = [word.replace("%t", str(number)).replace("%o", str(offset)) for word in words]
                    found[number] = [*filled, *more]
        except (OSError, ValueError) as error:
            raise Refused(
                f"error: Unable to open multi_prog file {path}: {getattr(error, 'strerror', error)}"
            ) from None
        for number in range(self.tasks):
            if not found.get(number):
                raise Refused(f"error: Configuration file {path} invalid, no record for task id {number}")
        return [found[number] for number in range(self.tasks)]

    # -- what the tasks are given

    def _environment(
        self, step: int, places: list[int], counts: list[int], env: dict[str, str], port: int
    ) -> dict[str, str]:
        """The variables that all tasks share; `env`: srun's own."""
        nodes, tasks, per_node = str(len(places)), str(self.tasks), layout.compressed(counts)
        here = self.names[0]
        found = _exported(self.asked.get("export", "ALL"), {**env, "SRUN_DEBUG": "3"})
        found.update(SLURM_JOB_ID=str(self.job), SLURM_JOBID=str(self.job), SLURM_NNODES=nodes, SLURM_NTASKS=tasks)
        found.update(SLURM_NPROCS=tasks, SLURM_TASKS_PER_NODE=per_node, SLURM_STEP_TASKS_PER_NODE=per_node)
        found.update(SLURM_STEP_NUM_NODES=nodes, SLURM_STEP_NUM_TASKS=tasks, SLURM_STEP_ID=str(step))
        found.update(SLURM_STEPID=str(step), SLURM_STEP_NODELIST=hostlist.fold([self.names[place] for place in places]))
        found.update(SLURM_LAUNCH_NODE_IPADDR=here, SLURM_SRUN_COMM_HOST=here, SLURM_SRUN_COMM_PORT=str(port))
        found.update(SLURM_STEP_LAUNCHER_PORT=str(port), SLURM_UMASK=f"{_umask():04o}")
        found["SLURM_JOB_CPUS_PER_NODE_PACK_GROUP_0"] = layout.compressed([self.cpus] * len(self.names))
        how = self.asked.get("distribution") or ("block" if self.tasks > len(places) else "cyclic")
        found["SLURM_DISTRIBUTION"] = how
        if "ntasks-per-node" in self.given:
            found["SLURM_NTASKS_PER_NODE"] = self.asked["ntasks-per-node"]
        if "job-name" in self.given:
            found["SLURM_JOB_NAME"] = self.asked["job-name"]
        if "cpus-per-task" in self.given:
            found["SLURM_CPUS_PER_TASK"] = str(self.cpus_per_task)
        return found

    def _text(self, name: str) -> str | None:
        """The file that is asked for a stream; stderr goes with stdout unless it is asked for itself."""
        option = {"stdin": "input", "stdout": "output", "stderr": "error"}[name]
        text = self.asked.get(option)
        if text is None and name == "stderr":
            text = self.asked.get("output")
        return None if text in (None, "", "all") else text

    def _pattern(self, name: str, step: int) -> Any:
        """(task, node, name of the node) -> the file of the task there; None: srun's; "": nothing is written."""
        text = self._text(name)
        nothing = os.devnull if name == "stdin" else ""

        def make(number: int, node: int, host: str) -> str | None:
            if text is None or not (_is_of_each(text) or text == "none" or text.isdecimal()):
                return None
            if text == "none" or text.isdecimal():
                return None if text == str(number) else nothing
            return self.filled(text, step, t=number, n=node, N=host)

        return make

    def filled(self, pattern: str, step: int, **more: object) -> str:
        """A file name with what stands for `%j` and the like."""
        env = os.environ
        values: dict[str, object] = {"j": self.job, "J": f"{self.job}.{step}", "s": step, **more}
        values.update(A=env.get("SLURM_ARRAY_JOB_ID", self.job), a=env.get("SLURM_ARRAY_TASK_ID", patterns.NO_INDEX))
        values.update(u=env.get("SLURM_JOB_USER", ""), x=env.get("SLURM_JOB_NAME", ""))
        return str(patterns.fill_pattern(pattern, values))


def _is_of_each(pattern: str) -> bool:
    """Whether a file name differs from task to task, or from node to node."""
    return "\\" not in pattern and bool(re.search(r"%\d*[tnN]", pattern.replace("%%", "")))


def _gpu_count(text: str) -> int:
    """Of `4`, `a100:4`, `gpu:a100:4`, `a100:2,v100:1`; `none` is 0."""
    total = 0
    for part in text.split(","):
        last = part.rpartition(":")[2].partition("(")[0]
        if part in ("none", "NONE", ""):
            continue
        total += int(last) if last.isdecimal() else 1
    return total


def _task_numbers(text: str, tasks: int, found: Iterable[int]) -> list[int]:
    """Of `1-3,5`; `*` are all that have no program yet, each with its own number for an offset."""
    if text == "*":
        return [number if number not in found else -1 for number in range(tasks)]
    numbers: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        numbers += range(int(low), int(high or low) + 1)
    return numbers


def _exported(export: str, env: dict[str, str]) -> dict[str, str]:
    """What `--export` lets through of srun's own variables, and what it sets."""
    ours = {name: value for name, value in env.items() if name.startswith(("SLURM", "FLOW_"))}
    if export.upper() in ("NONE", "NIL"):
        return ours
    parts = export.split(",")
    found = dict(env) if "ALL" in parts or export.upper() == "ALL" else ours
    for part in parts:
        name, equals, value = part.partition("=")
        if equals:
            found.setdefault(name, value)  # what is there wins, as in Slurm
        elif name in env:
            found[name] = env[name]
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _terminal_size() -> list[int]:
    size = os.get_terminal_size(0)
    return [size.lines, size.columns]
