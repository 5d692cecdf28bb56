"""How often a task that is waited for is looked at, and through which outages of its provider."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flow.errors import ProviderError
from flow.errors import TimeoutError as FlowTimeoutError

if TYPE_CHECKING:
    from flow.task import Task

_FIRST_PAUSE, _LAST_PAUSE = 0.002, 0.25  # seconds between looks while waiting
_LONGEST_PAUSE = 5.0  # where a look takes long, as over a network
_OUTAGE_SECONDS = 300.0  # that a provider may be out of reach while its task is waited for


class Patience:
    """Looks at a task as often as is polite, and through a time in which its provider does not answer."""

    def __init__(self) -> None:
        self._pause = 0.0  # seconds that should pass before the next look: one that takes long is taken less often
        self._since: float | None = None  # when the provider was first found to be out of reach

    def wait(self, task: Task, timeout: float | None) -> None:
        """Until the task has ended. Raises TimeoutError when that has not come in `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while not self.look(task).status.is_final:
            left = _LAST_PAUSE if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise FlowTimeoutError(
                    f"`{task.task_id}` has not ended after {timeout:g} s; it goes on",
                    suggestions=[f"wait on with `flow wait {task.task_id}`"],
                )
            time.sleep(min(max(pause, self._pause), left))
            pause = min(pause * 1.1, _LAST_PAUSE)

    def look(self, task: Task) -> Task:
        """The task, refreshed if that was possible. Raises ProviderError once that was not for five minutes."""
        began = time.monotonic()
        try:
            task.refresh()
            self._since = None
        except ProviderError:
            self._since = self._since or began
            if began - self._since > _OUTAGE_SECONDS:
                raise
        self._pause = min((time.monotonic() - began) * 10, _LONGEST_PAUSE)
        return task
