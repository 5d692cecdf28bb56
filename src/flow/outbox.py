"""The secret files that a task's machines are to be brought: kept 0600 beside its record until the task has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from flow.durable import private, write_durably

_FOLDER = "outbox"
RECORDS = "records.json"  # which is for machines alone, no task: by what they copy records to S3


def fill_outbox(record: Path, files: Mapping[str, bytes]) -> None:
    """Put files, by name, into the outbox of the record in the folder `record`; on disk when it returns."""
    if files:
        (record / _FOLDER).mkdir(mode=0o700)
    for name, content in files.items():
        write_durably(record / _FOLDER / name, content)


def outbox_files(record: Path) -> dict[str, bytes]:
    """What the outbox of a record holds, by name."""
    return {file.name: file.read_bytes() for file in sorted((record / _FOLDER).glob("*"))}


def deliver(record: Path, folder: Path) -> list[str]:
    """Copy what the outbox holds into the inbox of a task folder of this machine; the copies' paths within that."""
    files = outbox_files(record)
    if files:
        (folder / "inbox").mkdir(mode=0o700, exist_ok=True)
    for name, content in files.items():
        with open(folder / "inbox" / name, "wb", opener=private) as copy:
            copy.write(content)
    return [f"inbox/{name}" for name in files]


def empty_outbox(record: Path) -> None:
    """Remove the files, which nobody needs any more, and their folder."""
    with contextlib.suppress(OSError):
        for file in (record / _FOLDER).iterdir():
            file.unlink()
        (record / _FOLDER).rmdir()
