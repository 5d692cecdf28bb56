"""A Slurm batch script is a task: what each option asks for is done, or recorded, or refused with its line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flow
from flow.cli.plan_text import masked_plan
from flow.client import Flow
from flow.config import TaskConfig
from flow.errors import ValidationError
from flow.slurm.options import Given, parse_command_line
from flow.slurm.script import SlurmScript, read_script, wrapped

Write = Callable[..., Path]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def write(*directives: str, body: str = "true", first: str = "#!/bin/bash") -> Path:
        path = Path("job.slurm")
        path.write_text("\n".join([first, *(f"#SBATCH {one}" for one in directives), body, ""]))
        return path

    return write


def read(*words: str, text: str = "#!/bin/sh\ntrue\n", environ: dict[str, str] | None = None) -> SlurmScript:
    given, _, args = parse_command_line(words)
    return read_script(text.encode(), environ or {}, name="job.sh", file=Path("/job.sh"), given=given, args=args)


def fields(*words: str) -> dict[str, Any]:
    found = dict(read(*words).fields)
    TaskConfig.from_dict(found)  # all of it is a config
    return {name: one for name, one in found.items() if name != "batch"}


PLAIN = {"name": "job.sh", "num_instances": 1, "cpus": 1}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("-J train -N2", {"name": "train", "num_instances": 2}),
        ("--nodes 2-4", {"num_instances": 2}),
        ("--nodes=2 --gpus=a100:8", {"num_instances": 2, "gpu": "a100:4"}),
        ("-G 4", {"gpu": "4"}),
        ("-G 0", {}),
        ("--gpus=a100", {"gpu": "a100:1"}),
        ("-N2 -G3", {"num_instances": 2, "gpu": "2"}),
        ("-G4 --gpus-per-node=2", {"num_instances": 2, "gpu": "2"}),
        ("--gpus-per-node=h100:8 --nodes=4", {"num_instances": 4, "gpu": "h100:8"}),
        ("--gpus=a100:2,v100:1", {"gpu": "3"}),
        ("--gres=gpu:a100:4", {"gpu": "a100:4"}),
        ("--gres=gpu", {"gpu": "1"}),
        ("--gres=gpu:2,gpu:1", {"gpu": "1"}),
        ("--gres=gpu:1 --gpus-per-node=2", {"gpu": "1"}),
        ("--gres=none", {}),
        ("--gpus-per-socket=2 --sockets-per-node=2", {"gpu": "4"}),
        ("-n 8 -N 2 -c 3", {"num_instances": 2, "cpus": 12}),
        ("-n 3 -N 2", {"num_instances": 2, "cpus": 2}),
        ("-n 2 -N 3", {"num_instances": 2}),
        ("-n4 --ntasks-per-node=2", {"num_instances": 2, "cpus": 2}),
        ("--ntasks-per-node=4 --cpus-per-task=2", {"cpus": 8}),
        ("--ntasks=4 -c2 --overcommit", {"cpus": 2}),
        ("-N 2 -n 4 --gpus-per-task=a100:2", {"num_instances": 2, "cpus": 2, "gpu": "a100:4"}),
        ("-N2 --gpus-per-task=1", {"num_instances": 2, "gpu": "1"}),
        ("-G4 --gpus-per-task=2", {"cpus": 2, "gpu": "4"}),
        ("-G2 --cpus-per-gpu=3", {"cpus": 6, "gpu": "2"}),
        ("-G2 --ntasks-per-gpu=2", {"cpus": 4, "gpu": "2"}),
        ("-n4 --ntasks-per-gpu=2", {"cpus": 4, "gpu": "2"}),
        ("--mincpus=4", {"cpus": 4}),
        ("--mem=64G", {"memory_gb": 64}),
        ("--mem=0", {}),
        ("--mem-per-cpu=2G -c 4", {"cpus": 4, "memory_gb": 8}),
        ("--mem-per-gpu=10G --gpus=2", {"gpu": "2", "memory_gb": 20}),
        ("--time=24:00:00", {"max_run_time_hours": 24}),
        ("-t 1-2:3", {"max_run_time_hours": 1563 / 60}),
        ("-t UNLIMITED", {}),
        ("--array=0-99:4%8", {"array": "0-99:4%8"}),
        ("-o out-%j.txt -e err.txt -D sub", {"output": "out-%j.txt", "error": "err.txt", "working_dir": "sub"}),
        (
            "--signal=B:USR1@90 --begin=2030-01-31 -H",
            {"signal": "USR1@90", "begin": "2030-01-31T00:00:00", "hold": True},
        ),
        ("--nice", {"priority": -100}),
        ("--nice=5 --priority=7", {"priority": 7}),
        ("--no-requeue", {"requeue": False}),
        ("-d singleton", {"depends_on": [], "singleton": True, "unmet_dependency": "wait"}),
        (
            "-d afterok:1:2?after:b+5 --kill-on-invalid-dep=yes",
            {
                "depends_on": [
                    {"task": "1", "state": "completed"},
                    {"task": "2", "state": "completed"},
                    {"task": "b", "state": "started_or_ended", "delay_minutes": 5},
                ],
                "depends_on_any": True,
                "unmet_dependency": "cancel",
            },
        ),
    ],
)
def test_what_an_option_asks_for_is_asked_of_the_task(words: str, expected: dict[str, Any]) -> None:
    assert fields(*words.split()) == {**PLAIN, **expected}


ALONE = {"SLURM_JOB_NAME": "job.sh", "SLURM_NNODES": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_TASKS_PER_NODE": "1"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("-n4", {"SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_TASKS_PER_NODE": "4"}),
        ("-N2", {"SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_TASKS_PER_NODE": "1(x2)"}),
        (
            "-N2 -n3 --ntasks-per-node=2",
            {
                "SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "3", "SLURM_NPROCS": "3",
                "SLURM_NTASKS_PER_NODE": "2", "SLURM_TASKS_PER_NODE": "2(x2)",
            },
        ),
        ("-c2 -Ga100:2", {"SLURM_CPUS_PER_TASK": "2", "SLURM_GPUS": "a100:2"}),
        ("--gpus-per-node=2 --gres=gpu:2", {"SLURM_GPUS_PER_NODE": "2"}),
        ("--mem=1G", {"SLURM_MEM_PER_NODE": "1024"}),
        ("--mem-per-cpu=200", {"SLURM_MEM_PER_CPU": "200"}),
        ("--mem=0", {}),
        ("-p gpu -A lab -q high", {"SLURM_JOB_PARTITION": "gpu", "SLURM_JOB_ACCOUNT": "lab", "SLURM_JOB_QOS": "high"}),
        ("-m plane=2", {"SLURM_DISTRIBUTION": "plane", "SLURM_DIST_PLANESIZE": "2"}),
        ("--hint=nomultithread", {"SLURM_HINT": "nomultithread", "SLURM_THREADS_PER_CORE": "1"}),
        ("--export=A=1", {"SLURM_EXPORT_ENV": "A=1", "SLURM_GET_USER_ENV": "1"}),
        ("--export=ALL,A=1", {"SLURM_EXPORT_ENV": "ALL,A=1", "SLURM_GET_USER_ENV": "1"}),
        ("--export=all", {}),
        ("--overcommit --open-mode=append", {"SLURM_OVERCOMMIT": "1", "SLURM_OPEN_MODE": "a"}),
        ("-d singleton", {"SLURM_JOB_DEPENDENCY": "singleton"}),
        ("-G2 --cpus-per-gpu=2", {"SLURM_GPUS": "2", "SLURM_CPUS_PER_GPU": "2", "SLURM_TASKS_PER_NODE": "4"}),
    ],
)  # fmt: skip
def test_slurms_variables_are_those_that_slurm_sets(words: str, expected: dict[str, str]) -> None:
    assert read(*words.split()).fields["batch"]["variables"] == {**ALONE, **expected}


def test_a_job_may_be_called_anything() -> None:
    found = read("-J", "my job/1").fields
    assert (found["name"], found["batch"]["variables"]["SLURM_JOB_NAME"]) == ("my_job_1", "my job/1")


def test_the_command_line_goes_before_variables_and_these_before_the_script() -> None:
    text = "#!/bin/sh\n#SBATCH --time=5 --mem=1G -n2\n"
    found = read("--time=9", "job.sh", "a", "-b", text=text, environ={"SBATCH_TIMELIMIT": "7", "SBATCH_PARTITION": "p"})
    assert found.fields["max_run_time_hours"] == 9 / 60
    assert (found.fields["batch"]["options"], found.fields["batch"]["args"]) == (
        ["--mem=1G", "--ntasks=2", "--partition=p", "--time=9"], ["a", "-b"],
    )  # fmt: skip
    assert read(text=text, environ={"SBATCH_TIMELIMIT": "7"}).fields["max_run_time_hours"] == 7 / 60


@pytest.mark.parametrize(
    ("directives", "told"),
    [
        (["--nodes=many"], "job.sh:2: `--nodes`: `many` is no count of nodes"),
        (
            ["--frob=1", "--time=soon"],
            "job.sh:3: `--time`: `soon` is no time limit; write `90`, `30:00`, `12:00:00` or "
            "`1-12:00:00`\njob.sh:2: unknown option `--frob`, left out",
        ),
        (["", "--time=soon"], "job.sh:3: `--time`: `soon` is no time limit"),
        (["--mem=lots", "--time=1:2:3:4"], "2 mistakes in `job.sh`\njob.sh:2: `--mem`: `lots` is no amount of memory"),
        (["--array=9-1"], "job.sh:2: `--array`: the range `9-1` of array `9-1` is empty"),
        (["--array=1-1000000"], "job.sh:2: `--array`: index 1000000 of array `1-1000000` is larger than 100000"),
        (["--job-name='open"], "job.sh:2: the `'` has no second one"),
        (["--mem=1G", "--mem-per-cpu=2G"], "`--mem=1G` (job.sh:2) and `--mem-per-cpu=2G` (job.sh:3): only one"),
        (["-G4", "--gpus-per-node=2 -N1"], "`--gpus=4` (job.sh:2) and `--gpus-per-node=2` (job.sh:3) and `--nodes=1`"),
        (["-G3 --gpus-per-node=2"], "not a multiple of each node's"),
        (["-G5 --gpus-per-task=2"], "not a multiple of each task's"),
        (["-G4 --gpus-per-task=2 -n3"], "they are for 2 tasks"),
        (["--gpus-per-task=2"], "say how many tasks there are"),
        (["-N4 -G3"], "each node needs a GPU"),
        (["-Ga100:2 --gpus-per-node=2"], "GPUs with and without their kind"),
        (["-N2 -n6 --ntasks-per-node=2"], "no more than 4 tasks fit"),
        (["--mem-per-gpu=1G"], "no GPU is asked for"),
        (["-c2 --cpus-per-gpu=1 -G1"], "only one of them can hold"),
        (["-n3 --ntasks-per-gpu=2"], "not a multiple of each GPU's tasks"),
    ],
)
def test_what_is_malformed_or_contradicts_itself_is_refused_with_its_lines(directives: list[str], told: str) -> None:
    text = "#!/bin/sh\n" + "".join(f"#SBATCH {one}\n" for one in directives)
    with pytest.raises(ValidationError) as refused:
        read(text=text)
    assert told in refused.value.message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"\n \n", "contains only whitespace"),
        (b"echo hi\n", "does not look like a batch script"),
        (b" #!/bin/sh\n", "does not look like a batch script"),
        (b"#!/bin/sh\r\ntrue\r\n", "contains DOS line breaks"),
        (b"#!/bin/sh\ntrue\r\n", "contains DOS line breaks"),
        (b"#!/bin/sh\n\0", "contains a NUL character"),
    ],
)
def test_what_is_no_script_is_refused_as_sbatch_refuses_it(content: bytes, told: str) -> None:
    with pytest.raises(ValidationError, match=told) as refused:
        read_script(content, {}, name="job.sh")
    assert refused.value.suggestions


def test_wrap_makes_the_script_that_sbatch_makes() -> None:
    command = "echo $1 'x'"
    found = read_script(wrapped(command), {}, name="--wrap", given=[Given("wrap", command)]).fields
    assert found["batch"]["script"] == "#!/bin/sh\n# This script was created by sbatch --wrap.\n\necho $1 'x'\n"
    assert (found["name"], found["batch"]["file"]) == ("wrap", None)


def ended(path: Path, **given: Any) -> flow.Task:
    task = flow.run(path, **given)
    task.wait(60)
    return task


def test_the_script_runs_as_it_is_where_it_was_submitted_with_its_own_interpreter(script: Write) -> None:
    path = script("-c 2 --job-name=mine", body="import os\nprint(os.getcwd())", first="#!/usr/bin/env -S python3 -u")
    task = ended(path)
    assert (task.status, task.logs(), task.name, task.plan.cpus) == ("completed", f"{Path.cwd()}\n", "mine", 2)
    assert Path(f"slurm-{task.number}.out").read_text() == f"{Path.cwd()}\n"
    other = ended(path, name="other", cpus=1, num_instances=2)
    assert (other.status, other.name, other.plan.cpus) == ("completed", "other", 1)
    assert other.plan.batch and other.plan.batch.variables == {
        "SLURM_JOB_NAME": "other", "SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_TASKS_PER_NODE": "1(x2)",
        "SLURM_CPUS_PER_TASK": "2",
    }  # fmt: skip


def test_both_streams_are_in_one_file_in_the_order_of_writing(script: Write) -> None:
    body = "for i in 1 2 3 4 5; do echo out$i; echo err$i >&2; done"
    task = ended(script("-o %x-%4j.txt -J 'a b'", body=body))
    expected = "".join(f"out{i}\nerr{i}\n" for i in range(1, 6))
    assert (Path(f"a b-{task.number:04d}.txt").read_text(), task.logs()) == (expected, expected)


def test_each_stream_has_its_file_where_both_are_named(script: Write) -> None:
    Path("sub").mkdir()
    task = ended(script("-D sub -o o -e e.%j", body="echo out; echo err >&2; pwd"))
    assert Path("sub/o").read_text() == f"out\n{Path.cwd()}/sub\n"
    assert Path(f"sub/e.{task.number}").read_text() == "err\n"


def test_a_file_begins_anew_unless_it_is_to_be_appended_to(script: Write) -> None:
    for _ in range(2):
        ended(script("-o one", body="echo line"))
        ended(script("-o two --open-mode=append", body="echo line"))
    assert (Path("one").read_text(), Path("two").read_text()) == ("line\n", "line\nline\n")


def test_the_submitters_umask_holds(script: Write) -> None:
    path = script("-o out", body="umask; touch made")
    before = os.umask(0o027)
    try:
        task = ended(path)
    finally:
        os.umask(before)
    assert (task.logs(), [oct(Path(name).stat().st_mode)[-3:] for name in ("out", "made")]) == ("0027\n", ["640"] * 2)


def test_an_element_has_a_file_of_its_own(script: Write) -> None:
    task = ended(script("-a 3,5", body="true"))
    assert sorted(path.name for path in Path().glob("slurm-*")) == [f"slurm-{task.number}_{i}.out" for i in (3, 5)]


def test_a_job_whose_output_has_no_folder_fails_before_it_runs(script: Write) -> None:
    task = ended(script("-o nodir/%j", body="touch ran"))
    assert (task.status, Path("ran").exists()) == ("failed", False)


def test_nothing_is_kept_where_nothing_is_asked_for(script: Write) -> None:
    ended(script("-o /dev/null", body="echo hi"))
    ended(script("-o none", body="echo hi"))
    assert sorted(path.name for path in Path().iterdir()) == ["job.slurm"]


def test_input_is_what_it_names(script: Write) -> None:
    Path("in 1").write_text("given\n")
    assert ended(script("--input='in 1'", body="cat")).logs() == "given\n"
    Path("a b.in").write_text("by name\n")
    assert ended(script("-J 'a b' --input=%x.in", body="cat")).logs() == "by name\n"
    assert ended(script(body="cat")).logs() == ""


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ("ALL", "[5] [6] [] [x]"),
        ("ALL,A=1,C=two words", "[1] [6] [two words] [x]"),
        ("NONE", "[] [] [] [x]"),
        ("A,C='a,b'", "[5] [] ['a,b'] [x]"),
        ("B=7", "[] [7] [] [x]"),
    ],
)
def test_it_gets_the_submitters_variables_as_asked(
    script: Write, monkeypatch: pytest.MonkeyPatch, asked: str, seen: str
) -> None:
    for name, one in {"A": "5", "B": "6", "SLURM_MINE": "x"}.items():
        monkeypatch.setenv(name, one)
    path = script(f'--export="{asked}"', body='echo "[$A] [$B] [$C] [$SLURM_MINE]"; [ -n "$HOME" ] && command -v ls')
    assert ended(path).logs().splitlines()[0] == seen


def test_variables_may_come_from_a_file(script: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "5")
    Path("variables").write_bytes(b"B=two words\0C=a\nb\0")
    assert ended(script("--export-file=variables", body='echo "[$A] [$B] [$C]"')).logs() == "[] [two words] [a\nb]\n"
    with pytest.raises(ValidationError, match=r"cannot read `--export-file=none` \(job.slurm:2\): No such file"):
        flow.run(script("--export-file=none"))


def test_the_signal_before_the_limit_goes_to_the_script_alone_or_to_its_steps(script: Write) -> None:
    step = "trap 'echo step' USR1; sleep 3 & wait; wait"
    body = f"""trap 'echo script; kill $!; exit 3' USR1
