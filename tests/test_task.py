"""The handle: what it tells, what it does in the task, how it is shown."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import flow
from flow import Flow, Task, TaskStatus
from flow.errors import FlowError, TaskFailedError, ValidationError
from flow.record import Records
from flow.status import Outcome
from tests.support.processes import wait_until


def submitted(command: str | None, **fields: object) -> Task:
    return flow.run(command, upload_code=False, **fields)  # type: ignore[arg-type]


def running(command: str = "sleep 300", **fields: object) -> Task:
    task = submitted(command, **fields)
    assert wait_until(lambda: task.refresh().status is TaskStatus.RUNNING), task.reason
    return task


def end(task: Task) -> None:
    task.cancel()
    assert task.wait(60).is_final


def test_what_a_task_tells() -> None:
    task = submitted("echo out; echo err >&2; exit 3", name="told", gpu="a100", retries=1)
    assert task.wait(60) == "failed"
    assert (str(task), task.name, f"{task.status}", task.exit_code, task.reason) == (
        task.task_id, "told", "failed", 3, "exit 3",
    )  # fmt: skip
    assert [(one.number, one.status, one.exit_code) for one in task.attempts] == [(1, "failed", 3), (2, "failed", 3)]
    assert task.started_at and task.ended_at and task.created_at < task.started_at <= task.ended_at
    assert (task.cost_per_hour, task.total_cost) == ("$0.00", "$0.00")
    assert task.shell_command == f"flow ssh {task}"
    assert task.config.gpu == "a100"
    assert task.logs(tail=2, stderr=True) == "err\nerr\n"


def test_waiting_for_a_failed_task_raises_only_where_that_is_asked() -> None:
    task = submitted("exit 3")
    assert task.wait(60) is TaskStatus.FAILED
    with pytest.raises(TaskFailedError) as raised:
        task.wait(check=True)
    assert (raised.value.message, raised.value.code) == (f"`{task}` ended as failed: exit 3", "task_failed")
    assert submitted("true").wait(60, check=True) == "completed"


@pytest.mark.parametrize("tail", [-1, -100])
def test_a_tail_of_less_than_nothing_is_refused(tail: int) -> None:
    task = submitted("echo x")
    task.wait(60)
    for read in (task.logs, task.lines, task.blocks):
        with pytest.raises(ValidationError, match=f"`tail` is `{tail}`"):
            read(tail=tail)
    assert task.logs(tail=0) == ""


def test_the_total_cost_counts_every_attempt() -> None:
    task = submitted("sleep 0.2; exit 1", retries=2)
    task.wait(60)
    ran = sum(
        (one.ended_at - one.started_at).total_seconds() for one in task.attempts if one.started_at and one.ended_at
    )
    task.plan = replace(task.plan, price_per_hour=36_000.0)  # ten dollars a second
    assert (len(task.attempts), ran > 0.6) == (3, True)
    assert task.total_cost == f"${10 * ran:.2f}"


def test_what_runs_has_cost_something_before_anything_of_it_is_here(tmp_path: Path) -> None:
    task = running()
    end(task)
    task._records = Records(tmp_path)  # as of a machine elsewhere, of which nothing was brought here so far
    task.plan = replace(task.plan, price_per_hour=36_000.0)  # ten dollars a second
    for state, started, cost in (
        (TaskStatus.PENDING, None, ""),
        (TaskStatus.STARTING, None, ""),
        (TaskStatus.RUNNING, None, ""),  # its machine is not reached, so nobody knows since when
        (TaskStatus.RUNNING, time.time() - 100, "$100"),
        (TaskStatus.PREEMPTED, time.time() - 100, ""),  # and for how long it ran
        (TaskStatus.LOST, time.time() - 100, ""),
    ):
        task.recall(Outcome(state, attempt=1, started=started))
        assert task.total_cost[:4] == cost, state
        assert [one.status for one in task.attempts] == ([state] if started else []), state


def test_a_command_in_a_task_is_captured(tmp_path: Path) -> None:
    task = running(num_instances=2, env={"COLOUR": "red"})
    ran = task.shell("echo $COLOUR $FLOW_NODE_RANK; cat; echo oh >&2; exit 4", node=1, capture=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (4, "red 1\n", "oh\n")
    assert task.shell(["printf", "%s", "a b\xff"], capture=True).stdout == "a b\xff"
    assert task.shell(r"printf '\377'", capture=True).stdout == "\N{REPLACEMENT CHARACTER}"
    with pytest.raises(subprocess.CalledProcessError):
        ran.check_returncode()
    end(task)


def test_a_command_in_a_task_prints_where_we_do(capfd: pytest.CaptureFixture[str]) -> None:
    task = running(name="box")
    assert task.shell("echo $FLOW_TASK_NAME") == 0
    assert task.shell("exit 5") == 5
    assert capfd.readouterr().out == "box\n"
    end(task)


def test_a_shell_without_a_command_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    task = running(name="box")
    read, write = os.pipe()
    os.write(write, b"test $FLOW_TASK_NAME = box && exit 9\n")
    os.close(write)
    kept = os.dup(0)
    try:
        os.dup2(read, 0)
        assert task.shell() == 9
    finally:
        os.dup2(kept, 0)
    os.close(read)
    os.close(kept)
    end(task)


@pytest.mark.parametrize(
    ("make", "use", "message"),
    [
        (running, lambda task: task.shell(capture=True), "there is no command to capture"),
        (running, lambda task: task.shell("true", node=1), "has no node `1`"),
        (lambda: submitted(None, hold=True), lambda task: task.shell(), "is pending: a shell needs a running task"),
    ],
)
def test_a_shell_that_cannot_be_is_refused(
    make: Callable[[], Task], use: Callable[[Task], object], message: str
) -> None:
    task = make()
    with pytest.raises(ValidationError, match=message):
        use(task)
    end(task)


def test_instances_are_there_while_it_runs() -> None:
    task = submitted("test $FLOW_NODE_RANK = 1 || sleep 300", num_instances=2, hold=True)
    assert task.get_instances() == []
    task.resume()
    assert wait_until(lambda: [str(one.status) for one in task.get_instances()] == ["running", "completed"])
    assert [(one.instance_id, one.private_ip, one.public_ip) for one in task.get_instances()] == [
        ("local-0", "127.0.0.1", None),
        ("local-1", "127.0.0.2", None),
    ]
    end(task)
    assert task.get_instances() == []


def test_instances_of_an_array_are_those_of_its_elements() -> None:
    task = submitted("sleep 300", array="0-1", cpus=0.5)
    assert wait_until(lambda: len(task.get_instances()) == 2)
    assert len(flow.get_task(f"{task}_1").get_instances()) == 1
    end(task)


def test_the_user_is_who_git_knew_when_it_was_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = submitted("true").get_user()
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv("LOGNAME", "ada")
    for words in (["init", "-q"], ["config", "user.email", "ada@example.org"]):
        subprocess.run(["git", *words], check=True)
    task = flow.run("true")
    subprocess.run(["git", "config", "user.email", "other@example.org"], check=True)
    user = Flow().get_task(task.task_id).get_user()
    assert (user.username, user.email, nobody.email) == ("ada", "ada@example.org", "")


def test_without_git_there_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submitted(None, hold=True).get_user().email == ""


def test_a_notebook_shows_a_table_in_which_nothing_is_code() -> None:
    task = submitted("<b>no such command</b>", name="box", num_instances=2)
    task.wait(60)
    task.plan = replace(task.plan, name="<script>alert('x')</script>", instance_type='"><img src=x>')
    shown = task._repr_html_()
    assert shown.startswith("<table><tr><th>task</th><td>task-")
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in shown
    assert "&quot;&gt;&lt;img src=x&gt;, 2 of them" in shown
    assert "failed: " in shown
    assert not {"<script", "<img", "<b>"} & {word for word in ("<script", "<img", "<b>") if word in shown}


def test_an_error_of_a_task_is_flows_own() -> None:
    with pytest.raises(FlowError):
        flow.get_task("no-such-task")
