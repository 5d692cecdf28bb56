"""Calls a function of the user's project on the machine: once, or again and again for the client that is connected.

`python3 invoke.py once|serve`, in the folder `.flow/call` of the task's copy of the project. `call.json` beside
it says which function, where it is found, with which arguments. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import sys
from typing import Any, Callable

MOST_BYTES = 10_500_000  # of a result: 10 MB by either count, and what JSON puts around it
MOST_TRACEBACK = 20_000  # characters
_UNDER_GUARD = 'put what submits tasks under `if __name__ == "__main__":`, below the functions'
_AT_TOP = 'define it at the top level of the file, outside of `if __name__ == "__main__":`'
HERE = os.path.dirname(os.path.abspath(__file__))


def _beside(name: str) -> Any:
    """The module of that name beside this one; of the user's project it hides none."""
    if __package__:
        return importlib.import_module(f"{__package__}.{name}")
    sys.path.insert(0, HERE)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(HERE)
        del sys.modules[name]


values = _beside("values")


class Refused(Exception):  # noqa: N818  # ours, and not the function's
    """The call cannot be made, or its result cannot be sent; `advice` says what to do."""

    def __init__(self, kind: str, message: str, *advice: str) -> None:
        super().__init__(message)
        self.kind, self.advice = kind, advice


def once(call: dict[str, Any]) -> int:
    """Call it, and leave `result.json` or `error.json` in `$FLOW_OUTPUT`; the exit code."""
    output = os.environ["FLOW_OUTPUT"]
    for name in ("result.json", "error.json"):  # of an earlier attempt
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(output, name))
    try:
        result = answer(load(call), call["args"], call["kwargs"])
    except BaseException as error:
        failure = failure_of(error)
        write(os.path.join(output, "error.json"), json.dumps(failure).encode())
        say(failure)
        code = error.code if isinstance(error, SystemExit) else 1
        return code if isinstance(code, int) and 0 < code < 256 else 1
    write(os.path.join(output, "result.json"), result)
    return 0


