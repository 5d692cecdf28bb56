"""Stands in for `flow` in a user's module on a machine that does not have it: functions stay what they are.

What would submit a task says that it cannot. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable, Iterator


class FlowError(Exception):
    """As flow.errors.FlowError."""

    code = "error"
    message = ""
    suggestions: tuple[str, ...] = ()


class NotHereError(FlowError):
    """A task is submitted where that cannot be; `importing` while the module that does it is imported."""

    def __init__(self) -> None:
        module = os.environ.get("FLOW_IMPORTING")
        self.code = "importing" if module else "error"
        self.message = (
            f"`{module}` submits a task while it is imported on the machine that runs its function"
            if module
            else "a task is submitted, and flow is not installed on this machine"
        )
        self.suggestions = ('put what submits tasks under `if __name__ == "__main__":`',)
        super().__init__(f"{self.message}: {self.suggestions[0]}")


def _refuse(*_: Any, **__: Any) -> Any:
    raise NotHereError


def function(given: Any = None, **_: Any) -> Any:
    """The function itself, with what submits it refused."""
    if given is None:
        return function
    given.remote = given.spawn = given.map = given.starmap = _refuse
    return given


class FlowApp:
    """As flow.FlowApp."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.function: Callable[..., Any] = function

    @contextlib.contextmanager
    def run(self, *_: Any, **__: Any) -> Iterator[FlowApp]:
        """Nothing is begun before a call."""
        yield self


class _Anything:
    """A class that the module only makes values of: TaskConfig, say."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _refuse


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name.endswith("Error"):
        return type(name, (FlowError,), {})
    return type(name, (_Anything,), {}) if name[0].isupper() else _refuse
