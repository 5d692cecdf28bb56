"""TaskConfig -> Plan: everything looked up and decided once, so that what follows has nothing left to ask."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flow.channel import by_any_shell
from flow.config import TaskConfig, parse_begin, parse_signal
from flow.errors import ValidationError, did_you_mean
from flow.gpus import MEMORY_GB, Gpu, is_known_kind, parse_gpu
from flow.machines import Offer, Volume
from flow.node.patterns import DEFAULT, DEFAULT_OF_ARRAY, absolute_pattern
from flow.plan import Batch, Dependency, Plan, SignalBefore, machines_for
from flow.providers import Priced, Provider
from flow.slurm import submitting
from flow.task_volumes import listing, plan_mounts, where_it_runs

# What the submitting shell lends to tasks of the same machine; everything else is passed by `env`.
_LENT = ("PATH", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "USER", "SHELL", "LANG", "TERM", "TMPDIR")
_LENT_PREFIXES = ("CONDA_", "LC_")
# Set on each node by the runner, so one value for all nodes cannot be right.
_SET_PER_NODE = ("FLOW_NODE_RANK", "FLOW_MAIN_IP", "FLOW_NUM_NODES", "FLOW_NODE_COUNT", "FLOW_TASK_ID", "FLOW_OUTPUT")
_INTERACTIVE = ("tail", "-f", "/dev/null")  # a machine that waits for `flow ssh`
_FLOW_VARIABLE = re.compile(r"(\$FLOW_\w+|\$\{FLOW_\w+\})")


@dataclass(frozen=True, slots=True)
class Submitter:
    """Where a task is submitted from: its folder, its environment, how it names other tasks, the provider of one, and
    those that have a name and have not ended."""

    folder: Path
    environ: Mapping[str, str]
    find_task: Callable[[str], str]
    provider_of: Callable[[str], str]
    unfinished: Callable[[str], Collection[str]]


def resolve(config: TaskConfig, provider: Provider, submitter: Submitter, *, task_id: str) -> Plan:
    """The plan of a task. Raises ValidationError for what this provider cannot do, before anything is asked of it."""
    _check_abilities(config, provider)
    notes: list[str] = []
    volumes = listing(config, provider)
    there = where_it_runs(config, volumes) if _has_regions(provider) else None
    machine = _machine(config, provider, there, notes)
    if provider.capabilities.rents and config.elements and config.elements.at_once is None:
        notes.append(_in_turn(len(config.elements.indices)))
    name = config.name or _name_from(config, task_id)
    local = provider.capabilities.same_machine
    start = _start(config, provider, submitter.folder)
    return Plan(
        task_id=task_id,
        name=name,
        provider=provider.name,
        argv=start.argv,
        env=_env(config, submitter, notes, same_machine=local),
        shell_env=_shell_env(config, submitter) if local else {},
        working_dir=start.working_dir,
        image=config.image,
        engine=_engine() if config.image and local else None,
        instance_type=machine.instance_type,
        gpu_kind=machine.gpu.kind if machine.gpu else None,
        gpus=machine.gpus,
        cpus=_cpus(config, provider),
        memory_gb=config.memory_gb,
        nodes=config.num_instances,
        region=_region(config, provider, machine.offer),
        ports=tuple(config.ports),
        mounts=plan_mounts(config, provider, volumes, task_id=task_id, name=name, notes=notes),
        price_per_hour=_price(config, provider, machine.offer),
        max_price_per_hour=_price_cap(config, provider, machine.offer, notes),
        ssh_keys=_ssh_keys(config, provider, notes),
        keep=config.keep,
        limit_seconds=config.max_run_time_hours and config.max_run_time_hours * 3600,
        grace_seconds=config.grace_seconds,
        signal=_signal(config),
        retries=config.retries,
        priority=config.priority,
        elements=config.elements,
        after=(*_dependencies(config, provider, submitter), *_of_same_name(config, name, provider, submitter)),
        after_any=config.depends_on_any and len(config.depends_on) > 1,
        singleton=config.singleton,
        waits_in_vain=config.unmet_dependency == "wait",
        may_requeue=config.requeue,
        not_before=parse_begin(config.begin, time.time()) if config.begin else None,
        stdout=start.stdout,
        stderr=start.stderr,
        output_mode=_output_mode(config),
        fresh_output=bool(config.batch) and _batch_option(config, "open-mode") not in ("append", "a"),
        labels=config.labels,
        submit_dir=str(submitter.folder),
        in_place=start.in_place,
        batch=_batch(config, provider, notes, in_place=start.in_place),
        notes=tuple(notes),
        options=config.options,
    )


@dataclass(frozen=True, slots=True)
class _Machine:
    instance_type: str
    gpu: Gpu | None = None
    gpus: int = 0  # that the task is really given, of each node
    offer: Offer | None = None


def _machine(config: TaskConfig, provider: Provider, volume: Volume | None, notes: list[str]) -> _Machine:
    """The machine asked for, from the provider's offers; what this machine does not have is emulated, with a note.

    volume: with whose region it goes.
    """
    if volume and not config.region and provider.capabilities.region not in (None, volume.region):
        notes.append(f"runs in {volume.region}, where the volume `{volume.name}` is")
    asked = config.gpu or config.instance_type
    if not asked:
        if provider.capabilities.divides_machines:
            return _Machine("cpu")
        offer = _in_region(config, provider.offers(), provider, volume)
        notes.append(f"no machine is asked for: takes the cheapest, `{offer.instance_type}`")
        return _of_offer(offer)
    gpu = _gpu_of(asked)
    if config.batch and provider.capabilities.own_numbers:  # Slurm itself judges what its options ask for
        return _Machine(str(gpu or asked), gpu, (gpu.count or 1) if gpu else 0)
    offers = provider.offers()
    found = [one for one in offers if asked in (one.instance_type, one.type_id)]
    found = found or [one for one in offers if gpu and one.gpu and _matches(one.gpu, gpu)]
    if found:
        return _of_offer(_in_region(config, found, provider, volume))
    is_type = (gpu is not None and is_known_kind(gpu.kind)) or "." in asked
    if provider.capabilities.emulates and is_type:
        return _emulated(asked, gpu, offers, notes)
    kinds = MEMORY_GB if provider.capabilities.emulates else ()
    raise ValidationError(
        f"no instance type `{asked}` at {provider.name}",
        suggestions=[*near_types(asked, gpu, offers, kinds), "list what there is with `flow offers`"],
    )


def near_types(asked: str, gpu: Gpu | None, offers: list[Offer], kinds: Iterable[str] = ()) -> list[str]:
    """The counts of that GPU that are offered, else the name that is meant."""
    same = {one.gpu.count or 1: str(one.gpu) for one in offers if one.gpu and gpu and one.gpu.kind == gpu.kind}
    if same:
        return [f"there is {', '.join(f'`{same[count]}`' for count in sorted(same))}"]
    spelled = {str(one.gpu) for one in offers if one.gpu} | {one.gpu.kind for one in offers if one.gpu}
    return did_you_mean(asked.lower(), sorted({*(one.instance_type for one in offers), *spelled, *kinds}))


def _in_region(config: TaskConfig, offers: list[Offer], provider: Provider, volume: Volume | None) -> Offer:
    """The best of these offers, in the region that is asked for. Raises ValidationError where it has none of them."""
    region = config.region or (volume.region if volume else provider.capabilities.region)
    there = [one for one in offers if region in (None, one.region) or not _has_regions(provider)]
    if there:
        return _priced_now(config, provider, there)[0]
    if not offers:
        raise ValidationError(f"{provider.name} has no machines now", suggestions=["see `flow offers`"])
    regions = sorted({one.region for one in provider.offers() if one.region})
    if region not in regions:
        raise ValidationError(
            f"no region `{region}` at {provider.name}",
            suggestions=[*did_you_mean(str(region), regions), f"there is {', '.join(f'`{one}`' for one in regions)}"],
        )
    free: dict[str, int] = {}
    for one in offers:
        if one.region and one.instance_type == offers[0].instance_type:
            free[one.region] = free.get(one.region, 0) + (one.available or 0)
    raise ValidationError(
        f"`{offers[0].instance_type}` is not to be had in `{region}`",
        suggestions=[
            f"it is in {', '.join(f'{name} ({free[name]} free)' for name in sorted(free))}",
            f"the volume `{volume.name}` is there"
            if volume
            else "leave `region` out to have one chosen"
            if config.region
            else "`--region` names another for this task",
        ],
    )


def _of_offer(offer: Offer) -> _Machine:
    return _Machine(offer.instance_type, offer.gpu, (offer.gpu.count or 1) if offer.gpu else 0, offer)


def _priced_now(config: TaskConfig, provider: Provider, offers: list[Offer]) -> list[Offer]:
    """With the prices of this moment, where the best one's of a moment ago is above the cap; the best first."""
    cap, price = config.max_price_per_hour, offers[0].price_per_hour or 0.0
    if cap is None or price * _machines(config, provider) <= cap or not isinstance(provider, Priced):
        return offers
    now = [replace(one.offer, price_per_hour=one.now, available=one.available) for one in provider.prices(offers)]
    return sorted(now, key=lambda one: (not one.available, one.price_per_hour or 0.0))


