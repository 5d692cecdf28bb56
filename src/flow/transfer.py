"""Files and folders to and from a task, as `docker cp` copies them: a stream of tar, never whole in memory."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, NoReturn

from flow.access import entering, node_of
from flow.attempts import attempt_numbers
from flow.channel import UNREACHABLE
from flow.errors import FlowError, ProviderError, ResourceNotFoundError, ValidationError
from flow.log_folders import check_rank
from flow.machines import Allocation
from flow.record import Records

if TYPE_CHECKING:
    from flow.task import Task

_MISSING = 66
_KINDS = {b"d\n": True, b"f\n": False}
_HARMLESS = ("file changed as we read it", "File removed before we read it", "file removed before we read it")

# `$1`: the folder that a relative path begins at, or "" for the workspace. `$2` "output": `$3` is below a folder of
# that name, which is the task's `$FLOW_OUTPUT` where the workspace has none of its own.
_GO = r"""LC_ALL=C; export LC_ALL
cd "${1:-$FLOW_WORKSPACE}" && { [ "$2" != output ] || [ -e output ] || cd "$FLOW_OUTPUT/.."; } || exit
"""
# Says on its first line whether a folder comes or a file, whose link is followed; those in a folder stay links.
_GIVE = (
    _GO
    + r"""[ -d "$3" ] && { cd "$3" && echo d && exec tar -c -f - .; exit; }
[ -e "$3" ] || exit 66
cd "${3%/*}/" && [ -r "./${3##*/}" ] && echo f && exec tar -c -h -f - "./${3##*/}"
echo "$3: Permission denied" >&2; exit 1
"""
)
# `$4`: d or f, `$5`: its name; "" for what is in a folder. A file is replaced whole.
_TAKE = (
    _GO
    + r"""at=$3; [ ! -d "$at" ] || at=$at${5:+/$5}
if [ "$4" = d ]; then
  [ -d "$at" ] || mkdir "$at" && exec tar -x -o -f - -C "$at"
  exit
