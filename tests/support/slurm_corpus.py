"""The scripts of tests/corpus/slurm, run by a Slurm: what came of each, in words that do not tell who ran it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flow.cli.slurm.jobs import load_jobs
from flow.client import Flow
from flow.slurm.job_text import job_lines, text_of
from tests.support.processes import wait_until
from tests.support.slurm import DEFAULT_MEMORY_MB, Cluster

CORPUS = Path(__file__).parents[1] / "corpus" / "slurm"
SCRIPTS = sorted(path.stem for path in CORPUS.glob("*.slurm"))
_ENDED_BY_SLURM = ("CANCELLED", "TIMEOUT")  # the code tells only who got the signal first, script or child
_NODE_LISTS = ("SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_STEP_NODELIST", "SLURMD_NODENAME", "HOSTNAME")
_CARDS = "".join(f"{index}, NVIDIA A100-SXM4-80GB, 81920\n" for index in range(12))
_OF_THE_RUN = {
    *("SLURM_TASK_PID", "SLURM_SRUN_COMM_HOST", "SLURM_SRUN_COMM_PORT"),
    *("SLURM_STEP_LAUNCHER_PORT", "SLURM_LAUNCH_NODE_IPADDR"),
}
_OF_THE_SITE = {"SLURM_CLUSTER_NAME", "SLURM_SUBMIT_HOST", "SLURM_TOPOLOGY_ADDR"}
_PARTITIONS = ("gpu", "local")  # where a job goes that asks for none
_HERE = socket.gethostname().partition(".")[0]
_OTHERS = ("FLOW_", "SLURM_", "SBATCH_", "CUDA_")  # variables of who runs the tests
# Prints the number alone, and keeps it for `Runs`.
_SBATCH = '#!/bin/sh\nnumber=$({} --parsable "$@") || exit\necho "$number" | tee -a "$NUMBERS"\n'
_GPU_LISTS = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS")


@dataclass(frozen=True, slots=True)
class Job:
    """One job, or element of an array, as `scontrol show job` tells of it."""

    number: int
    of: tuple[int, str] | None  # the array's number and the index there
    state: str
    code: str  # exit code and signal, as `0:9`; of what never began, the reason

    @property
    def submitted(self) -> int:
        """The number that `sbatch` printed."""
        return self.of[0] if self.of else self.number

    @property
    def is_over(self) -> bool:
        return self.state not in ("RUNNING", "COMPLETING", "PENDING") or self.code == "DependencyNeverSatisfied"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a script: each job's end, what `see` saw, and the files that are there then.

    `<1>` is the number of the first job submitted, `<1_3>` that of an element of its array, `<n0>` a job's first node.
    """

    ends: Mapping[str, str]
    variables: Mapping[str, Mapping[str, str]]
    files: Mapping[str, str]


class Side(Protocol):
    """A Slurm: `bin` has its commands by their names, `sbatch` as it is with --parsable."""

    name: str
    bin: Path

    def environment(self) -> Mapping[str, str]: ...
    def jobs(self) -> list[Job]: ...


class RealSlurm:
    """The cluster, and commands in `folder`."""

    name = "real"

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.bin = cluster, folder
        for name in ("scancel", "scontrol"):
            (folder / name).symlink_to(str(shutil.which(name)))
        _write(folder / "sbatch", _SBATCH.format(shutil.which("sbatch")))

    def environment(self) -> Mapping[str, str]:
        return self.cluster.environment()

    def jobs(self) -> list[Job]:
        return list(jobs_of(self.cluster.run("scontrol", "-o", "show", "jobs").stdout))


class OurSlurm:
    """The local provider with a home in `folder`, which gives out as much as a cluster would."""

    name = "ours"

    def __init__(self, folder: Path) -> None:
        self.home, self.bin = folder / "home", folder / "bin"
        self.bin.mkdir()
        flow = [sys.executable, "-m", "flow"]
        _write(self.bin / "nvidia-smi", f"#!/bin/sh\ncat <<'END'\n{_CARDS}END\n")
        self._path = os.pathsep.join((str(self.bin), os.environ["PATH"]))
        environment = os.environ | self.environment()
        subprocess.run([*flow, "slurm", "install-commands", folder / "named"], check=True, env=environment)
        subprocess.run([*flow, "run", "true"], check=True, env=environment)  # which makes the index
        with sqlite3.connect(self.home / "index.db") as index:  # so that a number is nothing else
            index.execute("REPLACE INTO meta VALUES ('next_number', 7300001)")
        for name in ("scancel", "scontrol"):
            (self.bin / name).symlink_to(folder / "named" / name)
        _write(self.bin / "sbatch", _SBATCH.format(folder / "named" / "sbatch"))

    def environment(self) -> Mapping[str, str]:
        return {"FLOW_HOME": str(self.home), "FLOW_LOCAL_CPUS": "64", "PATH": self._path}

    def jobs(self) -> list[Job]:
        """Those of the home that FLOW_HOME names, which is this one's while the tests look."""
        lines = (text_of(job_lines(job), one_line=True) for job in load_jobs(Flow(), None))
        return list(jobs_of("\n".join(lines)))


def _write(program: Path, text: str) -> None:
    program.write_text(text)
    program.chmod(0o755)


