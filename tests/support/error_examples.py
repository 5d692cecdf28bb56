"""An example of each error for docs/reference/errors.md: what raises it, run each time, and what is then told."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flow.errors import FlowError
from flow.providers.local.wake import end_scheduler

# By the class's name: Python that raises it, or for those of the command line alone (`$ …`) a command.
EXAMPLES = {
    "FlowError": """
        try:
            flow.run("trian.yaml")
        except flow.errors.FlowError as error:
            print(error.code, "|", error.message, "|", *error.suggestions)
        """,
    "ValidationError": 'flow.run("python train.py", gpu="a10O:8")',
    "MistakesError": 'flow.run("python train.py", comand="x", retries=-1, env={"A": ["b"]})',
    "ResourceNotFoundError": 'flow.run("trian.yaml")',
    "TaskNotFoundError": 'flow.get_task("trian")',
    "NoEndpointError": 'flow.run("sleep 60", ports=[8888]).endpoints["8889"]',
    "TaskFailedError": 'flow.run("echo oh no; exit 3").wait(check=True)',
    "TimeoutError": 'flow.run("sleep 60").wait(timeout=0.1)',
    "StorageError": """
        task = flow.run("echo fine > $FLOW_OUTPUT/result.json")
        task.wait()
        task.result()
        """,
    "RemoteError": """
        try:
            flow.invoke("model.py", "fit", args=[0])
        except flow.errors.RemoteError as error:
            print("RemoteError:", error.message)
            print(error.remote_type, "|", error.traceback.splitlines()[-1])
        """,
    "UnknownProfileError": "$ flow --profile work status",
    "UsageError": "$ flow run python train.py --lr 0.1",
    "ConfirmationRequiredError": "$ flow cancel --name-pattern 'train*' </dev/null",
}
# Those that cannot be had so: where they come from.
ELSEWHERE = {
    "AuthenticationError": "This machine asks nobody who you are; a cloud does.",
    "QuotaExceededError": "This machine has no quota: what does not fit waits. A cloud refuses it.",
    "ProviderError": "This machine is always in reach; a machine elsewhere, or a cloud's API, may not be.",
    "UnreachableError": "This machine is always in reach; it takes one that does not answer through ssh.",
    "NoRoomError": "It takes a full disk. It names Flow's folder, and `flow prune` as the way to make room there.",
    "SubmittedWhileImportedError": "A machine sees it while it imports a function's file; it is no failure of the call "
    "where the function stands above the line that submits, and a RemoteError where it does not.",
    "NameTakenError": "Names of bids and volumes are a cloud's; it tells who has the name.",
    "NotKnownError": "It takes a cloud that breaks off in its answer. Flow looks for what it was asked to make.",
    "PriceTooLowError": "This machine costs nothing.",
    "TaskIdTaken": "Flow answers it itself, with another id.",
}
_FILES = {
    "model.py": "def fit(rate):\n    return 1 / rate\n",
    "train.py": "print('training')\n",
    "train.yaml": "command: python3 train.py\n",
}
_SHOWN = """
import flow

def example():
{code}

try:
    example()
except flow.errors.FlowError as error:
    print(f"{{type(error).__name__}}: {{error}}")
    for suggestion in error.suggestions:
        print(f"  {{suggestion}}")
"""


@dataclass(frozen=True, slots=True)
class Example:
    """What was run, in which language, and what it printed, with `…` for what differs each time."""

    language: str
    code: str
    printed: str


def run_examples() -> dict[str, Example]:
    """Every example by the name of its error, run in an empty home. Raises AssertionError where it raises another."""
    with _project() as folder:
        return {name: _run(name, textwrap.dedent(code).strip(), folder) for name, code in EXAMPLES.items()}


def _run(name: str, code: str, folder: Path) -> Example:
    if code.startswith("$ "):
        argv, language = ["sh", "-c", code[2:]], "bash"
    else:
        shown = code if code.startswith("try:") else _SHOWN.format(code=textwrap.indent(code, "    "))
        argv, language = [sys.executable, "-c", f"import flow\n{shown}"], "python"
    run = subprocess.run(argv, cwd=folder, env=_environment(folder), capture_output=True, text=True)
    told = run.stdout if language == "python" else run.stderr[run.stderr.find("error: ") :]
    printed = told.replace(str(folder / "home"), "~")
    printed = re.sub(r"task-[0-9a-z]{14}", "task-…", printed)
    if language == "bash":
        assert run.returncode == _kind(name).exit_code, printed
    else:
        assert printed.startswith((f"{name}: ", "not_found | ")), f"{name}: {printed}{run.stderr}"
    return Example(language, code.removeprefix("$ "), printed)


def _kind(name: str) -> type[FlowError]:
    from flow import errors
    from flow.cli.group import UsageError

    kind: type[FlowError] = UsageError if name == "UsageError" else getattr(errors, name)
    return kind


def _environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder / "home"), "TMPDIR": str(folder), "NO_COLOR": "1", "FLOW_LOCAL_CPUS": "16"}


@contextlib.contextmanager
def _project() -> Iterator[Path]:
    """A project with a task called `train` that runs; everything of it ends with it."""
    with tempfile.TemporaryDirectory(prefix="flow-errors-") as name:
        folder = Path(name)
        (folder / "home").mkdir()
        for file, text in _FILES.items():
            (folder / file).write_text(text)

        def flow(*words: str) -> None:
            argv = [sys.executable, "-m", "flow", *words]
            subprocess.run(argv, cwd=folder, env=_environment(folder), capture_output=True)

        flow("run", "sleep 300", "--name", "train")
        try:
            yield folder
        finally:
            flow("cancel", "--name-pattern", "*", "--yes")
            end_scheduler(folder / "home" / ".flow" / "local", wait_seconds=20)
