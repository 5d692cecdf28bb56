"""How the calls of functions get to a task of their own, or to workers; and how their values come back."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from flow.calls import FOLDER, Target, make_call
from flow.client import Flow
from flow.errors import RemoteError, SubmissionInterrupted, ValidationError
from flow.task import Task
from flow.warm import Pool, Session
from flow.worker import PendingCall

_AHEAD = 512  # calls of a map that are sent before the first value is taken


def submit(target: Target, arguments: bytes | None, fields: Mapping[str, Any], client: Flow | None = None) -> Any:
    """The task of one call, or (without arguments) of a worker; run by this Python where the machine is this one."""
    from flow.config import TaskConfig

    client = client or Flow()
    call = make_call(target, Path.cwd(), arguments)
    chain = os.environ.get("FLOW_CALLED", "")  # set where a function runs as a task
    if f"{call.file}:{target.function}\n" in chain:
        raise ValidationError(
            f"`{target.function}` submits itself from its own task",
            suggestions=[f"call it as a plain function there: `{target.function}(…)`"],
        )
    if chain:
        fields = {**fields, "env": {**fields.get("env", {}), "FLOW_CALLED": chain}}
    is_ours = client.provider(fields.get("provider")).capabilities.same_machine and not fields.get("image")
    python = sys.executable if is_ours and sys.executable else "python3"
    command = [python, f"$FLOW_WORKSPACE/{FOLDER}/invoke.py", "serve" if arguments is None else "once"]
    try:
        return client.run_call(TaskConfig.from_dict({"name": target.function, **fields, "command": command}), call)
    except SubmissionInterrupted as stop:  # nobody has the task, to wait for what the function returns
        client.cancel(stop.task_id)
        raise KeyboardInterrupt from None


def value_of(task: Task) -> Any:
    """What its function returns; a Ctrl-C here ends it there."""
    try:
        return task.result()
    except KeyboardInterrupt:
        task.cancel()
        raise


def call_in(session: Session, target: Target, arguments: bytes, fields: Mapping[str, Any]) -> Any:
    """What the function returns to this call, made by a worker."""
    return _value_in(session.submit(_pool(session, target, fields), _pending(arguments, fields)))


def call_each(
    session: Session | None,
    target: Target,
    calls: Iterator[bytes],
    fields: Mapping[str, Any],
    *,
    concurrency: int | None,
    is_raised: bool,
) -> Iterator[Any]:
    """The value of each call, in their order; a RemoteError in place of one unless `is_raised`."""
    with session_of(session) as session:  # noqa: PLR1704
        pool = _pool(session, target, fields)
        pool.most = max(pool.most, concurrency or _cpus_for(session.client, fields))
        answers: deque[Future[bytes]] = deque()
        try:
            answers.extend(session.submit(pool, _pending(one, fields)) for one in islice(calls, _AHEAD))
            while answers:
                try:
                    yield _value_in(answers.popleft())
                except RemoteError as error:
                    if is_raised:
                        raise
                    yield error
                answers.extend(session.submit(pool, _pending(one, fields)) for one in islice(calls, 1))
        finally:
            for one in answers:  # of a map that is given up: what no worker has yet is not made
                one.cancel()


@contextmanager
def session_of(session: Session | None) -> Iterator[Session]:
    """This session, or where there is none a new one that ends with the block: in peace, or whatever it is at."""
    if session:
        yield session
        return
    session = Session(Flow())
    try:
        yield session
    except BaseException:  # GeneratorExit too: not all of a map was wanted
        session.close(at_once=True)
        raise
    session.close()


def _pool(session: Session, target: Target, fields: Mapping[str, Any]) -> Pool:
    own = {name: value for name, value in fields.items() if name != "retries"}  # those are of the calls
    key = (target, repr(sorted(own.items())))
    return session.pool(key, target.function, lambda: submit(target, None, own, session.client))


def _pending(arguments: bytes, fields: Mapping[str, Any]) -> PendingCall:
    return PendingCall(arguments + b"\n", fields.get("retries", 0))


def _cpus_for(client: Flow, fields: Mapping[str, Any]) -> int:
    """How many workers at once this machine has CPUs for; elsewhere each is a machine to be paid."""
    provider = client.provider(fields.get("provider"))
    if not provider.capabilities.same_machine:
        return 1
    return max(1, int(provider.offers()[0].cpus / (fields.get("cpus") or 1)))


def _value_in(answer: Future[bytes]) -> Any:
    return json.loads(answer.result()[1:])
