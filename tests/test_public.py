"""What users import: the names, their types, and how they behave in a program of any shape."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import flow
from flow import Flow, Task, TaskConfig
from flow.config import VolumeMount
from flow.errors import FlowError, ResourceNotFoundError, TaskNotFoundError, ValidationError

CALL_SITES = Path(__file__).with_name("call_sites.py")


def test_the_surface_is_exactly_this() -> None:
    assert flow.__all__ == [
        "DevMachine",
        "Flow",
        "FlowApp",
        "Task",
        "TaskConfig",
        "TaskStatus",
        "Volume",
        "cancel",
        "create_volume",
        "errors",
        "function",
        "get_task",
        "invoke",
        "mount_volume",
        "run",
        "submit",
        "tasks",
        "volumes",
    ]
    assert dir(flow) == flow.__all__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module `flow` has no attribute `runn`"):
        flow.runn  # noqa: B018


@pytest.mark.timeout(300)
def test_a_type_checker_takes_what_is_right_and_finds_what_is_wrong() -> None:
    wanted = {
        (number, found[1])
        for number, line in enumerate(CALL_SITES.read_text().splitlines(), 1)
        if (found := re.search(r"# error: (.+)$", line))
    }
    mypy = [sys.executable, "-m", "mypy", "--show-error-codes", "--no-error-summary", "--hide-error-context"]
    run = subprocess.run([*mypy, CALL_SITES], cwd=CALL_SITES.parents[1], capture_output=True, text=True)
    errors = re.findall(r"^tests/call_sites\.py:(\d+): error: .*\[(.+)\]$", run.stdout, re.M)
    assert {(int(line), code) for line, code in errors} == wanted, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == len([one for one in run.stdout.splitlines() if "call_sites.py" in one])


@pytest.mark.parametrize("command", [["-m", "flow"], ["-c", "from flow.cli import main; raise SystemExit(main())"]])
def test_python_dash_m_flow_is_the_command(command: list[str]) -> None:
    words = ["run", "exit 7", "--watch", "--no-upload-code"]
    program = [str(Path(sys.executable).with_name("flow"))]
    ran = [
        subprocess.run([*one, *words], capture_output=True, text=True) for one in ([sys.executable, *command], program)
    ]
    assert [one.returncode for one in ran] == [7, 7], ran
    told = [re.sub(r"task-\w+|\d+\.?\d* ?m?s", "…", one.stderr) for one in ran]
    assert told[0] == told[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("import sys; print('trained', *sys.argv[1:])")
    (tmp_path / "hello.sh").write_text("echo hello $NAME\n")
    (tmp_path / "task.yaml").write_text("name: from-file\ncommand: echo $GREETING\nenv: {GREETING: hi}\n")
    (tmp_path / "job.slurm").write_text("#!/bin/bash\n#SBATCH -n 1 -J job\necho $SLURM_JOB_NAME of $SLURM_NTASKS\n")
    return tmp_path


@pytest.mark.parametrize(
    ("what", "printed"),
    [
        ("python3 train.py --lr 1", "trained --lr 1\n"),
        (["python3", "train.py", "a b"], "trained a b\n"),
        (("python3", "train.py"), "trained\n"),
        ("train.py", "trained\n"),
        (Path("train.py"), "trained\n"),
        (Path("hello.sh"), "hello\n"),
        ("task.yaml", "hi\n"),
        (Path("task.yaml"), "hi\n"),
        ("job.slurm", "job of 1\n"),
        (Path("job.slurm"), "job of 1\n"),
        (TaskConfig(command="echo config"), "config\n"),
    ],
)
def test_anything_that_says_what_to_run_is_run(project: Path, what: object, printed: str) -> None:
    task = flow.run(what)  # type: ignore[arg-type]
    assert (task.wait(60), task.logs()) == ("completed", printed)


def test_fields_override_a_file_or_a_copy_of_a_config(project: Path) -> None:
    config = TaskConfig(name="mine", command="echo $A", env={"A": "1"})
    assert flow.run(config, env={"A": "2"}, name=None).config.to_dict() == {"command": "echo $A", "env": {"A": "2"}}
    assert config.to_dict() == {"name": "mine", "command": "echo $A", "env": {"A": "1"}}
    assert flow.run("task.yaml", name="other").name == "other"
    assert flow.submit(command="true", name="keyword").name == "keyword"


@pytest.mark.parametrize(
    ("what", "fields", "kind", "message"),
    [
        ("nosuch.yaml", {}, ResourceNotFoundError, "no file `nosuch.yaml`"),
        (Path("nosuch"), {}, ResourceNotFoundError, "no file `nosuch`"),
        (Path(), {}, ValidationError, "`.` is a folder"),
        (" ", {}, ValidationError, "` ` is nothing to run"),
        (3, {}, ValidationError, "`3` is nothing to run"),
        ("true", {"command": "false"}, ValidationError, "the command is given twice"),
        ("true", {"gpus": 1}, ValidationError, "unknown field `gpus`"),
        ("true", {"retries": -1}, ValidationError, "retries: `-1` is too small"),
        ("task.yaml", {"num_instances": 0}, ValidationError, "num_instances: `0` is too small"),
        (TaskConfig(), {"env": {"A": []}}, ValidationError, "env.A: a list is not text"),
        ("", {}, ValidationError, ...),
        ([], {}, ValidationError, ...),
    ],
)
def test_what_is_wrong_is_refused_with_flows_own_error(
    project: Path, what: object, fields: dict[str, object], kind: type[FlowError], message: str
) -> None:
    for submit in (flow.run, flow.submit, Flow().run, Flow().submit):
        with pytest.raises(kind) as raised:
            submit(what, **fields)  # type: ignore[arg-type]
        assert isinstance(raised.value, FlowError)
        assert raised.value.message == (raised.value.message if message is ... else message)
    assert flow.tasks() == []


def test_a_wrong_config_is_a_validation_error_however_it_is_made(project: Path) -> None:
    (project / "wrong.yaml").write_text("retries: lots\n")
    config = TaskConfig()
    ways: list[Callable[[], object]] = [
        lambda: TaskConfig(retries="lots"),  # type: ignore[arg-type]
        lambda: setattr(config, "retries", "lots"),
        lambda: setattr(config, "no_such_field", 1),
        lambda: config.copy_with(retries="lots"),  # type: ignore[arg-type]
        lambda: TaskConfig.from_dict({"retries": "lots"}),
        lambda: TaskConfig.from_dict(7),  # type: ignore[arg-type]
        lambda: TaskConfig.from_yaml("wrong.yaml"),
        lambda: TaskConfig.model_validate({"retries": "lots"}),
        lambda: TaskConfig.model_validate(7),
        lambda: TaskConfig.model_validate_json('{"retries": "lots"}'),
        lambda: TaskConfig.model_validate_json("{"),
        lambda: VolumeMount.model_validate({"size_gb": -1}),
        lambda: flow.run("wrong.yaml"),
    ]
    for way in ways:
        with pytest.raises(ValueError) as raised:
            way()
        assert type(raised.value).__mro__.index(ValidationError) >= 0
        assert raised.value.code == "validation"
        assert raised.value.message


def test_the_builtin_timeout_error_catches_ours() -> None:
    task = flow.run("sleep 60", upload_code=False)
    with pytest.raises(TimeoutError) as raised:
        task.wait(timeout=0.01)
    assert isinstance(raised.value, flow.errors.TimeoutError)
    task.cancel()
    assert task.wait() == "cancelled"


def test_a_task_outlives_every_client_and_a_second_run_works() -> None:
    with Flow() as client:
        first = client.run("echo first", upload_code=False)
    del client
    gc.collect()
    assert (first.wait(60), first.logs()) == ("completed", "first\n")
    second = flow.run("echo second", upload_code=False)
    gc.collect()
    assert (second.wait(60), list(second.logs(follow=True))) == ("completed", ["second"])
    assert [str(one) for one in flow.tasks()] == [str(second), str(first)]


def test_tasks_and_cancel_take_words_names_and_tasks() -> None:
    held = [flow.run("true", name=f"held-{n}", hold=True, upload_code=False) for n in range(3)]
    assert flow.tasks(states="pending") == flow.tasks(states=["pending", "running"], limit=None) == held[::-1]
    assert flow.tasks(name_pattern="*-1") == [held[1]]
    assert flow.tasks(states=[]) == []
    with pytest.raises(ValidationError) as raised:
        flow.tasks(states=["runing"])
    assert (raised.value.message, raised.value.suggestions[0]) == ("no state `runing`", "did you mean `running`?")
    flow.cancel("held-0", held[1], held[2].task_id)
    assert [task.wait(60) for task in held] == ["cancelled"] * 3
    with pytest.raises(TaskNotFoundError):
        flow.cancel("held-9")
    twins = [flow.run("true", name="twin", hold=True, upload_code=False) for _ in range(2)]
    with pytest.raises(ValidationError):
        flow.cancel("twin")
    twins[1].cancel()
    assert (flow.get_task("twin"), flow.get_task("twin", unfinished=True)) == (twins[1], twins[0])
    flow.cancel("twin")
    assert twins[0].wait(60) == "cancelled"


@pytest.mark.parametrize("clients", ["one client", "a client for each thread", "the module's functions"])
def test_eight_threads_run_twenty_tasks_each(clients: str) -> None:
    shared, start = Flow(), threading.Barrier(8)

    def work(thread: int) -> list[str]:
        client = shared if clients == "one client" else Flow()
        submit = flow.run if clients == "the module's functions" else client.run
        start.wait()
        tasks = [submit(f"echo {thread}-{n}", upload_code=False, name=f"t{thread}-{n}") for n in range(20)]
        assert client.tasks(name_pattern=f"t{thread}-*", limit=None) == tasks[::-1]
        assert all(task.wait(100) == "completed" for task in tasks)
        return [task.logs() for task in tasks]

    with ThreadPoolExecutor(8) as pool:
        logs = list(pool.map(work, range(8)))
    assert logs == [[f"{thread}-{n}\n" for n in range(20)] for thread in range(8)]
    assert len(flow.tasks(limit=None)) == 160


def test_one_task_is_watched_by_many_threads() -> None:
    task = flow.run("for i in 1 2 3; do echo $i; sleep 0.05; done", upload_code=False)

    def watch(_: int) -> tuple[str, list[str], Task]:
        return str(task.wait(60)), list(task.logs(follow=True)), flow.get_task(str(task))

    with ThreadPoolExecutor(8) as pool:
        assert set(map(str, pool.map(watch, range(16)))) == {str(("completed", ["1", "2", "3"], task))}


def test_python_warns_of_nothing_that_was_left_open() -> None:
    code = """
import gc, threading
import flow

def use():
    task = flow.run("echo hi", upload_code=False)
    task.wait()
    flow.tasks()

use()
thread = threading.Thread(target=use)
thread.start()
thread.join()
gc.collect()
"""
    run = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_forked_process_uses_the_task_of_its_parent() -> None:
    task = flow.run("echo here", upload_code=False)
    child = os.fork()
    if child == 0:
        done = task.wait(60) == "completed" and task.logs() == "here\n" and flow.run("true", upload_code=False).wait(60)
        os._exit(0 if done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert task.wait(60) == "completed"
