"""The ranks of one attempt -> one bash script that starts any of them on a bare machine with Python 3.8 or newer."""

from __future__ import annotations

import ast
import base64
import json
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flow.masking import is_secret

_NODE = Path(__file__).parent / "node"
# Where there is no Slurm, for its scripts.
_FOR_SCRIPTS = (
    "batch.py", "hostlist.py", "layout.py", "ledger.py", "modules.py", "patterns.py", "scontrol.py", "srun.py",
    "srun_layout.py", "srun_options.py", "step_task.py", "steps.py",
)  # fmt: skip
_SCRIPT = """\
#!/bin/bash
# Starts {what} of Flow on this machine; its rank is $1 or $FLOW_RANK.
command -v python3 >/dev/null || {{ echo 'flow: this machine has no python3' >&2; exit 127; }}
exec python3 -c '
import base64, json, os, sys, time, zlib
files, late, shared, own = json.loads(zlib.decompress(base64.b85decode("{payload}")))
task = dict(shared, **own[int(sys.argv[1])])
os.umask(0o77)
at = os.path.join(os.path.expanduser("{root}"), task["task_id"], str(task["attempt"]), sys.argv[1])
os.makedirs(at + "/inbox", exist_ok=True)
def write(name, text):
    with open(os.path.join(at, name), "w", encoding="utf-8") as file:
        file.write(text)
for name in files:
    write(name, files[name])
write("task.json", json.dumps(task))
end = time.monotonic() + task.get("delivery_timeout_seconds", 1800)
while not all(os.path.exists(at + "/inbox/" + name) for name in late):
    time.sleep(0.2)
    if time.monotonic() > end:
        write("status.json", json.dumps({{"v": 1, "phase": "ended", "code": 126, "cause": "start",
            "reason": "code never arrived", "ended": time.time()}}))
        sys.exit()
os.execv(sys.executable, [sys.executable, at + ("/inbox" if late else "") + "/runner.py", "run", at])
' "${{1:-${{FLOW_RANK:-0}}}}"
"""


class Boot(NamedTuple):
    """`script` starts a rank; `inbox[rank]` are the files (name and text) awaited in that rank's inbox.

    A file is put there whole: written under another name, then renamed.
    """

    script: str
    inbox: tuple[Mapping[str, str], ...]


def boot(jobs: Sequence[Mapping[str, Any]], root: str, *, most_bytes: int | None = None) -> Boot:
    """What runs `jobs[rank]` (a `task.json` each) in `root`/task/attempt/rank; `~` is the machine's own.

    Values of variables that look secret go through the inbox; so do the runner, then all variables, where the script
    would be longer than `most_bytes`. Running it again is harmless: a task that ever ran does not run again.
    Raises ValueError where even the rest is too long, or `root` cannot be written into a script.
    """
    if not re.fullmatch(r"[\w./~+@:,=%-]+", root, re.ASCII):
        raise ValueError(f"`{root}` cannot be written into a script")
    files = {name: stripped((_NODE / name).read_text()) for name in _files_for(jobs[0])}
    for late, is_kept in (({}, _is_plain), (files, _is_plain), (files, _is_nothing)):
        split = [_without_env(job, is_kept) for job in jobs]
        tasks = [task for task, _ in split]
        script = _script(tasks, root, files={} if late else files, late=list(late))
        if most_bytes is None or len(script) <= most_bytes:
            return Boot(script, tuple({**late, **env} for _, env in split))
    raise ValueError(f"the boot script of `{jobs[0]['task_id']}` would be longer than {most_bytes} bytes")


def _script(tasks: Sequence[Mapping[str, Any]], root: str, *, files: Mapping[str, str], late: list[str]) -> str:
    shared = {key: value for key, value in tasks[0].items() if all(task.get(key) == value for task in tasks)}
    own = [{key: value for key, value in task.items() if key not in shared} for task in tasks]
    payload = zlib.compress(json.dumps([files, late, shared, own], separators=(",", ":")).encode(), 9)
    return _SCRIPT.format(what=tasks[0]["task_id"], root=root, payload=base64.b85encode(payload).decode())


def _is_plain(name: str) -> bool:
    return not is_secret(name)


def _is_nothing(name: str) -> bool:
    return False


def _without_env(job: Mapping[str, Any], is_kept: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, str]]:
    """The task with the variables that are kept, and the file that brings the others."""
    env = job.get("env", {})
    late = {name: value for name, value in env.items() if not is_kept(name)}
    if not late:
        return dict(job), {}
    kept = {name: value for name, value in env.items() if name not in late}
    return {**job, "env": kept, "needs": [*job.get("needs", []), "inbox/env.json"]}, {"env.json": json.dumps(late)}


def _files_for(task: Mapping[str, Any]) -> list[str]:
    """The files of `node/` that this task needs on its machine."""
    mounts = task.get("mounts", [])
    wanted = {
        "unpack.py": task.get("code"),
        "container.py": task.get("image"),
        "pull.py": "inbox/registry.json" in task.get("needs", []),
        "mounts.py": mounts or task.get("private_mounts"),
        "mount_points.py": mounts or task.get("private_mounts"),
        "volumes.py": any(one["kind"] == "device" for one in mounts),
        "peers.py": task.get("nodes", 1) > 1,
        **dict.fromkeys(_FOR_SCRIPTS, task.get("slurm")),
    }
    always = ["runner.py", "processes.py", "loop.py", "log.py", "asked.py"]
    if any(one["kind"] == "s3" for one in mounts):
        always += ["fuse.py", *sorted(path.name for path in _NODE.glob("s3*.py"))]
    return always + [name for name, is_needed in wanted.items() if is_needed]


def stripped(source: str) -> str:
    """The same program without comments, docstrings and annotations, indented by one."""
    tree = _Stripper().visit(ast.parse(source))
    return re.sub(r"^(?: {4})+", lambda indent: " " * (len(indent[0]) // 4), ast.unparse(tree), flags=re.MULTILINE)


class _Stripper(ast.NodeTransformer):
    """Takes out what only readers and type checkers need."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._without_docstring(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._without_docstring(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], self.visit(node.value), lineno=node.lineno), node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """From 3.12 on Python writes f-strings that older ones cannot read: with the same quotes inside of them."""
        self._visit_values(node)
        if sys.version_info < (3, 12):
            return node
        values: list[ast.expr] = []
        call = ast.Attribute(ast.Constant(_template(node, values)), "format", ast.Load())
        return ast.copy_location(ast.Call(call, values, []), node)

    def _visit_values(self, node: ast.expr | None) -> None:
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(part, ast.FormattedValue):
                part.value = self.visit(part.value)
                self._visit_values(part.format_spec)

    def _without_docstring(self, node: ast.Module | ast.ClassDef | ast.FunctionDef) -> ast.AST:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        self.generic_visit(node)
        return node


def _template(node: ast.expr | None, values: list[ast.expr]) -> str:
    """What `str.format` makes the same of, with the values of an f-string in their order."""
    text = ""
    for part in node.values if isinstance(node, ast.JoinedStr) else ():
        if isinstance(part, ast.FormattedValue):
            values.append(part.value)
            conversion = f"!{chr(part.conversion)}" if part.conversion >= 0 else ""
            spec = _template(part.format_spec, values)
            text += "{" + conversion + (f":{spec}" if spec else "") + "}"
        elif isinstance(part, ast.Constant):
            text += str(part.value).replace("{", "{{").replace("}", "}}")
    return text
