"""A task's volumes: found by name or id, planned at their targets, made and held before the task is acknowledged."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from flow.config import TaskConfig, VolumeMount
from flow.errors import ResourceNotFoundError, ValidationError, did_you_mean
from flow.machines import Volume
from flow.mounts import AUTO_SIZE_GB, DOCKER_CACHE, S3, VOLUME, Mount, parse_source
from flow.plan import Plan
from flow.providers import Provider, VolumeStore
from flow.settings import flow_home

_LISTING = "volume-listing.json"


def store_of(provider: Provider) -> VolumeStore:
    """The volumes of a provider. Raises ValidationError where it has none."""
    if provider.volumes is None:
        raise ValidationError(f"the {provider.name} provider has no volumes", suggestions=["choose another provider"])
    return provider.volumes


def find_volume(volumes: Sequence[Volume], reference: str) -> Volume:
    """The one of that id or name. Raises ResourceNotFoundError with the nearest, ValidationError for a name of two."""
    found = _named(volumes, reference)
    if found:
        return found
    names = [one.name for one in volumes]
    raise ResourceNotFoundError(
        f"there is no volume `{reference}`",
        suggestions=[*did_you_mean(reference, names), f"make it with `flow volume create {reference} --size-gb 100`"],
    )


def _named(volumes: Sequence[Volume], reference: str) -> Volume | None:
    found = {one.volume_id: one for one in volumes if reference in (one.volume_id, one.name)}
    if len(found) > 1 and reference not in found:  # made by clients that knew nothing of each other
        ids = [f"`{one.volume_id}` ({one.region})" for one in found.values()]
        raise ValidationError(
            f"`{reference}` is the name of {len(found)} volumes: {' and '.join(ids)}",
            suggestions=["name one by its id"],
        )
    return found.get(reference) or next(iter(found.values()), None)


def save_listing(home: Path, volumes: Sequence[Volume]) -> None:
    """Remember which volumes a list has shown."""
    with contextlib.suppress(OSError):  # a home that cannot be written to
        (home / _LISTING).write_text(json.dumps([one.volume_id for one in volumes]))


def listed_volume(home: Path, reference: str) -> str:
    """The id that `:N` names, N being a line of the last list; any other reference as it is."""
    if not reference.startswith(":"):
        return reference
    try:
        return str(json.loads((home / _LISTING).read_text())[int(reference[1:]) - 1 if reference != ":0" else None])
    except (OSError, ValueError, LookupError, TypeError):
        raise ResourceNotFoundError(
            f"the last list of volumes has no line `{reference}`", suggestions=["list them with `flow volume list`"]
        ) from None


def listing(config: TaskConfig, provider: Provider) -> Sequence[Volume]:
    """The volumes there are, where a task wants any. Raises ValidationError where its provider has none."""
    return store_of(provider).list() if _wanted(config) else ()


def where_it_runs(config: TaskConfig, volumes: Sequence[Volume]) -> Volume | None:
    """The one that is in a region, where the task has to run then. Raises ValidationError where it cannot have all."""
    named = [_named(volumes, str(one.volume_id or one.name or "")) for one in _wanted(config)]
    found = [one for one in named if one and one.region]
    for one in found:
        if one.region != (config.region or found[0].region):
            where = (
                f"the task is to run in {config.region}" if config.region else f"`{found[0].name}` in {found[0].region}"
            )
            raise ValidationError(
                f"the volume `{one.name}` is in {one.region}, and {where}",
                suggestions=[f"run it there: `--region {one.region}`"] if len(found) == 1 else [],
            )
    return found[0] if found else None


def plan_mounts(
    config: TaskConfig, provider: Provider, volumes: Sequence[Volume], *, task_id: str, name: str, notes: list[str]
) -> tuple[Mount, ...]:
    """What the task is to see where, outer paths before inner ones; `notes` gains what the user should know.

    volumes: those that there are, as `listing` tells.

    Volumes that are to be made have no `source` yet. Raises ResourceNotFoundError for a volume that there is not, and
    ValidationError for one that the task cannot have.
    """
    wanted = _wanted(config)
    store = store_of(provider) if wanted else None
    own = f"{name}-{task_id[-6:]}"  # a name that was not given may be that of many tasks
    called = {False: config.name or own, True: own}  # ephemeral: nobody finds it again
    mounts = [_planned(one, volumes, config, called=called[one.ephemeral], notes=notes) for one in wanted]
    notes += [_kept(one, store, config.region) for one in mounts if store and one.size_gb and not one.ephemeral]
    mounts += [
        Mount(target, S3, parse_source(source)[1])
        for target, source in config.mounts.items()
        if parse_source(source)[0] == S3
    ]
    mounts.sort(key=lambda one: one.target)
    if provider.capabilities.divides_machines:
        mounts = [one for one in mounts if _is_taken(one, notes)]
    if provider.capabilities.same_machine:
        _check_hides_nothing(mounts)
    _check_overlaps(mounts)
    return tuple(mounts)


def make_volumes(plan: Plan, store: VolumeStore) -> Plan:
    """The plan with its volumes made, where they are not there yet, and held for its task."""
    mounts: list[Mount] = []
    for one in plan.mounts:
        if one.kind == VOLUME:
            if not one.source:
                size_gb, so_far = one.size_gb or AUTO_SIZE_GB, replace(plan, mounts=tuple(mounts))
                made = store.create(one.name, size_gb, interface=one.interface, region=plan.region, plan=so_far)
                one = replace(one, source=made.volume_id)  # noqa: PLW2901
            store.attach(one.source, plan, ephemeral=one.ephemeral)
        mounts.append(one)
    return replace(plan, mounts=tuple(mounts))


def _wanted(config: TaskConfig) -> list[VolumeMount]:
    return [*config.volumes, *_volumes_of(config)]


def _volumes_of(config: TaskConfig) -> list[VolumeMount]:
    """The volumes among `mounts`; one that there is not is made."""
    found = [(target, *parse_source(source)) for target, source in config.mounts.items()]
    fields: dict[str, Any] = {
        "size_gb": AUTO_SIZE_GB,
        "interface": "file" if config.num_instances > 1 or config.elements else "block",
    }
    return [VolumeMount(name=name, mount_path=target, **fields) for target, kind, name in found if kind == VOLUME]


def _planned(
    asked: VolumeMount, volumes: Sequence[Volume], config: TaskConfig, *, called: str, notes: list[str]
) -> Mount:
    name = asked.name or _name_for(f"{called}-{PurePosixPath(asked.target).name}")
    reference = asked.volume_id or name
    look_up = find_volume if asked.size_gb is None else _named  # with a size, one that there is not is made
    volume = look_up(volumes, reference)
    if volume and asked.ephemeral:
        raise ValidationError(
            f"the volume `{volume.name}` is there already, and `ephemeral` is for a new one",
            suggestions=["leave `ephemeral` out, or give another name"],
        )
    interface = volume.interface if volume else asked.interface
    _check_sharing(volume.name if volume else name, interface, config)
    if not volume and asked.name:
        notes += did_you_mean(name, [one.name for one in volumes])
    if volume and asked.name is None and asked.volume_id is None:
        notes.append(f"the volume `{name}` is there already, and is used again")
    return Mount(
        asked.target,
        VOLUME,
        source=volume.volume_id if volume else "",
        name=volume.name if volume else name,
        size_gb=None if volume else asked.size_gb,
        interface=interface,
        ephemeral=asked.ephemeral,
    )


def _name_for(text: str) -> str:
    """A name that every provider takes: lower-case letters, digits and single `-`, a letter first."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return f"{'' if words[:1].isalpha() else 'volume-'}{words}"[:63].rstrip("-")


