"""FlowError: what is wrong, and what to do about it; one narrow kind for each thing a caller can answer."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar


class FlowError(Exception):
    """Anything Flow refuses or fails at. `message` is one sentence, `suggestions` are things to do.

    `code` names the kind in machine output; `exit_code` is what the command line ends with.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, suggestions: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.suggestions = tuple(suggestions)
        self.__notes__ = [f"hint: {one}" for one in suggestions]  # Python 3.11 shows them below a traceback


class SubmissionInterrupted(KeyboardInterrupt):
    """Ctrl-C, while the task of `task_id` was being given to its provider: it is on record, and goes on by itself."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"`{task_id}` goes on: end it with `flow cancel {task_id}`")
        self.task_id = task_id


class ValidationError(FlowError, ValueError):
    """What was asked for is malformed or contradicts itself; nothing was submitted."""

    code = "validation"
    exit_code = 2


class UnknownProfileError(ValidationError):
    """No settings file has a profile of that name."""

    code = "unknown_profile"


class ConfirmationRequiredError(FlowError):
    """Something irreversible was asked without `--yes` and there is nobody to ask."""

    code = "confirmation_required"
    exit_code = 3


class ResourceNotFoundError(FlowError):
    """A named thing does not exist: a file, an offer, a volume."""

    code = "not_found"
    exit_code = 4


class TaskNotFoundError(ResourceNotFoundError):
    """No task answers to the reference."""

    code = "task_not_found"


class NoEndpointError(ResourceNotFoundError, KeyError):
    """The task has no such endpoint, and will have none. Also a KeyError."""

    code = "no_endpoint"
    __str__ = ResourceNotFoundError.__str__  # KeyError would put quotes around the sentence


class AuthenticationError(FlowError):
    """The provider does not accept who we say we are, or what that one may do."""

    code = "authentication"
    exit_code = 5


class QuotaExceededError(FlowError):
    """A limit of the provider (GPUs, upload size, price) stands in the way."""

    code = "quota_exceeded"
    exit_code = 6


class ProviderError(FlowError):
    """The provider answered in a way we cannot go on from, or not at all."""

    code = "provider"
    exit_code = 6


class UnreachableError(ProviderError):
    """A machine does not answer, or Python does not run there: nothing is known of what it does."""


class StorageError(FlowError):
    """Flow's own folder cannot be read or written: permissions, a full disk, a damaged file."""

    code = "storage"


class SubmittedWhileImportedError(ValidationError):
    """A module submits a task while it is imported on the machine that runs a function of it."""

    code = "importing"


class RemoteError(FlowError):
    """A function that ran elsewhere raised an error, or its process ended before it returned.

    `remote_type` names the error's class ("" where the process ended), `remote_message` is its text, `traceback` where
    it was raised over there, `task_id` the task; `logs` are the last lines of its output.
    """

    code = "remote"

    def __init__(
        self,
        message: str,
        *,
        suggestions: Sequence[str] = (),
        remote_type: str = "",
        remote_message: str = "",
        traceback: str = "",
        task_id: str = "",
        read_logs: Callable[[], str] = str,
    ) -> None:
        super().__init__(message, suggestions=suggestions)
        self.remote_type, self.remote_message, self.traceback = remote_type, remote_message, traceback
        self.task_id = task_id
        self._logs: str | Callable[[], str] = read_logs

    @property
    def logs(self) -> str:
        """The last lines of the task's output, read when first asked for; without the traceback."""
        if not isinstance(self._logs, str):
            try:
                text = self._logs()
            except FlowError:  # pruned meanwhile, say
                text = ""
            self._logs = text.replace(self.traceback, "") if self.traceback else text
        return self._logs

    def __str__(self) -> str:
        parts = (("on the machine", self.traceback), (f"last output of `{self.task_id}`", self.logs))
        return "\n\n".join([self.message, *(f"{name}:\n{text.rstrip()}" for name, text in parts if text)])

    def __reduce__(self) -> tuple[object, ...]:
        return _remote_error, (self.message, {**self.__dict__, "_logs": self.logs})


def _remote_error(message: str, facts: dict[str, object]) -> RemoteError:
    error = RemoteError(message)
    error.__dict__.update(facts)
    return error


class TaskFailedError(FlowError):
    """The task that was waited for did not complete."""

    code = "task_failed"


class TimeoutError(  # noqa: A001  # users catch it by either name
    FlowError, builtins.TimeoutError
):
    """The caller's time ran out; the task itself goes on."""

    code = "timeout"
    exit_code = 6


def did_you_mean(word: str, choices: Iterable[str]) -> list[str]:
    """["did you mean `near`?"] for the nearest of `choices`, or [] when none is near."""
    import difflib  # 5 ms, and most commands make no mistake

    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return [f"did you mean `{near[0]}`?"] if near else []
