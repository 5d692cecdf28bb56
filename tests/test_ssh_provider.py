"""Tasks on hosts that ssh reaches: a fleet of four machines."""

from __future__ import annotations

import gc
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from flow.client import Flow
from flow.errors import ResourceNotFoundError, ValidationError
from tests.support.commands import flow
from tests.support.contract import ProviderContract
from tests.support.fleet import Fleet
from tests.support.processes import wait_until
from tests.support.terminal import Terminal


@pytest.fixture
def client(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Flow:
    monkeypatch.setenv("FLOW_SSH_HOSTS", ",".join(fleet.hosts))
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))
    return Flow("ssh")


class TestContract(ProviderContract):
    """On four machines, which reach each other."""

    @pytest.fixture(autouse=True)
    def acquainted(self, fleet: Fleet) -> None:
        fleet.acquaint()


def test_an_array_is_spread_over_the_hosts_and_its_limit_holds_for_all_of_it(client: Flow) -> None:
    wide = client.run("hostname", array="1-8", upload_code=False)
    narrow = client.run("hostname; sleep 0.2", array="1-6%2", upload_code=False)
    assert [task.wait(timeout=60) for task in (wide, narrow)] == ["completed", "completed"]
    assert set(wide.logs().split()) == {"gpu1", "gpu2", "gpu3", "gpu4"}
    assert len(set(narrow.logs().split())) <= 2


def test_gpus_are_given_in_part_and_never_twice(client: Flow) -> None:
    tasks = [client.run("echo $CUDA_VISIBLE_DEVICES; sleep 1000", gpu="a100:2", upload_code=False) for _ in range(8)]
    assert wait_until(lambda: all(task.logs() for task in tasks), seconds=60)  # "running" is told before it runs
    waits = client.run("echo $CUDA_VISIBLE_DEVICES", gpu="a100:4", upload_code=False)
    given = [(task.refresh().get_instances()[0].instance_id, task.logs().strip()) for task in tasks]
    assert sorted(given) == sorted((f"gpu{n}", cards) for n in range(1, 5) for cards in ("0,1", "2,3"))
    assert waits.refresh().status == "pending" and waits.reason.startswith("waits for its turn on gpu")
    client.cancel(*tasks)
    assert waits.wait(timeout=60) == "completed"
    assert waits.logs() == "0,1,2,3\n"


def test_a_submission_that_is_interrupted_goes_on(client: Flow, fleet: Fleet, project: Path) -> None:
    (project / "weights").write_bytes(os.urandom(20_000_000))
    fleet.hosts["gpu2"].slow(100)
    terminal = Terminal("run", "wc -c <weights", "--provider", "ssh", "--region", "gpu2")
    assert wait_until(lambda: bool(list(client.home.glob("record/*/hosts.json"))), seconds=60)
    terminal.types("\x03")
    assert terminal.end() == 130
    (task,) = client.tasks()
    assert terminal.screen.splitlines()[1:] == [
        f"note: `{task}` goes on",
        f"hint: come back with `flow logs {task} -f`",
        f"hint: end it with `flow cancel {task}`",
    ]
    fleet.hosts["gpu2"].slow(0)
    record = client.home / "record" / task.task_id / "allocated"
    assert wait_until(record.exists, seconds=60), (client.home / "attend.log").read_text()
    assert (task.wait(timeout=60), task.logs()) == ("completed", "20000000\n")


def test_a_call_that_is_interrupted_while_it_is_submitted_is_ended(client: Flow, fleet: Fleet, project: Path) -> None:
    (project / "weights").write_bytes(os.urandom(20_000_000))
    fields = "provider='ssh', region='gpu2'"
    (project / "app.py").write_text(
        f"from flow import function\n@function({fields})\ndef f(): import time; time.sleep(1000)\nf.remote()\n"
    )
    fleet.hosts["gpu2"].slow(100)
    with subprocess.Popen([sys.executable, "app.py"], stderr=subprocess.PIPE, text=True) as program:
        assert wait_until(lambda: bool(list(client.home.glob("record/*/hosts.json"))), seconds=60)
        program.send_signal(signal.SIGINT)
        said = program.communicate(timeout=60)[1]
    fleet.hosts["gpu2"].slow(0)
    assert said.endswith("KeyboardInterrupt\n"), said
    (task,) = client.tasks()
    assert task.wait(timeout=60) == "cancelled"


