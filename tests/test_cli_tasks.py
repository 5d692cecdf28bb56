"""The commands on real tasks of the local provider: what is printed where, and the exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flow.client import Flow
from tests.support.commands import flow
from tests.support.processes import wait_until
from tests.support.terminal import Terminal

ID = re.compile(r"task-[0-9a-z]{14}")


@pytest.fixture
def started(project: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command line as a process, its outputs on pipes; it is killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-m", "flow", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def submitted(*words: str) -> str:
    """Submit a task; its id."""
    ended = flow("run", *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()[0]


def record(reference: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(flow("info", reference, "--json").stdout)
    return found


def in_state(reference: str, state: str) -> bool:
    return wait_until(lambda: record(reference)["status"] == state, seconds=60)


def test_run_returns_at_once_with_the_task_on_stdout_and_the_next_step_on_stderr(project: Path) -> None:
    ended = flow("run", "sleep 30", "--name", "nap")
    assert ended.returncode == 0
    task_id = ended.stdout.split()[0]
    assert ID.fullmatch(task_id)
    assert ended.stdout.startswith(f"{task_id}  nap  ")
    assert ended.stdout.rstrip().endswith("local")
    assert ended.stderr == f"hint: follow it with `flow logs {task_id} -f`\n"
    assert flow("cancel", task_id).returncode == 0


def test_watch_keeps_the_outputs_apart_and_ends_with_the_tasks_code(project: Path) -> None:
    ended = flow("run", "echo out; echo err >&2; echo more; exit 3", "--name", "x", "--watch")
    assert (ended.returncode, ended.stdout) == (3, "out\nmore\n")
    lines = ended.stderr.splitlines()
    task_id = lines[0].split()[0]
    assert "err" in lines
    assert re.fullmatch(rf"{task_id}  failed  exit 3  ran \d+\.\ds", lines[-1])


def test_watch_shows_a_small_result(project: Path) -> None:
    ended = flow("run", """echo '{"accuracy": 0.97}' > $FLOW_OUTPUT/result.json""", "--watch")
    assert ended.returncode == 0
    assert ended.stderr.splitlines()[-1] == 'result: {"accuracy": 0.97}'


def test_a_result_that_is_no_json_is_a_note_and_no_failure(project: Path) -> None:
    ended = flow("run", "echo oops > $FLOW_OUTPUT/result.json", "--watch")
    assert ended.returncode == 0
    assert "is not JSON" in ended.stderr
    assert record("@last")["result"] is None


def test_ctrl_c_leaves_the_task_running_and_says_how_to_come_back(started: Callable[..., Any]) -> None:
    process = started("run", "echo up; sleep 30", "--name", "long", "--watch")
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    task_id = ID.findall(stderr)[0]
    assert process.returncode == 130
    assert stderr.endswith(
        f"\nnote: `{task_id}` goes on\n"
        f"hint: come back with `flow logs {task_id} -f`\n"
        f"hint: end it with `flow cancel {task_id}`\n"
    )
    assert record(task_id)["status"] == "running"
    assert flow("cancel", task_id).stdout == f"{task_id}  cancelled\n"


def test_with_json_stdout_is_one_document(project: Path) -> None:
    task = json.loads(flow("run", "true", "--name", "j", "--json").stdout)
    assert (task["name"], ID.fullmatch(task["task_id"]) is not None) == ("j", True)
    watched = flow("run", "echo out; exit 4", "--json", "--watch")
    assert watched.returncode == 4
    assert (json.loads(watched.stdout)["status"], json.loads(watched.stdout)["exit_code"]) == ("failed", 4)
    assert "out" in watched.stderr.splitlines()


def test_a_dry_run_prints_the_plan_and_submits_nothing(project: Path) -> None:
    ended = flow("run", "echo hi", "-n", "dry", "-e", "API_KEY=s3cr3t", "-e", "LR=0.1", "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "name: dry\n" in ended.stdout
    assert '  LR: "0.1"\n' in ended.stdout
    assert "output_mode" not in ended.stdout and ": false" not in ended.stdout, "nobody has turned these"
    assert "keep: true\n" in flow("run", "echo hi", "--keep", "--dry-run").stdout
    assert "s3cr3t" not in ended.stdout + ended.stderr
    plan = json.loads(flow("run", "echo hi", "-n", "dry", "-e", "API_KEY=s3cr3t", "--dry-run", "--json").stdout)
    assert (plan["name"], plan["env"]) == ("dry", {"API_KEY": "***"})
    assert flow("status").stdout == "No tasks found\n"


def test_words_after_the_dashes_arrive_as_they_are(project: Path) -> None:
    code = "import sys; print(sys.argv[1:])"
    ended = flow("run", "--watch", "--", "python3", "-c", code, "a b", "--watch", "$HOME", "é'\"")
    assert ended.stdout == f"{['a b', '--watch', '$HOME', 'é' + chr(39) + chr(34)]}\n"


def test_scripts_and_task_files_are_run(project: Path) -> None:
    (project / "hi.py").write_text("print('from python')\n")
    (project / "hi.sh").write_text("echo from sh\n")
    (project / "task.yaml").write_text("name: filed\ncommand: echo $A $B\nenv: {A: file, B: file}\n")
    assert flow("run", "hi.py", "-w").stdout == "from python\n"
    assert flow("run", "-w", "hi.sh").stdout == "from sh\n"
    assert flow("run", "task.yaml", "-e", "B=line", "-w").stdout == "file line\n"
    assert record("filed")["status"] == "completed"


def test_variables_of_the_line_and_of_files_reach_the_task(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "vars").write_text("A='from file'\n")
    monkeypatch.setenv("PASSED", "passed on")
    ended = flow("run", 'echo "$A,$B,$PASSED"', "--env-file", "vars", "-e", "B=x=y", "-e", "PASSED", "--watch")
    assert ended.stdout == "from file,x=y,passed on\n"


def test_no_tasks_is_said_and_is_no_error(project: Path) -> None:
    assert (flow("status").returncode, flow("status").stdout) == (0, "No tasks found\n")
    assert json.loads(flow("status", "--json").stdout) == {"tasks": []}


def test_status_lists_the_newest_first_and_they_can_be_named_by_their_place(project: Path) -> None:
    first, second = submitted("exit 5", "--name", "one"), submitted("true", "--name", "two")
    flow("wait", first, second)
    lines = flow("status").stdout.splitlines()
    assert lines[0].split() == ["TASK", "NAME", "STATUS", "TYPE", "AGE", "RUN", "TIME", "$/H", "REASON"]
    assert [line.split()[:3] for line in lines[1:]] == [[second, "two", "completed"], [first, "one", "failed"]]
    assert lines[2].endswith("exit 5")
    assert record(":2")["task_id"] == first
    assert record("@last")["task_id"] == second
    assert [task["task_id"] for task in json.loads(flow("status", "--json").stdout)["tasks"]] == [second, first]
    assert flow("status", "--state", "failed").stdout.splitlines()[1].split()[0] == first
    limited = flow("status", "--limit", "1")
    assert len(limited.stdout.splitlines()) == 2
    assert limited.stderr == "note: there are more than the newest 1: `flow status --all` lists them\n"
    assert flow("status", "one").stdout.splitlines()[1].split()[0] == first


def test_status_shows_what_runs_however_many_newer_tasks_have_ended(project: Path) -> None:
    ended, running = submitted("true"), submitted("exec sleep 300")
    assert in_state(ended, "completed") and in_state(running, "running")
    client = Flow()
    newer = [client.run("true", upload_code=False).task_id for _ in range(19)]
    assert flow("wait", *newer).returncode == 0

    def shown(*words: str) -> list[str]:
        return [line.split()[0] for line in flow("status", *words).stdout.splitlines()[1:]]

    assert shown() == [*newer[::-1], running]
    assert flow("status").stderr == "note: there are more than the newest 20: `flow status --all` lists them\n"
    newer += [client.run("true", upload_code=False).task_id for _ in range(2)]
    assert flow("wait", *newer).returncode == 0
    first = newer[:0:-1]
    assert shown() == [*first, running]
    assert record(":21")["task_id"] == running
    assert [one["task_id"] for one in json.loads(flow("status", "--json").stdout)["tasks"]] == [*first, running]
    assert flow("status").stderr == "note: there are more than the newest 20: `flow status --all` lists them\n"
    assert (shown("--limit", "20"), shown("--all")) == (first, [*newer[::-1], running, ended])
    assert flow("cancel", running).returncode == 0


def test_a_reason_that_says_no_more_than_the_state_is_not_shown(project: Path) -> None:
    task_id = submitted("exec sleep 300")
    assert wait_until(lambda: record(task_id)["status"] == "running", seconds=60)
    assert flow("cancel", task_id).returncode == 0
    assert record(task_id)["reason"] == "cancelled"
    assert flow("status").stdout.count("cancelled") == 1


def test_a_name_means_its_newest_task_and_says_so(project: Path) -> None:
    submitted("true", "--name", "twice")
    second = submitted("true", "--name", "twice")
    flow("wait", second)
    ended = flow("info", "twice", "--json")
    assert json.loads(ended.stdout)["task_id"] == second
    assert ended.stderr.startswith("note: ")


@pytest.fixture
def talker(project: Path) -> str:
    """A task that wrote on both outputs, and has ended."""
    task_id = submitted("echo one; echo two >&2; sleep 0.05; echo three; echo four >&2; exit 2", "--name", "talker")
    assert flow("wait", task_id).returncode == 2
    return task_id


def test_logs_prints_the_lines_and_nothing_else(talker: str) -> None:
    ended = flow("logs", talker)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.splitlines()) == ["four", "one", "three", "two"]
    assert flow("logs", talker, "--stdout").stdout == "one\nthree\n"
    assert flow("logs", talker, "--stderr").stdout == "two\nfour\n"
    assert flow("logs", talker, "--stdout", "-n", "1").stdout == "three\n"
    assert flow("logs", talker, "-n", "0").stdout == ""
    assert sorted(flow("logs", talker, "--grep", "^t").stdout.splitlines()) == ["three", "two"]
    assert flow("logs", talker, "--since", "2001-01-01").stdout == ended.stdout
    assert flow("logs", talker, "--since", "0s").stdout == ""
    assert flow("logs", talker, "--node", "0").stdout == ended.stdout
    wrong = flow("logs", talker, "--node", "9")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == f"error: `{talker}` has no node `9`\n\nhint: it has one node, `0`\n"
    assert flow("logs", talker, "--node", "9", "-f").returncode == 2


def test_info_tells_how_long_the_attempt_of_now_has_run(project: Path) -> None:
    task_id = submitted("[ $FLOW_ATTEMPT = 2 ] || exit 1; exec sleep 300", "--retries", "1")
    assert wait_until(lambda: [one["status"] for one in record(task_id)["attempts"]] == ["failed", "running"])
    lines = flow("info", task_id).stdout.splitlines()
    (now,) = [line for line in lines if re.fullmatch(r"  2 +running +[0-9.]+\w+", line)]
    assert now in lines[lines.index("attempts") :]
    assert flow("cancel", task_id).returncode == 0


def test_logs_of_a_lost_task_say_why_it_is_lost(started: Callable[..., Any]) -> None:
    task_id = submitted("echo up; exec sleep 300")
    follower = started("logs", "-f", task_id)
    assert follower.stdout.readline() == "up\n"
    os.kill(int((Path(record(task_id)["folder"]) / "runner.lock").read_text()), signal.SIGKILL)
    why = "note: lost: its runner died without a report\n"
    assert (follower.communicate(timeout=60), follower.returncode) == (("", why), 125)
    again = flow("logs", task_id)
    assert (again.returncode, again.stdout, again.stderr) == (0, "up\n", why)
    stamped = flow("logs", "-f", task_id, "--json")
    assert (stamped.returncode, len(stamped.stdout.splitlines()), stamped.stderr) == (125, 1, why)


def test_logs_with_json_has_a_cursor_from_which_it_goes_on(talker: str) -> None:
    lines = [json.loads(line) for line in flow("logs", talker, "--json").stdout.splitlines()]
    assert {(line["stream"], line["text"]) for line in lines} == {
        ("stdout", "one"), ("stderr", "two"), ("stdout", "three"), ("stderr", "four"),
    }  # fmt: skip
    assert all(set(line) == {"time", "attempt", "node", "stream", "text", "cursor"} for line in lines)
    rest = flow("logs", talker, "--cursor", lines[1]["cursor"], "--json").stdout.splitlines()
    assert [json.loads(line) for line in rest] == lines[2:]


def test_timestamps_stand_before_each_line(talker: str) -> None:
    lines = flow("logs", talker, "--timestamps", "--stdout").stdout.splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\dT[\d:.]+Z  ", "", line) for line in lines] == ["one", "three"]


def test_following_ends_with_the_tasks_own_code(talker: str, project: Path) -> None:
    assert flow("logs", talker, "-f").returncode == 2
    running = submitted("echo begin; sleep 0.3; echo end; exit 7")
    ended = flow("logs", running, "-f")
    assert (ended.returncode, ended.stdout) == (7, "begin\nend\n")


@pytest.fixture
def array(project: Path) -> Callable[[str, str], str]:
    """Submits an array task of this command and these indices; its id."""

    def submit(command: str, indices: str) -> str:
        (project / "array.yaml").write_text(f"command: {json.dumps(command)}\narray: {indices}\nname: many\n")
        return submitted("array.yaml")

    return submit


def test_the_output_of_an_array_is_that_of_its_elements_each_line_marked(array: Callable[[str, str], str]) -> None:
    command = "echo a; echo b >&2; if [ $FLOW_ARRAY_INDEX = 5 ]; then printf unended; exit 3; fi"
    task_id = array(command, "3,5")
    ended = flow("logs", task_id, "-f")
    assert ended.returncode == 3
    assert sorted(ended.stdout.splitlines()) == ["[3] a", "[3] b", "[5] a", "[5] b", "[5] unended"]
    assert sorted(flow("logs", task_id, "--stdout").stdout.splitlines()) == ["[3] a", "[5] a", "[5] unended"]
    assert flow("logs", task_id, "--stdout", "--node", "3").stdout == "a\n"
    assert flow("logs", f"{task_id}_3", "--stdout").stdout == "a\n"
    stamped = flow("logs", task_id, "--stdout", "--timestamps").stdout.splitlines()
    assert sorted(re.sub(r"^\S+Z  ", "", line) for line in stamped) == ["[3] a", "[5] a", "[5] unended"]
    lines = [json.loads(line) for line in flow("logs", task_id, "--json").stdout.splitlines()]
    assert sorted({line["node"] for line in lines}) == [3, 5]
    rest = flow("logs", task_id, "--cursor", lines[1]["cursor"], "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in rest] == [line["text"] for line in lines[2:]]
    wrong = flow("logs", task_id, "--node", "4")
    assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (2, f"error: `{task_id}` has no element `4`")
    into = flow("ssh", task_id)
    assert (into.returncode, into.stderr.splitlines()[0]) == (
        2, f"error: `{task_id}` is an array: a shell needs one of its elements",
    )  # fmt: skip


def test_watching_an_array_follows_elements_that_start_later(project: Path) -> None:
    (project / "array.yaml").write_text("command: echo up $FLOW_ARRAY_INDEX\narray: 1-5%1\n")
    ended = flow("run", "array.yaml", "--watch")
    assert ended.returncode == 0
    assert ended.stdout.splitlines() == [f"[{index}] up {index}" for index in range(1, 6)]


def test_of_a_large_array_one_element_is_to_be_named(project: Path, array: Callable[[str, str], str]) -> None:
    task_id = array("true", "1-300")
    ended = flow("logs", task_id)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.endswith(f"\nhint: name an element: `flow logs {task_id}_1`\n")
    assert flow("logs", task_id, "-f").returncode == 2
    assert flow("logs", task_id, "--node", "2", "-f").returncode == 0
    assert flow("wait", task_id).returncode == 0
    watched = flow("run", "array.yaml", "--watch")
    assert (watched.returncode, watched.stdout) == (0, "")
    assert "elements: their output is not shown together" in watched.stderr


def test_lines_of_several_nodes_say_whose_they_are(project: Path) -> None:
    ended = flow("run", "-N", "2", "echo node $FLOW_NODE_RANK", "--watch")
    assert sorted(ended.stdout.splitlines()) == ["[0] node 0", "[1] node 1"]
    assert flow("logs", "@last", "--node", "1").stdout == "node 1\n"


def test_an_array_tells_its_reason_once(project: Path, array: Callable[[str, str], str]) -> None:
    task_id = array("test $FLOW_ARRAY_INDEX != 2 || exit 7", "1-3")
    ended = flow("wait", task_id)
    assert re.fullmatch(rf"{task_id}  failed  1 of 3 failed: exit 7  ran \d+\.\ds", ended.stdout.strip())
    assert flow("status").stdout.splitlines()[1].endswith("  1 of 3 failed: exit 7")
    slow = array("sleep 60", "1-4")
    assert flow("cancel", slow).returncode == 0
    assert "cancelled: cancelled" not in flow("status").stdout


def test_watching_tells_when_a_task_runs_again(project: Path) -> None:
    ended = flow("run", "echo try $FLOW_ATTEMPT; test $FLOW_ATTEMPT = 2", "--retries", "1", "--watch")
    assert (ended.returncode, ended.stdout) == (0, "try 1\ntry 2\n")
    assert "note: attempt 2: it runs again" in ended.stderr.splitlines()


def test_the_end_is_told_on_a_line_of_its_own(project: Path) -> None:
    ended = flow("run", "printf out; printf err >&2", "--name", "x", "--watch")
    assert ended.stdout == "out"
    assert ended.stderr.splitlines()[1] == "err"
    terminal = Terminal("run", "printf unended", "--watch")
    assert terminal.end() == 0
    assert "\nunended\ntask-" in terminal.screen.replace("\r", "").replace("\x1b[K", "")


def test_an_empty_idempotency_key_is_refused(project: Path) -> None:
    ended = flow("run", "true", "--idempotency-key", "")
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (2, "error: `--idempotency-key` is empty")


@pytest.mark.parametrize("folder", ["..", "../..", "a/../../b", "/workspace/../x"])
def test_a_working_dir_outside_of_the_project_is_refused(project: Path, folder: str) -> None:
    ended = flow("run", "true", "--working-dir", folder)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"`working_dir` is `{folder}`, outside of the task's copy of the project" in ended.stderr


def test_a_working_dir_that_the_project_does_not_have_is_refused(project: Path) -> None:
    (project / "lib/source").mkdir(parents=True)
    ended = flow("run", "true", "--working-dir", "lib/sorce")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "hint: did you mean `lib/source`?" in ended.stderr.splitlines()
    assert flow("run", "pwd", "--working-dir", "lib/source", "--watch").stdout.endswith("/lib/source\n")
    assert flow("run", "true", "--working-dir", "lib/sorce", "--no-upload-code", "--dry-run").returncode == 0
    assert flow("run", "pwd", "--working-dir", "/", "--watch").stdout == "/\n"


def test_an_output_path_leaves_what_the_start_decides_to_the_provider(project: Path) -> None:
    (project / "array.yaml").write_text("command: 'true'\narray: 1-2\noutput: out-%j-%A-%x.txt\nname: n\n")
    plan = json.loads(flow("run", "array.yaml", "--dry-run", "--json").stdout)
    assert plan["stdout"] == str(project / "out-%j-%A-%x.txt")
    (project / "one.yaml").write_text("command: 'true'\noutput: out-%j.txt\n")
    plan = json.loads(flow("run", "one.yaml", "--dry-run", "--json").stdout)
    assert plan["stdout"] == str(project / "out-%j.txt")


def test_ctrl_c_while_following_leaves_the_task_running(started: Callable[..., Any]) -> None:
    task_id = submitted("echo up; sleep 30")
    process = started("logs", task_id, "-f")
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.startswith(f"\nnote: `{task_id}` goes on\n")
    assert record(task_id)["status"] == "running"
    flow("cancel", task_id)


def test_a_reader_of_logs_that_goes_away_is_no_error(started: Callable[..., Any]) -> None:
    task_id = submitted("yes | head -n 200000")
    flow("wait", task_id)
    process = started("logs", task_id)
    assert process.stdout.readline() == "y\n"
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (141, "")


def test_info_tells_the_facts_and_hides_secrets(project: Path) -> None:
    command = """echo '{"loss": 1}' > $FLOW_OUTPUT/result.json"""
    task_id = submitted(command, "--name", "facts", "-e", "HF_TOKEN=s3cr3t", "-e", "LR=1")
    flow("wait", task_id)
    ended = flow("info", task_id)
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in ended.stdout.partition("\n\n")[0].splitlines())
    assert (facts["task"], facts["name"], facts["status"]) == (task_id, "facts", "completed")
    assert (facts["provider"], facts["exit code"], facts["result"]) == ("local", "0", '{"loss": 1}')
    assert Path(facts["folder"]).is_dir()
    assert '    HF_TOKEN: "***"' in ended.stdout.splitlines()
    found = record(task_id)
    assert found["result"] == {"loss": 1}
    assert "s3cr3t" not in ended.stdout + json.dumps(found)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)", found["created_at"])


def test_cancel_waits_for_the_end_and_says_what_it_ends(project: Path) -> None:
    task_id = submitted("sleep 30", "--name", "nap")
    ended = flow("cancel", task_id)
    assert (ended.returncode, ended.stdout) == (0, f"{task_id}  cancelled\n")
    assert f"ending `{task_id}` (nap)\n" in ended.stderr
    assert flow("wait", task_id).returncode == 143
    again = flow("cancel", task_id)
    assert (again.returncode, again.stdout) == (0, f"{task_id}  cancelled\n")


def test_a_name_that_is_cancelled_is_that_of_the_task_that_has_not_ended(project: Path) -> None:
    older, other = submitted("sleep 300", "--name", "nap"), submitted("sleep 300", "--name", "nap")
    refused = flow("cancel", "nap")
    assert (refused.returncode, refused.stderr) == (
        2,
        f"error: 2 tasks named `nap` have not ended: `{older}`, `{other}`\n\n"
        "hint: give the id of one\nhint: all of them: `flow cancel --name-pattern nap`\n",
    )
    assert [record(one)["status"] in ("running", "pending", "starting") for one in (older, other)] == [True, True]
    assert flow("cancel", other).returncode == 0
    ended = flow("cancel", "nap")
    assert (ended.returncode, ended.stdout) == (0, f"{older}  cancelled\n")
    assert ended.stderr == f"ending `{older}` (nap)\n"
    assert flow("cancel", "nap").stdout == f"{other}  cancelled\n"
    assert record("nap")["task_id"] == other


def test_an_element_is_cancelled_by_the_name_of_its_array(array: Callable[[str, str], str]) -> None:
    task_id = array("sleep 300", "1-2%1")
    assert flow("run", "true", "--name", "many", "--watch").returncode == 0
    ended = flow("cancel", "many_2")
    assert (ended.returncode, ended.stdout) == (0, f"{task_id}_2  cancelled\n"), ended.stderr
    assert record(f"{task_id}_1")["status"] != "cancelled"
    assert flow("cancel", "many").stdout == f"{task_id}  cancelled\n"


def test_cancelling_by_pattern_needs_a_yes(project: Path) -> None:
    first, second, other = (submitted("sleep 30", "--name", name) for name in ("dev-a", "dev-b", "keep"))
    refused = flow("cancel", "--name-pattern", "dev-*")
    assert refused.returncode == 3
    assert refused.stderr.endswith("error: End 2 tasks? There is nobody to ask\n\nhint: say so with `--yes`\n")
    assert flow("cancel", "-n", "dev-*", "--yes").stdout == f"{second}  cancelled\n{first}  cancelled\n"
    assert record(other)["status"] != "cancelled"
    assert flow("cancel", "--all", "--yes").stdout == f"{other}  cancelled\n"
    nothing = flow("cancel", "--all", "--yes")
    assert (nothing.returncode, nothing.stdout) == (0, "")


def test_wait_ends_with_the_first_code_that_is_not_0(project: Path) -> None:
    good, bad, slow = submitted("true"), submitted("exit 9"), submitted("sleep 30")
    assert flow("wait", good).returncode == 0
    assert flow("wait", good, bad).returncode == 9
    late = flow("wait", slow, "--timeout", "0.2")
    assert (late.returncode, late.stdout) == (6, "")
    assert late.stderr.startswith(f"error: `{slow}` has not ended after 0.2 s")
    documents = json.loads(flow("wait", good, bad, "--json").stdout)["tasks"]
    assert [task["exit_code"] for task in documents] == [0, 9]
    flow("cancel", slow)


def test_a_time_limit_reached_ends_with_124(project: Path) -> None:
    ended = flow("run", "sleep 30", "-t", "0.0001", "--watch")
    assert ended.returncode == 124
    assert "timed_out  time limit 0.0001 h reached" in ended.stderr


def test_ssh_runs_a_command_where_the_task_runs(project: Path) -> None:
    (project / "here.txt").write_text("yes")
    task_id = submitted("sleep 30", "-e", "MARK=m")
    assert in_state(task_id, "running")
    ended = flow("ssh", task_id, "--", "sh", "-c", "cat here.txt; echo $MARK; exit 6")
    assert (ended.returncode, ended.stdout) == (6, "yesm\n")
    assert flow("ssh", task_id, "--", "echo $FLOW_TASK_ID | cat").stdout == f"{task_id}\n"
    wrong = flow("ssh", task_id, "--node", "9", "--", "true")
    assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (2, f"error: `{task_id}` has no node `9`")
    flow("cancel", task_id)
    ended = flow("ssh", task_id)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, f"hint: see its output with `flow logs {task_id}`")


def test_a_name_without_a_command_is_a_machine_to_log_in_to(project: Path) -> None:
    ended = flow("run", "--name", "box")
    task_id = ended.stdout.split()[0]
    assert ended.stderr == f"hint: log in with `flow ssh {task_id}`\n"
    assert in_state("box", "running")
    assert flow("ssh", "box", "--", "echo", "in").stdout == "in\n"
    assert flow("cancel", "box").returncode == 0


def test_a_held_task_starts_when_it_is_resumed(project: Path) -> None:
    (project / "held.yaml").write_text("name: held\ncommand: echo ran\nhold: true\n")
    task_id = submitted("held.yaml")
    assert record(task_id)["status"] == "pending"
    assert flow("logs", task_id).stderr.startswith(f"note: `{task_id}` has not started: held")
    closed = flow("ssh", task_id)
    assert closed.returncode == 2
    assert closed.stderr.endswith(f"hint: it is held: let it start with `flow resume {task_id}`\n")
    assert flow("resume", task_id).returncode == 0
    assert flow("logs", task_id, "-f").stdout == "ran\n"


@pytest.mark.parametrize("command", ["info", "logs", "wait", "cancel", "resume", "ssh", "status"])
def test_an_unknown_task_is_not_found(project: Path, command: str) -> None:
    ended = flow(command, "task-00000000000000")
    assert (ended.returncode, ended.stdout) == (4, "")
    assert ended.stderr.startswith("error: ")
    assert "`task-00000000000000`" in ended.stderr
    failure = json.loads(flow("info", "nobody", "--json").stdout)["error"]
    assert failure["code"] == "task_not_found"


def test_prune_deletes_what_has_ended_and_only_that(project: Path) -> None:
    done, running = submitted("true"), submitted("sleep 30")
    flow("wait", done)
    assert flow("prune", "--keep", "0").returncode == 3
    dry = flow("prune", "--keep", "0", "--dry-run")
    assert dry.stdout == f"{done}\n"
    assert record(done)["status"] == "completed"
    assert flow("prune", "--keep", "0", "--yes").stdout == f"{done}\n"
    assert flow("info", done).returncode == 4
    assert record(running)["status"] in ("starting", "running")
    flow("cancel", running)


def test_prune_removes_what_no_task_needs_though_none_goes(project: Path) -> None:
    left = Path(os.environ["FLOW_HOME"], "incoming", "left")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 2000)
    ended = flow("prune", "--older-than", "1d")
    assert (ended.returncode, ended.stderr, left.exists()) == (0, "freed 2.0 kB\n", False)


def test_offers_show_what_this_machine_has(project: Path) -> None:
    lines = flow("offers").stdout.splitlines()
    assert lines[0].split() == ["TYPE", "GPU", "CPUS", "MEMORY", "$/H", "FREE", "WHERE"]
    assert lines[1].split()[-1] == "local"
    offer = json.loads(flow("offers", "--json").stdout)["offers"][0]
    assert (offer["provider"], offer["price_per_hour"]) == ("local", 0)
    assert flow("offers", "h1000").returncode == 2


def test_of_machines_that_are_not_here_offers_says_what_run_does(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "bin").mkdir()
    (project / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 1\n")
    (project / "bin/nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{project}/bin:{os.environ['PATH']}")
    ended = flow("offers", "8xa100")
    assert (ended.returncode, ended.stdout) == (0, "No offers found\n")
    assert "note: `flow run -i 8xa100` runs all the same, emulated" in ended.stderr
    monkeypatch.setenv("FLOW_LOCAL_STRICT", "1")
    assert "note: `flow run -i 8xa100` is refused" in flow("offers", "8xa100").stderr


def test_status_as_a_stream_is_one_document_a_line(started: Callable[..., Any]) -> None:
    task_id = submitted("sleep 30")
    assert in_state(task_id, "running")
    process = started("status", task_id, "--watch", "--json")
    assert json.loads(process.stdout.readline())["tasks"][0]["status"] == "running"
    flow("cancel", task_id)
    rest, _ = process.communicate(timeout=60)
    assert json.loads(rest.splitlines()[-1])["tasks"][0]["status"] == "cancelled"
    assert process.returncode == 0


def test_on_a_terminal_cancelling_by_pattern_asks(project: Path) -> None:
    task_id = submitted("sleep 30", "--name", "dev-a")
    terminal = Terminal("cancel", "-n", "dev-*")
    assert terminal.shows(f"End `{task_id}` (dev-a)? [y/N]: ")
    terminal.types("n\n")
    assert terminal.end() == 1
    assert record(task_id)["status"] != "cancelled"
    terminal = Terminal("cancel", "-n", "dev-*")
    assert terminal.shows("[y/N]: ")
    terminal.types("y\n")
    assert terminal.end() == 0
    assert terminal.screen.endswith(f"{task_id}  cancelled\n")


def test_on_a_terminal_status_is_kept_up_to_date_in_its_place(project: Path) -> None:
    task_id = submitted("sleep 30", "--name", "nap")
    assert in_state(task_id, "running")
    terminal = Terminal("status", task_id, "--watch")
    assert terminal.shows("running")
    assert terminal.shows("\x1b[2A\r\x1b[J")
    flow("cancel", task_id)
    assert terminal.end() == 0
    last = terminal.screen.rpartition("\x1b[J")[2].splitlines()
    assert [line.split()[0] for line in last] == ["TASK", task_id]
    assert "cancelled" in last[1]


def test_a_task_that_waits_shows_its_phase_on_a_terminal(project: Path) -> None:
    (project / "held.yaml").write_text("name: held\ncommand: echo ran\nhold: true\n")
    terminal = Terminal("run", "held.yaml", "--watch")
    assert terminal.shows("pending: held")
    assert flow("resume", "held").returncode == 0
    assert terminal.end() == 0
    assert "\r\x1b[Kran\n" in terminal.screen


def test_tasks_are_completed_by_name_and_id(project: Path) -> None:
    task_id = submitted("true", "--name", "train-1")
    flow("wait", task_id)
    given = {"_FLOW_COMPLETE": "bash_complete", "COMP_WORDS": "flow logs t", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "flow"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **given})
    assert ended.stdout.splitlines() == ["plain,train-1", f"plain,{task_id}"]
