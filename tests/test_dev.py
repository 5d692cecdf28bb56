"""`flow dev`: one machine all day, on which commands run at once."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flow.client import Flow
from flow.dev import DevMachine, _default_type
from flow.errors import ResourceNotFoundError
from flow.gpus import parse_gpu
from flow.machines import Offer
from flow.node import tail
from tests.support.commands import flow
from tests.support.fleet import Fleet
from tests.support.processes import is_alive, wait_until
from tests.support.slurm import Cluster
from tests.support.terminal import Terminal

FLOW = [sys.executable, "-u", "-m", "flow"]
PLAIN = "no image is named: this runs as a plain process, with a {} of its own"
NO_GPUS = "docker cannot give this machine's GPUs to containers"


@pytest.fixture(autouse=True)
def at_the_end(own_environment: None) -> Iterator[None]:
    """No machine stays; those of a fleet have gone by then."""
    yield
    if os.environ.get("FLOW_PROVIDER") != "ssh":
        flow("dev", "--stop", "--yes")


@pytest.fixture
def on_a_fleet(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setenv("FLOW_PROVIDER", "ssh")
    monkeypatch.setenv("FLOW_SSH_HOSTS", "gpu1,gpu2")
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))
    return fleet


def dev(command: str, *options: str) -> tuple[int, str]:
    """Exit code and standard output of a command on the machine."""
    ended = flow("dev", *options, "-c", command)
    print(ended.stderr)
    return ended.returncode, ended.stdout


@contextmanager
def begun(command: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs there, in a group of its own as at a terminal."""
    words = [*FLOW, "dev", *options, "-c", command]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, process_group=0) as process:
        yield process


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def save(path: Path, text: str) -> None:
    """As an editor does: who reads it meanwhile has it as it was."""
    new = path.parent.with_name("saved")
    new.write_text(text)
    new.rename(path)


def machine_of(told: str) -> str:
    return told.split(maxsplit=1)[0]


# -- one machine


def test_the_first_call_starts_it_and_the_next_ones_use_it(project: Path) -> None:
    (project / "train.py").write_text("print('step')")
    first = flow("dev", "-c", "cat; python3 train.py; exit 3", stdin=b"given\n")
    assert (first.returncode, first.stdout) == (3, "given\nstep\n")
    task_id = machine_of(first.stderr)
    assert first.stderr.splitlines()[:2] == [
        f"{task_id}  dev  cpu  local",
        "note: it stays until `flow dev --stop`",
    ]
    again = flow("dev", "-c", "echo $FLOW_TASK_ID; echo oh >&2; kill -9 $$")
    assert (again.returncode, again.stdout, again.stderr) == (
        137,
        f"{task_id}\n",
        f"note: {PLAIN.format('TMPDIR')}\noh\n",
    )


def test_without_a_command_it_is_a_shell(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    ended = flow("dev", stdin=b"basename $PWD; exit 4\n")
    assert (ended.returncode, ended.stdout) == (4, "workspace\n")


def test_terminals_that_start_it_at_once_get_one(project: Path) -> None:
    with begun("echo $FLOW_TASK_ID") as one, begun("echo $FLOW_TASK_ID") as other:
        ids = {read_line(one), read_line(other)}
    assert len(ids) == 1 and [task.name for task in Flow().tasks()] == ["dev"]


def test_a_task_that_is_called_dev_is_none(project: Path) -> None:
    other = Flow().run("sleep 300", name="dev")
    assert dev("echo $FLOW_TASK_ID")[1].strip() not in ("", other.task_id)
    other.cancel()


def test_one_that_was_ended_is_not_used_any_more(project: Path) -> None:
    first = dev("echo $FLOW_TASK_ID")[1].strip()
    Flow().cancel(first)
    assert dev("echo $FLOW_TASK_ID")[1].strip() not in ("", first)


def offers(*types: str, hosts: tuple[str, ...] = ()) -> list[Offer]:
    found = []
    for one in types:
        name, _, available = one.partition(" ")
        gpu = None if name == "cpu" else parse_gpu(name)
        found.append(Offer("x", name, gpu, 8, 64, 1.0, available=0 if available else 1, hosts=hosts))
    return found


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ([], None),
        (["cpu"], "cpu"),
        (["cpu", "t4", "a100"], "t4"),
        (["cpu", "t4", "h100", "8xh100"], "h100"),
        (["t4", "h100 taken", "2xh100"], "2xh100"),
        (["t4", "h100 taken"], "h100"),
    ],
)
def test_the_machine_is_an_h100_or_what_there_is(there: list[str], chosen: str | None) -> None:
    assert _default_type(offers(*there)) == chosen