def _in_turn(elements: int) -> str:
    return f"its {elements} elements take turns on one machine; `%N` behind the array rents N, as `1-100%4` does four"


def _has_regions(provider: Provider) -> bool:
    """Whether a region is chosen here; a fleet's hosts are when the task is given to them."""
    return provider.capabilities.rents or not provider.capabilities.gathers


def _region(config: TaskConfig, provider: Provider, offer: Offer | None) -> str | None:
    """The one asked for, or that of the offer."""
    return config.region or (offer.region if offer and _has_regions(provider) else None)


def _cpus(config: TaskConfig, provider: Provider) -> float:
    """As many as are asked for; all of this machine's where a batch script is to have it alone."""
    if provider.capabilities.same_machine and _batch_option(config, "exclusive") == "" and config.num_instances == 1:
        return max((one.cpus for one in provider.offers()), default=config.cpus or 1)
    return config.cpus or 1


def _emulated(asked: str, gpu: Gpu | None, offers: list[Offer], notes: list[str]) -> _Machine:
    """As much of the machine as is here: its own kind if any, else any GPUs there are."""
    have = max((one.gpu.count or 0 for one in offers if one.gpu), default=0)
    given = min((gpu.count or 1) if gpu else 0, have)
    what = f"{given} of its GPUs" if given else "no GPU"
    notes.append(f"this machine has no `{gpu or asked}`: emulated with {what} (`local.strict` refuses this)")
    return _Machine(str(gpu) if gpu else asked, gpu, given)


