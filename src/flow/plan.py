"""Plan: everything decided about one task, nothing left to look up. What --dry-run prints and allocate takes."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flow.mounts import Mount, mount_from_dict

_WORDS = {"corresponding": "completed", "started_or_ended": "started or ended"}


@dataclass(frozen=True, slots=True)
class Elements:
    """An array: one task for each index, at most `at_once` of them running (None: no limit)."""

    indices: tuple[int, ...]
    at_once: int | None = None


@dataclass(frozen=True, slots=True)
class Dependency:
    """Wait until `task_id`, a task, an array or an element, is in `state`, and then for `delay_seconds` more.

    "completed"; "failed" (ended otherwise; of an array: any element); "ended"; "started"; "started_or_ended", as where
    it was cancelled before it started; "corresponding": for each element, that the one of the same index has completed.
    """

    task_id: str
    state: str = "completed"
    delay_seconds: float = 0.0

    def __str__(self) -> str:
        """As users are told of it: `task-… to be completed`."""
        delay = f" for {self.delay_seconds / 60:g} minutes" if self.delay_seconds else ""
        return f"{self.task_id} to be {_WORDS.get(self.state, self.state)}{delay}"


@dataclass(frozen=True, slots=True)
class SignalBefore:
    """Send signal `number` `seconds` before the time limit.

    to: "all" of the command's group, the "command" alone, or the "steps" that a batch script started by `srun`.
    """

    number: int
    seconds: float
    to: str = "all"


@dataclass(frozen=True, slots=True)
class Batch:
    """A Slurm batch script: what its options say that no other field of a plan holds. The script is in the bundle."""

    file: str  # where it was read, absolute; "" where it came from standard input or `--wrap`
    options: tuple[str, ...] = ()  # those that hold, as sbatch takes them: `--name=value`
    variables: Mapping[str, str] = field(default_factory=dict)  # the SLURM_* variables that they decide
    modules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what `module load` gives, by name


@dataclass(frozen=True, slots=True)
class Plan:
    """One task, decided. `env` is the user's; `shell_env` is what the submitting shell lends on the same machine."""

    task_id: str
    name: str
    provider: str
    argv: tuple[str, ...]
    function: str = ""  # where the task is one call of a function: its name; the task's result is what it returns
    env: Mapping[str, str] = field(default_factory=dict)
    shell_env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""  # relative to the workspace, or absolute
    bundle: str | None = None  # id of the uploaded project; None: no code
    image: str | None = None
    engine: str | None = None  # docker, podman or apptainer, where an image is asked
    instance_type: str = ""
    gpu_kind: str | None = None
    gpus: int = 0  # of each node
    cpus: float = 1
    memory_gb: float | None = None
    nodes: int = 1
    region: str | None = None
    ports: tuple[int, ...] = ()
    mounts: tuple[Mount, ...] = ()  # outer before inner
    price_per_hour: float | None = None  # of all nodes together, US dollars
    max_price_per_hour: float | None = None  # of all nodes together
    ssh_keys: tuple[str, ...] = ()  # with which others may log in on machines of a cloud: as it names them
    keep: bool = False  # machines that cost money are kept after its end
    records: str = ""  # where such copy what it left, to end then: the bucket of S3 and a path in it, "bucket/path"
    limit_seconds: float | None = None  # summed over attempts
    grace_seconds: float = 30.0
    signal: SignalBefore | None = None
    retries: int = 0
    priority: int = 0
    elements: Elements | None = None
    after: tuple[Dependency, ...] = ()
    after_any: bool = False  # one of them is enough
    singleton: bool = False  # waits for the earlier ones of its name, which `after` names where Slurm knows them not
    waits_in_vain: bool = False  # where they can never be met: waits until it is cancelled, in place of ending so
    may_requeue: bool = True
    not_before: float | None = None  # seconds since the epoch
    stdout: str | None = None  # a second copy of the stream, at this absolute path of the machine; a pattern of Slurm's
    stderr: str | None = None
    fresh_output: bool = False  # these begin anew with each attempt
    output_mode: int = 0o600  # of these, where they are made
    labels: Mapping[str, str] = field(default_factory=dict)
    submit_dir: str = ""
    in_place: bool = False  # runs in the folder it was submitted from, not in a copy of it
    batch: Batch | None = None
    number: int | None = None  # what Slurm's commands call it; of those that an array's elements take, the first
    notes: tuple[str, ...] = ()  # what was decided otherwise than asked, for the user to read
    options: Mapping[str, Any] = field(default_factory=dict)  # the provider's own

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values; `plan_from_dict` reads it back."""
        values = _fields(self)  # not `asdict`: it copies every word, a tenth of a submit's time
        values["elements"] = self.elements and _fields(self.elements)
        values["signal"] = self.signal and _fields(self.signal)
        values["batch"] = self.batch and _fields(self.batch)
        values["after"] = tuple(_fields(one) for one in self.after)
        values["mounts"] = tuple(_fields(one) for one in self.mounts)
        return values

    @property
    def machines(self) -> int:
        """How many are rented for it, where they are: of an array as many as elements may run at once, else one."""
        return machines_for(self.nodes, self.elements)

    def number_of(self, index: int | None) -> int | None:
        """The number of the array's element with this index; of the task itself where that is None.

        They follow on the array's own, which the last one has. Source: sbatch(1), `--array`.
        """
        if index is None or self.number is None or self.elements is None:
            return self.number
        place = bisect.bisect(self.elements.indices, index)  # they are sorted
        return self.number + place if place < len(self.elements.indices) else self.number

    @property
    def hash(self) -> str:
        """16 hex digits over everything decided: what is found by name is ours only if these agree."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def machines_for(nodes: int, elements: Elements | None) -> int:
    """The machines of a task of so many nodes, or of an array, whose elements take a whole one each."""
    return nodes if elements is None else min(elements.at_once or 1, len(elements.indices))


def _fields(one: Plan | Elements | SignalBefore | Dependency | Mount | Batch) -> dict[str, Any]:
    return {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}


def plan_from_dict(values: Mapping[str, Any]) -> Plan:
    """The Plan that `to_dict` gave; raises KeyError or TypeError on anything else."""
    fields = dict(values)
    elements = fields.get("elements")
    signal = fields.get("signal")
    batch = fields.get("batch")
    fields["argv"] = tuple(fields["argv"])
    fields["ports"] = tuple(fields.get("ports", ()))
    fields["ssh_keys"] = tuple(fields.get("ssh_keys", ()))
    fields["notes"] = tuple(fields.get("notes", ()))
    fields["after"] = tuple(Dependency(**one) for one in fields.get("after", ()))
    fields["mounts"] = tuple(mount_from_dict(one) for one in fields.get("mounts", ()))
    fields["elements"] = elements and Elements(tuple(elements["indices"]), elements["at_once"])
    fields["signal"] = signal and SignalBefore(**signal)
    fields["batch"] = batch and Batch(**{**batch, "options": tuple(batch["options"])})
    return Plan(**fields)
