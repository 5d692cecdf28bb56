"""Volumes at Mithril: raw devices for one machine, or NFS shares for many, each in one region."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flow.errors import FlowError, ResourceNotFoundError, ValidationError
from flow.machines import Volume
from flow.mounts import VOLUME
from flow.plan import Plan
from flow.providers.mithril.account import Account
from flow.providers.mithril.api import NameTakenError, NotKnownError
from flow.providers.mithril.market import moment
from flow.record import Records

FOLDER = "/mnt/flow"  # on the machines: each volume below it, by its id
_VOLUMES, _REGIONS = "/v2/volumes", "/marketplace/v1/regions"
_NFS = "nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2"


def on_machine(volumes: Sequence[Volume], ids: Collection[str]) -> list[dict[str, Any]]:
    """What a machine's guard is told of volumes: where each goes, and by what it is found."""
    found = []
    for one in volumes:
        if one.volume_id in ids and one.interface == "file":
            share = f"fileshare-{one.name}.mithril.internal:/"
            found.append({"path": path_of(one.volume_id), "share": share, "options": _NFS})
        elif one.volume_id in ids:
            device = f"/dev/disk/by-id/virtio-{one.volume_id[:20]}"  # what virtio keeps of a serial number
            found.append({"path": path_of(one.volume_id), "share": "", "device": device})
    return found


def path_of(volume_id: str) -> str:
    """Where a machine has it."""
    return f"{FOLDER}/{volume_id}"


