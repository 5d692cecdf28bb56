"""One call of a function: where the function is found, and the files that go to the machine with the project."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow.errors import ResourceNotFoundError, ValidationError, did_you_mean
from flow.node import values

FOLDER = ".flow/call"  # in the task's copy of the project
_NODE = Path(values.__file__).parent
_SENT = ("invoke.py", "values.py", "flow_stub.py", "serve.py")


@dataclass(frozen=True, slots=True)
class Target:
    """A function at the top level of a file (absolute path), and the module's name on the machine."""

    file: Path
    module: str
    function: str


@dataclass(frozen=True, slots=True)
class Call:
    """What the client adds to a task's bundle. `function`: what its result is called by; "" where it has none."""

    function: str
    file: str  # in the project
    files: Mapping[str, bytes]  # path in the project -> content


def target_of(function: Callable[..., Any]) -> Target:
    """Where a function of this program is found by another one.

    Raises ValidationError where it cannot be: a lambda, one made inside of another or of a class, one typed in.
    """
    name = getattr(function, "__qualname__", "")
    if not name.isidentifier() or isinstance(function, type):
        kind = "a lambda" if "<lambda>" in name else "defined inside of another function" if "<locals>" in name else ""
        raise ValidationError(
            f"`{name or repr(function)}` cannot run elsewhere: it is {kind or 'no plain function of a module'}",
            suggestions=["decorate a function that is defined by `def` at the top level of a file"],
        )
    main = sys.modules.get("__main__")
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py") or not Path(file).is_file():
        raise ValidationError(
            f"`{name}` cannot run elsewhere: it is in no file (`{function.__module__}`)",
            suggestions=["write it into a file of the project, and import it from there"],
        )
    path = Path(file).resolve()
    spec = getattr(main, "__spec__", None) if module is main else None
    return Target(path, _module_name(path, spec.name if spec else function.__module__), name)


def target_in(file: str | os.PathLike[str], function: str) -> Target:
    """The function of that name in a file, which is not imported. Raises ValidationError or ResourceNotFoundError."""
    path = Path(file)
    if not path.is_file():
        near = [str(one) for one in path.parent.glob("*.py")] if path.parent.is_dir() else []
        as_path = Path(str(file).replace(".", "/") + ".py")
        advice = [f"did you mean `{as_path}`?"] if as_path.is_file() else did_you_mean(str(path), near)
        raise ResourceNotFoundError(f"there is no file `{file}`", suggestions=advice)
    if path.suffix != ".py":
        raise ValidationError(f"`{file}` is no Python file", suggestions=["name a file that ends in `.py`"])
    if not function.isidentifier():
        raise ValidationError(
            f"`{function}` is no name of a function", suggestions=["name a function of the file's top level"]
        )
    path = path.resolve()
    parts = [_plain_name(path)] if path.name != "__init__.py" else []
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    return Target(path, ".".join(parts) or path.parent.name, function)


def check_source(target: Target) -> None:
    """Raise ValidationError for a file that this Python cannot read, or that has nothing of the function's name."""
    try:
        tree = ast.parse(target.file.read_bytes(), str(target.file))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValidationError(f"`{target.file.name}`{line}: {getattr(error, 'msg', error)}") from error
    names = {name for node in ast.walk(tree) for name in _bound(node)}
    if target.function not in names and "*" not in names:
        functions = [one.name for one in tree.body if isinstance(one, ast.FunctionDef)]
        near = did_you_mean(target.function, functions)
        raise ValidationError(f"`{target.file.name}` has no function `{target.function}`", suggestions=near)


def make_call(target: Target, project: Path, arguments: bytes | None) -> Call:
    """The files of a call with these arguments (as `encode_arguments` gives them), or of a worker that is sent calls.

    Raises ValidationError where the function's file is not in the project.
    """
    project = project.resolve()
    if not target.file.is_relative_to(project):
        raise ValidationError(
            f"`{target.file}` is not in the project `{project}`, which is what the machine gets",
            suggestions=["run from a folder above the file", "move the function into the project"],
        )
    file = target.file.relative_to(project).as_posix()
    up = target.module.count(".") + (target.file.name == "__init__.py")
    folders = [target.file.parents[up], *map(_resolved, sys.path)]
    paths = dict.fromkeys(one.relative_to(project).as_posix() for one in folders if one.is_relative_to(project))
    where = {"module": target.module, "file": file, "function": target.function, "paths": list(paths)}
    call = json.dumps(where).encode()
    if arguments:
        call = call[:-1] + b"," + arguments[1:]
    sources = {f"{FOLDER}/{one}": (_NODE / one).read_bytes() for one in _SENT if one != "serve.py" or not arguments}
    return Call(target.function if arguments else "", file, {**sources, f"{FOLDER}/call.json": call})


def encode_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The arguments as one JSON object. Raises ValidationError, with the path to it, for what JSON would change."""
    if not isinstance(args, list | tuple):
        raise ValidationError(f"`args` is a `{type(args).__name__}`", suggestions=["write a list: `args=[…]`"])
    if not isinstance(kwargs, Mapping):
        raise ValidationError(f"`kwargs` is a `{type(kwargs).__name__}`", suggestions=["write a dict: `kwargs={…}`"])
    try:
        positional = values.encode(list(args), "args")
        return b'{"args":' + positional + b',"kwargs":' + values.encode(dict(kwargs), "kwargs") + b"}"
    except values.NotJson as error:
        raise ValidationError(str(error), suggestions=[error.advice]) from None


def _module_name(path: Path, name: str) -> str:
    """`name` where importing that finds the file, else the file's own."""
    parts = name.split(".")
    inside = path.with_suffix("") if path.name != "__init__.py" else path.parent
    return name if list(inside.parts[-len(parts) :]) == parts else _plain_name(path)


def _plain_name(path: Path) -> str:
    return path.stem.replace(".", "_")


def _resolved(entry: str) -> Path:
    return Path(entry or ".").resolve()


def _bound(node: ast.AST) -> list[str]:
    """The names that a piece of a module gives something to."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    return [node.asname or node.name.partition(".")[0]] if isinstance(node, ast.alias) else []