def test_where_a_host_is_named_it_is_what_that_one_has() -> None:
    there = [*offers("cpu", hosts=("gpu1", "box")), *offers("a100", hosts=("gpu1",))]
    assert [_default_type(there, where) for where in (None, "gpu1", "box", "gone")] == ["a100", "a100", "cpu", None]


def test_another_machine_than_the_one_there_is_refused(project: Path) -> None:
    assert dev("true", "-i", "a100:2")[0] == 0
    assert dev("true", "-i", "2xa100")[0] == 0
    ended = flow("dev", "-c", "true", "-i", "h100")
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: the development machine is of type `2xa100`, not `h100`\n\n"
        "hint: end it first with `flow dev --stop`\nhint: or leave that option out\n",
    )
    ended = flow("dev", "-c", "true", "--idle-stop", "2h")
    assert ended.stderr.startswith("error: the development machine was started to stop by itself never\n")


# -- the code


def test_what_changed_is_there_and_what_is_gone_is_not(project: Path) -> None:
    (project / "stays").write_text("1")
    (project / "goes").write_text("1")
    assert dev("cat *; echo made > there") == (0, "11")
    (project / "goes").unlink()
    (project / "new").write_text("2")
    assert dev("ls") == (0, "new\nstays\nthere\n")
    (project / "new").write_text("3")
    assert dev("cat new", "--no-upload") == (0, "2")
    assert dev("cat new") == (0, "3")


def test_a_workspace_of_another_name_is_apart(project: Path) -> None:
    (project / "file").write_text("1")
    assert dev("echo more >> file; ls; basename $FLOW_WORKSPACE", "--env-name", "web") == (0, "file\nworkspace\n")
    assert dev("cat file") == (0, "1")
    assert dev("cat file", "--env-name", "web", "--no-upload") == (0, "1more\n")
    assert dev("ls", "--env-name", "other", "--no-upload") == (0, "")
    assert dev("ls", "--env-name", "other") == (0, "file\n")
    assert len(Flow().tasks()) == 1


def test_a_whole_home_is_not_uploaded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dev("true")[0] == 0
    monkeypatch.setenv("HOME", str(project))
    ended = flow("dev", "-c", "pwd")
    assert ended.returncode == 0 and ended.stderr.startswith(f"note: `{project}` is not uploaded: ")
    assert flow("dev", "-c", "pwd", "--watch").stderr.startswith(f"error: `{project}` is not a project\n")


def test_watch_runs_it_again_at_each_save_and_ends_what_ran(project: Path) -> None:
    (project / "step").write_text("one")
    with begun("cat step; echo; sleep 300 & echo $!; wait", "--watch") as process:
        assert read_line(process) == "one\n"
        first = int(read_line(process))
        save(project / "step", "two")
        assert read_line(process) == "two\n"
        assert not is_alive(first)
        second = int(read_line(process))
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert not is_alive(second)
    assert said.count(PLAIN.format("TMPDIR")) == 1


