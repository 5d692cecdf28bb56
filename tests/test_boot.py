"""The boot script, executed: on this machine, by the oldest Python there is, with everything it may leave out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flow.boot import boot
from tests.support.processes import wait_until
from tests.support.pythons import new_python, old_pythons

TASK: dict[str, Any] = {
    "v": 1, "task_id": "task-06f3k2m9q7xw1d", "name": "train", "attempt": 1, "rank": 0, "nodes": 1, "env": {},
    "argv": ["true"], "limit_seconds": 3600, "grace_seconds": 30,
}  # fmt: skip
TWENTY = {f"SETTING_{number}": f"value number {number} of a kind" for number in range(20)}


def run(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script, "boot", *words], capture_output=True, text=True, env={**os.environ, **environment}
    )


def deliver(folder: Path, files: Any) -> None:
    for name, text in files.items():
        (folder / "inbox" / f".{name}").write_text(text)
        (folder / "inbox" / f".{name}").rename(folder / "inbox" / name)


def status(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def test_the_script_runs_the_task_in_its_folder(tmp_path: Path) -> None:
    env = {"QUOTES": 'it\'s "$x" `y` \\ %s {z}', "LINES": "a\nb", "ACCENT": "é☃"}
    words = ["sh", "-c", 'printf "%s|" "$QUOTES" "$LINES" "$ACCENT" "$1"; pwd', "sh", "it's {all} \\ right"]
    script, inbox = boot([{**TASK, "argv": words, "env": env}], str(tmp_path / "root"))
    done = run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    folder = tmp_path / "root" / TASK["task_id"] / "1/0"
    assert (folder / "stdout.log").read_text() == "|".join([*env.values(), words[-1], f"{folder}/workspace\n"])
    assert status(folder)["code"] == 0
    assert inbox == ({},)
    assert {path.stat().st_mode & 0o077 for path in [folder, *folder.rglob("*")] if not path.is_symlink()} == {0}


def test_running_it_again_runs_nothing_again(tmp_path: Path) -> None:
    script, _ = boot([{**TASK, "argv": ["sh", "-c", f"echo x >> {tmp_path}/ran"]}], str(tmp_path))
    assert [run(script).returncode, run(script).returncode] == [0, 0]
    assert (tmp_path / "ran").read_text() == "x\n"


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_each_machine_says_which_rank_it_is(tmp_path: Path, how: str) -> None:
    argv = ["sh", "-c", "echo $FLOW_NODE_RANK"]
    jobs = [{**TASK, "rank": rank, "argv": argv, "only": rank} for rank in range(2)]
    script, _ = boot(jobs, str(tmp_path))
    assert (run(script, "1") if how == "argument" else run(script, FLOW_RANK="1")).returncode == 0
    folder = tmp_path / TASK["task_id"] / "1/1"
    assert (folder / "stdout.log").read_text() == "1\n"
    assert json.loads((folder / "task.json").read_text()) == jobs[1]


def test_the_home_of_the_machine_is_its_own(tmp_path: Path) -> None:
    assert run(boot([TASK], "~/flow").script, HOME=str(tmp_path)).returncode == 0
    assert status(tmp_path / "flow" / TASK["task_id"] / "1/0")["code"] == 0


def test_a_root_that_could_be_taken_for_code_is_refused() -> None:
    for root in ("/a'b", '/a"b', "/a b", "/$(x)", "/a\n", ""):
        with pytest.raises(ValueError, match="cannot be written into a script"):
            boot([TASK], root)


def test_secrets_are_not_in_the_script_and_come_through_the_inbox(tmp_path: Path) -> None:
    env = {"PLAIN": "to be seen", "WANDB_API_KEY": "hush-hush"}
    script, inbox = boot([{**TASK, "argv": ["sh", "-c", "echo $PLAIN $WANDB_API_KEY"], "env": env}], str(tmp_path))
    assert inbox == ({"env.json": '{"WANDB_API_KEY": "hush-hush"}'},)
    folder = tmp_path / TASK["task_id"] / "1/0"
    with subprocess.Popen(["bash", "-c", script]) as process:
        assert wait_until(lambda: status(folder).get("phase") == "waiting")
        assert not any(b"hush" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
        deliver(folder, inbox[0])
        assert process.wait(60) == 0
    assert (folder / "stdout.log").read_text() == "to be seen hush-hush\n"


def test_with_twenty_variables_and_two_nodes_it_fits_where_little_is_taken(tmp_path: Path) -> None:
    code = {"manifest": "inbox/manifest.json", "blobs": "inbox"}
    more = {"nodes": 2, "peers": ["10.0.0.1", "10.0.0.2"], "control_port": 29400, "token": os.urandom(16).hex()}
    jobs = [{**TASK, **more, "rank": rank, "env": TWENTY, "code": code} for rank in range(2)]
    short = boot(jobs, "/root/flow", most_bytes=5000)
    assert len(short.script) <= 5000
    assert sorted(short.inbox[0]) == [
            "asked.py", "log.py", "loop.py", "peers.py", "processes.py", "runner.py", "unpack.py",
        ]  # fmt: skip
    assert len(boot(jobs, "/root/flow").script) <= 14_100


def test_a_task_brings_the_files_that_only_few_need() -> None:
    few = {"image": "a/b", "needs": ["inbox/registry.json"], "mounts": [{"kind": "device", "source": "/dev/x"}]}
    inbox = boot([{**TASK, **few}], "/root/flow", most_bytes=2000).inbox[0]
    assert {"container.py", "pull.py", "volumes.py"} <= set(inbox)
    inbox = boot([{**TASK, "mounts": [{"kind": "folder", "source": "/x"}]}], "/root/flow", most_bytes=2000).inbox[0]
    assert not {"container.py", "pull.py", "volumes.py"} & set(inbox)


def test_a_batch_script_brings_srun_along(tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(old_pythons()[0])
    slurm = {"number": 7, "array_number": None, "array": None, "variables": {"SLURM_NTASKS": "2"}}
    argv = ["sh", "-c", "srun -l -O sh -c 'echo $SLURM_JOB_ID'; scontrol show hostnames a1; module load x; squeue"]
    script, _ = boot([{**TASK, "argv": argv, "slurm": slurm}], str(tmp_path))
    assert len(script) <= 36_000
    assert run(script, PATH=f"{tmp_path}:{os.environ['PATH']}").returncode == 0
    folder = tmp_path / TASK["task_id"] / "1/0"
    assert sorted((folder / "stdout.log").read_text().splitlines()) == ["0: 7", "1: 7", "a1"]
    assert (folder / "stderr.log").read_text().splitlines() == [
        "module: `x` is not in the table of modules here; the script goes on without it",
        "squeue: there is no Slurm on this machine, and no `flow`",
    ]


def test_what_did_not_fit_is_awaited(tmp_path: Path) -> None:
    env = {**TWENTY, "LONG": "".join(os.urandom(2000).hex())}
    argv = ["sh", "-c", "echo $SETTING_7; echo $LONG"]
    script, inbox = boot([{**TASK, "argv": argv, "env": env}], str(tmp_path), most_bytes=2500)
    assert len(script) <= 2500
    assert sorted(inbox[0]) == ["asked.py", "env.json", "log.py", "loop.py", "processes.py", "runner.py"]
    folder = tmp_path / TASK["task_id"] / "1/0"
    with subprocess.Popen(["bash", "-c", script]) as process:
        assert wait_until((folder / "inbox").exists)
        deliver(folder, inbox[0])
        assert process.wait(60) == 0
    assert (folder / "stdout.log").read_text() == f"{TWENTY['SETTING_7']}\n{env['LONG']}\n"
    with pytest.raises(ValueError, match="would be longer than 500 bytes"):
        boot([TASK], str(tmp_path), most_bytes=500)


def test_a_runner_that_never_arrives_ends_the_task(tmp_path: Path) -> None:
    script, _ = boot([{**TASK, "delivery_timeout_seconds": 0.1}], str(tmp_path), most_bytes=2500)
    assert run(script).returncode == 0
    found = status(tmp_path / TASK["task_id"] / "1/0")
    assert (found["phase"], found["code"], found["reason"]) == ("ended", 126, "code never arrived")


def test_a_machine_without_python_says_so(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bash").symlink_to(shutil.which("bash") or "/bin/bash")
    done = run(boot([TASK], str(tmp_path)).script, PATH=str(tmp_path / "bin"))
    assert (done.returncode, done.stderr) == (127, "flow: this machine has no python3\n")


def test_an_old_python_runs_what_was_stripped(tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(old_pythons()[0])
    script, _ = boot([{**TASK, "argv": ["sh", "-c", "echo hi; exit 3"]}], str(tmp_path))
    assert run(script, PATH=f"{tmp_path}:{os.environ['PATH']}").returncode == 0
    assert status(tmp_path / TASK["task_id"] / "1/0")["reason"] == "exit 3"


def test_an_old_python_reads_what_a_new_one_stripped(tmp_path: Path) -> None:
    new = new_python()
    if new is None:
        pytest.skip("no Python 3.12 or newer here")
    job = {
        **TASK, "image": "debian", "slurm": {"number": 1}, "needs": ["inbox/registry.json"],
        "mounts": [{"kind": "s3"}, {"kind": "device"}], "code": {"manifest": "none", "blobs": "none"},
        "delivery_timeout_seconds": 0,
    }  # fmt: skip
    program = "import json, sys; from flow.boot import boot; print(boot(json.loads(sys.argv[1]), sys.argv[2]).script)"
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "PATH": os.defpath}
    argv = [new, "-c", program, json.dumps([job]), str(tmp_path)]
    script = subprocess.run(argv, check=True, env=environment, capture_output=True, text=True).stdout
    (tmp_path / "python3").symlink_to(old_pythons()[0])
    run(script, PATH=f"{tmp_path}:{os.environ['PATH']}")
    files = sorted(map(str, (tmp_path / TASK["task_id"] / "1/0").glob("*.py")))
    assert len(files) > 20
    subprocess.run([old_pythons()[0], "-m", "py_compile", *files], check=True)