def test_what_no_host_can_take_is_refused(client: Flow) -> None:
    with pytest.raises(ValidationError, match="no instance type `8xa100` at ssh"):
        client.run("true", gpu="8xa100", upload_code=False)
    with pytest.raises(ValidationError, match="`num_instances` is `5`, and ssh has at most 4 nodes"):
        client.run("true", num_instances=5, upload_code=False)
    assert client.tasks() == []  # nothing is on record
    with pytest.raises(ValidationError, match="2 nodes are asked for, and 1 of the fleet's hosts have 1 CPU"):
        client.run("true", num_instances=2, region="gpu1", upload_code=False)
    with pytest.raises(ValidationError, match="no host of the fleet has 999 CPUs: gpu1 has 4 a100, "):
        client.run("true", cpus=999, upload_code=False)


def test_who_has_many_files_open_follows_a_task(client: Flow) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        task = client.run("echo one; sleep 0.5; echo two", upload_code=False)
        assert list(task.logs(follow=True)) == ["one", "two"]
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _pipes() -> set[str]:
    names = (str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink())
    return {name for name in names if name.startswith("pipe:")}


def test_a_client_that_nobody_holds_lets_go_of_its_connections(client: Flow) -> None:
    before = _pipes()
    gc.disable()  # which would come sooner or later
    try:
        other = Flow("ssh")
        other.offers()
        other.volumes()
        assert other.run("echo one", upload_code=False).wait(timeout=60) == "completed"
        assert _pipes() > before
        del other
        assert _pipes() <= before
    finally:
        gc.enable()


def test_only_changed_files_travel(client: Flow, fleet: Fleet, project: Path) -> None:
    for number in range(20):
        (project / f"file{number}").write_text(f"{number}\n")
    first = client.run("cat file7; ls | wc -l", region="gpu2")
    assert first.wait(timeout=60) == "completed"
    listing = ("find", f"{fleet.hosts['gpu2'].home}/.flow-host/blobs", "-type", "f", "-printf", "%i %f\\n")
    before = fleet.hosts["gpu2"].run(shlex.join(listing)).stdout.splitlines()
    (project / "file7").write_text("other\n")
    second = client.run("cat file7; ls | wc -l", region="gpu2")
    assert second.wait(timeout=60) == "completed"
    assert (first.logs(), second.logs()) == ("7\n20\n", "other\n20\n")
    after = fleet.hosts["gpu2"].run(shlex.join(listing)).stdout.splitlines()
    assert (len(before), len({*after} - {*before})) == (20, 1)


def test_a_slurm_script_runs_on_hosts(client: Flow, project: Path) -> None:
    (project / "job.sh").write_text(
        "#!/bin/bash\n#SBATCH --job-name=far --gres=gpu:2 -N2\necho $SLURM_JOB_ID $SLURM_JOB_NAME\n"
        "srun -l hostname | sort\necho made >made; echo kept >$FLOW_OUTPUT/kept\n"
    )
    task = client.run("job.sh")
    assert task.plan.notes == (
        "runs in a copy of this folder: of what it writes, only what is in `$FLOW_OUTPUT` comes back",
    )
    assert task.wait(timeout=60) == "completed", task.logs()
    first, *steps = task.logs().splitlines()
    assert first == f"{task.number} far"
    assert [line[:6] for line in steps] == ["0: gpu", "1: gpu"] and len({line[3:] for line in steps}) == 2
    assert not (project / "made").exists()
    assert task.copy_from("output/kept").read_text() == "kept\n"
    with pytest.raises(ResourceNotFoundError) as raised:
        task.copy_from("made")
    assert raised.value.suggestions == (f"it has ended: what it left in `$FLOW_OUTPUT` is `{task}:output`",)
    (project / "array.sh").write_text("#!/bin/bash\n#SBATCH --array=3-4\necho $SLURM_ARRAY_TASK_ID $SLURM_JOB_ID\n")
    array = client.run("array.sh")
    assert array.wait(timeout=60) == "completed"
    number = array.number or 0
    assert sorted(array.logs().splitlines()) == [f"3 {number + 1}", f"4 {number}"]