def jobs_of(text: str) -> Iterator[Job]:
    """Those of `scontrol -o show jobs`."""
    for line in text.splitlines():
        one = dict(re.findall(r"\b(JobId|ArrayJobId|ArrayTaskId|JobState|ExitCode|Reason)=(\S+)", line))
        if "JobId" in one:
            of = (int(one["ArrayJobId"]), one["ArrayTaskId"]) if "ArrayJobId" in one else None
            code = one["Reason"] if one["JobState"] == "PENDING" else one["ExitCode"]
            yield Job(int(one["JobId"]), of, one["JobState"], code)


class Runs:
    """Scripts on one side, each in a folder of its own below `folder`, all at the same time."""

    def __init__(self, side: Side, folder: Path) -> None:
        self.side, self.folder = side, folder
        folder.mkdir()

    def outcomes(self, scripts: Sequence[str], *, seconds: float = 300) -> dict[str, Outcome]:
        """Submit them, wait until every job has ended or can never begin, and look."""
        with ThreadPoolExecutor(2) as pool:  # most of the time goes into the starts of the commands
            told = dict(zip(scripts, pool.map(self.submit, scripts), strict=True))
        assert wait_until(lambda: all(job.is_over for job in self._jobs()), seconds=seconds, every=1), self._jobs()
        jobs = self._jobs()
        found = {script: self.outcome(script, jobs) for script in scripts}
        return found | {script: Outcome({"submitted": why}, {}, {}) for script, why in told.items() if why}

    def _jobs(self) -> list[Job]:
        numbers = {number for file in self.folder.glob("*.numbers") for number in map(int, file.read_text().split())}
        return [job for job in self.side.jobs() if job.submitted in numbers]

    def submit(self, script: str) -> str:
        """As `submit.sh` says; what it says where it fails, else nothing."""
        place = self.folder / script
        place.mkdir()
        self._numbers(script).touch()
        shutil.copy(CORPUS / f"{script}.slurm", place)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
        environment |= {**self.side.environment(), "NUMBERS": str(self._numbers(script))}
        environment["PATH"] = os.pathsep.join((str(self.side.bin), str(CORPUS), environment["PATH"]))
        submit = ["sh", CORPUS / "submit.sh", script]
        done = subprocess.run(submit, cwd=place, env=environment, capture_output=True, text=True)
        return f"{done.stdout}{done.stderr}" if done.returncode else ""

    def outcome(self, script: str, jobs: Iterable[Job]) -> Outcome:
        submitted = [int(line) for line in self._numbers(script).read_text().split()]
        own = [job for job in jobs if job.submitted in submitted]
        names = {number: f"<{place}>" for place, number in enumerate(submitted, 1)}
        ends = {}
        for job in own:
            name = f"{names[job.of[0]][:-1]}_{job.of[1]}>" if job.of else names[job.number]
            names.setdefault(job.number, name)
            ends[name] = job.state if job.state in _ENDED_BY_SLURM else f"{job.state} {job.code}"
        place = self.folder / script
        variables, files = {}, {}
        for path in sorted(place.rglob("*")):
            name = _plain(str(path.relative_to(place)), names, place)
            if path.suffix == ".env":
                variables[name] = _variables(path.read_text(), names, place)
            elif path.is_symlink():
                files[name] = f"-> {path.readlink()}"
            elif path.is_dir():
                files[name] = "a folder"
            elif path.suffix != ".slurm":
                files[name] = _plain(path.read_bytes().decode("latin-1"), names, place)
        return Outcome(ends, variables, files)

    def _numbers(self, script: str) -> Path:
        return self.folder / f"{script}.numbers"


def _plain(text: str, names: Mapping[int, str], place: Path) -> str:
    """Without what differs from one run to the next: numbers, folders, hosts, and what Slurm says about its work."""
    text = re.sub(r"^(?:slurmstepd.*|srun: (?:Job|Step) .*|Terminated)\n", "", text, flags=re.M)
    text = text.replace(str(place), "<folder>")
    text = re.sub(r"(?:/[^/\s]+)+/slurm_script", "<script>", text)
    text = re.sub(rf"\bnode\d\b|\b127\.0\.0\.\d\b|\b{re.escape(_HERE)}\b", "<host>", text)
    return re.sub(r"0*([1-9]\d*)", lambda found: names.get(int(found[1]), found[0]), text)


def _variables(text: str, names: Mapping[int, str], place: Path) -> dict[str, str]:
    found = dict(line.split("=", 1) for line in text.splitlines())
    nodes = hosts(found["SLURM_JOB_NODELIST"])
    gpus = found.get("SLURM_JOB_GPUS", "").split(",")
    for name in _NODE_LISTS:
        if name in found:
            found[name] = ",".join(f"<n{nodes.index(one)}>" if one in nodes else one for one in hosts(found[name]))
    for name in reversed(_GPU_LISTS):
        if found.get(name):
            own = found[name].split(",")
            found[name] = ",".join(str(gpus.index(one) if {*own} <= {*gpus} else own.index(one)) for one in own)
    for name in found.keys() & (_OF_THE_RUN | _OF_THE_SITE):
        found[name] = "<any>"
    if found.get("SLURM_JOB_PARTITION") in _PARTITIONS:
        found["SLURM_JOB_PARTITION"] = "<default>"
    if found.get("SLURM_MEM_PER_CPU") == str(DEFAULT_MEMORY_MB):
        del found["SLURM_MEM_PER_CPU"]
    return {name: _plain(value, names, place) for name, value in found.items()}


def hosts(text: str) -> list[str]:
    """The names in `a,node[1-2,4]`."""
    found = []
    for prefix, inside in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?", text):
        for part in inside.split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1) if first else ("",)
            found += [f"{prefix}{number}" for number in numbers]
    return found