def _gpu_of(asked: str) -> Gpu | None:
    try:
        return parse_gpu(asked)
    except ValidationError:
        return None


def _matches(offered: Gpu, asked: Gpu) -> bool:
    """A count that was not said means what the provider's cheapest offer of that kind has."""
    return (asked.kind in (offered.kind, "gpu")) and asked.count in (None, offered.count)


def _check_abilities(config: TaskConfig, provider: Provider) -> None:
    can = provider.capabilities
    refused = {
        "volumes": bool(config.volumes) and not can.volumes,
        "mounts": bool(config.mounts) and not can.volumes,
        "image": config.image is not None and not can.containers,
        "array": config.array is not None and not can.arrays,
    }
    for field, is_refused in refused.items():
        if is_refused:
            raise ValidationError(
                f"the {provider.name} provider does not take `{field}`",
                suggestions=[f"leave `{field}` out, or choose another provider"],
            )
    if can.rents and config.array is not None and config.num_instances > 1:
        raise ValidationError(
            f"the {provider.name} provider takes no array of tasks that have several machines each",
            suggestions=["leave `num_instances` out", "`%N` behind the array has N elements run at once: `1-100%4`"],
        )
    if can.max_nodes is not None and config.num_instances > can.max_nodes:
        raise ValidationError(
            f"`num_instances` is `{config.num_instances}`, and {provider.name} has at most {can.max_nodes} nodes",
            suggestions=[f"ask for {can.max_nodes} or fewer"],
        )