def test_what_python_prints_comes_at_once(project: Path) -> None:
    (project / "train.py").write_text("import time; print('step'); time.sleep(300)")
    for options in ((), ("--watch",)):
        with begun("exec python3 train.py", *options) as process:
            assert read_line(process) == "step\n"
            process.send_signal(signal.SIGINT)


def test_watch_goes_on_after_an_end(project: Path) -> None:
    (project / "code").write_text("exit 3")
    with begun("sh code", "--watch") as process:
        assert process.stderr
        while (line := process.stderr.readline()) != "note: exit 3; runs again at the next change\n":
            assert line
        save(project / "code", "echo fine")
        assert read_line(process) == "fine\n"
        process.send_signal(signal.SIGINT)


# -- what runs


def test_nothing_that_a_command_started_outlives_it(project: Path) -> None:
    code, told = dev("setsid sleep 300 > /dev/null 2>&1 & echo $!")
    assert code == 0 and wait_until(lambda: not is_alive(int(told)))


def test_each_command_has_files_of_its_own_for_the_time_it_runs(project: Path) -> None:
    _, told = dev("echo $TMPDIR; ls $TMPDIR; echo > $TMPDIR/file")
    _, again = dev("echo $TMPDIR; ls $TMPDIR")
    assert told != again and len(told.splitlines()) == len(again.splitlines()) == 1
    assert not Path(told.strip()).exists() and not Path(again.strip()).exists()


def test_ctrl_c_reaches_the_command_which_may_clean_up(project: Path) -> None:
    script = "trap 'echo saved; exit 5' INT; echo ready; while :; do sleep 0.01; done"
    with begun(script) as process:
        assert read_line(process) == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        assert read_line(process) == "saved\n"
        assert process.wait(timeout=30) == 5


def test_the_end_of_the_client_is_that_of_the_command(project: Path) -> None:
    with begun("echo $$; sleep 300") as process:
        pid = int(read_line(process))
        process.terminate()
        assert process.wait(timeout=30) == 143
        assert not is_alive(pid)


def test_a_client_that_is_killed_takes_its_command_along(project: Path) -> None:
    with begun("echo $$; sleep 300") as process:
        pid = int(read_line(process))
        process.kill()
        assert wait_until(lambda: not is_alive(pid))
    assert wait_until(lambda: DevMachine().sessions() == [])


def test_at_a_terminal_the_command_is_at_one(project: Path) -> None:
    dev("true")
    ours, its = pty.openpty()
    with subprocess.Popen([*FLOW, "dev", "-c", "tty; read x; echo got $x"], stdin=its, stdout=its, stderr=its) as one:
        os.close(its)
        os.write(ours, b"word\n")
        said = b""
        with pytest.raises(OSError):  # its end, as the kernel tells it
            while True:
                said += os.read(ours, 4096)
        assert one.wait(timeout=30) == 0
    os.close(ours)
    assert b"/dev/pts/" in said and b"got word" in said


def test_several_run_at_once_are_listed_and_reset_together(project: Path) -> None:
    with begun("echo $$; sleep 300; true 1") as one, begun("echo $$; sleep 300; true 2") as other:
        pids = [int(read_line(process)) for process in (one, other)]
        ended = flow("dev", "--status")
        lines = ended.stdout.splitlines()
        assert lines[0].endswith("  dev  cpu  local  running") and lines[1].endswith("s, ends by `flow dev --stop`")
        assert sorted(line.split(maxsplit=2)[2] for line in lines[2:]) == [
            "RUNS",
            "echo $$; sleep 300; true 1",
            "echo $$; sleep 300; true 2",
        ]
        assert flow("dev", "--reset").stderr == "2 commands ended; the files are as they were\n"
        assert [process.wait(timeout=30) for process in (one, other)] == [143, 143]
        assert not any(map(is_alive, pids))
    assert flow("dev", "--status").stdout.count("\n") == 2


