"""Functions that run elsewhere: `invoke`, `@function` and `FlowApp`. Light: the user's module imports it there too."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, overload

from flow.errors import RemoteError, ValidationError, did_you_mean
from flow.importing import refuse_while_importing
from flow.task_fields import TaskFields

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    from flow.calls import Target
    from flow.task import Task
    from flow.warm import Session

    As = TypeVarTuple("As")

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
R2 = TypeVar("R2")
R_co = TypeVar("R_co", covariant=True)

_NOT_FOR_FUNCTIONS = {"command", "array"}


def invoke(
    file: str | os.PathLike[str],
    function: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **fields: Unpack[TaskFields],
) -> Any:
    """Run a function of a Python file of the project as a task, and return what it returns; the file needs no flow.

    `fields` are those of a TaskConfig. Raises RemoteError where the function does, ValidationError before anything is
    submitted where the arguments are not JSON or the file has no such function. Ctrl-C ends the task.
    """
    refuse_while_importing()
    from flow.calling import submit, value_of
    from flow.calls import check_source, encode_arguments, target_in

    target = target_in(file, function)
    if not fields.get("image"):  # which may have a newer Python
        check_source(target)
    return value_of(submit(target, encode_arguments(args, kwargs or {}), _checked(fields)))


class Function(Generic[P, R]):
    """A function that runs here when it is called, and elsewhere by its methods. Made by `@function(…)`."""

    def __init__(self, function: Callable[P, R], fields: Mapping[str, Any], app: FlowApp | None = None) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._fields = _checked(fields)
        self._app = app
        if not getattr(function, "__qualname__", "").isidentifier() or isinstance(function, type):
            _ = self._target  # says what is wrong with it

    def __reduce__(self) -> str:
        return self._function.__qualname__  # what it is called in its module, as of any function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it here."""
        return self._function(*args, **kwargs)

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it as a task, and return what it returns; inside of `with app.run():` in a process that stays.

        Raises RemoteError where it does, ValidationError before anything is submitted. Ctrl-C ends the task.
        """
        from flow.calling import call_in, value_of

        refuse_while_importing()
        value: R
        if self._app and self._app.session and self._fields.get("num_instances", 1) == 1:
            value = call_in(self._app.session, self._target, self._arguments(args, kwargs), self._fields)
        else:
            value = value_of(self.spawn(*args, **kwargs))
        return value

    def spawn(self, *args: P.args, **kwargs: P.kwargs) -> FunctionTask[R]:
        """Call it as a task and do not wait: the Task, whose `result()` waits and gives what the function returns."""
        from flow.calling import submit

        refuse_while_importing()
        task: FunctionTask[R] = submit(self._target, self._arguments(args, kwargs), self._fields)
        if self._app and self._app.session:
            self._app.session.welcome(task)
        return task

    @overload
    def map(
        self: Callable[[A], R2], items: Iterable[A], *, concurrency: int | None = ..., on_error: Literal["raise"] = ...
    ) -> Iterator[R2]: ...
    @overload
    def map(
        self: Callable[[A], R2], items: Iterable[A], *, concurrency: int | None = ..., on_error: Literal["return"]
    ) -> Iterator[R2 | RemoteError]: ...

    def map(self, items: Iterable[Any], *, concurrency: int | None = None, on_error: str = "raise") -> Iterator[Any]:
        """Call it on each of `items`, and give what it returns in their order, as it is iterated.

        `concurrency`: at most so many processes, each used again; by default as many as this machine has CPUs for,
        elsewhere one. `on_error="return"` gives a RemoteError in place of a value where the default raises the first.
        """
        return self._many(((one,) for one in items), concurrency, on_error)

    @overload
    def starmap(
        self: Callable[[Unpack[As]], R2],
        items: Iterable[tuple[Unpack[As]]],
        *,
        concurrency: int | None = ...,
        on_error: Literal["raise"] = ...,
    ) -> Iterator[R2]: ...
    @overload
    def starmap(
        self: Callable[[Unpack[As]], R2],
        items: Iterable[tuple[Unpack[As]]],
        *,
        concurrency: int | None = ...,
        on_error: Literal["return"],
    ) -> Iterator[R2 | RemoteError]: ...

    def starmap(
        self, items: Iterable[Iterable[Any]], *, concurrency: int | None = None, on_error: str = "raise"
    ) -> Iterator[Any]:
        """As `map`, where each of `items` holds all arguments of one call."""
        return self._many(items, concurrency, on_error)

    def _many(self, items: Iterable[Iterable[Any]], concurrency: int | None, on_error: str) -> Iterator[Any]:
        refuse_while_importing()
        if on_error not in ("raise", "return"):
            raise ValidationError(f"`on_error` is `{on_error}`", suggestions=['take "raise" or "return"'])
        if concurrency is not None and concurrency < 1:
            raise ValidationError(f"`concurrency` is `{concurrency}`", suggestions=["take 1 or more"])
        if self._fields.get("num_instances", 1) != 1:
            raise ValidationError(
                "a function on several machines cannot be mapped", suggestions=["call it by `remote` or `spawn`"]
            )
        from flow.calling import call_each

        calls = (self._arguments(tuple(one), {}) for one in items)
        session = self._app.session if self._app else None
        return call_each(
            session, self._target, calls, self._fields, concurrency=concurrency, is_raised=on_error == "raise"
        )

    def _arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        from flow.calls import encode_arguments

        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ValidationError(f"`{self._function.__name__}`: {error}") from None
        return encode_arguments(args, kwargs)

    @functools.cached_property
    def _target(self) -> Target:
        from flow.calls import target_of

        return target_of(self._function)

    @functools.cached_property
    def _signature(self) -> Any:
        import inspect

        return inspect.signature(self._function)


class FlowApp:
    """Functions that belong together; `with app.run():` keeps a process for each of them that is called."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.session: Session | None = None  # inside of `run`

    @overload
    def function(self, function: Callable[P, R], /) -> Function[P, R]: ...
    @overload
    def function(self, /, **fields: Unpack[TaskFields]) -> Callable[[Callable[P, R]], Function[P, R]]: ...

    def function(self, function: Callable[..., Any] | None = None, /, **fields: Any) -> Any:
        """Decorate a function of a module: `@app.function` or `@app.function(gpu="a100", …)`, with a task's fields."""
        return _decorated(function, fields, self)

    @contextmanager
    def run(self) -> Iterator[FlowApp]:
        """Inside of it `remote` and `map` of the app's functions use processes that stay; they end with it."""
        from flow.calling import session_of

        refuse_while_importing()
        outer = self.session
        with session_of(outer) as session:
            self.session = session
            try:
                yield self
            finally:
                self.session = outer


@overload
def function(function: Callable[P, R], /) -> Function[P, R]: ...
@overload
def function(**fields: Unpack[TaskFields]) -> Callable[[Callable[P, R]], Function[P, R]]: ...


def function(function: Callable[..., Any] | None = None, /, **fields: Any) -> Any:
    """Decorate a function of a module, without an app: `@function` or `@function(gpu="a100", …)`."""
    return _decorated(function, fields, None)


if TYPE_CHECKING:

    class FunctionTask(Task, Generic[R_co]):
        """A Task, of whose result the type is known."""

        def result(self) -> R_co:
            """What the function returned."""


def _decorated(function: Callable[..., Any] | None, fields: Mapping[str, Any], app: FlowApp | None) -> Any:
    if function is None:
        _checked(fields)
        return lambda decorated: Function(decorated, fields, app)
    return Function(function, fields, app)


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something. Raises ValidationError for one that a task does not have, or a function cannot."""
    given = {name: value for name, value in fields.items() if value is not None}
    known = sorted(set(TaskFields.__annotations__) - _NOT_FOR_FUNCTIONS)
    for name in given:
        if name not in known:
            raise ValidationError(f"a function has no field `{name}`", suggestions=did_you_mean(name, known))
    return given