def _batch(config: TaskConfig, provider: Provider, notes: list[str], *, in_place: bool) -> Batch | None:
    given = config.batch
    if not given:
        return None
    idle = [] if provider.capabilities.own_numbers else submitting.cluster_only(given.options)
    if idle:
        notes.append(f"recorded, and of no effect without Slurm: {', '.join(idle)}")
    if not in_place:
        notes.append("runs in a copy of this folder: of what it writes, only what is in `$FLOW_OUTPUT` comes back")
    variables = submitting.variables_of(given.variables, name=config.name, nodes=config.num_instances)
    return Batch(given.file or "", tuple(given.options), variables)


def _output_mode(config: TaskConfig) -> int:
    """A batch script's output is for whoever may read what its submitter makes, another task's for the user alone."""
    return 0o666 & ~submitting.current_umask() if config.batch else 0o600


def _batch_option(config: TaskConfig, name: str) -> str | None:
    return submitting.option(config.batch.options, name) if config.batch else None


def _ssh_keys(config: TaskConfig, provider: Provider, notes: list[str]) -> tuple[str, ...]:
    if config.ssh_keys and not provider.capabilities.rents:
        notes.append(f"`ssh_keys` is left out: who may log in is for the machines of {provider.name} to say")
        return ()
    return tuple(config.ssh_keys)


@dataclass(frozen=True, slots=True)
class _Start:
    """How a command is started. in_place: in the folder that it was submitted from, not in a copy of that.

    stdout, stderr: the patterns of the files that take copies of them; the provider fills them in.
    """

    argv: tuple[str, ...]
    working_dir: str
    in_place: bool
    stdout: str | None
    stderr: str | None


def _start(config: TaskConfig, provider: Provider, here: Path) -> _Start:
    """How its command is started, of a task that is submitted in the folder `here`."""
    in_place, batch = _is_in_place(config, provider), config.batch
    folder = str(here / (config.working_dir or "") if in_place else here)
    stdout, stderr = _output_files(config, folder, in_place=in_place)
    if batch:
        argv = submitting.command(batch.args, batch.options, folder, joined=bool(stdout) and stdout == stderr)
    else:
        argv = _argv(config, same_machine=provider.capabilities.same_machine)
    return _Start(argv, folder if in_place else _working_dir(config, here), in_place, stdout, stderr)


def _output_files(config: TaskConfig, folder: str, *, in_place: bool) -> tuple[str | None, str | None]:
    output, error = config.output, config.error
    if config.batch and in_place:
        output = output or (DEFAULT_OF_ARRAY if config.array is not None else DEFAULT)
        error = error or output
    stdout, stderr = (pattern and absolute_pattern(folder, pattern) for pattern in (output, error))
    return stdout, stderr


def _is_in_place(config: TaskConfig, provider: Provider) -> bool:
    """Whether it runs where it was submitted, as with Slurm: a batch script, where the machines share that folder."""
    is_asked = "upload_code" not in config.model_fields_set or not config.upload_code
    return bool(config.batch) and is_asked and provider.capabilities.shared_folder and not config.image


def _argv(config: TaskConfig, *, same_machine: bool) -> tuple[str, ...]:
    """What is executed. `$FLOW_…` in a list is filled in by a shell, as the variables are known only on the node."""
    command = config.command
    if command is None:
        return _INTERACTIVE
    if isinstance(command, list):
        if not any(_FLOW_VARIABLE.search(word) for word in command):
            return tuple(command)
        return ("sh", "-c", "exec " + " ".join(map(_quoted_but_variables, command)))
    if same_machine and not config.image:
        return ("bash" if shutil.which("bash") else "sh", "-c", command)
    return by_any_shell(command)