env SLURM_STEP_ID=0 sh -c "{step}" & wait; wait; echo end"""
    task = flow.run(script("--signal=B:USR1@59 -t 1", body=body))
    assert task.wait(60) == "failed"
    assert (task.exit_code, task.logs()) == (3, "script\n")
    task = flow.run(script("--signal=USR1@59 -t 1", body=body))
    assert task.wait(60) == "completed"
    assert task.logs() == "step\nend\n"


def test_who_is_to_be_alone_has_all_of_this_machine(script: Write) -> None:
    client = Flow()
    offers = client.provider("local").offers()
    assert client.plan(client.load(script("--exclusive"))).cpus == offers[0].cpus
    assert client.plan(client.load(script("--exclusive=user"))).cpus == 1


def test_secrets_among_the_options_are_not_shown(script: Write) -> None:
    task = ended(script("--export=ALL,API_KEY=12345", body="echo $API_KEY"))
    assert task.logs() == "12345\n"
    assert "12345" not in f"{task.record()}{task.config}{masked_plan(task.plan)}"


def test_without_slurm_what_only_it_can_do_is_recorded_and_told(script: Write) -> None:
    task = ended(script("-p gpu -A lab --mail-type=END --comment=x --requeue"))
    assert task.plan.notes == ("recorded, and of no effect without Slurm: --partition, --account, --mail-type",)
    assert task.plan.batch and "--account=lab" in task.plan.batch.options


def test_a_note_tells_what_was_left_out(script: Write) -> None:
    client = Flow()
    client.load(script("--tme=3"))
    assert client.notes[-1] == "job.slurm:2: unknown option `--tme`, left out; did you mean `--time`?"