def test_a_process_that_has_the_number_of_an_ended_command_is_left_alone(project: Path) -> None:
    task = DevMachine().start()
    assert dev("true")[0] == 0
    with subprocess.Popen(["sleep", "300"]) as other:
        note = Path(str(task.folder), "sessions", str(other.pid))
        note.write_text(json.dumps({"what": "ended", "is_fresh": True, "began": tail.began(os.getpid())}))
        assert flow("dev", "--status").stdout.count("\n") == 2
        assert flow("dev", "--reset").stderr == "0 commands ended; the files are as they were\n"
        assert flow("dev", "--stop").returncode == 0
        assert other.poll() is None
        other.kill()


def test_stop_asks_before_it_ends_what_runs(project: Path) -> None:
    with begun("echo $$; sleep 300") as process:
        pid = int(read_line(process))
        ended = flow("dev", "--stop")
        assert (ended.returncode, ended.stderr.splitlines()[0]) == (
            3,
            "error: `echo $$; sleep 300` still runs there. End the machine? There is nobody to ask",
        )
        assert is_alive(pid)
        ended = flow("dev", "--stop", "--yes")
        assert (ended.returncode, ended.stderr.endswith("` has ended\n")) == (0, True)
        assert process.wait(timeout=30) == 143
        assert not is_alive(pid)
    ended = flow("dev", "--status")
    assert (ended.returncode, ended.stderr) == (
        4,
        "error: there is no development machine at local\n\nhint: start one with `flow dev`\n",
    )


def test_one_that_waits_is_shown_left_waiting_and_given_up(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "1")
    other = Flow().run("sleep 300", upload_code=False)
    terminal = Terminal("dev")
    assert terminal.shows("pending: ")
    terminal.types("\x03")
    assert terminal.end() == 130
    assert terminal.screen.endswith("note: the machine is still asked for\nhint: give it up with `flow dev --stop`\n")
    ended = flow("dev", "--status")
    state, reason = ended.stdout.splitlines()
    assert (ended.returncode, state.endswith("  dev  cpu  local  pending")) == (0, True), ended.stderr
    assert reason.endswith(", ends by `flow dev --stop`")
    ended = flow("dev", "--stop")
    assert (ended.returncode, ended.stderr.endswith("` has ended\n")) == (0, True), ended.stderr
    other.cancel()


def test_who_is_on_it_is_told_of_its_end(project: Path) -> None:
    dev("true")
    terminal = Terminal("dev", "-c", "echo ready; sleep 300")
    assert terminal.shows("ready\n")
    assert flow("dev", "--stop", "--yes").returncode == 0
    assert terminal.end() == 143
    assert terminal.screen.endswith("note: the development machine has ended\n")


def test_it_ends_by_itself_when_nobody_was_there(project: Path) -> None:
    ended = flow("dev", "--idle-stop", "3s", "-c", "sleep 7; echo $FLOW_TASK_ID")
    assert "note: it ends by itself when nobody was on it for 3.0s" in ended.stderr
    task = Flow().get_task(ended.stdout.strip())
    assert task.wait(timeout=30) == "completed"
    with pytest.raises(ResourceNotFoundError):
        DevMachine().sessions()


def test_a_process_that_has_the_number_of_an_ended_command_keeps_no_machine(project: Path) -> None:
    task = DevMachine().start(idle_stop_seconds=3)
    with subprocess.Popen(["sleep", "300"]) as other:
        assert wait_until(
            lambda: task.refresh().folder is not None and Path(str(task.folder), "sessions").exists(), seconds=30
        )
        note = {"what": "ended", "is_fresh": True, "began": tail.began(os.getpid())}
        Path(str(task.folder), "sessions", str(other.pid)).write_text(json.dumps(note))
        assert task.wait(timeout=60) == "completed"
        assert other.poll() is None
        other.kill()


