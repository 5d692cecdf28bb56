"""The login node: the program `node/slurm_login.py` is asked there, called as it stands where that is this machine."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from flow.channel import UNREACHABLE, Channel
from flow.errors import FlowError, ProviderError, QuotaExceededError, StorageError, ValidationError
from flow.node import slurm_login
from flow.providers.slurm.conversation import Conversation, answer_in

_NODE = Path(slurm_login.__file__).parent
# What slurmctld says that passes; sources: slurm_errno.c of Slurm 22.05.
_LATER = (
    "Unable to contact slurm controller", "Socket timed out", "Connection refused", "Zero Bytes were transmitted",
    "temporarily", "I/O error writing script", "Slurm backup controller", "Transport endpoint", "authentication",
)  # fmt: skip
_QUOTA = ("QOS", "Assoc", "accounting/", "MaxSubmit", "limit")


@functools.cache
def tools() -> tuple[str, tuple[str, ...]]:
    """What runs on the cluster: a name for this version of it, and its files."""
    names = tuple(sorted(path.name for path in _NODE.glob("*.py")))
    sha = hashlib.sha256()
    for name in names:
        sha.update(name.encode() + b"\0" + (_NODE / name).read_bytes())
    return sha.hexdigest()[:16], names


class Cluster:
    """`channel` leads to the login node, `folder` is the shared one as seen from there (`~` is its own)."""

    def __init__(self, channel: Channel, folder: str) -> None:
        self.channel, self.folder = channel, folder
        self._conversation = Conversation(channel, self._program())

    def ask(self, verb: str, *words: Any) -> Any:
        """The answer of that function of the program. Raises FlowError for what Slurm refuses."""
        return self._ask(verb, self.folder, *words)

    def sinfo(self) -> str:
        """See `slurm_login.sinfo`; needs no folder."""
        return str(self._ask("sinfo", ""))

    def call(self, words: Sequence[str]) -> tuple[int, str, str]:
        """See `slurm_login.call`; needs no folder."""
        code, out, err = self._ask("call", "", list(words))
        return code, out, err

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

    def _ask(self, verb: str, root: str, *words: Any) -> Any:
        if self.channel.is_here:
            return self._ask_here(verb, root, *words)
        return self._answer(self._conversation.ask([verb, root, *words]))

    def _ask_here(self, verb: str, root: str, *words: Any) -> Any:
        try:
            return getattr(slurm_login, verb)(*([root] if root else []), *words)
        except slurm_login.Refused as refused:
            raise refusal(*refused.args) from None
        except OSError as error:
            raise self._no_room(error.errno, error.strerror, error.filename) from error

    def _program(self) -> str:
        return shlex.join(["exec", self.channel.python, "-c", _program_text(), "ask"])

    def _stream(self, files: Sequence[tuple[str, Path]]) -> None:
        question = json.dumps(["receive", self.folder]).encode() + b"\n"
        words = self.channel.command(self._program())
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin
            try:
                process.stdin.write(question)
                _write_tar(process.stdin, files)
            except BrokenPipeError:
                pass  # what it says of that comes now
            out, err = process.communicate()
        told = answer_in(out.splitlines()[-1]) if out.strip() else None
        self._answer(told or subprocess.CompletedProcess(words, process.returncode, out, err))

    def _answer(self, told: dict[str, Any] | subprocess.CompletedProcess[bytes]) -> Any:
        if isinstance(told, subprocess.CompletedProcess):
            raise self._no_program(told)
        if "failed" in told:
            raise self._no_room(*told["failed"])
        if "refused" in told:
            raise refusal(*told["refused"])
        return told["answer"]

    def _no_program(self, done: subprocess.CompletedProcess[bytes]) -> FlowError:
        if done.returncode == UNREACHABLE:
            return self.channel.unreachable(done.stderr.decode(errors="replace"))
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"exit {done.returncode}"
        where = f"on `{self.channel.prefix[-1]}`" if self.channel.prefix else "here"
        return ProviderError(
            f"`{self.channel.python}` does not run {where}: {said}",
            suggestions=["name a Python 3.8 or newer of the cluster by `slurm.python`"],
        )

    def _no_room(self, number: int | None, why: str | None, path: str | None) -> StorageError:
        advice = "set `slurm.folder` to a folder that you can write to and that all nodes share"
        if number in (errno.ENOSPC, errno.EDQUOT):
            advice = "make room there: `flow prune` removes what old tasks left"
        at = f" (`{path}`)" if path else ""
        return StorageError(
            f"cannot write to `slurm.folder`, `{self.folder}`: {(why or 'failed').lower()}{at}",
            suggestions=[advice],
        )


def refusal(program: str, said: str) -> FlowError:
    """What a command of Slurm said, as the error that fits: one that passes is a ProviderError, others are not."""
    told = [line for line in said.strip().splitlines() if not line.startswith("Try ")]  # `sbatch --help`
    lines = [line.partition("error: ")[2] or line for line in told]
    text = lines[-1] if lines else "failed"
    if len(lines) > 1 and "submission failed" in text:
        text = f"{lines[0]} ({text})"
    if program == "flow":
        return ProviderError(said, suggestions=["a task that it waits for must have been given to the same cluster"])
    if "command not found" in said:
        return ProviderError(
            f"there is no `{program}` on this machine: it is no login node of a Slurm cluster",
            suggestions=["name the login node by `slurm.login`, as ssh knows it", "or have Slurm's commands on PATH"],
        )
    if program not in ("sbatch", "scontrol") or any(word in said for word in _LATER):
        return ProviderError(f"{program}: {text}", suggestions=["is the cluster up? try `sinfo` there"])
    if program == "scontrol":
        return ValidationError(f"scontrol: {text}")
    kind: Callable[..., FlowError] = ValidationError
    if any(word in said for word in _QUOTA):
        kind = QuotaExceededError
    return kind(f"sbatch: {text}", suggestions=["see the partitions and their limits with `flow offers` or `sinfo`"])


@functools.cache
def _program_text() -> str:
    return Path(slurm_login.__file__).read_text()


def _write_tar(target: IO[bytes], files: Sequence[tuple[str, Path]]) -> None:
    with tarfile.open(fileobj=target, mode="w|gz") as archive:
        for name, path in files:
            archive.add(path, name, recursive=False)


def _place(source: Path, target: Path) -> None:
    """A file of this machine under its name there, whole; shared where the file system can."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copyfile(source, new)
    new.rename(target)
