"""What every provider must do. A provider's tests inherit `ProviderContract` unchanged and give it a `client`."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from flow.client import Flow
from flow.errors import TaskNotFoundError, ValidationError
from flow.machines import Machines
from flow.record import new_task_id
from flow.status import HELD, TaskStatus
from flow.task import Task
from tests.support.processes import wait_until

_NASTY = "two\nlines 'single' \"double\" $HOME `id` \\ * é ☃ %s"


class ProviderContract:
    """Needs a fixture `client` (a Flow whose default provider is the one under test) and, where tasks are slow to
    start there, a larger `patience` (seconds)."""

    patience = 60.0

    def run(self, client: Flow, command: str | list[str] | None = None, **fields: Any) -> Task:
        return client.run(client.load(None, **{"command": command, "upload_code": False, **fields}))

    def finished(self, client: Flow, command: str | list[str], **fields: Any) -> Task:
        task = self.run(client, command, **fields)
        task.wait(timeout=self.patience)
        return task

    def running(self, client: Flow, command: str, **fields: Any) -> Task:
        task = self.run(client, command, **fields)
        assert wait_until(lambda: task.refresh().status is TaskStatus.RUNNING, seconds=self.patience), task.status
        return task

    def test_a_task_runs_to_its_end(self, client: Flow) -> None:
        task = self.finished(client, "true")
        assert (task.status, task.exit_code, task.reason) == ("completed", 0, "")
        assert task.started_at and task.ended_at and task.started_at <= task.ended_at

    def test_both_streams_are_kept_and_kept_apart(self, client: Flow) -> None:
        read = "until [ -s $FLOW_OUTPUT/../{}.log ]; do sleep 0.05; done"  # what comes at once has no order
        words = f"echo one; {read}; echo two >&2; {read}; echo three; printf four".format("stdout", "stderr")
        task = self.finished(client, words)
        assert task.logs() == "one\ntwo\nthree\nfour\n"
        assert task.logs(stderr=True) == "two\n"
        assert task.logs(tail=2) == "three\nfour\n"

    def test_following_gives_every_line_and_ends_with_the_task(self, client: Flow) -> None:
        task = self.run(client, "for i in 1 2 3 4 5; do echo line $i; sleep 0.02; done")
        assert list(task.logs(follow=True)) == [f"line {i}" for i in range(1, 6)]
        assert task.refresh().status == "completed"

    @pytest.mark.parametrize("code", [1, 2, 77, 255])
    def test_the_exit_code_is_the_commands_own(self, client: Flow, code: int) -> None:
        task = self.finished(client, f"exit {code}")
        assert (task.status, task.exit_code, task.reason) == ("failed", code, f"exit {code}")

    def test_a_signal_is_told_as_a_signal(self, client: Flow) -> None:
        task = self.finished(client, "kill -KILL $$")
        assert (task.status, task.exit_code, task.signal, task.reason) == ("failed", 137, 9, "killed by SIGKILL")

    def test_a_command_that_does_not_exist_says_so(self, client: Flow) -> None:
        task = self.finished(client, ["no-such-program", "--now"])
        assert (task.status, task.exit_code, task.reason) == ("failed", 127, "`no-such-program`: command not found")

    def test_a_list_is_executed_as_it_stands(self, client: Flow) -> None:
        task = self.finished(client, ["printf", "%s|", "a b", "$HOME", "*", "é\n"])
        assert task.logs() == "a b|$HOME|*|é\n|\n"

    def test_flow_variables_in_a_list_are_filled_in(self, client: Flow) -> None:
        task = self.finished(client, ["echo", "--rank=$FLOW_NODE_RANK", "${FLOW_NUM_NODES}", "$HOME 'x'"])
        assert task.logs() == "--rank=0 1 $HOME 'x'\n"

    def test_environment_values_arrive_unchanged(self, client: Flow) -> None:
        task = self.finished(client, ["printenv", "NASTY"], env={"NASTY": _NASTY})
        assert task.logs() == _NASTY + "\n"

    def test_others_may_read_what_a_command_makes_as_where_it_is_typed(self, client: Flow) -> None:
        before = os.umask(0o22)  # that of the machines of the tests, too
        try:
            task = self.finished(client, "umask; touch made; stat -c %a made")
        finally:
            os.umask(before)
        assert task.logs() == "0022\n644\n"

    def test_a_task_knows_who_and_where_it_is(self, client: Flow) -> None:
        names = [
            "FLOW_TASK_ID",
            "FLOW_TASK_NAME",
            "FLOW_NODE_RANK",
            "FLOW_NODE_COUNT",
            "FLOW_NUM_NODES",
            "FLOW_ATTEMPT",
        ]
        task = self.finished(client, ["printenv", *names], name="who")
        assert task.logs().split() == [task.task_id, "who", "0", "1", "1", "1"]
        task = self.finished(client, 'test -d "$FLOW_OUTPUT" && test "$PWD" = "$FLOW_WORKSPACE" && echo $FLOW_MAIN_IP')
        assert task.status == "completed" and task.logs().strip()

    def test_code_is_there_before_the_command(
        self, client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "pkg").mkdir()
        (tmp_path / "pkg" / "tool").write_text("#!/bin/sh\necho tool ran in $(basename $PWD)\n")
        (tmp_path / "pkg" / "tool").chmod(0o755)
        (tmp_path / "link").symlink_to("pkg/tool")
        monkeypatch.chdir(tmp_path)
        task = self.finished(client, "../link", upload_code=True, working_dir="pkg")
        assert task.logs() == "tool ran in pkg\n"

    def test_cancel_ends_a_running_task(self, client: Flow) -> None:
        task = self.running(client, "echo up; sleep 1000")
        assert wait_until(lambda: task.logs() == "up\n", seconds=self.patience)  # "running" is told before it runs
        task.cancel()
        assert task.wait(timeout=self.patience) == "cancelled"
        assert task.logs() == "up\n"
        task.cancel()
        assert task.refresh().status == "cancelled"

    def test_cancel_waits_for_a_clean_end_and_no_longer(self, client: Flow) -> None:
        polite = self.running(client, "trap 'echo saved; exit 3' TERM; echo up; while :; do sleep 0.05; done")
        rude = self.running(client, "trap '' TERM; while :; do sleep 0.05; done", grace_seconds=0.3)
        assert wait_until(lambda: polite.logs() == "up\n", seconds=self.patience)
        for task in (polite, rude):
            task.cancel()
        assert polite.wait(timeout=self.patience) == rude.wait(timeout=self.patience) == "cancelled"
        assert "saved" in polite.logs()

    def test_the_time_limit_ends_a_task(self, client: Flow) -> None:
        task = self.finished(client, "sleep 1000", max_run_time_hours=0.5 / 3600)
        assert task.status == "timed_out"
        assert task.reason.startswith("time limit ")

    def test_a_completed_task_stays_completed(self, client: Flow) -> None:
        task = self.finished(client, "true")
        task.cancel()
        assert client.get_task(task.task_id).status == "completed"

    def test_several_nodes_meet(self, client: Flow) -> None:
        task = self.finished(client, "echo $FLOW_NODE_RANK of $FLOW_NUM_NODES at $FLOW_MAIN_IP", num_instances=2)
        assert task.status == "completed"
        lines = sorted(line.text.decode() for line in task.lines())
        assert [line.split()[:3] for line in lines] == [["0", "of", "2"], ["1", "of", "2"]]
        assert len({line.split()[-1] for line in lines}) == 1
        assert [line.rank for line in task.lines(node=1)] == [1]

    def test_one_failing_node_stops_the_others(self, client: Flow) -> None:
        command = "if [ $FLOW_NODE_RANK = 1 ]; then sleep 0.3; exit 5; else sleep 1000; fi"
        task = self.finished(client, command, num_instances=2)
        assert (task.status, task.exit_code, task.reason) == ("failed", 5, "exit 5 (node 1)")

    def test_a_node_that_ended_well_runs_again_with_one_that_fails_later(self, client: Flow) -> None:
        command = "echo $FLOW_ATTEMPT; [ $FLOW_ATTEMPT$FLOW_NODE_RANK != 11 ] || { sleep 1; exit 5; }"
        task = self.finished(client, command, num_instances=2, retries=1)
        assert (task.status, [str(one.status) for one in task.attempts]) == ("completed", ["failed", "completed"])
        assert sorted(line.text for line in task.lines()) == [b"1", b"1", b"2", b"2"]

    def test_a_failed_attempt_is_recorded_and_run_again(self, client: Flow) -> None:
        command = """echo attempt $FLOW_ATTEMPT
            cat "$FLOW_OUTPUT/kept"
            echo $FLOW_ATTEMPT > "$FLOW_OUTPUT/kept"
            [ $FLOW_ATTEMPT = 3 ]"""
        task = self.finished(client, command, retries=5)
        assert (task.status, len(task.attempts)) == ("completed", 3)
        assert [str(one.status) for one in task.attempts] == ["failed", "failed", "completed"]
        lines = list(task.lines(stream="stdout"))
        assert [(one.attempt, one.text) for one in lines] == [
            (1, b"attempt 1"), (2, b"attempt 2"), (2, b"1"), (3, b"attempt 3"), (3, b"2"),
        ]  # fmt: skip

    def test_retries_run_out(self, client: Flow) -> None:
        task = self.finished(client, "exit 4", retries=1)
        assert (task.status, task.exit_code, len(task.attempts)) == ("failed", 4, 2)

    @pytest.mark.parametrize(
        ("first", "state", "status"),
        [
            ("true", "completed", "completed"),
            ("false", "completed", "cancelled"),
            ("false", "failed", "completed"),
            ("true", "failed", "cancelled"),
            ("false", "ended", "completed"),
            ("sleep 1000", "started", "completed"),
            ("true", "started_or_ended", "completed"),
            ("cancelled", "completed", "cancelled"),
            ("cancelled", "failed", "completed"),
            ("cancelled", "ended", "completed"),
            ("cancelled", "started_or_ended", "completed"),
        ],
    )
    def test_a_task_waits_for_another(self, client: Flow, first: str, state: str, status: str) -> None:
        begin = "now+1hour" if first == "cancelled" else None
        upstream = self.run(client, first if begin is None else "true", begin=begin)
        waiting = self.run(client, "true", depends_on=f"{upstream}:{state}")
        if first == "cancelled":
            assert waiting.refresh().reason == f"waits for {upstream} to be {state.replace('_', ' ')}"
            upstream.cancel()
        assert waiting.wait(timeout=self.patience) == status
        if status == "cancelled":
            assert waiting.reason == f"waited for {upstream} to be {state}, which cannot be any more"
            assert waiting.attempts == []
        upstream.cancel()
        upstream.wait(timeout=self.patience)

    def test_all_of_several_are_waited_for_or_any(self, client: Flow) -> None:
        good, bad = self.run(client, "true"), self.run(client, "false")
        later = self.run(client, "true", begin="now+1hour")
        both = self.run(client, "true", depends_on=[good, f"{bad}:failed"])
        either = self.run(client, "true", depends_on=[bad, later, good], depends_on_any=True)
        neither = self.run(client, "true", depends_on=[bad, f"{good}:failed"], depends_on_any=True)
        ends = [task.wait(timeout=self.patience) for task in (both, either, neither)]
        assert ends == ["completed", "completed", "cancelled"]
        later.cancel()
        later.wait(timeout=self.patience)

    def test_what_can_never_be_met_may_be_waited_for_in_vain(self, client: Flow) -> None:
        bad = self.finished(client, "false")
        task = self.run(client, "true", depends_on=bad, unmet_dependency="wait")
        told = f"waits for {bad} to be completed, which cannot be any more"
        assert wait_until(lambda: task.refresh().reason == told, seconds=self.patience), task.reason
        assert task.status == "pending"
        task.cancel()
        assert task.wait(timeout=self.patience) == "cancelled"

    def test_an_array_and_its_elements_are_waited_for(self, client: Flow) -> None:
        array = self.run(client, "[ $FLOW_ARRAY_INDEX != 3 ]", array="1,3,7")
        some = self.run(client, "true", depends_on=f"{array}:failed")
        element = self.run(client, "true", depends_on=f"{array}_7")
        other = self.run(client, "true", depends_on=f"{array}_3")
        each = self.run(client, "echo $FLOW_ARRAY_INDEX", array="1-3", depends_on=f"{array}:corresponding")
        ends = [task.wait(timeout=self.patience) for task in (some, element, other, each)]
        assert ends == ["completed", "completed", "cancelled", "cancelled"]
        # the second has none to wait for but the whole array, which did not complete
        assert [str(client.get_task(f"{each}_{n}").status) for n in (1, 2, 3)] == [
            "completed",
            "cancelled",
            "cancelled",
        ]

    def test_one_of_a_name_at_a_time(self, client: Flow) -> None:
        first = self.running(client, "sleep 1000", name="the-one")
        second = self.run(client, "true", name="the-one", singleton=True)
        other = self.finished(client, "true", name="another-one", singleton=True)
        assert (str(other.status), str(second.refresh().status)) == ("completed", "pending")
        first.cancel()
        assert second.wait(timeout=self.patience) == "completed"

    def test_a_task_is_held_and_resumed(self, client: Flow) -> None:
        if client.provider().steering is None:
            return
        upstream = self.running(client, "sleep 1000")
        held, array = (self.run(client, "echo ran", depends_on=f"{upstream}:ended", array=n) for n in (None, "1-3"))
        held.hold()
        held.hold()
        client.get_task(f"{array}_2").hold()
        upstream.cancel()
        others = [client.get_task(f"{array}_{n}") for n in (1, 3)]
        assert [task.wait(timeout=self.patience) for task in others] == ["completed", "completed"]
        for task in (held, client.get_task(f"{array}_2")):
            assert (str(task.refresh().status), task.is_held, task.reason) == ("pending", True, HELD)
            task.resume()
        assert [task.wait(timeout=self.patience) for task in (held, array)] == ["completed", "completed"]
        with pytest.raises(ValidationError, match="has ended as completed, which never changes"):
            held.hold()
        with pytest.raises(ValidationError, match="is not held"):
            held.resume()

    def test_a_requeued_task_runs_again_from_its_beginning(self, client: Flow) -> None:
        if client.provider().steering is None:
            return
        command = (
            "trap 'echo saved; exit 3' TERM; echo run $FLOW_ATTEMPT; while [ $FLOW_ATTEMPT = 1 ]; do sleep 0.05; done"
        )
        task, fixed = self.running(client, command), self.running(client, "sleep 1000", requeue=False)
        assert wait_until(lambda: task.logs() == "run 1\n", seconds=self.patience)
        task.requeue()
        assert task.wait(timeout=self.patience) == "completed"
        assert [str(one.status) for one in task.attempts] == ["preempted", "completed"]
        assert [line for line in task.logs().splitlines() if line != "Terminated"] == ["run 1", "saved", "run 2"]
        with pytest.raises(ValidationError, match="has ended as completed, which never changes"):
            task.requeue()
        with pytest.raises(ValidationError, match="may not be requeued"):
            fixed.requeue()
        fixed.cancel()
        fixed.wait(timeout=self.patience)

    def test_a_running_task_hears_a_signal(self, client: Flow) -> None:
        task = self.running(client, "trap 'echo heard; exit 0' USR1; echo up; while :; do sleep 0.05; done")
        assert wait_until(lambda: task.logs() == "up\n", seconds=self.patience)
        task.send_signal(signal.SIGUSR1, to="command")
        assert task.wait(timeout=self.patience) == "completed"
        assert task.logs() == "up\nheard\n"
        with pytest.raises(ValidationError, match="has ended"):
            task.send_signal(signal.SIGUSR1)

    def test_what_is_left_in_the_output_is_kept(self, client: Flow) -> None:
        task = self.finished(
            client,
            'mkdir "$FLOW_OUTPUT/a"; echo deep > "$FLOW_OUTPUT/a/b"; echo \'{"x": 1}\' > "$FLOW_OUTPUT/result.json"',
        )
        assert task.result() == {"x": 1}
        found = task.outputs("a/b")
        assert found and found.read_text() == "deep\n"

    def test_allocating_twice_starts_once(self, client: Flow) -> None:
        task = self.run(client, "echo once")
        provider = client.provider()
        provider.allocate(task.plan)
        task.wait(timeout=self.patience)
        provider.allocate(task.plan)
        assert [one.task_id for one in provider.allocations([task.task_id])] == [task.task_id]
        assert client.get_task(task.task_id).logs() == "once\n"

    def test_a_plan_can_be_allocated_by_hand(self, client: Flow) -> None:
        provider = client.provider()
        plan = dataclasses.replace(self.run(client, "true").plan, task_id=new_task_id())
        provider.allocate(plan)
        ended = lambda: provider.allocations([plan.task_id])[0].machines is Machines.GONE  # noqa: E731
        assert wait_until(ended, seconds=self.patience)
        assert provider.allocations([plan.task_id])[0].plan_hash == plan.hash

    def test_unknown_ids_are_nothing(self, client: Flow) -> None:
        provider = client.provider()
        unknown = new_task_id()
        assert provider.allocations([unknown]) == []
        provider.release(unknown)
        with pytest.raises(TaskNotFoundError):
            client.get_task(unknown)

    def test_releasing_twice_is_fine(self, client: Flow) -> None:
        task = self.running(client, "sleep 1000")
        provider = client.provider()
        task.cancel()
        provider.release(task.task_id)
        assert task.wait(timeout=self.patience) == "cancelled"
        provider.release(task.task_id)
        assert client.get_task(task.task_id).status == "cancelled"

    def test_the_same_key_makes_one_task(self, client: Flow) -> None:
        first = client.run("echo once", idempotency_key="k", upload_code=False)
        again = client.run("echo once", idempotency_key="k", upload_code=False)
        assert first.task_id == again.task_id
        assert again.wait(timeout=self.patience) == "completed"

    def test_a_shell_reaches_a_running_task(self, client: Flow) -> None:
        task = self.running(client, "echo here > mark; sleep 1000", env={"WORD": "a b"})
        assert wait_until(lambda: task.shell(["test", "-s", "mark"]) == 0, seconds=self.patience)
        assert task.shell('[ "$WORD" = "a b" ] && [ $FLOW_TASK_ID = ' + task.task_id + " ] && exit 7") == 7
        task.cancel()
        task.wait(timeout=self.patience)

    def test_a_volume_outlives_its_tasks_and_is_held_by_them(self, client: Flow) -> None:
        if not client.provider().capabilities.volumes:
            with pytest.raises(ValidationError):
                client.create_volume(1, "contract")
            return
        volume = client.create_volume(1, "contract")
        volumes = {"/flow-contract": "contract"}
        first = self.running(client, "echo kept > /flow-contract/file; echo up; sleep 1000", volumes=volumes)
        assert wait_until(lambda: first.logs() == "up\n", seconds=self.patience)
        with pytest.raises(ValidationError, match=f"is held by `{first.task_id}`"):
            self.run(client, "true", volumes=volumes)
        with pytest.raises(ValidationError, match=f"is used by `{first.task_id}`"):
            client.delete_volume("contract")
        first.cancel()
        first.wait(timeout=self.patience)
        assert self.finished(client, "cat /flow-contract/file", volumes=volumes).logs() == "kept\n"
        client.delete_volume(volume.volume_id)
        assert "contract" not in [one.name for one in client.volumes()]

    def test_a_running_task_is_given_a_volume(self, client: Flow) -> None:
        if not client.provider().capabilities.volumes:
            return
        client.create_volume(1, "later")
        command = "until test -d /mnt/later; do sleep 0.05; done; echo x > /mnt/later/file && cat /mnt/later/file"
        task = self.running(client, command)
        assert client.mount_volume("later", task) == "/mnt/later"
        assert (task.wait(timeout=self.patience), task.logs()) == ("completed", "x\n")

    def test_two_at_once(self, client: Flow) -> None:
        began = time.time()
        tasks = [self.run(client, f"echo {n}") for n in range(5)]
        assert [task.wait(timeout=self.patience) for task in tasks] == ["completed"] * 5
        assert [task.logs() for task in tasks] == [f"{n}\n" for n in range(5)]
        assert all(task.created_at and task.created_at.timestamp() >= began - 1 for task in tasks)
