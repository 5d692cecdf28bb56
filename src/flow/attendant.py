"""The attendant: a process that does for tasks what their provider cannot do alone. `python -m flow.attendant`."""

from __future__ import annotations

import os
import signal
import sys
import time

from flow.attend import LOCK
from flow.chores import attend
from flow.client import Flow
from flow.durable import take_lock
from flow.errors import AuthenticationError, FlowError
from flow.plan import Plan

_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between two looks
_LINGER = 5  # looks that find nothing to do before it goes
_BEGIN_SECONDS = 2.0  # to take the lock


def main() -> None:
    """See to tasks for as long as some need it; soon gone where another one does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that it ends its connections
    client = Flow()
    # who asks whether it is held has it for a moment, and starts nobody while we begin
    lock = take_lock(client.home / LOCK, wait_seconds=_BEGIN_SECONDS)
    if lock is None:
        return
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what `start_attendant` gave: it has begun
    idle, pause = 0, _PAUSE
    plans: dict[str, Plan] = {}
    try:
        while idle < _LINGER:
            idle = 0 if _is_needed(client, plans) else idle + 1
            time.sleep(pause)
            pause = min(pause * 1.2, _LONGEST_PAUSE)
        os.close(lock)  # who submits something now starts another; what came just before is looked at once more
        if _is_needed(client, plans):
            main()
    except AuthenticationError:  # it makes room for one with another key at once
        pass


def _is_needed(client: Flow, plans: dict[str, Plan]) -> bool:
    try:
        return attend(client, plans)
    except AuthenticationError:
        raise
    except FlowError:  # a provider that does not answer: it is asked again
        return True
    finally:
        client.notes.clear()


if __name__ == "__main__":
    main()
