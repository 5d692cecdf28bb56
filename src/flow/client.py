"""Flow: the client. Submits tasks, finds them again, asks their providers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow.durable import NoRoomError, is_full
from flow.errors import (
    FlowError,
    QuotaExceededError,
    ResourceNotFoundError,
    StorageError,
    SubmissionInterrupted,
    ValidationError,
    did_you_mean,
)
from flow.importing import refuse_while_importing
from flow.observe import Look, observe
from flow.providers import Priced, Provider, RestartsToMount
from flow.providers.absent import Absent
from flow.providers.registry import open_provider
from flow.record import Records, Submission, TaskIdTaken, new_task_id
from flow.settings import Settings, flow_home
from flow.settings_names import provider_name
from flow.status import FINAL, Outcome, TaskStatus, Want, states_named
from flow.task import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flow.calls import Call
    from flow.config import TaskConfig
    from flow.gpus import Gpu
    from flow.machines import Offer, Price, Volume
    from flow.plan import Plan
    from flow.prune import Pruned
    from flow.record import Row
    from flow.slurm.script import SlurmScript
    from flow.task_fields import TaskFields

    Operand = str | os.PathLike[str] | list[str] | tuple[str, ...] | None

_LOOKED_AT = 50  # of the unfinished tasks, for a list of some of them: each look takes its time


class Flow:
    """A client: one folder of records, its settings, the providers in use. Cheap; any number at once.

    Threads may share one, and nothing is to be closed. `provider` overrides the settings. `notes` collects what the
    user should be told beside the answers.
    """

    def __init__(self, provider: str | None = None) -> None:
        self.home = flow_home()
        if self.home.exists() and not self.home.is_dir():
            raise StorageError(
                f"`{self.home}` is not a folder", suggestions=["point FLOW_HOME at one, or at nothing yet"]
            )
        self.settings = Settings.load({"provider": provider})
        self.notes: list[str] = list(self.settings.warnings)
        self.records = Records(self.home)
        self._providers: dict[str, Provider] = {}

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close: tasks stay usable."""

    # -- submitting

    def load(self, operand: Operand = None, **fields: Unpack[TaskFields]) -> TaskConfig:
        """The config that an operand asks for: a task file, a script, a shell command, or a list of arguments.

        `fields` override what it says; None takes a field back to its default. Without an operand or `command`: an
        interactive machine. Raises ValidationError, ResourceNotFoundError for a file that is not there.
        """
        from flow.config import TaskConfig
        from flow.operand import TASK_FILES, is_slurm, read_operand, script_argv

        if operand is None:
            return TaskConfig(**fields)
        found = operand if isinstance(operand, (list, tuple)) else read_operand(operand)
        if isinstance(found, Path) and found.suffix in TASK_FILES:
            return TaskConfig.from_yaml(found).copy_with(**fields)
        if fields.get("command") is not None:
            raise ValidationError("the command is given twice", suggestions=["leave `command` out"])
        if isinstance(found, Path) and is_slurm(found):
            from flow.slurm.script import read_slurm_script

            return self.load_batch(read_slurm_script(found, os.environ), **fields)
        fields["command"] = script_argv(found) if isinstance(found, Path) else found
        return TaskConfig(**fields)

    def load_batch(self, script: SlurmScript, **fields: Unpack[TaskFields]) -> TaskConfig:
        """The config of a Slurm batch script; `fields` override what it says, None takes one back to its default."""
        from flow.config import TaskConfig

        self.notes += script.notes
        if fields.get("env"):
            fields["env"] = {**script.fields.get("env", {}), **(fields["env"] or {})}
        return TaskConfig.from_dict(script.fields).copy_with(**fields)

    def plan(self, config: TaskConfig) -> Plan:
        """What would run, decided; nothing is uploaded or submitted."""
        return self._resolve(config, new_task_id())

    def run(
        self,
        task: Operand | TaskConfig = None,
        /,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[TaskFields],
    ) -> Task:
        """Submit a shell command, a list of arguments, a task file, a script or a config. Durable when it returns.

        `fields` override what the file or a copy of the config says. The same `idempotency_key` again gives the task
        that it made the first time, with the project as it was then.
        Raises ValidationError for what is wrong or cannot be had, ResourceNotFoundError for a file that is not there.
        """
        from flow.config import TaskConfig

        refuse_while_importing()
        config = task.copy_with(**fields) if isinstance(task, TaskConfig) else self.load(task, **fields)
        return self._submit(config, idempotency_key=idempotency_key)

    def run_call(self, config: TaskConfig, call: Call) -> Task:
        """Submit a task that makes this call of a function, whose files are sent along with the project."""
        return self._submit(config, call=call)

    def _submit(self, config: TaskConfig, *, idempotency_key: str | None = None, call: Call | None = None) -> Task:
        for _ in range(10):
            try:
                submission = self._acknowledge(config, new_task_id(), idempotency_key, call)
                break
            except TaskIdTaken:
                continue
        else:
            raise ValidationError("ten new task ids in a row were taken", suggestions=["is the clock right?"])
        from flow.chores import give  # of use to those who submit

        made = self.task_of(submission.task_id, submission)
        is_kept_there = config.hold and self.provider(submission.plan.provider).capabilities.own_numbers
        if is_kept_there or submission.task_id in self.records.unallocated():
            try:
                give(self, made)
            except KeyboardInterrupt:
                from flow.attend import start_attendant

                start_attendant(self.home)  # which gives it
                raise SubmissionInterrupted(made.task_id) from None
            except (ValidationError, QuotaExceededError):
                raise  # and it has ended
            except FlowError as error:
                recorded = (
                    f"it is recorded as `{made.task_id}` and goes on with the next `flow` command: do not repeat it"
                )
                error.suggestions = (recorded, f"or end it: `flow cancel {made.task_id}`", *error.suggestions)
                raise
        return made

    submit = run  # what other clients call it

    def _acknowledge(
        self, config: TaskConfig, task_id: str, idempotency_key: str | None, call: Call | None
    ) -> Submission:
        """Plan, upload and record: from here on the task cannot be lost."""
        from flow.blobs import store_lock
        from flow.task_volumes import make_volumes, store_of
        from flow.upload import current_folder, with_project
        from flow.users import submitter

        plan, user = self._resolve(config, task_id), submitter(current_folder())
        is_repeated = bool(idempotency_key and self.records.has_key(idempotency_key))
        secrets = {} if is_repeated else self._secret_files(plan)  # before the upload: this may be refused
        provider = self.provider(plan.provider)
        limit_mb = self.settings.get("upload_limit_mb") or provider.capabilities.upload_limit_mb
        with store_lock(self.home, shared=True):
            plan = with_project(plan, config, self.home, call=call, limit_mb=limit_mb, notes=self.notes)
            if plan.mounts and not is_repeated:
                plan = make_volumes(plan, store_of(provider))
            submission = Submission(
                task_id=task_id,
                plan=plan,
                config=config.to_dict(),
                created=time.time(),
                user=user.username,
                email=user.email,
                idempotency_key=idempotency_key,
            )
            want = Want.HOLD if config.hold else Want.RUN
            is_numbered = not provider.capabilities.own_numbers
            return self.records.add(submission, want, outbox=secrets, numbered=is_numbered)

    def _secret_files(self, plan: Plan) -> dict[str, bytes]:
        """What is to be brought to the machines and seen by nobody else, by name."""
        if not (plan.image or plan.mounts or plan.records):
            return {}
        from flow.secret_files import secret_files

        return secret_files(plan, os.environ)

    def _resolve(self, config: TaskConfig, task_id: str) -> Plan:
        from flow.resolve import Submitter, resolve
        from flow.upload import current_folder

        provider = self.provider(self._chosen(config.provider))
        submitter = Submitter(current_folder(), dict(os.environ), self._find, self._provider_of, self._unfinished)
        records = self.settings.get("records")
        if records and provider.capabilities.rents and not config.keep:
            from flow.mounts import records_source

            plan = resolve(config, provider, submitter, task_id=task_id)
            return replace(plan, records=records_source(records))
        file = self.settings.get("slurm.modules") if config.batch else None
        if file is None or provider.capabilities.own_numbers:  # a Slurm cluster has modules of its own
            return resolve(config, provider, submitter, task_id=task_id)
        from flow.slurm.modules import read_modules, with_image

        modules = read_modules(file)
        plan = resolve(with_image(config, modules, self.notes), provider, submitter, task_id=task_id)
        return replace(plan, batch=plan.batch and replace(plan.batch, modules=modules))

    # -- finding

    def get_task(self, reference: str, *, unfinished: bool = False, refresh: bool = True) -> Task:
        """The task that an id, a unique prefix, a number, a name, `:1` or `@last` names.

        A name means its newest task; or the one that is `unfinished`, where there is one. Without `refresh` it is as it
        was when last looked at. Raises TaskNotFoundError, ValidationError where several are meant.
        """
        self.finish_interrupted()
        task = self.task_of(self._find(reference, unfinished=unfinished))
        try:
            if refresh:
                task.refresh()
        except StorageError as error:  # part of its record is damaged: it can still be seen, and cancelled
            self.notes.append(error.message)
        return task

    def tasks(
        self,
        *,
        states: str | Collection[str] | None = None,
        limit: int | None = 20,
        name_pattern: str | None = None,
        refresh: bool = True,
    ) -> list[Task]:
        """Tasks, newest first; an array is one. `states`: only those in one of them now. `limit`: None is all of them.

        `name_pattern`: as a shell's, `dev-*`. Without `refresh` they are as they were when last looked at.
        """
        states = states_named(states)
        self.finish_interrupted()
        looks: dict[str, Look] = {}
        if refresh and states is not None:
            looks = self.look_at(self.records.rows(unfinished=True))
        rows = self.records.rows(limit=limit, states=states, name_pattern=name_pattern)
        if refresh and states is None:
            looks = self.look_at(row for row in rows if not row.state.is_final)
            rows = self.records.rows(limit=limit, name_pattern=name_pattern)
        return self._handles(rows, looks)

    def newest_tasks(self, newest: int, *, unfinished: int) -> list[Task]:
        """The newest tasks and, however old, those that have not ended: all that is rented, and so many others.

        Newest first. Where not all are taken, what is under way goes before what is pending.
        """
        self.finish_interrupted()
        held = {task_id for _, task_id in self.held()}
        rows = self.records.rows
        seen = [*rows(limit=newest), *rows(unfinished=True, limit=_LOOKED_AT), *self.records.rows_of(held)]
        looks = self.look_at({row.task_id: row for row in seen if not row.state.is_final}.values())
        under_way = rows(unfinished=True, states=set(TaskStatus) - {TaskStatus.PENDING}, limit=unfinished)
        pending = rows(states=[TaskStatus.PENDING], limit=unfinished - len(under_way))
        rented = [row for row in self.records.rows_of(held) if not row.state.is_final]
        chosen = {row.task_id: row for row in (*rows(limit=newest), *under_way, *pending, *rented)}
        return self._handles(sorted(chosen.values(), key=lambda row: (row.created, row.task_id), reverse=True), looks)

    def _handles(self, rows: Iterable[Row], looks: Mapping[str, Look]) -> list[Task]:
        """The tasks of these rows, as they were seen."""
        tasks = []
        for row in rows:
            try:
                task = self.task_of(row.task_id, row=row)
                if row.task_id in looks:
                    task.recall(row.outcome, looks[row.task_id].elements)
            except ResourceNotFoundError:
                continue  # pruned in between
            except FlowError as error:  # a damaged record is told of, and does not hide the others
                self.notes.append(error.message)
                continue
            tasks.append(task)
        self.notes += [message for _, _, message in self.records.damaged()]
        self._take_notes()
        return tasks

    def cancel(self, *tasks: str | Task) -> None:
        """Ask for the end of tasks; durable when it returns. One for which that fails does not spare the others.

        A name means the one task of that name that has not ended.
        """
        failed: list[FlowError] = []
        task_ids: list[str] = []
        self.finish_interrupted()
        for one in tasks:
            try:
                task_ids.append(one.task_id if isinstance(one, Task) else self._find(one, unfinished=True))
            except FlowError as error:
                failed.append(error)
        try:
            self._cancel(task_ids)
        except FlowError:
            for task_id in task_ids:
                try:
                    self.task_of(task_id).cancel()
                except FlowError as error:
                    with suppress(FlowError):  # a damaged record
                        if self.records.intent(task_id).want is Want.CANCEL:  # and told by whoever gets there
                            known = (
                                f"it is on record: `{task_id}` ends when a `flow` command finds its machine to answer"
                            )
                            error.suggestions = (known, *error.suggestions)
                    failed.append(error)
        if failed:
            raise failed[0]

    def _cancel(self, task_ids: Collection[str]) -> None:
        """All of them at once, with one question and one request to each provider."""
        rows = self.records.rows_of({task_id.partition("_")[0] for task_id in task_ids})
        looks = self.look_at(row for row in rows if not row.state.is_final or row.elements)
        ended = {row.task_id for row in rows if row.state.is_final}
        for base, look in looks.items():
            ended |= {one for one, outcome in ((base, look.outcome), *look.elements.items()) if outcome.state.is_final}
            uncollected = [one for one in look.allocations.values() if one.is_ended]
            self.notes += [f"`{one.task_id}` {one.reason}: it is collected, not cancelled" for one in uncollected]
        live = [one for one in task_ids if one not in ended]
        self.records.set_intents(live, Want.CANCEL)
        providers = {row.task_id: row.provider for row in rows}
        by_provider: dict[str, list[str]] = {}
        for task_id in live:
            base = task_id.partition("_")[0]
            by_provider.setdefault(providers.get(base) or self.task_of(base).plan.provider, []).append(task_id)
        for name, some in by_provider.items():
            self.provider(name).release(*some)

    def save_listing(self, tasks: Sequence[Task]) -> None:
        """Make `:1`, `:2`, … name these tasks."""
        self.records.save_listing([task.task_id for task in tasks])

    def offers(self, gpu: str | Gpu | None = None, *, region: str | None = None) -> list[Offer]:
        """What could be had now, cheapest first: all, those with such GPUs, or of a kind of machine, by name or id.

        Raises ValidationError where there is no such region.
        """
        from flow.gpus import parse_gpu

        offers = self.provider().offers(None if isinstance(gpu, str) else gpu)
        regions = {one.region for one in offers if one.region}
        if region and region not in regions:
            near = did_you_mean(region, sorted(regions))
            raise ValidationError(
                f"no region `{region}`", suggestions=[*near, f"there is: {', '.join(sorted(regions)) or 'none'}"]
            )
        if isinstance(gpu, str):
            named = [one for one in offers if gpu in (one.instance_type, one.type_id)]
            offers = named or self.provider().offers(parse_gpu(gpu))
        return [one for one in offers if region in (None, one.region)]

    def prices(self, gpu: str, *, region: str | None = None) -> list[Price]:
        """What such machines cost now and have cost. Raises ValidationError where prices do not change."""
        provider = self.provider()
        if not isinstance(provider, Priced):
            raise ValidationError(
                f"{provider.name} has no market: its prices do not change", suggestions=["see `flow offers`"]
            )
        return provider.prices(self.offers(gpu, region=region))

    # -- volumes

    def create_volume(
        self, size_gb: int, name: str | None = None, *, interface: str = "block", region: str | None = None
    ) -> Volume:
        """Make a volume. interface: "block" is for one task at a time, "file" is shared.

        Raises ValidationError for a name that is taken or not allowed.
        """
        from flow.config import VolumeMount
        from flow.task_volumes import store_of

        name = name if name is not None else f"volume-{os.urandom(3).hex()}"
        asked: dict[str, Any] = {"name": name, "size_gb": size_gb, "interface": interface}
        checked = VolumeMount(**asked)
        return store_of(self.provider()).create(name, checked.size_gb or 0, interface=checked.interface, region=region)

    def volumes(self) -> list[Volume]:
        """The volumes there are, newest first."""
        from flow.task_volumes import store_of

        return list(store_of(self.provider()).list())

    def get_volume(self, reference: str) -> Volume:
        """The volume of an id, a name, or `:1` of the last listing. Raises ResourceNotFoundError."""
        from flow.task_volumes import find_volume, listed_volume

        return find_volume(self.volumes(), listed_volume(self.home, reference))

    def save_volume_listing(self, volumes: Sequence[Volume]) -> None:
        """Make `:1`, `:2`, … name these volumes."""
        from flow.task_volumes import save_listing

        save_listing(self.home, volumes)

    def delete_volume(self, reference: str) -> Volume:
        """Remove a volume with all that is in it. Raises ValidationError while a task that has not ended uses it."""
        from flow.task_volumes import store_of

        volume = self.get_volume(reference)
        store_of(self.provider()).delete(volume.volume_id)
        return volume

    def mount_volume(
        self, volume: str | Volume, task: str | Task, *, before_stop: Callable[[], None] = lambda: None
    ) -> str:
        """Give a running task one more volume; the path at which it is seen, `/mnt/<name>`.

        At once; where machines get volumes only while they are stopped, the task is preempted for it and runs again.
        `before_stop` is called before that, once nothing refuses it; what it raises leaves all as it is.

        Raises ValidationError for a task that does not run, a block volume that another one holds, or where the task
        cannot be reached so.
        """
        from flow.access import not_running
        from flow.task_volumes import find_volume, listed_volume, store_of

        known = self.get_task(str(task))
        provider = self.provider(known.provider)  # whose volumes they are, whatever the settings say here
        reference = listed_volume(self.home, volume) if isinstance(volume, str) else volume.volume_id
        found = find_volume(store_of(provider).list(), reference)
        if not isinstance(provider, RestartsToMount):
            return known.mount(found, store_of(provider))
        if known.status.is_final:
            raise not_running(known)
        provider.check_volume(known.plan, found)
        before_stop()
        provider.add_volume(known.plan, found, lambda: self.records.note_mounted(known.task_id, found.volume_id))
        return f"/mnt/{found.name}"

    def prune(
        self,
        *,
        older_than_seconds: float | None = None,
        keep: int | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Remove records of ended tasks: by age, all but the newest `keep`, or down to `max_bytes`.

        Not of one whose machines are still paid for.
        """
        from flow.orphans import paid_for

        with suppress(NoRoomError):  # then what has ended by its own files goes
            self.finish_interrupted()
            self.look_at(self.records.rows(unfinished=True))
            self._record_ends()
        providers: dict[str, str] = {}
        with suppress(NoRoomError):
            providers = {row.task_id: row.provider for row in self.records.rows(states=FINAL)}
        pruned = self.records.prune(
            older_than_seconds=older_than_seconds,
            keep=keep,
            max_bytes=max_bytes,
            needed=paid_for(self, providers),
            dry_run=dry_run,
        )
        for name in set() if dry_run else {providers[task_id] for task_id in pruned.task_ids if task_id in providers}:
            self._forget(name, [task_id for task_id in pruned.task_ids if providers.get(task_id) == name])
        return pruned

    def _forget(self, provider: str, task_ids: list[str]) -> None:
        """Remove what pruned tasks left on their machines."""
        from flow.collect import forget

        try:
            used = self.provider(provider)
            if not used.capabilities.same_machine:
                forget(used, used.allocations(task_ids))
        except FlowError as error:
            self.notes.append(f"what {len(task_ids)} pruned tasks left at {provider} is still there: {error.message}")

    def provider(self, name: str | None = None) -> Provider:
        """The provider that tasks are recorded with as `name`: `mithril@work` is set up by a profile.

        By default the settings' one, by the profile that was chosen.
        """
        name = provider_name(name) if name else self._chosen()
        if name not in self._providers:
            settings = self.settings.with_profile(name.partition("@")[2] or None)
            self._providers[name] = open_provider(name, self.home, settings)
        return self._providers[name]

    def _chosen(self, name: str | None = None) -> str:
        """What a task that is submitted now is recorded with: by it, the provider is found whatever is chosen later."""
        name = provider_name(name or str(self.settings.get("provider")))
        is_ours = name != "local" and self.settings.has_of_profile(name)
        return f"{name}@{self.settings.profile}" if is_ours else name

    def task_of(self, task_id: str, submission: Submission | None = None, row: Row | None = None) -> Task:
        """The task of an id, as it was last seen; also where its provider is not set up any more.

        Raises TaskNotFoundError.
        """
        submission = submission or self.records.get(task_id)
        try:
            provider, why = self.provider(submission.plan.provider), ""
        except ValidationError as error:  # as its profile was removed
            absent = Absent(error)
            provider, why = absent, absent.why
        task = Task(submission, self.records, provider, task_id=task_id)
        row = row or next(iter(self.records.rows_of([task_id])), None)
        if row:
            is_open = why and not row.outcome.state.is_final
            task.recall(replace(row.outcome, reason=why) if is_open else row.outcome)
        return task

    def _find(self, reference: str, *, unfinished: bool = False) -> str:
        reference = reference.encode(errors="backslashreplace").decode()  # the index holds text only
        task_id = self.records.find(reference, unfinished=self._unfinished if unfinished else None)
        self._take_notes()
        return task_id

    def _provider_of(self, task_id: str) -> str:
        return self.records.rows_of([task_id.partition("_")[0]])[0].provider

    def _unfinished(self, name: str) -> list[str]:
        """The tasks of this name that have not ended, oldest first."""
        rows = self.records.rows(unfinished=True, name_pattern=name)  # a name holds nothing that a pattern reads
        looks = self.look_at(rows)
        ended = {task_id for task_id, look in looks.items() if look.outcome.state.is_final}
        return [row.task_id for row in reversed(rows) if row.task_id not in ended]

    def _take_notes(self) -> None:
        self.notes += self.records.notes
        self.records.notes.clear()

    def look_at(self, rows: Iterable[Row]) -> dict[str, Look]:
        """What tasks have come to, and the lists up to date on them: one question to each provider."""
        looks: dict[str, Look] = {}
        changed: dict[str, Outcome] = {}
        by_provider: dict[str, dict[str, Row]] = {}
        for row in rows:
            by_provider.setdefault(row.provider, {})[row.task_id] = row
        for name, asked in by_provider.items():
            found: dict[str, list[Any]] = {task_id: [] for task_id in asked}
            try:
                provider = self.provider(name)
                for allocation in provider.allocations(list(asked)):
                    found[(allocation.task_id or "").partition("_")[0]].append(allocation)
            except FlowError as error:  # of one provider, or a damaged record: the others are told of
                self.notes.append("; ".join((error.message, *error.suggestions[-1:])))
                continue
            for task_id, allocations in found.items():
                try:
                    outcome, elements = observe(
                        provider, self.records, task_id, nodes=asked[task_id].nodes, allocations=allocations
                    )
                    looks[task_id] = Look(outcome, elements, {one.task_id: one for one in allocations})
                    if outcome != asked[task_id].outcome:
                        changed[task_id] = outcome
                    capabilities = provider.capabilities
                    if capabilities.gathers or capabilities.moves:
                        from flow.attend import have_attended

                        have_attended(self.home, capabilities, asked[task_id].nodes, outcome, allocations)
                except FlowError as error:
                    self.notes.append(error.message)
        self.records.note_outcomes(changed)
        return looks

    def held(self) -> list[tuple[str, str]]:
        """Provider and task of everything that is rented, or was, and is not known to be given back."""
        return sorted((one.parent.parent.name, one.name) for one in self.home.glob("*/held/[!.]*"))

    def _record_ends(self) -> None:
        """Write down the ends that only a provider has told so far: what may go must be on record as ended."""
        ended = [row for row in self.records.rows(states=FINAL) if self._has_no_final(row.task_id)]
        for task_id, look in self.look_at(ended).items():
            if look.outcome.state.is_final:
                try:
                    self.records.set_final(task_id, look.outcome)
                except NoRoomError:
                    raise
                except FlowError:
                    continue  # damaged, and told of

    def _has_no_final(self, task_id: str) -> bool:
        """Whether its end is not on record; one that is damaged stays as it is."""
        try:
            return self.records.final(task_id) is None
        except StorageError:
            return False

    def finish_interrupted(self) -> None:
        """See `give_acknowledged`; and have an attendant, where anything is rented."""
        self.give_acknowledged()
        if self.held():
            from flow.attend import start_attendant

            start_attendant(self.home)

    def give_acknowledged(self) -> None:
        """Ask again for what was acknowledged by a client that died before its provider had taken it.

        On a full disk it makes the room that looking at tasks and ending them needs.
        """
        if is_full(self.home):
            with suppress(OSError):  # the local scheduler keeps this room, and makes it anew
                (self.home / "local" / "spare").unlink()
        for task_id in self.records.unallocated():
            from flow.chores import give  # there seldom are any

            try:
                give(self, self.task_of(task_id))
            except FlowError as error:  # what stands in the way of one must not hide the others
                self.notes.append(f"`{task_id}` is recorded, and not yet given to its provider: {error.message}")
