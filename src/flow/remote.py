"""A folder on another machine, and a program of `node/` that answers questions there."""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from flow.blobs import blob_path, manifest_path
from flow.bundle import read_manifest
from flow.channel import UNREACHABLE, Channel
from flow.conversation import Conversation, answer_in
from flow.errors import FlowError, ProviderError, StorageError, UnreachableError
from flow.node import answers

NODE = Path(answers.__file__).parent
_PUBLIC = ("look", "facts")  # questions that hold no secrets
_LOADER = """from __future__ import annotations
import sys, types
for name, text in {modules!r}:
    module = sys.modules[name] = types.ModuleType(name)
    exec(text, module.__dict__)
"""
# Runs a program from where the first submission put it, as it is compiled there; else it is asked for.
_STARTER = """import importlib, json, os, sys
at = os.path.join(os.path.expanduser({folder!r}), "node", {version!r})
try:
    os.stat(os.path.join(at, "whole"))
    sys.path.insert(0, at)
    program = importlib.import_module({name!r})
except Exception:
    sys.argv.pop() if sys.argv[1:] else sys.stdin.buffer.readline()
    print('{{"lacks": "program"}}', flush=True)
    exec(json.loads(sys.stdin.buffer.readline()), {{"__name__": "__main__", "__package__": None}})
else:
    program.answers.answer(vars(program))
"""


@functools.cache
def tools() -> tuple[str, tuple[str, ...]]:
    """What runs on the machines: a name for this version of it, and its files."""
    names = tuple(sorted(path.name for path in NODE.glob("*.py")))
    sha = hashlib.sha256()
    for name in names:
        sha.update(name.encode() + b"\0" + (NODE / name).read_bytes())
    return sha.hexdigest()[:16], names


def files_for(home: Path, bundle: str | None) -> dict[str, Path]:
    """What a task needs in such a folder, by name there; what says that something is whole comes last."""
    version, names = tools()
    files = {f"node/{version}/{name}": NODE / name for name in names}
    files[f"node/{version}/whole"] = NODE / "__init__.py"
    if bundle:
        digests = {digest for _, _, digest, _ in read_manifest(home, bundle)["files"]}
        files.update({f"blobs/{one[:2]}/{one}": blob_path(home, one) for one in sorted(digests)})
        files[f"manifests/{bundle}.json"] = manifest_path(home, bundle)
    return files