def test_a_host_that_is_gone_though_a_connection_to_it_is_kept_delays_nobody_for_long(
    client: Flow, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_PROVIDER", "ssh")
    gone, there = (client.run("sleep 1000", upload_code=False, region=name) for name in ("gpu1", "gpu2"))
    both = (gone, there)
    assert wait_until(lambda: all(task.refresh().status == "running" for task in both), seconds=60)
    status = [sys.executable, "-m", "flow", "status", "--json"]
    seen = subprocess.run(status, stdout=subprocess.PIPE, check=True, timeout=40).stdout
    fleet.hosts["gpu1"].cut()
    shown = subprocess.run(status, stdout=subprocess.PIPE, check=True, timeout=40).stdout
    states = [{one["task_id"]: one["status"] for one in json.loads(told)["tasks"]} for told in (seen, shown)]
    assert states == [dict.fromkeys(map(str, both), "running")] * 2
    fleet.hosts["gpu1"].heal()
    client.cancel(*both)
    assert [task.wait(timeout=60) for task in both] == ["cancelled", "cancelled"]


def test_one_enters_a_task_on_a_host_and_sees_what_it_sees(client: Flow, fleet: Fleet, tmp_path: Path) -> None:
    port = 8123
    server = f"exec python3 -m http.server --directory $FLOW_WORKSPACE --bind 127.0.0.1 {port}"
    task = client.run(f"echo mine > file; {server}", upload_code=False, region="gpu2")
    assert wait_until(lambda: task.refresh().status == "running", seconds=60)
    assert wait_until(lambda: task.shell("grep -c : file", capture=True).stdout == "0\n", seconds=60)
    assert task.shell("cat file $FLOW_WORKSPACE/file", capture=True).stdout == "mine\n" * 2
    (tmp_path / "there").write_text("back")
    task.copy_to(tmp_path / "there", "/workspace/")
    assert task.copy_from("/workspace/there", tmp_path / "here").read_text() == "back"
    with task.forward(port) as forwarding:
        answered = lambda: b"mine" in fetched(f"http://{forwarding.address}/file")  # noqa: E731
        assert wait_until(answered, seconds=60)
    task.cancel()
    assert task.wait(timeout=60) == "cancelled"
    with pytest.raises(ValidationError, match="is cancelled: a shell needs a running task"):
        task.shell("true")


def test_who_watches_a_task_on_a_host_has_its_ports_in_its_next_attempt_too(
    client: Flow, fleet: Fleet, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_PROVIDER", "ssh")
    (project / "serve.sh").write_text(
        "echo $FLOW_ATTEMPT > attempt; python3 -m http.server --bind 127.0.0.1 8124 &\n"
        "[ $FLOW_ATTEMPT = 1 ] || wait; until [ -e /tmp/go ]; do sleep 0.05; done; exit 3\n"
    )
    (project / "task.yaml").write_text("name: serve\ncommand: sh serve.sh\nports: [8124]\nretries: 1\nregion: gpu2\n")
    words = [sys.executable, "-u", "-m", "flow", "run", "task.yaml", "--watch"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        told = next((line for line in process.stderr if "note: port 8124" in line), "")
        url = told.split()[-1] + "/attempt"
        assert wait_until(lambda: fetched(url) == b"1\n", seconds=60), told
        fleet.hosts["gpu2"].run("touch /tmp/go")
        assert wait_until(lambda: fetched(url) == b"2\n", seconds=60)
        client.cancel("serve")
        process.communicate(timeout=60)
        assert process.returncode == 143


def fetched(url: str) -> bytes:
    try:
        with urlopen(url, timeout=5) as answer:
            content: bytes = answer.read()
            return content
    except OSError:
        return b""


def test_tasks_of_several_nodes_both_run_whatever_their_clients_call_the_hosts(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))
    tasks = []
    for name, hosts in {"one": "gpu1 as x,gpu2 as y", "two": "gpu2 as x,gpu1 as y"}.items():
        monkeypatch.setenv("FLOW_HOME", str(tmp_path / name))
        monkeypatch.setenv("FLOW_SSH_HOSTS", hosts)
        client = Flow("ssh")
        for _ in range(3):
            tasks.append(client.run("echo met", num_instances=2, gpu="a100:4", upload_code=False))
    assert [str(task.wait(timeout=60)) for task in tasks] == ["completed"] * 6


def test_a_task_out_of_reach_is_not_told_to_wait_until_it_runs(client: Flow, fleet: Fleet) -> None:
    task = client.run("sleep 1000", region="gpu2", upload_code=False)
    assert wait_until(lambda: "running" in flow("status").stdout, seconds=60)
    fleet.hosts["gpu2"].hang_up()
    for words in (["ssh", str(task), "--", "true"], ["cp", f"{task}:output", "."], ["forward", str(task), "8888"]):
        refused = flow(*words)
        assert refused.returncode == 6, (words, refused.stderr)
        assert f"error: `{task}` is out of reach: `gpu2` cannot be reached" in refused.stderr


def test_a_cancel_that_does_not_get_there_says_that_it_will(client: Flow, fleet: Fleet) -> None:
    task = client.run("sleep 1000", region="gpu2", upload_code=False)
    fleet.hosts["gpu2"].hang_up()
    refused = flow("cancel", str(task))
    assert refused.returncode == 6
    assert f"hint: it is on record: `{task}` ends when a `flow` command finds its machine to answer\n" in refused.stderr
    fleet.hosts["gpu2"].reboot()
    assert task.wait(timeout=60) == "cancelled"
