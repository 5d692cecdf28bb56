"""A batch script as a task: it runs as it is, where it was submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from flow.client import Flow
from flow.config import Batch, TaskConfig
from flow.errors import ValidationError
from flow.settings import Settings
from flow.slurm.modules import read_modules, with_image
from tests.support.commands import flow

SCRIPT = (
    "#!/usr/bin/env python3\n# \xe9: no UTF-8\nimport os, sys\nprint(os.getcwd(), sys.argv[1:], file=open('seen', 'w'))"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def client(here: Path) -> Flow:
    return Flow(provider="local")


def test_a_script_runs_byte_for_byte_by_its_own_first_line_in_the_folder_of_its_submission(
    here: Path, client: Flow
) -> None:
    (here / "large.bin").write_bytes(b"not sent")
    script = SCRIPT.replace("# ", "# -*- coding: latin-1 -*- ", 1)
    task = client.run(TaskConfig(batch=Batch(script=script, encoding="latin-1", args=["a b", ""])))
    assert task.wait(timeout=60) == "completed", task.logs()
    assert (here / "seen").read_text() == f"{here} ['a b', '']\n"
    assert task.folder
    sent = [path for path in (task.folder / "workspace").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in sent] == [script.encode("latin-1")]


def test_a_script_runs_in_a_copy_where_that_is_asked(here: Path, client: Flow) -> None:
    (here / "tool.txt").write_text("mine")
    script = "#!/bin/sh\ncat tool.txt > copied; pwd"
    task = client.run(TaskConfig(batch=Batch(script=script), upload_code=True))
    assert task.wait(timeout=60) == "completed"
    assert not (here / "copied").exists()
    assert task.folder and (task.folder / "workspace" / "copied").read_text() == "mine"


def test_a_script_and_a_command_cannot_both_run() -> None:
    with pytest.raises(ValidationError, match="`batch` and `command` both say what runs"):
        TaskConfig(batch=Batch(script="#!/bin/sh"), command="true")


def test_a_task_is_known_by_its_number(here: Path, client: Flow) -> None:
    task = client.run("true", array="1-2")
    assert (task.number, client.get_task("1").task_id) == (1, task.task_id)
    assert [client.get_task(one).number for one in ("1_1", "1_2", "2")] == [2, 1, 2]


@pytest.mark.parametrize(("asked", "heard"), [("B:USR1@57", "script"), ("USR1@57", "step"), ("RB:USR1@57", "script")])
def test_a_signal_is_for_the_script_or_for_its_steps(client: Flow, asked: str, heard: str) -> None:
    script = """#!/bin/sh
    trap 'echo script; touch told' USR1
    SLURM_STEP_ID=0 sh -c 'trap "echo step; touch told; exit" USR1; while :; do sleep 0.1; done' &
    until [ -e told ]; do sleep 0.1; done
    sleep 0.5
    """
    batch = Batch(script=script, options=[f"--signal={asked}"])
    task = client.run(TaskConfig(batch=batch, signal="USR1@57", max_run_time_hours=60 / 3600))
    assert task.wait(timeout=60) == "completed"
    told = {line.text.decode() for line in task.lines()}  # a shell tells of the signals that its children had, too
    assert told & {"script", "step"} == {heard}


def test_a_step_runs_on_every_node_of_the_task(here: Path, client: Flow) -> None:
    script = "#!/bin/bash\nsrun -l bash -c 'echo $SLURM_JOB_ID $SLURM_NODEID' | sort"
    batch = Batch(script=script, variables={"SLURM_NTASKS": "4", "SLURM_NNODES": "2"})
    task = client.run(TaskConfig(batch=batch, num_instances=2, cpus=2))
    assert task.wait(timeout=60) == "completed", task.logs()
    assert task.logs().splitlines() == ["0: 1 0", "1: 1 0", "2: 1 1", "3: 1 1"]


def test_a_script_loads_modules_of_a_table(here: Path, client: Flow, tmp_path: Path) -> None:
    table = tmp_path / "modules.yaml"
    client.settings = Settings.load({"slurm.modules": str(table)})
    table.write_text("cuda/12: {env: {CUDA_HOME: /opt/cuda}}\ntorch: {image: a/torch}\n")
    task = client.run(TaskConfig(batch=Batch(script="#!/bin/bash\nmodule load cuda\necho $CUDA_HOME")))
    assert task.wait(timeout=60) == "completed", task.logs()
    assert task.logs() == "/opt/cuda\n"
    config = TaskConfig(batch=Batch(script="#!/bin/bash\n  module load cuda/12 torch/2.3 # both\n"))
    notes: list[str] = []
    assert with_image(config, read_modules(table), notes).image == "a/torch"
    assert notes == ["`module load torch/2.3` is the image `a/torch` here"]
    assert with_image(config.model_copy(update={"image": "mine"}), read_modules(table), notes).image == "mine"


@pytest.mark.parametrize(
    "text", ["- cuda", "cuda: 1", "cuda: {paths: [x]}", "cuda: {env: {a b: 1}}", "cuda: {path: x}", "{"]
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.yaml").write_text(text)
    with pytest.raises(ValidationError, match=r"modules\.yaml"):
        read_modules(tmp_path / "modules.yaml")


def test_a_script_with_arguments_is_told_to_be_for_sbatch(here: Path) -> None:
    (here / "job.slurm").write_text("#!/bin/sh\n")
    told = flow("run", "job.slurm", "a b")
    assert told.returncode == 2
    assert told.stderr.splitlines() == [
        "error: a Slurm script with arguments is for `sbatch`",
        "",
        "hint: type `flow sbatch job.slurm 'a b'`",
    ]