class Remote:
    """`channel` leads to the machine, `folder` is as seen from there (`~` is its own); it is what `setting` names.

    The program is `module`, with the modules beside it that it needs; it is called as it stands where the machine is
    this one.
    """

    def __init__(self, channel: Channel, folder: str, module: ModuleType, needs: Sequence[str], setting: str) -> None:
        self.channel, self.folder, self.setting = channel, folder, setting
        self._module = module
        self._program = program_text(module.__name__, tuple(needs))
        name = module.__name__.rpartition(".")[2]
        starter = _STARTER.format(folder=folder, version=tools()[0], name=name)
        self._conversation = Conversation(channel, self._script(starter), self._program)

    def ask(self, verb: str, *words: Any) -> Any:
        """The answer of that function of the program. Raises FlowError for what it refuses."""
        return self.ask_of(self.folder, verb, *words)

    def ask_of(self, root: str, verb: str, *words: Any) -> Any:
        """The same, of another folder; "" for a question that is about none."""
        if self.channel.is_here:
            return self._ask_here(verb, root, *words)
        return self._answer(self._conversation.ask([verb, root, *words], is_public=verb in _PUBLIC))

    def send(self, files: Mapping[str, Path]) -> None:
        """Put files, by the name that each has in the folder, where they are not there yet; in this order."""
        names = self.ask("missing", list(files))
        if self.channel.is_here:
            root = Path(os.path.expanduser(self.folder))  # noqa: PTH111  # as the other side does
            try:
                for name in names:
                    _place(files[name], root / name)
            except OSError as error:
                raise self._no_room(error.errno, error.strerror, error.filename2 or error.filename) from error
            return
        self._stream([(name, files[name]) for name in names])

    def hang_up(self) -> None:
        """Let go of the machine, which is about to go."""
        self._conversation.close()
        self.channel.hang_up()

    def refusal(self, program: str, said: str) -> FlowError:
        """What a program there said, as an error."""
        return ProviderError(said if program == "flow" else f"{program}: {said}")

    def _script(self, program: str) -> str:
        """That runs a Python program, of which it needs nothing but what came with it."""
        return shlex.join(["exec", self.channel.python, "-IS", "-c", program])

    def _ask_here(self, verb: str, root: str, *words: Any) -> Any:
        function = getattr(self._module, verb, None) or getattr(answers, verb)
        try:
            return function(*([root] if root else []), *words)
        except answers.Refused as refused:
            raise self.refusal(*refused.args) from None
        except OSError as error:
            raise self._no_room(error.errno, error.strerror, error.filename) from error

    def _stream(self, files: Sequence[tuple[str, Path]]) -> None:
        question = json.dumps(["receive", self.folder]).encode() + b"\n"
        words = self.channel.command(self._script(self._program))
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin
            try:
                process.stdin.write(question)
                _write_tar(process.stdin, files)
            except (BrokenPipeError, KeyboardInterrupt) as error:  # what it says of a broken pipe comes now
                stops = [one for one in (error, error.__context__) if isinstance(one, KeyboardInterrupt)]
                if stops:  # ssh heard Ctrl-C too, and what was written last is told of when the pipe is closed
                    with suppress(BrokenPipeError):
                        process.stdin.close()
                    raise stops[0] from None
            out, err = process.communicate()
        told = answer_in(out.splitlines()[-1]) if out.strip() else None
        self._answer(told or subprocess.CompletedProcess(words, process.returncode, out, err))

    def _answer(self, told: dict[str, Any] | subprocess.CompletedProcess[bytes]) -> Any:
        if isinstance(told, subprocess.CompletedProcess):
            raise self._no_program(told)
        if "failed" in told:
            raise self._no_room(*told["failed"])
        if "refused" in told:
            raise self.refusal(*told["refused"])
        return told["answer"]

    def _no_program(self, done: subprocess.CompletedProcess[bytes]) -> FlowError:
        if done.returncode == UNREACHABLE:
            return self.channel.unreachable(done.stderr.decode(errors="replace"))
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"exit {done.returncode}"
        where = f"on `{self.channel.prefix[-1]}`" if self.channel.prefix else "here"
        return UnreachableError(
            f"`{self.channel.python}` does not run {where}: {said}",
            suggestions=[f"name a Python 3.8 or newer of that machine by `{self.setting.partition('.')[0]}.python`"],
        )

    def _no_room(self, number: int | None, why: str | None, path: str | None) -> StorageError:
        advice = f"set `{self.setting}` to a folder that you can write to"
        if number in (errno.ENOSPC, errno.EDQUOT):
            advice = "make room there: `flow prune` removes what old tasks left"
        where = f" on `{self.channel.prefix[-1]}`" if self.channel.prefix else ""
        at = f" (`{path}`)" if path else ""
        return StorageError(
            f"cannot write to `{self.setting}`, `{self.folder}`{where}: {(why or 'failed').lower()}{at}",
            suggestions=[advice],
        )


@functools.cache
def program_text(name: str, needs: tuple[str, ...]) -> str:
    """A module of `node/` as one program, behind those that it imports."""
    modules = [(one, (NODE / f"{one}.py").read_text()) for one in ("answers", *needs)]
    return _LOADER.format(modules=modules) + (NODE / f"{name.rpartition('.')[2]}.py").read_text().replace(
        "from __future__ import annotations\n", "", 1
    )


def packed_program(module: ModuleType, needs: Sequence[str]) -> str:
    """The same as one short line, for a command line."""
    packed = base64.b64encode(zlib.compress(program_text(module.__name__, tuple(needs)).encode())).decode()
    return f"import base64, zlib; exec(zlib.decompress(base64.b64decode('{packed}')))"


def _write_tar(target: IO[bytes], files: Sequence[tuple[str, Path]]) -> None:
    with tarfile.open(fileobj=target, mode="w|gz", dereference=True) as archive:
        for name, path in files:
            archive.add(path, name, recursive=False)


def _place(source: Path, target: Path) -> None:
    """A file of this machine under its name there, whole; shared where the file system can."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copyfile(source, new)
    new.rename(target)