def test_from_python(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    machine = DevMachine()
    task = machine.start(idle_stop_seconds=3600)
    assert wait_until(lambda: task.refresh().status == "running")
    (project / "file").write_text("here")
    assert machine.sync(project).updated == ("file",)
    assert machine.run("cat file; exit 2") == 2
    assert capfd.readouterr().out == "here"
    (project / "file").write_text("as it was read")
    machine.read_ahead(project)
    assert (machine.start(), machine.sync(project).updated) == (task, ("file",))
    (project / "other").write_text("later")
    assert machine.sync(project).updated == ("other",)
    assert (machine.sessions(), machine.reset()) == ([], 0)
    assert machine.stop().status == "cancelled"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-c", " "], "the command is empty"),
        (["--watch"], "`--watch` needs `-c`"),
        (["--watch", "-c", "true", "--no-upload"], "`--watch` uploads what changes"),
        (["--status", "--stop"], "`--status` and `--stop` exclude each other"),
        (["--reset", "-c", "true"], "`--reset` and `-c` exclude each other"),
        (["--idle-stop", "0"], "`--idle-stop 0` leaves no time"),
        (["--idle-stop", "soon"], "cannot read `soon` as a time span"),
        (["--env-name", "../x"], "`../x` cannot be the name of an environment"),
        (["-i", "h1000"], "no instance type `h1000` at local"),
        (["--stop"], "there is no development machine at local"),
        (["--reset"], "there is no development machine at local"),
    ],
)
def test_what_makes_no_sense_is_refused(project: Path, words: list[str], message: str) -> None:
    ended = flow("dev", *words)
    assert ended.returncode in (2, 4) and ended.stderr.splitlines()[0] == f"error: {message}"
    assert Flow().tasks() == []


# -- containers


def test_an_image_gives_each_command_a_container(project: Path, containers: str) -> None:
    (project / "file").write_text("here\n")
    script = "cat /workspace/file; pwd; echo made > made; echo > /tmp/mine; echo $FLOW_WORKSPACE; exit 3"
    assert dev(script, "--image", containers) == (3, "here\n/workspace\n/workspace\n")
    assert dev("cat made; test -e /tmp/mine", "--image", containers) == (1, "made\n")
    assert subprocess.run(["podman", "ps", "-aq"], capture_output=True).stdout == b""


