"""For which tasks something may be rented, or was made, and is not known to be gone: a file each, there before it."""

from __future__ import annotations

import time
from pathlib import Path

from flow.durable import write_durably

_LATE_SECONDS = 120.0  # within which a request that was never answered may still show
_ASKED, _ANSWERED, _MAKING = b"", b"answered", b"volumes"


class Holds:
    """Of one provider; `folder` has the files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, task_id: str) -> None:
        """Machines are about to be asked for."""
        self._write(task_id, _ASKED)

    def note_answer(self, task_id: str) -> None:
        """A request was answered: nothing of it can come late."""
        self._write(task_id, _ANSWERED)

    def note_making(self, task_id: str) -> None:
        """Something is about to be made for a task that is not on record yet."""
        self._write(task_id, _MAKING)

    def close(self, task_id: str) -> None:
        """Nothing is left."""
        (self._folder / task_id).unlink(missing_ok=True)

    def is_open(self, task_id: str) -> bool:
        """Whether it is held."""
        return (self._folder / task_id).exists()

    def is_new(self, task_id: str) -> bool:
        """Whether it was asked for so lately that it may still have to show."""
        try:
            return time.time() - (self._folder / task_id).stat().st_mtime < _LATE_SECONDS
        except OSError:
            return False

    def may_come(self, task_id: str) -> bool:
        """Whether what was asked for may still appear, as nobody answered."""
        return self.is_new(task_id) and self._read(task_id) not in (None, _ANSWERED)

    def was_asked_for(self, task_id: str) -> bool:
        """Whether machines were asked for, as far as that is still known."""
        return self._read(task_id) != _MAKING

    def _read(self, task_id: str) -> bytes | None:
        try:
            return (self._folder / task_id).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, task_id: str, what: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._folder / task_id, what)
