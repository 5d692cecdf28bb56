"""The functions of `flow` itself: each is the method of that name, of a client made for the call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from flow.client import Flow

P = ParamSpec("P")
R = TypeVar("R")


def _function(method: Callable[Concatenate[Flow, P], R]) -> Callable[P, R]:
    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(Flow(), *args, **kwargs)

    signature = inspect.signature(method)
    without_client = list(signature.parameters.values())[1:]
    call.__signature__ = signature.replace(parameters=without_client)  # type: ignore[attr-defined]  # for `help`
    return call


run = _function(Flow.run)
submit = run  # what other clients call it
get_task = _function(Flow.get_task)
tasks = _function(Flow.tasks)
cancel = _function(Flow.cancel)
create_volume = _function(Flow.create_volume)
volumes = _function(Flow.volumes)
mount_volume = _function(Flow.mount_volume)
