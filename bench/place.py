"""A home and a project of their own for each measure: nothing of the user's is read, and all of it goes at the end.

At the end of all, not of each measure: some file systems are slow to make files for minutes after many were removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flow.node.remains import is_locked
from flow.providers.local.burial import signal_runner
from flow.providers.local.queue import Queue
from flow.providers.local.rank import rank_folder

_NOT_MEASURED = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")  # an installed program is compiled and buffers
_made: list[Path] = []
PROJECT = {"train.py": "print('hello')\n", "config.yaml": "epochs: 3\n", "lib/model.py": "WIDTH = 64\n"}


@contextmanager
def own_home(**settings: str) -> Iterator[Path]:
    """FLOW_HOME, empty; a small project is the current folder. `settings`: variables, as FLOW_LOCAL_CPUS."""
    root = Path(tempfile.mkdtemp(prefix="flow-bench-"))
    _made.append(root)
    before, here = dict(os.environ), Path.cwd()
    for name, text in PROJECT.items():
        path = root / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "home").mkdir()
    for name in _NOT_MEASURED:
        os.environ.pop(name, None)
    os.environ.update(FLOW_HOME=str(root / "flow"), HOME=str(root / "home"), **settings)
    os.chdir(root / "project")
    try:
        yield root / "flow"
    finally:
        end_everything(root / "flow")
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


def remove_homes() -> None:
    """Remove what `own_home` made."""
    while _made:
        shutil.rmtree(_made.pop())


def end_everything(home: Path) -> None:
    """End the home's scheduler, and what it had started."""
    end_scheduler(home)
    if not (home / "local" / "local.db").exists():
        return
    queue = Queue(home / "local" / "local.db")
    folders = [rank_folder(home, row.id, row.attempt, 0) for row in queue.in_state("started")]
    queue.close()
    for folder in folders:
        signal_runner(folder, None, signal.SIGTERM)
    for folder in folders:
        wait_until(lambda folder=folder: not is_locked(folder / "runner.lock"))  # type: ignore[misc]


def end_scheduler(home: Path) -> None:
    """End the home's scheduler, by the pid in the lock that it holds, and one that is being started; often none is."""
    wait_until(lambda: not _is_served(home / "local"))


def _is_served(folder: Path) -> bool:
    """Whether there is a scheduler still, which is told to leave."""
    if is_locked(folder / "scheduler.lock"):
        try:
            os.kill(int((folder / "scheduler.lock").read_text()), signal.SIGTERM)
        except (ProcessLookupError, ValueError):
            pass  # it left meanwhile, or has not written its pid yet
        return True
    return is_locked(folder / "start.lock")


def wait_until(claim: Callable[[], bool], *, seconds: float = 60) -> None:
    """Return when `claim` is true; TimeoutError when it does not become so."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not so after {seconds} s")
        time.sleep(0.005)