def _kept(mount: Mount, store: VolumeStore, region: str | None) -> str:
    """What is said of a volume that will be made and outlive the task."""
    price = store.price_per_month(mount.size_gb or 0, interface=mount.interface, region=region)
    cost = "" if price is None else f" at ${price:.2f}/month"
    return f"makes the volume `{mount.name}` of {mount.size_gb} GB{cost}; it is kept: `flow volume delete {mount.name}`"


def _check_sharing(name: str, interface: str, config: TaskConfig) -> None:
    """A block volume is for one machine at a time."""
    if interface != "block":
        return
    at_once = 1 if config.elements is None else config.elements.at_once
    if config.num_instances > 1 or at_once != 1:
        whose = f"{config.num_instances} nodes" if config.num_instances > 1 else "several tasks of an array"
        raise ValidationError(
            f"the block volume `{name}` cannot be mounted by {whose}",
            suggestions=["use a volume with `interface: file`"],
        )


def _is_taken(mount: Mount, notes: list[str]) -> bool:
    """Whether a mount is made on a machine that other tasks have, too."""
    if mount.target == DOCKER_CACHE:
        notes.append(
            f"`{DOCKER_CACHE}` is the machine's own: its docker keeps its images there, the volume is not used"
        )
    return mount.target != DOCKER_CACHE


def _check_hides_nothing(mounts: Sequence[Mount]) -> None:
    """No mount on this machine may hide Flow's own files."""
    for mount in mounts:
        home, target = (Path(os.path.realpath(path)) for path in (flow_home(), mount.target))
        if home.is_relative_to(target) or target.is_relative_to(home):
            raise ValidationError(
                f"a mount at `{mount.target}` would hide Flow's own folder `{flow_home()}`",
                suggestions=["mount it elsewhere, as `/data`"],
            )


def _check_overlaps(mounts: Sequence[Mount]) -> None:
    """A mount may lie within a volume, but not within what can only be read: there is no place for it."""
    for outer in mounts:
        for inner in mounts:
            if outer.kind == S3 and inner.target.startswith(f"{outer.target}/"):
                raise ValidationError(
                    f"the mount at `{inner.target}` lies within `{outer.target}`, which can only be read",
                    suggestions=["mount the two beside each other"],
                )