def _quoted_but_variables(word: str) -> str:
    parts = _FLOW_VARIABLE.split(word)
    return (
        "".join(f'"{part}"' if _FLOW_VARIABLE.fullmatch(part) else shlex.quote(part) for part in parts if part) or "''"
    )


def _env(config: TaskConfig, submitter: Submitter, notes: list[str], *, same_machine: bool) -> dict[str, str]:
    literal = [name for name in _SET_PER_NODE if name in config.env]
    if literal:
        notes.append(f"set on each node by Flow, so not taken from `env`: {', '.join(literal)}")
    env = {name: value for name, value in config.env.items() if name not in literal}
    if config.batch and not same_machine:  # of another machine's variables only those that are named are of use
        return {**submitting.named(config.batch.export, submitter.environ), **env}
    return env


def _shell_env(config: TaskConfig, submitter: Submitter) -> dict[str, str]:
    if not config.batch:
        return _lent(submitter.environ)
    return submitting.exported(config.batch.export, submitter.environ)


def _lent(environ: Mapping[str, str]) -> dict[str, str]:
    lent = {name: value for name, value in environ.items() if name in _LENT or name.startswith(_LENT_PREFIXES)}
    return {"USER": getpass.getuser(), "PATH": "/usr/local/bin:/usr/bin:/bin", **lent}


def _working_dir(config: TaskConfig, project: Path) -> str:
    """Relative to the workspace, wherever that is: `/workspace/sub` is `sub`. Raises ValidationError outside of it."""
    folder = config.working_dir or ""
    if folder == "/workspace" or folder.startswith("/workspace/"):
        folder = folder.removeprefix("/workspace").lstrip("/")
    if not folder or folder.startswith("/"):
        return folder
    if os.path.normpath(folder).split("/")[0] == "..":
        raise ValidationError(
            f"`working_dir` is `{config.working_dir}`, outside of the task's copy of the project",
            suggestions=["write a folder relative to the project, or an absolute one"],
        )
    if config.upload_code and not (project / folder).is_dir():
        raise ValidationError(
            f"`working_dir` is `{config.working_dir}`, and `{project}` has no such folder",
            suggestions=[*_folder_near(project, folder), "write a folder relative to the project, or an absolute one"],
        )
    return folder


def _folder_near(project: Path, folder: str) -> list[str]:
    """A hint at the folder that was meant, beside the one that does not exist."""
    above = Path(folder).parent
    try:
        folders = [str(above / one.name) for one in os.scandir(project / above) if one.is_dir()]
    except OSError:
        return []
    return did_you_mean(str(Path(folder)), folders)


def _price(config: TaskConfig, provider: Provider, offer: Offer | None) -> float | None:
    """Of all machines together, in US dollars for each hour; where a lower price is waited for, the most it will be."""
    if offer is None or offer.price_per_hour is None:
        return 0.0 if offer is None else None
    machines = _machines(config, provider)
    price, cap = offer.price_per_hour * machines, config.max_price_per_hour
    if cap is None or price <= cap:
        return price
    if not config.wait_for_price:
        what = f"{machines} of `{offer.instance_type}` cost" if machines > 1 else f"`{offer.instance_type}` costs"
        raise ValidationError(
            f"{what} ${price:.2f}/h: `max_price_per_hour` is `{cap:g}`",
            suggestions=[
                "raise the cap, or take a smaller machine (`flow offers`)",
                *(["wait for the price to fall: `--wait-for-price`"] if offer.price_per_hour else []),
            ],
        )
    return cap


def _machines(config: TaskConfig, provider: Provider) -> int:
    """How many are paid for."""
    return machines_for(config.num_instances, config.elements if provider.capabilities.rents else None)


