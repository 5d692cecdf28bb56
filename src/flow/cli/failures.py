"""How a command ends that did not do what was asked: one message, at most two hints, an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from typing import NamedTuple

import click

from flow.cli.group import Invocation
from flow.errors import FlowError, SubmissionInterrupted
from flow.errors import TimeoutError as FlowTimeoutError

INTERRUPTED = 130  # Ctrl-C
OUTPUT_CLOSED = 141  # whoever read our output went away; what a shell shows for SIGPIPE
ATTACHED_FAILURE = 125  # ours, while the exit code stands for the task's
MOST_HINTS = 2
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # of an error without a file: what we print goes to one


class Failure(NamedTuple):
    """What is told about an error. `exit_code` holds where the command does not stand for a task."""

    code: str
    message: str
    suggestions: tuple[str, ...]
    exit_code: int


def report(error: BaseException, invocation: Invocation) -> int:
    """Tell of `error`, once, and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, BrokenPipeError):
        _drop_stdout()
        return OUTPUT_CLOSED
    if isinstance(error, SubmissionInterrupted):
        from flow.cli.follow import tell_going_on

        tell_going_on(error.task_id)
        return INTERRUPTED
    if isinstance(error, KeyboardInterrupt | click.Abort):
        click.echo(err=True)  # leaves the line that shows ^C
        return INTERRUPTED
    if os.environ.get("FLOW_DEBUG") == "1":
        sys.excepthook(type(error), error, error.__traceback__)
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE and error.filename is None:
        _drop_stdout()
        _tell(Failure("storage", f"cannot write the output: {error.strerror}", (), 1), as_json=False)
        return ATTACHED_FAILURE if invocation.attached else 1
    failure = _explained(error)
    _tell(failure, as_json=invocation.as_json)
    ours = invocation.attached and not isinstance(error, FlowTimeoutError)
    return ATTACHED_FAILURE if ours else failure.exit_code


def _explained(error: BaseException) -> Failure:
    if isinstance(error, FlowError):
        return Failure(error.code, error.message, error.suggestions, error.exit_code)
    if isinstance(error, click.ClickException):
        return _usage(error)
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    return Failure("internal", f"internal error: {what} (set FLOW_DEBUG=1 for the traceback)", (), 1)


def _usage(error: click.ClickException) -> Failure:
    """click's errors in our words: the option in backticks, what was meant as a hint."""
    context = getattr(error, "ctx", None)
    see = f"see `{context.command_path} --help`" if context else "see `flow --help`"
    if isinstance(error, click.NoSuchOption):
        near = [f"did you mean `{error.possibilities[0]}`?"] if error.possibilities else []
        return Failure("usage", f"no such option `{error.option_name}`", (*near, see), error.exit_code)
    param = getattr(error, "param", None)
    name = f"`{_shown(param)}`" if param else ""
    if isinstance(error, click.MissingParameter) and name:
        message = f"missing {name}"
    elif isinstance(error, click.BadParameter) and name:
        message = f"{name}: {error.message.rstrip('.')}"
    else:
        text = error.format_message().rstrip(".")
        message = text[:1].lower() + text[1:]
    return Failure("usage", message, (see,), error.exit_code)


def _shown(param: click.Parameter) -> str:
    """The name a user knows a parameter by: its long option, or the word in the usage line."""
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return (param.metavar or str(param.name).upper()).strip("[].…")


def _tell(failure: Failure, *, as_json: bool) -> None:
    if as_json:
        told = {"code": failure.code, "message": failure.message, "suggestions": failure.suggestions}
        with contextlib.suppress(OSError):
            click.echo(json.dumps({"error": told}))
        return
    label = "" if failure.code == "internal" else "error: "
    lines = [f"{label}{failure.message}"]
    if failure.suggestions:
        lines += ["", *(f"hint: {hint}" for hint in failure.suggestions[:MOST_HINTS])]
    with contextlib.suppress(OSError):
        click.echo("\n".join(lines), err=True)


def _drop_stdout() -> None:
    """Leave nothing for the interpreter's last flush to fail on."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