class Volumes:
    """All of a project's. `home` is the folder of the records; region: where new ones go, if none is named.

    made: a folder of files by task, which name what was made for it. note: told of a task before anything is.
    """

    def __init__(
        self, account: Account, home: Path, region: str | None, *, made: Path, note: Callable[[str], None]
    ) -> None:
        self._account, self._api, self._home, self._region = account, account.api, home, region
        self._made, self._note = made, note

    def create(
        self, name: str, size_gb: int, *, interface: str = "block", region: str | None = None, plan: Plan | None = None
    ) -> Volume:
        """Make one in a region. Raises ValidationError, QuotaExceededError."""
        region = region or self._region
        if not region:
            raise ValidationError(
                f"no region is named for the volume `{name}`",
                suggestions=["name one by `--region`, or `flow config set mithril.region …`"],
            )
        body = {
            "name": name,
            "project": self._account.project,
            "disk_interface": interface.capitalize(),
            "region": region,
            "size_gb": size_gb,
        }
        if plan:
            self._note(plan.task_id)
        try:
            volume = _volume(self._api.create(_VOLUMES, body), {})
            self._note_made(plan, volume)
            return volume
        except (NotKnownError, NameTakenError) as error:
            there = self.list()
            for one in there:
                same = (one.name, one.size_gb, one.interface, one.region) == (name, size_gb, interface, region)
                if same and not one.used_by:  # made by who was cut off
                    if isinstance(error, NotKnownError):  # by us
                        self._note_made(plan, one)
                    return one
            if isinstance(error, NameTakenError):
                where = next((f", in {one.region}" for one in there if one.name == name), "")
                raise ValidationError(f"there is a volume `{name}` already{where}") from error
            raise
        except ValidationError as error:
            if "not available" in error.message:
                error.suggestions = (*error.suggestions, *self._regions(interface))
            if error.message.startswith("name: "):
                raise ValidationError(
                    f"`{name}` cannot be the name of a volume",
                    suggestions=["write small letters, digits and `-`, a letter first"],
                ) from error
            raise

    def price_per_month(self, size_gb: int, *, interface: str = "block", region: str | None = None) -> float | None:
        """Not known: the API does not tell it."""
        return None

    def list(self) -> list[Volume]:
        """All of them, newest first."""
        rows = list(self._api.list(_VOLUMES, project=self._account.project))
        bids = {str(bid) for one in rows for bid in one.get("bids") or ()}
        tasks = self._tasks(bids) if bids else {}
        found = [_volume(one, tasks) for one in rows if not one.get("deleted_at")]
        return sorted(found, key=lambda one: -(one.created or 0.0))

    def delete(self, volume_id: str) -> None:
        """Remove it for good. Raises ValidationError while a task uses it."""
        volume = self._of(volume_id)
        users = self._users(volume)
        if users:
            raise ValidationError(
                f"the volume `{volume.name}` is used by `{users[0]}`", suggestions=["wait for its end, or cancel it"]
            )
        self._api.delete(f"{_VOLUMES}/{volume_id}")

    def attach(self, volume_id: str, plan: Plan, *, ephemeral: bool = False) -> str:
        """See that the plan's machines can have it; its bid holds it then."""
        volume = self._of(volume_id)
        if plan.region and volume.region and volume.region != plan.region:
            raise ValidationError(
                f"the volume `{volume.name}` is in {volume.region}, and the task is to run in {plan.region}",
                suggestions=[f"only a task there can have it: `flow run --region {volume.region} …`"],
            )
        others = [one for one in self._users(volume) if one != plan.task_id]
        if volume.interface == "block" and others and not {one.task_id for one in plan.after} >= set(others):
            raise ValidationError(
                f"the volume `{volume.name}` is held by `{others[0]}`",
                suggestions=["wait for its end, or use a volume with `interface: file`"],
            )
        return path_of(volume_id)

    def detach(self, volume_id: str, task_id: str) -> None:
        """Its bid's end lets go of it."""

    def forget_task(self, task_id: str, *, is_refused: bool, is_unknown: bool) -> None:
        """Remove what was to go with a task, and what was made for one that was refused machines.

        is_unknown: who made them died before there was a task. Never one that was there before, or that others find by
        its name and may have written to. Raises FlowError while the cloud still holds it.
        """
        own, made = f"-{task_id[-6:]}-", self._made / task_id  # called so, nobody else's task finds them
        known = made.read_text().split() if made.exists() else []
        try:
            mounts = Records(self._home).get(task_id).plan.mounts
        except ResourceNotFoundError:
            gone = [one.volume_id for one in self.list() if own in one.name] if is_unknown else []
        else:
            ours = [one for one in mounts if one.kind == VOLUME and (own in one.name or one.source in known)]
            gone = [one.source for one in ours if one.ephemeral or (is_refused and one.size_gb)]
        for volume_id in gone:
            self._api.delete(f"{_VOLUMES}/{volume_id}")
        made.unlink(missing_ok=True)

    def _note_made(self, plan: Plan | None, volume: Volume) -> None:
        if plan:
            self._made.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._made / plan.task_id).open("a") as file:
                file.write(f"{volume.volume_id}\n")

    def _regions(self, interface: str) -> Sequence[str]:
        """Where such volumes can be made, as far as that is told."""
        able = f"{'fileshare' if interface == 'file' else 'block'}_storage_enabled"
        with suppress(FlowError):
            found = [str(one.get("name")) for one in self._api.list(_REGIONS) if one.get(able)]
            return [f"{interface} volumes can be made in {', '.join(sorted(found))}"] if found else []
        return []

    def _of(self, volume_id: str) -> Volume:
        for one in self.list():
            if one.volume_id == volume_id:
                return one
        raise ResourceNotFoundError(f"there is no volume `{volume_id}`", suggestions=["see `flow volume list`"])

    def _users(self, volume: Volume) -> tuple[str, ...]:
        """The tasks that hold it, or soon will: those that were acknowledged and have no bid yet count."""
        records = Records(self._home)
        waiting = []
        for task_id in records.unallocated():
            with suppress(FlowError):
                mounts = records.get(task_id).plan.mounts
                waiting += [task_id for one in mounts if one.source == volume.volume_id]
        return tuple(dict.fromkeys((*volume.used_by, *waiting)))

    def _tasks(self, bids: Collection[str]) -> dict[str, str]:
        """The names of those of these bids that live."""
        return {str(one["fid"]): str(one["name"]) for one in self._account.live_bids() if one["fid"] in bids}


def _volume(row: dict[str, Any], tasks: dict[str, str]) -> Volume:
    return Volume(
        str(row["fid"]),
        str(row.get("name")),
        int(row.get("capacity_gb") or row.get("size_gb") or 0),
        interface=str(row.get("interface") or row.get("disk_interface") or "block").lower(),
        region=row.get("region"),
        created=moment(row.get("created_at")),
        used_by=tuple(tasks[str(one)] for one in row.get("bids") or () if str(one) in tasks),
    )
