"""The #SBATCH lines of a script: each is done, or told of, or refused with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flow
from flow.client import Flow
from flow.config import TaskConfig
from flow.errors import ValidationError
from flow.slurm_script import read_slurm_script


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(*directives: str, body: str = "true", first: str = "#!/bin/bash") -> Path:
        path = Path("job.slurm")
        path.write_text("\n".join([first, *(f"#SBATCH {one}" for one in directives), body, ""]))
        return path

    return write


def fields(path: Path) -> dict[str, Any]:
    read = dict(read_slurm_script(path, "job").fields)
    TaskConfig.from_dict(read)  # all of it is a config
    return {name: value for name, value in read.items() if name not in ("env", "command")}


PLAIN = {"name": "job.slurm", "num_instances": 1, "cpus": 1}


@pytest.mark.parametrize(
    ("directives", "expected"),
    [
        ([], {}),
        (["--job-name=train"], {"name": "train"}),
        (["-J train -N2"], {"name": "train", "num_instances": 2}),
        (["--nodes 2-4"], {"num_instances": 2}),
        (["--nodes=2", "--gpus=a100:8"], {"num_instances": 2, "gpu": "a100:4"}),
        (["-G 4"], {"gpu": "4"}),
        (["--gpus=a100"], {"gpu": "a100:1"}),
        (["--gpus-per-node=h100:8", "--nodes=4"], {"num_instances": 4, "gpu": "h100:8"}),
        (["--gres=gpu:a100:4"], {"gpu": "a100:4"}),
        (["--gres=gpu"], {"gpu": "1"}),
        (["-n 8 -N 2 -c 3"], {"num_instances": 2, "cpus": 12}),
        (["--ntasks-per-node=4", "--cpus-per-task=2"], {"cpus": 8}),
        (["-N 2 -n 4 --gpus-per-task=a100:2"], {"num_instances": 2, "cpus": 2, "gpu": "a100:4"}),
        (["--mem=64G"], {"memory_gb": 64}),
        (["--mem=2048"], {"memory_gb": 2}),
        (["--mem=0"], {}),
        (["--mem-per-cpu=2G -c 4"], {"cpus": 4, "memory_gb": 8}),
        (["--mem-per-gpu=10G --gpus=2"], {"gpu": "2", "memory_gb": 20}),
        (["--time=24:00:00"], {"max_run_time_hours": 24}),
        (["-t 90"], {"max_run_time_hours": 1.5}),
        (["-t 30:00"], {"max_run_time_hours": 0.5}),
        (["-t 1-12"], {"max_run_time_hours": 36}),
        (["-t 1-00:30"], {"max_run_time_hours": 24.5}),
        (["-t UNLIMITED"], {}),
        (["--array=0-99:4%8"], {"array": "0-99:4%8"}),
        (["-d afterok:task-1:task-2,afterany:b"], {"depends_on": ["task-1:completed", "task-2:completed", "b:ended"]}),
        (["-o out-%j.txt", "-e err.txt", "-D sub"], {"output": "out-%j.txt", "error": "err.txt", "working_dir": "sub"}),
        (["--signal=B:USR1@90 --begin=now+1hour --hold"], {"signal": "USR1@90", "begin": "now+1hour", "hold": True}),
        (["--job-name='two' # words"], {"name": "two"}),
        (["--time=1:00:00", "--time=2:00:00"], {"max_run_time_hours": 2}),
    ],
)
def test_what_a_line_asks_for_is_asked_of_the_task(
    script: Any, directives: list[str], expected: dict[str, Any]
) -> None:
    assert fields(script(*directives)) == {**PLAIN, **expected}


def test_only_the_lines_before_the_first_command_count(script: Any) -> None:
    path = script("--time=1:00:00", body="\n# a comment\n\necho hi\n#SBATCH --time=2:00:00\n#SBATCH --nope")
    assert fields(path) == {**PLAIN, "max_run_time_hours": 1}


def test_what_only_a_cluster_knows_is_told_of_and_what_nobody_knows_with_what_was_meant(script: Any) -> None:
    read = read_slurm_script(script("--partition=gpu -A lab", "--mail-type=END", "--tme=3 --requeue"), "job")
    assert read.notes == (
        "job.slurm:2: `--partition` is for a Slurm cluster, and has no effect here",
        "job.slurm:2: `--account` is for a Slurm cluster, and has no effect here",
        "job.slurm:3: `--mail-type` is for a Slurm cluster, and has no effect here",
        "job.slurm:4: unknown option `--tme`; did you mean `time`?",
        "job.slurm:4: `--requeue` is for a Slurm cluster, and has no effect here",
    )


@pytest.mark.parametrize(
    ("directives", "told"),
    [
        (["--nodes=many"], "job.slurm:2: `--nodes` is `many`"),
        (["", "--time=soon"], "job.slurm:3: cannot read `soon` as a time limit"),
        (["--mem=lots"], "job.slurm:2: cannot read `lots` as memory"),
        (["--gres=license:1"], "job.slurm:2: `--gres=license:1` asks for what is no GPU"),
        (["--dependency=singleton"], "job.slurm:2: the dependency `singleton` cannot be kept here"),
        (["--gpus=3 --nodes=2"], "3 GPUs cannot be shared by 2 nodes"),
        (["--time"], "job.slurm:2: `--time` has no value"),
        (["nonsense"], "job.slurm:2: `nonsense` is no option of sbatch"),
        (["--job-name='open"], "job.slurm:2: No closing quotation"),
        (["--array=9-1"], "the range `9-1` of array `9-1` is empty"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_line(script: Any, directives: list[str], told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Flow().load(script(*directives))
    assert told in refused.value.message


def test_a_script_without_its_first_line_is_refused(script: Any) -> None:
    with pytest.raises(ValidationError, match="does not begin with `#!`"):
        flow.run(script(first="echo hi"))


def test_the_script_runs_as_it_is_with_its_own_interpreter_and_slurms_variables(script: Any) -> None:
    names = "SLURM_NNODES SLURM_CPUS_PER_TASK"
    body = f"import os, sys\nprint(*map(os.environ.get, '{names}'.split()), os.path.basename(sys.argv[0]))"
    path = script("-N 1 -c 2 --job-name=mine", "--gpus=a100:1", body=body, first="#!/usr/bin/env -S python3 -u")
    task = flow.run(path)
    assert (task.wait(60), task.logs(), task.name, task.plan.cpus) == ("completed", "1 2 job.slurm\n", "mine", 2)
    other = flow.run(path, name="other", env={"A": "1"}, upload_code=False)
    assert (other.wait(60), other.name, other.config.env["SLURM_NNODES"]) == ("completed", "other", "1")


def test_it_runs_on_the_first_of_its_nodes(script: Any) -> None:
    task = flow.run(script("--nodes=2", body="echo $FLOW_NODE_RANK of $SLURM_NNODES; exit 3"))
    assert (task.wait(60), task.exit_code, task.logs()) == ("failed", 3, "0 of 2\n")
    task = flow.run(script("--nodes=2", body="sleep 0.2; echo done"))
    assert (task.wait(60), task.logs()) == ("completed", "done\n")


def test_variables_are_exported_by_name_and_value(script: Any) -> None:
    task = flow.run(script("--export=ALL,RATE=0.1,WORDS='a b' -Q -w node1", body='echo "$RATE $WORDS"'))
    assert (task.wait(60), task.logs()) == ("completed", "0.1 a b\n")


def test_it_runs_in_the_folder_that_it_names(script: Any) -> None:
    Path("sub").mkdir()
    Path("sub/file").write_text("")
    task = flow.run(script("--chdir=sub", body="ls"))
    assert (task.wait(60), task.logs()) == ("completed", "file\n")