def _price_cap(config: TaskConfig, provider: Provider, offer: Offer | None, notes: list[str]) -> float | None:
    """Of all nodes together, in US dollars for each hour: what is asked for, or a multiple of what is paid now."""
    factor, cap, nodes = provider.capabilities.price_factor, config.max_price_per_hour, _machines(config, provider)
    if not factor or offer is None:
        return cap
    if cap is None:
        if not offer.price_per_hour:
            raise ValidationError(
                f"the price of `{offer.instance_type}` is not known", suggestions=["add `max_price_per_hour`"]
            )
        cap = round(offer.price_per_hour * factor, 2) * nodes
        notes.append(f"pays at most ${cap:.2f}/h, {factor:g} times the price now; `max_price_per_hour` says otherwise")
    elif nodes > 1:
        notes.append(f"pays at most ${cap / nodes:.2f}/h for each of {nodes} machines, ${cap:.2f}/h in all")
    if offer.price_per_hour and cap < offer.price_per_hour * nodes:
        notes.append(f"the price is ${offer.price_per_hour * nodes:.2f}/h now: waits until it is down to ${cap:.2f}/h")
    elif offer.available is not None and offer.available < nodes:
        same = [one for one in provider.offers() if one.instance_type == offer.instance_type]
        there = [str(one.region) for one in same if (one.available or 0) >= nodes]
        elsewhere = f"; {', '.join(dict.fromkeys(there))} would do" if there else "; no other region does"
        notes.append(f"{offer.region} has {offer.available} of them free now: waits until it has {nodes}{elsewhere}")
    return cap


def _signal(config: TaskConfig) -> SignalBefore | None:
    """As Slurm has it, a batch script's is for its steps, or with `B:` for the script itself. Source: sbatch(1)."""
    found = parse_signal(config.signal) if config.signal else None
    if found is None or config.batch is None:
        return found
    flags, colon, _ = (_batch_option(config, "signal") or "").partition(":")
    return replace(found, to="command" if colon and "B" in flags.upper() else "steps")


def _dependencies(config: TaskConfig, provider: Provider, submitter: Submitter) -> list[Dependency]:
    found = [Dependency(submitter.find_task(one.task), one.state, one.delay_minutes * 60) for one in config.depends_on]
    for one in found if provider.capabilities.own_numbers else ():
        other = submitter.provider_of(one.task_id)
        if other != provider.name:
            raise ValidationError(
                f"`{one.task_id}` is a task at {other}, and {provider.name} waits only for its own",
                suggestions=[f"submit that one at {provider.name}, or wait for it first with `flow wait`"],
            )
    return found


def _of_same_name(config: TaskConfig, name: str, provider: Provider, submitter: Submitter) -> list[Dependency]:
    if not config.singleton or provider.capabilities.own_numbers:  # Slurm knows of more of them than we do
        return []
    return [Dependency(task_id, "ended") for task_id in submitter.unfinished(name)]


def _name_from(config: TaskConfig, task_id: str) -> str:
    """A name that says what runs: the script's, else the program's, else the end of the id."""
    command = config.command
    words = command if isinstance(command, list) else (command or "").split()
    for word in words:
        stem = Path(word).stem
        if word.endswith((".py", ".sh")) and re.fullmatch(r"[\w.-]{1,64}", stem):
            return stem
    if words and re.fullmatch(r"[\w.-]{1,32}", Path(words[0]).name):
        return Path(words[0]).name
    return task_id.removeprefix("task-")[-6:]


def _engine() -> str:
    """The container engine of this machine that answers. Raises ValidationError where there is none."""
    for engine in ("docker", "podman"):
        if not shutil.which(engine):
            continue
        try:
            asked = subprocess.run([engine, "version"], capture_output=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if asked.returncode == 0:
            return engine
    raise ValidationError(
        "`image` needs docker or podman on this machine, and neither answers",
        suggestions=["install podman, or start the docker daemon", "run without `image`"],
    )