fi
[ ! -d "$at" ] || { echo "$at is a folder" >&2; exit 1; }
new=$at.flow-$$; mkdir "$new" || exit; trap 'rm -rf "$new"' EXIT; trap 'exit 1' HUP INT TERM
tar -x -o -f - -C "$new" && mv -f "$new/$5" "$at"
"""
)


def copy_from(
    task: Task, allocation: Allocation | None, records: Records, path: str, into: str | Path, *, node: int
) -> Path:
    """What `Task.copy_from` promises, of a task that has these machines while it runs."""
    argv = _inside(task, allocation, records, path, [_GIVE], node=node)
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, bufsize=0) as there:
            assert there.stdout
            kind = there.stdout.readline()
            if kind not in _KINDS:
                there.stdout.read()
                _fail(task, path, there.wait(), said)
            try:
                target = _target(into, _name(path), is_folder=_KINDS[kind])
                _unpack(there.stdout, target, is_folder=_KINDS[kind])
            except BaseException:
                there.terminate()
                raise
        if there.returncode and not (there.returncode == 1 and _is_harmless(said)):
            _fail(task, path, there.returncode, said)
    return target


def copy_to(
    task: Task, allocation: Allocation | None, records: Records, source: str | Path, path: str, *, node: int
) -> None:
    """What `Task.copy_to` promises, of a task that has these machines while it runs."""
    if not Path(source).exists():
        raise ResourceNotFoundError(f"there is no `{source}` here")
    if task.status.is_final:
        raise ValidationError(f"`{task.task_id}` has ended: nothing can be copied to it")
    folder, names = Path(source), [_name(str(source))]
    is_folder = folder.is_dir()
    argv = _inside(task, allocation, records, path, [_TAKE, "d" if is_folder else "f", *names], node=node)
    if is_folder:  # not as `.`: a folder that is there keeps its mode
        names = [one.name for one in folder.iterdir()]
    else:
        folder = folder.parent
    # a link that is named itself is followed; a name may begin with `-`, or hold anything
    pack = ["tar", "-c", *([] if is_folder else ["-h"]), "-f", "-", "-C", str(folder), "--null", "-T", "-"]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as why, tempfile.TemporaryFile() as given:
        given.write(b"".join(os.fsencode(f"./{one}") + b"\0" for one in names))
        given.seek(0)
        with subprocess.Popen(pack, stdin=given, stdout=subprocess.PIPE, stderr=why) as here:
            done = subprocess.run(argv, stdin=here.stdout, stdout=subprocess.DEVNULL, stderr=said, check=False)
        if done.returncode:
            _fail(task, path, done.returncode, said)
        if here.returncode and not (here.returncode == 1 and _is_harmless(why)):
            raise FlowError(f"`{source}` could not be read whole: {_last(why)}")


def _inside(
    task: Task, allocation: Allocation | None, records: Records, path: str, words: Sequence[str], *, node: int
) -> list[str]:
    """The argv that runs a script, the first of `words`, where `path` of the task can be seen."""
    script, *more = words
    parts = PurePosixPath(path).parts
    if parts[:2] == ("/", "workspace"):  # which not every task sees there
        parts = parts[2:]
    is_absolute = parts[:1] == ("/",)
    whole = str(PurePosixPath(*parts)) if is_absolute else "./" + "/".join(parts)
    end = "/" if path.endswith("/") and not whole.endswith("/") else ""
    asked = ["output" if parts[:1] == ("output",) else "", whole + end, *more]
    begin = "." if task.plan.in_place else ""
    if not task.status.is_final:
        place = node_of(task, allocation, node, "copying")
        return entering(place, ["sh", "-c", script, "cp", begin, *asked])
    check_rank(task.task_id, task.plan, node, is_array=task.is_array)
    numbers = attempt_numbers(records, task.task_id)
    kept = records.folder(task.task_id, numbers[-1] if numbers else 1, node)
    if is_absolute:
        raise ValidationError(
            f"`{task.task_id}` has ended: of its files those are left that were in its workspace or in `$FLOW_OUTPUT`",
            suggestions=[*_on_kept(task), f"name one, as `{task.task_id}:output/model.pt`"],
        )
    workspace = kept / "workspace"
    variables = [f"FLOW_WORKSPACE={workspace if workspace.is_dir() else kept}", f"FLOW_OUTPUT={kept / 'output'}"]
    return ["env", *variables, "sh", "-c", script, "cp", "", *asked]


def _name(path: str) -> str:
    """What the copy is called below a folder; "" for what is in the folder named, as `docker cp` reads `folder/.`."""
    name = "" if path.endswith("/.") else PurePosixPath(path).name
    return "" if name == ".." else name


def _target(into: str | Path, name: str, *, is_folder: bool) -> Path:
    """Where exactly it is to lie. Raises FlowError where it cannot."""
    target = Path(into)
    if target.is_dir():
        target /= name
    elif not target.parent.is_dir() or (str(into).endswith("/") and not is_folder):
        raise ResourceNotFoundError(f"there is no folder `{into if target.parent.is_dir() else target.parent}` here")
    if target.is_dir() != is_folder and target.exists():
        raise ValidationError(f"`{target}` is a {'file' if is_folder else 'folder'}, and a copy cannot take its place")
    return target


def _unpack(stream: IO[bytes], target: Path, *, is_folder: bool) -> None:
    if is_folder:
        mode = target.stat().st_mode if target.exists() else None
        target.mkdir(exist_ok=True)
        _untar(stream, target)
        if mode is not None:  # it is the user's own folder, which has gained something
            target.chmod(mode & 0o7777)
        return
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        _untar(stream, Path(folder))
        (only,) = Path(folder).iterdir()
        only.replace(target)


def _untar(stream: IO[bytes], into: Path) -> None:
    done = subprocess.run(["tar", "-x", "-o", "-f", "-", "-C", into], stdin=stream, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise FlowError(f"the copy in `{into}` is not whole: {last}", suggestions=["copy it again"])


def _is_harmless(said: IO[bytes]) -> bool:
    """Whether tar, ending with 1, tells that a file was written to meanwhile: what is worse ends it with 2."""
    return any(line.endswith(_HARMLESS) for line in _lines(said))


def _fail(task: Task, path: str, code: int, said: IO[bytes]) -> NoReturn:
    if code == _MISSING:
        ways = [f"look there with `flow ssh {task.task_id} -- ls -l`"]
        if task.status.is_final:
            ways = [*_on_kept(task), f"it has ended: what it left in `$FLOW_OUTPUT` is `{task.task_id}:output`"]
        raise ResourceNotFoundError(f"`{task.task_id}` has no `{path}`", suggestions=ways)
    if code == UNREACHABLE:
        raise ProviderError(f"`{task.task_id}` cannot be reached: {_last(said)}", suggestions=["try again"])
    raise FlowError(f"`{path}` of `{task.task_id}` cannot be copied: {_last(said) or f'exit {code}'}")


def _on_kept(task: Task) -> list[str]:
    """Where else a file of a task that has ended may be: nothing is copied from a machine that was kept."""
    look = f"its machine was kept, and may have it: look there with `flow ssh {task.task_id} -- ls -l`"
    return [look] if task.has_kept else []


def _last(said: IO[bytes]) -> str:
    return (_lines(said) or [""])[-1]


def _lines(said: IO[bytes]) -> list[str]:
    """What was said, but for what Slurm adds where a command ends with another code than 0."""
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return [line for line in lines if not line.startswith("srun: error:")]
