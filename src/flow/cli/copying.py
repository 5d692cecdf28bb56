"""What a task wrote, copied to our own outputs; of several nodes or elements each line says whose it is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING

from flow.cli import output

if TYPE_CHECKING:
    from flow.logs import Block
    from flow.task import Task

_Place = tuple[int, int, int]  # attempt, rank, stream


def is_marked(task: Task, node: int | None) -> bool:
    """Whether lines are to say whose they are: `[3] ` for node 3, or element 3 of an array; a script runs on one."""
    return node is None and (task.is_array or (task.num_instances > 1 and not task.plan.batch))


def mark(rank: int) -> bytes:
    """What stands before a line of that node or element."""
    return b"[%d] " % rank


class Copy:
    """Blocks, written as they come, each to the stream it came from. `marked`: see `is_marked`."""

    def __init__(self, stdout: IO[bytes], stderr: IO[bytes], *, marked: bool) -> None:
        self._targets = (stdout, stderr)
        self._are_one = _are_one(stdout, stderr)
        self._marked = marked
        self._open: dict[int, _Place | None] = {}  # by target: whose line has no line end yet
        self._attempts: dict[int, int] = {}  # by rank

    def take(self, blocks: Iterable[Block], *, tell_attempts: bool) -> None:
        """Write all of them, each at once. `tell_attempts`: say on stderr when a task runs again."""
        for block in blocks:
            if tell_attempts:
                self._tell_attempt(block)
            place = (block.attempt, block.rank, block.stream)
            number = self._target(block.stream)
            target = self._targets[block.stream]
            output.write_whole(target, self._shown(block, place, self._open.get(number)))
            target.flush()
            self._open[number] = None if block.data.endswith(b"\n") else place

    def end_line(self) -> None:
        """Make what comes next on stderr begin a line."""
        if self._open.get(1):
            output.write_whole(self._targets[1], b"\n")
            self._targets[1].flush()
            self._open[1] = None

    def _target(self, stream: int) -> int:
        return 1 if self._are_one else stream

    def _shown(self, block: Block, place: _Place, before: _Place | None) -> bytes:
        end = b"\n" if before and before != place else b""  # nobody else's line goes on
        if not self._marked:
            return end + block.data if end else block.data
        own = mark(block.rank)
        text = block.data.removesuffix(b"\n").replace(b"\n", b"\n" + own)
        line_end = b"\n" if block.data.endswith(b"\n") else b""
        return end + (b"" if before == place else own) + text + line_end

    def _tell_attempt(self, block: Block) -> None:
        before = self._attempts.get(block.rank, block.attempt)
        self._attempts[block.rank] = block.attempt
        if block.attempt > before:
            self.end_line()
            who = f"[{block.rank}] " if self._marked else ""
            output.note(f"{who}attempt {block.attempt}: it runs again")


def _are_one(stdout: IO[bytes], stderr: IO[bytes]) -> bool:
    """Whether both lead to the same terminal, file or pipe."""
    try:
        return stdout is stderr or os.path.samestat(os.fstat(stdout.fileno()), os.fstat(stderr.fileno()))
    except (OSError, ValueError):
        return False
