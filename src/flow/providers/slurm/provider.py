"""The Slurm provider: tasks are jobs of a cluster, whose commands are called as programs, here or through ssh."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from flow.channel import Channel, ssh
from flow.errors import ProviderError, TaskNotFoundError, ValidationError
from flow.gpus import Gpu
from flow.machines import Allocation, Capabilities, Offer
from flow.outbox import outbox_files
from flow.plan import Plan
from flow.providers import Option
from flow.providers.slurm.cluster import Cluster
from flow.providers.slurm.job import comment, job, meta, sbatch_options, submit_folder
from flow.providers.slurm.partitions import offers_of
from flow.providers.slurm.states import UNKNOWN_ADVICE, allocation_of
from flow.record import Records
from flow.remote import files_for, tools
from flow.status import Want


class Slurm:
    """Tasks as jobs of a Slurm cluster. `home` is the folder that holds the records."""

    name: ClassVar[str] = "slurm"
    options: ClassVar[tuple[Option, ...]] = (
        Option("login", str, "the cluster's login node, as ssh knows it; none: this machine is one"),
        Option("folder", str, "the folder for tasks, which all nodes share, as seen on the login node"),
        Option("partition", str, "for --partition"),
        Option("account", str, "for --account"),
        Option("qos", str, "for --qos"),
        Option("constraint", str, "for --constraint"),
        Option("reservation", str, "for --reservation"),
        Option("sbatch_options", str, "more options for every sbatch, as `--exclusive --mail-type=FAIL`"),
        Option("python", str, "Python 3.8 or newer of the cluster", "python3"),
        Option("ssh_config", Path, "a file in place of ~/.ssh/config"),
    )

    def __init__(self, home: Path, options: Mapping[str, object]) -> None:
        self.home = home
        self._settings = options

    @property
    def capabilities(self) -> Capabilities:
        """What Slurm itself does. Raises ValidationError where no folder is set, without which it runs nothing."""
        if not self._settings.get("folder"):
            raise ValidationError(
                "the slurm provider has no folder for its tasks",
                suggestions=["set `slurm.folder` to one that all nodes share, as `~/flow` or `/scratch/me/flow`"],
            )
        return Capabilities(
            containers=True,
            shared_folder=True,
            arrays=True,
            dependencies=True,
            retries=True,
            own_numbers=True,
            divides_machines=True,
        )

    @property
    def volumes(self) -> None:
        """Its file systems are the cluster's own, and seen by every task."""
        return

    @property
    def steering(self) -> Slurm:
        """Itself: Slurm does all of it."""
        return self

    def hold(self, task_id: str) -> None:
        """Kept from starting; what runs goes on, and waits once it is requeued."""
        self.cluster.ask("scontrol", task_id, "uhold")  # `hold` as root, and its user could not let it go

    def resume(self, task_id: str) -> None:
        """Slurm sees to the rest."""
        self.cluster.ask("scontrol", task_id, "release")

    def requeue(self, task_id: str) -> None:
        """Told to end, and started again two minutes later, or whenever this cluster does."""
        self.cluster.ask("scontrol", task_id, "requeue")

    def send_signal(self, task_id: str, number: int, *, to: str) -> None:
        """By way of the runners, but to the steps of a script."""
        self.cluster.ask("send_signal", task_id, number, to)

    @functools.cached_property
    def cluster(self) -> Cluster:
        """The login node and the folder there."""
        login, config = self._settings.get("login"), self._settings.get("ssh_config")
        channel = ssh(str(login), config=str(config) if config else None) if login else Channel()
        python = str(self._settings.get("python") or channel.python)
        return Cluster(replace(channel, python=python), str(self._settings.get("folder") or ""))

    def offers(self, gpu: Gpu | None = None) -> list[Offer]:
        """Each partition's machines without their GPUs, and with 1, 2, … of each kind; no price is known."""
        return offers_of(self.cluster.sinfo(), gpu, only=self._settings.get("partition"))

    def allocate(self, plan: Plan, attempt: int = 1) -> int | None:
        """Submit the job, with what it needs in the folder; later attempts are its own doing. The job's number."""
        plan_hash = plan.hash
        known_as = comment(plan, plan_hash)
        hold = ["--hold"] * self._is_held(plan.task_id)
        secrets = {name: text.decode() for name, text in outbox_files(self.home / "record" / plan.task_id).items()}
        request = {
            "task_id": plan.task_id,
            "comment": known_as,
            "job": {**job(plan), "needs": [f"inbox/{name}" for name in secrets]},
            "meta": meta(plan, plan_hash),
            "bundle": plan.bundle,
            "version": tools()[0],
            "python": self.cluster.channel.python,
            "options": [*sbatch_options(plan, self._settings), f"--comment={known_as}", *hold],
            "folder": submit_folder(plan),
            "inbox": secrets,
        }
        told = self.cluster.ask("submit", request)
        if told.get("missing"):
            self.cluster.send(files_for(self.home, plan.bundle))
            told = self.cluster.ask("submit", request)
        return None if told["number"] is None else int(told["number"])

    def allocations(self, task_ids: Collection[str] | None = None) -> list[Allocation]:
        """What `squeue` and the task folders say, in one question; accounting is asked for what both do not know."""
        found = self.cluster.ask("look", None if task_ids is None else list(task_ids))
        known = {str(one["id"]).partition("_")[0] for one in found}
        if lost := self._numbers(one.partition("_")[0] for one in task_ids or () if one.partition("_")[0] not in known):
            found += self.cluster.ask("look_at_jobs", lost)
        return [allocation_of(one, time.time()) for one in found]

    def release(self, *task_ids: str) -> None:
        """Cancel what waits; what runs is told to end, and then cancels itself."""
        numbers = self._numbers(task_ids)
        for task_id in self.cluster.ask("release", task_ids, numbers):
            raise ProviderError(
                f"`{task_id}` is job {numbers[task_id]}, which is not known here", suggestions=[UNKNOWN_ADVICE]
            )

    def call_slurm(self, words: Sequence[str]) -> tuple[int, str, str]:
        """On the login node."""
        return self.cluster.call(words)

    def channel(self, allocation: Allocation, rank: int = 0) -> Channel:
        """The login node: it sees the files of all nodes."""
        return self.cluster.channel

    def _numbers(self, task_ids: Iterable[str]) -> dict[str, str]:
        """What Slurm calls those of these tasks and elements that were given to it."""
        numbers, found = Records(self.home).number, {}
        for task_id in task_ids:
            base, _, index = task_id.partition("_")
            if number := numbers(base):
                found[task_id] = f"{number}_{index}".removesuffix("_")
        return found

    def _is_held(self, task_id: str) -> bool:
        try:
            return Records(self.home).intent(task_id).want is Want.HOLD
        except TaskNotFoundError:  # allocated by who keeps no records
            return False