def test_the_image_may_be_a_setting(project: Path, containers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_DEV_IMAGE", containers)
    assert dev("pwd") == (0, "/workspace\n")


def test_ctrl_c_and_reset_end_containers(project: Path, containers: str) -> None:
    with begun("echo ready; sleep 300", "--image", containers) as process:
        assert read_line(process) == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 130
    with begun("echo ready; sleep 300", "--image", containers) as process:
        assert read_line(process) == "ready\n"
        assert flow("dev", "--reset").stderr == "1 command ended; the files are as they were\n"
        process.wait(timeout=30)
    assert subprocess.run(["podman", "ps", "-aq"], capture_output=True).stdout == b""


# -- on other machines


def test_a_host_of_the_fleet_is_one_too(project: Path, on_a_fleet: Fleet) -> None:
    (project / "train.py").write_text("print('step')")
    ended = flow("dev", "-c", "python3 train.py; cat; echo $CUDA_VISIBLE_DEVICES; exit 3", stdin=b"given\n")
    assert (ended.returncode, ended.stdout) == (3, "step\ngiven\n0\n"), ended.stderr
    assert ended.stderr.splitlines()[0].endswith("  dev  a100  ssh")
    assert flow("dev", "--status").stdout.splitlines()[1].startswith("gpu")
    (project / "train.py").write_text("print('next')")
    assert dev("cd /workspace && python3 train.py") == (0, "next\n")
    assert dev("echo $TMPDIR; ls /tmp; echo > /tmp/mine") == dev("echo $TMPDIR; ls /tmp") == (0, "/tmp\n")
    assert dev("pwd", "--env-name", "web")[1].endswith("/environments/web/workspace\n")
    assert dev("ls /workspace", "--env-name", "web") == (0, "train.py\n")


def test_there_a_host_can_be_named(project: Path, on_a_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = flow("dev", "--region", "gpu2", "-c", "hostname")
    assert (ended.returncode, ended.stdout) == (0, "gpu2\n"), ended.stderr
    assert ended.stderr.splitlines()[-1] == f"note: {PLAIN.format('/tmp')}"
    ended = flow("dev", "--region", "gpu1", "-c", "hostname")
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (
        2,
        "error: the development machine is in `gpu2`, not in `gpu1`",
    )
    assert flow("dev", "--stop").returncode == 0
    monkeypatch.setenv("FLOW_DEV_REGION", "gpu2")
    assert dev("hostname") == dev("hostname", "--region", "gpu2") == (0, "gpu2\n")


def test_there_ctrl_c_ends_the_command_too(project: Path, on_a_fleet: Fleet) -> None:
    dev("true")
    running = "pgrep -c -f '^sleep 3[0]1' || true"
    for stop in (lambda pid: os.killpg(pid, signal.SIGINT), lambda pid: os.kill(pid, signal.SIGTERM)):
        with begun("echo ready; sleep 301") as process:
            assert read_line(process) == "ready\n"
            assert dev(running) == (0, "1\n")
            stop(process.pid)
            assert process.wait(timeout=30) in (130, 143)
        assert wait_until(lambda: dev(running) == (0, "0\n"))


def test_there_a_client_that_is_killed_takes_its_command_along(project: Path, on_a_fleet: Fleet) -> None:
    dev("true")
    with begun("echo ready; sleep 305") as process:
        assert read_line(process) == "ready\n"
        process.kill()
    assert wait_until(lambda: dev("pgrep -c -f '^sleep 30[5]' || true") == (0, "0\n"))


def test_there_nothing_is_left_after_a_stop(project: Path, on_a_fleet: Fleet) -> None:
    with begun("echo ready; sleep 302") as process:
        assert read_line(process) == "ready\n"
        assert flow("dev", "--stop", "--yes").returncode == 0
        assert process.wait(timeout=30) != 0
    for host in on_a_fleet.hosts.values():
        assert host.run("pgrep -f '^sleep 302'", check=False).stdout == ""


def test_there_one_that_is_out_of_reach_ends_when_it_is_back(project: Path, on_a_fleet: Fleet) -> None:
    task_id = dev("echo $FLOW_TASK_ID")[1]
    task = Flow().get_task(task_id.strip())
    host = on_a_fleet.hosts[task.get_instances()[0].instance_id]
    with begun("echo ready; sleep 304") as process:
        assert read_line(process) == "ready\n"
        host.cut()
        ended = flow("dev", "--stop")
        assert (ended.returncode, "is out of reach" in ended.stderr) == (6, True), ended.stderr
        ended = flow("dev", "--stop", "--yes")
        assert (ended.returncode, ended.stderr) == (
            0,
            f"`{task}` is to end, as the first `flow` command will tell it that finds its host to answer again\n",
        )
        host.heal()
        assert wait_until(lambda: flow("status").returncode == 0 and task.refresh().status == "cancelled", seconds=60)
        process.terminate()


def test_there_watch_ends_what_ran_before_it_runs_again(project: Path, on_a_fleet: Fleet) -> None:
    (project / "step").write_text("one\n")
    with begun("cat step; pgrep -c -f '^sleep 3[0]3'; exec sleep 303", "--watch") as process:
        assert (read_line(process), read_line(process)) == ("one\n", "0\n")
        save(project / "step", "two\n")
        assert (read_line(process), read_line(process)) == ("two\n", "0\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert dev("pgrep -c -f '^sleep 3[0]3'; true") == (0, "0\n")


def test_a_node_of_a_cluster_is_one_too(
    project: Path, slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "file").write_text("here\n")
    monkeypatch.setenv("FLOW_PROVIDER", "slurm")
    monkeypatch.setenv("FLOW_SLURM_FOLDER", str(tmp_path / "shared"))
    ended = flow("dev", "-i", "cpu", "-c", "cat file; exit 3")
    assert (ended.returncode, ended.stdout) == (3, "here\n"), ended.stderr
    (project / "file").write_text("there\n")
    assert dev("cat file; hostname | cut -c1-4") == (0, "there\nnode\n")


@pytest.fixture
def plain(empty_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A machine of an ordinary user's, without any container engine, and one with Docker."""
    empty_fleet.boot("plain", user="ann", without=("docker", "podman"))
    empty_fleet.boot("box").start_docker()
    monkeypatch.setenv("FLOW_PROVIDER", "ssh")
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(empty_fleet.config))
    return empty_fleet


def test_a_machine_has_docker_or_has_not(
    project: Path, plain: Fleet, containers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "file").write_text("here\n")
    monkeypatch.setenv("FLOW_SSH_HOSTS", "box")
    assert dev("cat /workspace/file; pwd; exit 3", "--image", containers) == (3, "here\n/workspace\n")
    with begun("echo ready; sleep 300", "--image", containers) as process:
        assert read_line(process) == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert wait_until(lambda: plain.hosts["box"].run("docker ps -aq").stdout == "")
    assert flow("dev", "--stop", "--yes").returncode == 0
    monkeypatch.setenv("FLOW_SSH_HOSTS", "plain")
    ended = flow("dev", "-c", "true", "--image", containers)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        125,
        f"error: neither docker nor podman answers on this machine, and `{containers}` needs one of them",
    )
    monkeypatch.setenv("FLOW_DEV_IMAGE", containers)
    ended = flow("dev", "-c", "cat file; [ $TMPDIR != /tmp ] && ls $TMPDIR")
    assert (ended.returncode, ended.stdout) == (0, "here\n")
    assert (
        ended.stderr == f"note: neither docker nor podman answers on this machine, which `{containers}` needs: "
        "this runs as a plain process, with a TMPDIR of its own\n"
    )


def test_docker_may_have_no_way_to_give_gpus(
    project: Path, empty_fleet: Fleet, containers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = empty_fleet.boot("box", gpus=1)
    box.start_docker()
    monkeypatch.setenv("FLOW_PROVIDER", "ssh")
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(empty_fleet.config))
    monkeypatch.setenv("FLOW_SSH_HOSTS", "box")
    ended = flow("dev", "--image", containers, "-c", "pwd")
    assert (ended.returncode, ended.stdout) == (0, "/workspace\n"), ended.stderr
    assert ended.stderr.splitlines()[-1] == f"note: {NO_GPUS}: this runs without a GPU"
    ended = flow("dev", "--image", containers, "-i", "a100", "-c", "pwd")
    advice = "install the NVIDIA Container Toolkit, then restart docker"
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (125, f"error: {NO_GPUS}: {advice}")
    assert flow("dev", "--stop").returncode == 0
    monkeypatch.setenv("FLOW_DEV_INSTANCE_TYPE", "a100")
    assert dev("pwd", "--image", containers)[0] == 125


def test_docker_gives_gpus_where_it_can(
    project: Path, empty_fleet: Fleet, containers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = empty_fleet.boot("box", gpus=1)
    box.run("printf '#!/bin/sh\n' >/usr/bin/nvidia-container-runtime-hook; chmod +x /usr/bin/nvidia-container-*")
    box.start_docker()
    monkeypatch.setenv("FLOW_PROVIDER", "ssh")
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(empty_fleet.config))
    monkeypatch.setenv("FLOW_SSH_HOSTS", "box")
    ended = flow("dev", "--image", containers, "-c", "echo $NVIDIA_VISIBLE_DEVICES")
    assert (ended.returncode, ended.stdout) == (0, "0\n"), ended.stderr
    assert "GPU" not in ended.stderr
