"""Records that machines copied to S3 before they ended: what a machine is told for that, and the way back to here."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flow.aws import s3_access
from flow.durable import writing
from flow.errors import ProviderError, ValidationError
from flow.node import objects
from flow.outbox import RECORDS, outbox_files
from flow.plan import Plan


def names(task_id: str, attempt: int, count: int) -> list[str]:
    """Of the objects that so many machines make, by rank. attempt: the first that they were rented for."""
    return [f"{task_id}/{attempt}/{rank}.tar.gz" for rank in range(count)]


def order(plan: Plan, record: Path, names: list[str], rank: int) -> dict[str, Any] | None:
    """What the guard of a machine is to ask of `node/record_copy.py`; None where it is cancelled already."""
    found = outbox_files(record).get(RECORDS)
    if found is None:
        return None
    access = json.loads(found)
    return {"task_id": plan.task_id, "source": plan.records, "access": access, "names": names, "own": rank}


def fetch(plan: Plan, names: list[str], record: Path, into: Path, environ: Mapping[str, str]) -> list[Path]:
    """The folder of tasks of each of its machines, as it was there, below `into`; none while not all were copied.

    Raises ProviderError where S3 does not tell.
    """
    roots = [into / str(rank) for rank in range(len(names))]
    if into.is_dir():
        return roots
    with writing(into.parent):
        into.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=".fetching-", ignore_cleanup_errors=True) as part:
            if not _fetch_all(plan, names, Path(part), list(_accesses(plan, record, environ))):
                return []
            with suppress(OSError):  # another client has
                Path(part).rename(into)
                Path(part).mkdir()
    return roots


def _fetch_all(plan: Plan, names: list[str], part: Path, accesses: list[dict[str, str]]) -> bool:
    """Whether they were there. By the first credentials that will do: those it was submitted with may have expired."""
    failed = f"no credentials for `s3://{plan.records}`"
    for access in accesses:
        try:
            place = objects.locate(plan.records, access)
            if not all(objects.is_there(place, access, name) for name in names):
                return False
            for rank, name in enumerate(names):
                source = objects.opened(place, access, name)
                if source is None:
                    raise objects.Failed(f"`{name}` was taken away just now")
                _unpack(source, part / str(rank) / "tasks")
            return True
        except objects.Failed as error:
            failed = str(error)
    raise ProviderError(f"its record in `s3://{plan.records}` cannot be read: {failed}")


def _unpack(source: Any, folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = ["tar", "-x", "-z", "-f", "-", "-C", str(folder), "--no-same-owner"]
    with tempfile.TemporaryFile() as said:  # a pipe would fill up
        with source, subprocess.Popen(words, stdin=subprocess.PIPE, stderr=said) as here:
            assert here.stdin
            try:
                shutil.copyfileobj(source, here.stdin, 1 << 20)
                here.stdin.close()
            except objects.request.BROKEN as error:
                here.kill()
                raise objects.Failed(f"it was cut off: {error}") from error
        said.seek(0)
        last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
    if here.returncode:
        raise objects.Failed(last)


def _accesses(plan: Plan, record: Path, environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    found = outbox_files(record).get(RECORDS)
    if found:
        yield json.loads(found)
    with suppress(ValidationError):
        yield s3_access(plan.env, environ)