def answer(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> bytes:
    """What the function returns, as JSON. Raises Refused where that cannot be sent, and whatever the function does."""
    value = function(*args, **kwargs)
    try:
        result: bytes = values.encode(value, "result")
    except values.NotJson as error:
        raise Refused("ResultError", f"the function's {error}", error.advice) from None
    if len(result) > MOST_BYTES:
        message = f"the function's result has {len(result) / 1e6:.1f} MB, and at most 10 MB are sent back"
        raise Refused("ResultError", message, "write it to a file in `$FLOW_OUTPUT`, and return the file's name")
    return result


def failure_of(error: BaseException) -> dict[str, Any]:
    """What the caller is told of an error."""
    told = {"attempt": int(os.environ.get("FLOW_ATTEMPT", "1")), "traceback": "", "advice": []}
    if isinstance(error, Refused):
        return {**told, "type": error.kind, "message": str(error), "advice": error.advice}
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except Exception:
        message = "(its text cannot be made)"
    return {**told, "type": name, "message": _cut(message), "traceback": _traceback(error)}


def say(failure: dict[str, Any]) -> None:
    """Put it in the task's log too."""
    text = failure["traceback"] or f"{failure['type']}: {failure['message']}\n"
    for stream, said in ((sys.stdout, ""), (sys.stderr, text)):
        with contextlib.suppress(Exception):  # the function may have closed it
            stream.write(said)
            stream.flush()


def _traceback(error: BaseException) -> str:
    """From the user's own line on; the middle of a very long one is left out."""
    import traceback

    trace = error.__traceback__
    decorator = getattr(sys.modules.get("flow.functions"), "__file__", "")
    ours = (HERE, "<frozen importlib", str(importlib.__file__), decorator or HERE)
    while trace and trace.tb_frame.f_code.co_filename.startswith(ours):
        trace = trace.tb_next
    try:
        return _cut("".join(traceback.format_exception(type(error), error, trace)))
    except Exception:
        return f"{type(error).__name__}\n"


def _cut(text: str) -> str:
    half = MOST_TRACEBACK // 2
    return text if len(text) <= MOST_TRACEBACK else f"{text[:half]}\n[…]\n{text[-half:]}"


def write(path: str, content: bytes) -> None:
    """Put a whole new file in place, on disk when this returns."""
    with open(path + ".tmp", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".tmp", path)


# -- finding the function


def load(call: dict[str, Any]) -> Callable[..., Any]:
    """The function, its module imported as the user's own program would import it; a submission in it ends that."""
    workspace = os.path.dirname(os.path.dirname(HERE))
    path = os.path.join(workspace, call["file"])
    folders = (os.path.normpath(os.path.join(workspace, one)) for one in call["paths"])
    ours = [one for one in folders if os.path.isdir(one)]
    sys.path[:] = [*ours, *(one for one in sys.path if os.path.abspath(one) != HERE)]
    sys.path += [one for one in (os.path.dirname(path), workspace) if one not in sys.path]
    sys.argv = [path]
    sys.meta_path.append(StandIn())
    chain = os.environ.get("FLOW_CALLED", "")
    os.environ["FLOW_CALLED"] = f"{chain}{call['file']}:{call['function']}\n"
    os.environ["FLOW_IMPORTING"] = call["file"]
    try:
        found = _namespace(call["module"], path, call["function"])
    finally:
        del os.environ["FLOW_IMPORTING"]
    function = found.get(call["function"])
    if not callable(function):
        raise _missing(call, found)
    return function  # type: ignore[no-any-return]


def _namespace(name: str, path: str, function: str) -> dict[str, Any]:
    """What the module holds; of one that submits a task what stands above that line, if the function does."""
    try:
        return dict(vars(_imported(name, path)))
    except Exception as error:
        if getattr(error, "code", "") != "importing":
            raise
        trace: Any = error.__traceback__
        while trace:
            code = trace.tb_frame.f_code
            if code.co_name == "<module>" and os.path.abspath(code.co_filename) == path:
                break
            trace = trace.tb_next
        if trace and function in trace.tb_frame.f_globals:
            return dict(trace.tb_frame.f_globals)
        where = f"`{os.path.basename(path)}`" + (f", line {trace.tb_lineno}," if trace else "")
        message = f"{where} submits a task while it is imported, and has no `{function}` by then"
        raise Refused("NotFound", message, _UNDER_GUARD) from None


def _imported(name: str, path: str) -> Any:
    """The module; one that cannot be imported to its end stays among the modules as far as it came."""
    parent, _, last = name.rpartition(".")
    package = importlib.import_module(parent) if parent else None
    module = sys.modules.get(name)
    if module is not None and os.path.abspath(getattr(module, "__file__", None) or "") == path:
        return module
    if module is not None:  # a file called as a module that Python has loaded already
        name = f"{name}__"
    folders = [os.path.dirname(path)] if os.path.basename(path) == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if package is not None:
        setattr(package, last, module)
    return module


def _missing(call: dict[str, Any], found: dict[str, Any]) -> Refused:
    import difflib

    name = call["function"]
    if name in found:
        return Refused("NotFound", f"`{name}` of `{call['file']}` is a {type(found[name]).__name__} and no function")
    near = difflib.get_close_matches(name, [one for one, value in found.items() if callable(value)], n=1)
    advice = [f"did you mean `{near[0]}`?"] if near else []
    return Refused("NotFound", f"`{call['file']}` has no function `{name}`", *advice, _AT_TOP)


class StandIn:
    """Finds `flow` where nobody else does: the user's module imports it, and the machine does not have it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The stand-in, for `flow` and anything below it."""
        if name != "flow":
            return importlib.machinery.ModuleSpec(name, self) if name.startswith("flow.") else None  # type: ignore[arg-type]
        stub = os.path.join(HERE, "flow_stub.py")
        return importlib.util.spec_from_file_location(name, stub, submodule_search_locations=[])

    def create_module(self, spec: Any) -> Any:
        """What is below it is the stand-in too."""
        return sys.modules["flow"]

    def exec_module(self, module: Any) -> None:
        """It is there already."""


def main(words: list[str]) -> int:
    """Do what the words say; the exit code."""
    for stream in (sys.stdout, sys.stderr):  # so that the log shows what is printed when it is
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    import faulthandler

    faulthandler.enable()
    with open(os.path.join(HERE, "call.json"), "rb") as file:
        call = json.load(file)
    if words == ["serve"]:
        return int(_beside("serve").serve(sys.modules[__name__], call, HERE))
    return once(call)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
