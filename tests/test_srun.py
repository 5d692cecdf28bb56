"""`srun` and what else a batch script finds where there is no Slurm: real runners, one a node, and real steps."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flow.node import ledger, steps
from flow.node.layout import compressed, spread
from flow.slurm.submitting import command
from tests.support.batch_tasks import BatchTask
from tests.support.processes import wait_until
from tests.support.pythons import old_pythons
from tests.support.slurm import Cluster

Start = Callable[..., BatchTask]
SHOW = "env | grep -E '^(S[LR]U|CUDA|ROCR|GPU|ZE)' | sort"


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Start]:
    """`batch(commands, nodes=2)`: a task that runs a script of bash; its processes are ended with the test."""
    with contextlib.ExitStack() as started:
        yield lambda commands, **task: started.enter_context(
            BatchTask(tmp_path / "task", f"#!/bin/bash\n{commands}\n", **task)
        )


def variables(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


# -- the batch step


def test_a_script_finds_the_variables_of_its_batch_step(batch: Start, tmp_path: Path) -> None:
    static = {"SLURM_NTASKS": "5", "SLURM_NPROCS": "5", "SLURM_JOB_NAME": "fit", "SLURM_CPUS_PER_TASK": "2"}
    slurm = {
        "number": 43, "array_number": 41, "array": {"count": 3, "min": 1, "max": 9, "step": 4},
        "variables": static, "submit_dir": "/home/me", "submit_host": "login", "partition": "gpu",
    }  # fmt: skip
    task = batch(SHOW, nodes=2, slurm=slurm, cpus=6, given_gpus=[2, 3], gpu_ids=[2, 3], array_index=5, attempt=3)
    assert task.wait() == [0, 0], task.err()
    found = variables(task.out())
    assert found.pop("SLURM_TASK_PID").isdecimal()
    assert found == {
        "SLURM_JOB_ID": "43", "SLURM_JOBID": "43", "SLURM_JOB_NAME": "fit", "SLURM_JOB_NODELIST": "127.0.0.[1-2]",
        "SLURM_NODELIST": "127.0.0.[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "5",
        "SLURM_NPROCS": "5", "SLURM_TASKS_PER_NODE": "3,2", "SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "6",
        "SLURM_JOB_CPUS_PER_NODE": "6(x2)", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_GPUS": "2,3",
        "SLURM_SUBMIT_DIR": "/home/me", "SLURM_SUBMIT_HOST": "login", "SLURM_JOB_PARTITION": "gpu",
        "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "3",
        "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "9", "SLURM_ARRAY_TASK_STEP": "4",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GTIDS": "0", "SLURM_PRIO_PROCESS": "0",
        "SLURM_RESTART_COUNT": "2", "SLURM_CLUSTER_NAME": "local", "SLURMD_NODENAME": "127.0.0.1",
        "SLURM_JOB_USER": os.environ.get("USER", "root"), "SLURM_JOB_UID": str(os.getuid()),
        "SLURM_JOB_GID": str(os.getgid()), "SLURM_TOPOLOGY_ADDR": "127.0.0.1", "SLURM_TOPOLOGY_ADDR_PATTERN": "node",
        "SLURM_NODE_ALIASES": "(null)",
        "SLURM_JOB_ACCOUNT": os.environ.get("USER", "root"), "SLURM_JOB_QOS": "normal",
        "CUDA_VISIBLE_DEVICES": "2,3", "ROCR_VISIBLE_DEVICES": "2,3",
        "GPU_DEVICE_ORDINAL": "2,3", "ZE_AFFINITY_MASK": "2,3",
    }  # fmt: skip


def test_the_script_is_executed_as_it_is_with_its_arguments(tmp_path: Path) -> None:
    script = "#!/usr/bin/env python3\nimport sys; print(sys.argv[0].rsplit('/', 1)[1], sys.argv[1:])\n"
    with BatchTask(tmp_path / "task", script, argv=[*command(["a b", ""], [], "", joined=False)]) as task:
        assert task.wait() == [0]
        assert task.out() == "slurm_script ['a b', '']\n"


def test_other_nodes_wait_for_steps_and_end_well_with_the_script(batch: Start) -> None:
    task = batch("srun -l bash -c 'echo $SLURMD_NODENAME'", nodes=3)
    assert task.wait() == [0, 0, 0], task.err()
    assert sorted(task.out().splitlines()) == ["0: 127.0.0.1", "1: 127.0.0.2", "2: 127.0.0.3"]
    assert [task.status(rank)["cause"] for rank in range(3)] == ["exit"] * 3
    assert task.out(rank=1) == task.out(rank=2) == ""


def test_a_script_that_fails_stops_the_other_nodes(batch: Start) -> None:
    task = batch("exit 3", nodes=2)
    assert task.wait()[0] == 3
    assert (task.status(1)["cause"], task.status(1)["reason"]) == ("peer", "stopped: node 0: exit 3")


# -- a step's tasks


def test_each_task_finds_the_variables_of_its_step(batch: Start, tmp_path: Path) -> None:
    static = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}
    slurm = {"variables": static}
    show = SHOW.replace("'", '"')
    task = batch(
        f"srun true; srun bash -c '{show} >task$SLURM_PROCID'", nodes=2, slurm=slurm, cpus=4, given_gpus=[0, 1]
    )
    assert task.wait() == [0, 0], task.err()
    found = [variables((tmp_path / f"task/task{rank}").read_text()) for rank in range(4)]
    of_each = {
        "SLURM_PROCID": "0123", "SLURM_LOCALID": "0101", "SLURM_NODEID": "0011",
        "SLURMD_NODENAME": ["127.0.0.1"] * 2 + ["127.0.0.2"] * 2, "SLURM_GTIDS": ["0,1"] * 2 + ["2,3"] * 2,
    }  # fmt: skip
    for name, values in of_each.items():
        assert [one[name] for one in found] == list(values)
    shared = {
        "SLURM_STEP_ID": "1", "SLURM_STEPID": "1", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_NNODES": "2",
        "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "127.0.0.[1-2]", "SLURM_DISTRIBUTION": "block",
        "SLURM_CPUS_ON_NODE": "4", "SLURM_GPUS_ON_NODE": "2", "SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "0,1",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_SRUN_COMM_HOST": "127.0.0.1", "SRUN_DEBUG": "3",
        "SLURM_UMASK": f"{0o22:04o}", "SLURM_JOB_ID": "7", "SLURM_JOB_CPUS_PER_NODE": "4(x2)",
    }  # fmt: skip
    assert [{name: one[name] for name in shared} for one in found] == [shared] * 4
    assert len({one["SLURM_TASK_PID"] for one in found}) == 4


@pytest.mark.parametrize(
    ("tasks", "room", "how", "counts"),
    [  # what Slurm 22.05 did with them
        (7, [5, 1, 1], "block", "5,1(x2)"),
        (5, [5, 1, 1], "block", "3,1(x2)"),
        (4, [6, 2], "block", "2(x2)"),
        (6, [6, 2], "block", "4,2"),
        (4, [3, 1], "block", "3,1"),
        (5, [6, 2], "cyclic", "3,2"),
        (5, [2, 2], "block", "3,2"),  # --overcommit
        (7, [5, 1, 1], "plane=2", "5,1(x2)"),
    ],
)
def test_tasks_are_spread_as_slurm_does(tasks: int, room: list[int], how: str, counts: str) -> None:
    order = spread(tasks, room, how)
    assert compressed([order.count(place) for place in range(len(room))]) == counts


def test_blocks_are_neighbours_and_cycles_are_not() -> None:
    assert spread(5, [3, 3]) == [0, 0, 0, 1, 1]
    assert spread(5, [3, 3], "cyclic") == [0, 1, 0, 1, 0]
    assert spread(7, [4, 4], "plane=2") == [0, 0, 1, 1, 0, 0, 1]


def test_gpus_are_bound_as_slurm_does(batch: Start) -> None:
    show = """bash -c 'echo "$SLURM_PROCID: $CUDA_VISIBLE_DEVICES of ${SLURM_GPUS_ON_NODE:-0}"'"""
    options = [
        "-n4 --gpus-per-task=1",
        "-n2 --gpus-per-task=2",
        "-n2 --gpus-per-task=1",
        "-n1 --gpus=0",
        "-n1 -G a100:1",
    ]
    lines = [f"srun {one} {show} | sort | tr '\\n' ';'; echo" for one in (*options, "-n2 --gpu-bind=single:1", "-n1")]
    task = batch("\n".join(lines), cpus=4, given_gpus=[4, 5, 6, 7])
    assert task.wait() == [0], task.err()
    assert task.out().splitlines() == [
        "0: 4 of 4;1: 5 of 4;2: 6 of 4;3: 7 of 4;",
        "0: 4,5 of 4;1: 6,7 of 4;",
        "0: 4 of 2;1: 5 of 2;",
        "0:  of 0;",
        "0: 4 of 1;",
        "0: 4 of 4;1: 5 of 4;",
        "0: 4,5,6,7 of 4;",
    ]


def test_the_callers_environment_and_folder_are_the_tasks(batch: Start, tmp_path: Path) -> None:
    commands = """mkdir sub; cd sub; export X=1 Y=a
for one in ALL X,Z=2 ALL,X=9,Z=3 NONE; do
  srun -n2 --export=$one /bin/bash -c 'echo "$PWD ${X-none} ${Y-none} ${Z-none} $SLURM_PROCID"' | sort
done; srun -n1 --chdir=/ pwd; srun -n1 -D no pwd; export LABEL=$(srun -n1 bash -c 'echo $FLOW_NODE_RANK')"""
    task = batch(commands, nodes=2, slurm={"variables": {"SLURM_NTASKS": "2"}})
    assert task.wait() == [0, 0], task.err()
    here = tmp_path / "task/sub"
    assert task.out() == (
        f"{here} 1 a none 0\n{here} 1 a none 1\n{here} 1 none 2 0\n{here} 1 none 2 1\n"
        f"{here} 1 a 3 0\n{here} 1 a 3 1\n"
        f"{here} none none none 0\n{here} none none none 1\n/\n/tmp\n"
    )
    assert f"couldn't chdir to `{here}/no': No such file or directory: going to /tmp instead" in task.err()


def test_each_node_has_its_own_copy_of_the_project(batch: Start, tmp_path: Path) -> None:
    """Where the script runs in its workspace, a task elsewhere runs in the same place of its node's."""
    commands = "srun -l bash -c 'pwd; echo $FLOW_WORKSPACE $FLOW_OUTPUT $FLOW_NODE_RANK; type -p srun'"
    task = batch(commands, nodes=2, cwd="")
    assert task.wait() == [0, 0], task.err()
    places = [
        f"{rank}: {tmp_path}/task/{rank}/{place}"
        for rank in range(2)
        for place in ("workspace", f"workspace {tmp_path}/task/{rank}/output {rank}", "bin/srun")
    ]
    assert sorted(task.out().splitlines()) == sorted(places)


# -- input and output


def test_output_is_labelled_and_whole_lines_are_kept_together(batch: Start) -> None:
    task = batch("srun -l -n12 -O printf 'a\\n\\nb' | sort -ns | head -4; srun -n1 printf 'a\\nb'; echo '|'")
    assert task.wait() == [0], task.err()
    assert task.out() == " 0: a\n 0: \n 0: b\n 1: a\na\nb|\n"


def test_input_goes_to_all_tasks_or_to_one(batch: Start, tmp_path: Path) -> None:
    commands = """echo abc >all; for i in 0 1; do echo $i >in$i; done
for one in "" -i1 "-i none" "-i all" "-i in%t"; do echo xyz | srun -l -n2 $one cat | sort; echo .; done
seq 200000 | srun -n2 wc -l; head -c 300000 /dev/zero | srun -n1 head -c 3 | wc -c"""
    task = batch(commands, cpus=2)
    assert task.wait() == [0], task.err()
    assert task.out() == ("0: xyz\n1: xyz\n.\n1: xyz\n.\n.\n0: xyz\n1: xyz\n.\n0: 0\n1: 1\n.\n200000\n200000\n3\n")


def test_files_are_named_by_patterns(batch: Start, tmp_path: Path) -> None:
    commands = """say() { srun -n3 "$@" bash -c 'echo out $SLURM_PROCID; echo err >&2'; }
say -o 'a-%j.%s.%t.%n.%2t-%N'; say -o 'b-%J' -e 'b-%t.err' -l; say -o none -e /dev/null; say -o 1 -e none; say -o c
say -o c --open-mode=append; say -o '%x-%u-%A-%%' -e none; srun -n1 -o no/where true; echo $?"""
    task = batch(commands, nodes=3, slurm={"variables": {"SLURM_NTASKS": "3", "SLURM_JOB_NAME": "fit"}})
    assert task.wait() == [0, 0, 0], task.err()
    files = {path.name: path.read_text().splitlines() for path in (tmp_path / "task").iterdir() if path.is_file()}
    user = os.environ.get("USER", "root")
    for rank in range(3):
        assert sorted(files.pop(f"a-7.0.{rank}.{rank}.0{rank}-127.0.0.{rank + 1}")) == ["err", f"out {rank}"]
        assert files.pop(f"b-{rank}.err") == [f"{rank}: err"]
    assert sorted(files.pop("b-7.1")) == ["0: out 0", "1: out 1", "2: out 2"]
    assert sorted(files.pop("c")) == sorted(2 * (3 * ["err"] + ["out 0", "out 1", "out 2"]))
    assert sorted(files.pop(f"fit-{user}-7-%")) == ["out 0", "out 1", "out 2"]
    assert not files
    assert task.out() == "out 1\n1\n"
    assert "srun: error: Could not open stdout file: No such file or directory" in task.err()


def test_programs_differ_by_task(batch: Start) -> None:
    commands = """printf "%s\\n" "# a file" "0 echo zero %t %o" "1-2,4 echo 'a b' %t %o" "* echo rest %t" >conf
srun -l --multi-prog conf more | sort; srun -n2 --multi-prog <(echo 0 true); echo $?"""
    task = batch(commands, cpus=5, slurm={"variables": {"SLURM_NTASKS": "5"}})
    assert task.wait() == [0], task.err()
    lines = ["0: zero 0 0 more", "1: a b 1 0 more", "2: a b 2 1 more", "3: rest 3 more", "4: a b 4 2 more", "1"]
    assert task.out().splitlines() == lines
    assert re.search(r"srun: error: Configuration file /\S+ invalid, no record for task id 1", task.err())


# -- how a step ends


def normal(text: str, number: int) -> list[str]:
    """Lines of srun, without what differs from Slurm to here and from run to run; in no order."""
    text = re.sub(r"/dev/fd/\d+", "/dev/fd/n", text)
    text = re.sub(r"slurmstepd-\w+", "slurmstepd", text)
    text = re.sub(r"127\.0\.0\.(\d)", r"node\1", text)
    if "can't run 1 processes on 2 nodes" in text:  # Slurm takes the other one while the step before leaves the first
        text = re.sub(r"\bnode\d\b", "node", text)
    text = re.sub(r"CANCELLED AT \S+", "CANCELLED AT …", text)
    text = re.sub(rf"(StepId=|STEP |[Jj]ob ){number}\b", r"\1N", text)
    text = re.sub(r"up to \d+ seconds", "up to … seconds", text)
    passing = ("srun: StepId", "srun: Step created", "srun: Job N step creation temporarily")
    return sorted(line for line in text.splitlines() if not line.startswith(passing))


SAME = [
    "srun -n3 bash -c 'exit $((SLURM_PROCID+3))'; echo rc $?",
    "srun bash -c 'exit 5'; echo rc $?",
    "srun -n2 bash -c 'kill -9 $$'; echo rc $?",
    "srun -n1 bash -c 'kill -SEGV $$'; echo rc $?",
    "srun -n1 no-such-program; echo rc $?",
    "srun -n1 /etc/passwd; echo rc $?",
    "srun -K -n2 bash -c '[ $SLURM_PROCID = 1 ] && sleep 100; exit 3'; echo rc $?",
    "srun -n2 -W1 bash -c '[ $SLURM_PROCID = 0 ] || sleep 100'; echo rc $?",
    "srun -n2 bash -c 'trap \"exit 7\" USR1; touch up$SLURM_PROCID; sleep 50 & wait' & "
    "until [ -e up0 -a -e up1 ]; do sleep 0.1; done; kill -USR1 $!; wait $!; echo rc $?",
    "srun -n99 true; echo rc $?",
    "for n in 1 2 3 5 6; do srun -O -n$n true; done; srun -n3 --multi-prog <(printf '0 true'); echo rc $?",
    "srun -l --ntasks-per-node=1 true; srun -n2 -w $SLURMD_NODENAME true; echo rc $?",
    "srun -N5 -n9 true; echo rc $?",
    "srun -n1 -r9 true; echo rc $?",
    "srun -n zero true; echo rc $?",
    "srun --no-such-option true; echo rc $?",
    "srun; echo rc $?",
    "srun -n1 --gres=gpu:1 true; echo rc $?",
    "srun --het-group=1 true; echo rc $?",
    "srun -w nowhere true; echo rc $?",
    "printf 'a\\nb' | srun -n2 -l cat; echo rc $?",
    "srun -l -m cyclic -n4 bash -c 'echo $SLURM_NODEID $SLURM_LOCALID $SLURM_GTIDS'",
    "srun -l -N1 -n1 -r1 bash -c 'echo $SLURM_STEP_NODELIST $SLURM_NODEID $SLURM_NTASKS $SLURM_TASKS_PER_NODE'",
    "srun -l -O -n5 bash -c 'echo $SLURM_NODEID $SLURM_LOCALID $SLURM_STEP_TASKS_PER_NODE'",
    "srun -n1 -u bash -c '[ -t 1 ] && echo terminal'",
    "for one in 1 2 3; do echo $one; done | while read one; do srun -n1 echo loop $one; done",
    "srun -n2 -c2 true; srun -c1 -n1 bash -c 'echo $SLURM_CPUS_PER_TASK $SLURM_CPUS_ON_NODE'; echo rc $?",
    "SLURM_LABELIO=1 srun -n1 echo hi; SLURM_NTASKS=2 srun bash -c 'echo $SLURM_NTASKS'",
    "scontrol show hostnames | wc -l; scontrol show hostlist a1,a2",
]


@pytest.mark.timeout(300)
def test_a_step_ends_and_says_what_slurm_does(slurm: Cluster, batch: Start, tmp_path: Path) -> None:
    script = "\n".join(f"echo '# {number}'; echo '# {number}' >&2; {one}" for number, one in enumerate(SAME))
    head = "#SBATCH -N2 -n4 --ntasks-per-node=2 -o real.out -e real.err\n"
    sent = slurm.run(
        "sbatch", "--parsable", "-W", cwd=tmp_path, stdin=f"#!/bin/bash\n{head}{script}\n", check=False
    ).stdout
    static = {"SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "sbatch"}
    task = batch(script, nodes=2, cpus=2, slurm={"variables": static})
    task.wait(120)
    ours = {"out": task.out(), "err": task.err()}
    for name, text in ours.items():
        theirs = (tmp_path / f"real.{name}").read_text()
        for number, (mine, real) in enumerate(zip(text.split("# ")[1:], theirs.split("# ")[1:], strict=True)):
            assert normal(mine, 7) == normal(real, int(sent)), f"{name}: {SAME[number]}"


def test_a_signal_and_a_cancel_are_passed_on_once(batch: Start, tmp_path: Path) -> None:
    trap = """trap "echo TERM >>got$SLURM_PROCID" TERM; echo up; while :; do sleep 0.05; done"""
    task = batch(f"srun bash -c '{trap}'", nodes=2, slurm={"variables": {"SLURM_NTASKS": "2"}}, grace_seconds=4)
    assert wait_until(lambda: task.out().count("up") == 2)
    task.runners[0].send_signal(signal.SIGTERM)
    task.wait()
    assert [(tmp_path / f"task/got{rank}").read_text() for rank in range(2)] == ["TERM\n"] * 2
    assert not wait_until(lambda: bool(task.processes()), seconds=0)


def test_a_script_may_ask_to_run_again(batch: Start) -> None:
    task = batch("scontrol requeue $SLURM_JOB_ID; srun sleep 1000", nodes=2)
    task.wait()
    assert [task.status(rank)["cause"] for rank in range(2)] == ["requeue", "peer"]


# -- steps side by side


def test_steps_wait_for_one_another_unless_there_is_room(batch: Start) -> None:
    meet = """bash -c 'touch $0.$SLURM_STEP_ID; for i in {1..1000}; do
      [ $(ls $0.* | wc -l) = 2 ] && exit 0; sleep 0.05; done; exit 1'"""
    both = "srun {0} {1} {2} & first=$!; srun {0} {1} {2} & wait $first && wait $! && echo {2} together"
    ways = ["-n1 --exact", "-n1 --exclusive", "-n1 --overlap", "-n2 -c1", "-n1 --exact --gpus=1"]
    lines = [both.format(options, meet, "with" + options.replace(" ", "")) for options in ways]
    lines = [line.replace("srun", "srun --gpus=0") if "gpus" not in line else line for line in lines]
    until_told = "srun -n1 bash -c 'until grep -q disabled 0/stderr.log; do sleep 0.05; done' &"
    lines.append(f"{until_told} {until_told} wait; srun -n1 bash -c 'echo $SLURM_STEP_ID'")
    task = batch("\n".join(lines), cpus=4, given_gpus=[0, 1])
    assert task.wait() == [0], (task.out(), task.err())
    assert task.out().splitlines() == [f"with{way.replace(' ', '')} together" for way in ways] + ["12"]
    assert task.err().splitlines() == [
        "srun: Job 7 step creation temporarily disabled, retrying (Requested nodes are busy)",
        "srun: Step created for job 7",
    ]


def test_a_step_goes_to_the_node_that_is_free(batch: Start) -> None:
    both = "touch up$SLURM_STEP_ID; until [ -e up0 -a -e up1 ]; do sleep 0.05; done"
    one = f"srun -N1 -n1 bash -c 'echo $SLURMD_NODENAME; {both}'"
    task = batch(f"{one} & {one} & wait", nodes=2)
    assert task.wait() == [0, 0], task.err()
    assert sorted(task.out().splitlines()) == ["127.0.0.1", "127.0.0.2"]


def test_what_a_step_held_is_free_when_its_srun_was_killed(batch: Start, tmp_path: Path) -> None:
    task = batch(
        "srun -n1 sleep 1000 & until [ -s 0/steps/0.step ]; do sleep 0.05; done; kill -9 $!; srun -n1 echo next"
    )
    assert task.wait() == [0], task.err()
    assert task.out() == "next\n"
    assert ledger.pids(str(tmp_path / "task/0/steps")) == []


# -- whatever is killed, nothing is left running

LEAVES = "bash -c 'sleep 1001 & sleep 1002 & echo up; wait'"


@pytest.mark.parametrize("who", ["srun.py", "slurm_script", "steps.py"])
def test_nothing_is_left_of_a_step_whose_processes_are_killed(batch: Start, who: str) -> None:
    task = batch(f"srun {LEAVES}", nodes=3)
    assert wait_until(lambda: task.out().count("up") == 3, seconds=30), task.err()
    for pid in task.find(who):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    codes = task.wait()
    assert codes[0] not in (0, None)
    assert wait_until(lambda: not task.processes())


def test_a_step_ends_where_the_srun_of_another_node_is_gone(batch: Start) -> None:
    task = batch(f"srun {LEAVES} & wait $!; until [ -e done ]; do sleep 0.05; done", nodes=2)
    assert wait_until(lambda: task.out().count("up") == 2, seconds=30), task.err()
    os.kill(ledger.pids(str(task.folder / "0/steps"))[0], signal.SIGKILL)
    assert wait_until(lambda: not task.find("sleep 100")), (
        "the tasks of both nodes end with it, while the script goes on"
    )
    (task.folder / "done").touch()
    assert task.wait() == [0, 0]


def test_a_node_that_is_gone_fails_the_step(batch: Start) -> None:
    task = batch(f"srun {LEAVES}; echo rc $?", nodes=2)
    assert wait_until(lambda: task.out().count("up") == 2, seconds=30), task.err()
    task.runners[1].send_signal(signal.SIGSTOP)  # else the one of the script may hear of it before `srun` does
    for pid in task.find("steps.py serve"):
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: "srun: error: Node failure on 127.0.0.2" in task.err(), seconds=30)


def test_a_task_of_killed_tasks_ends_its_step(batch: Start) -> None:
    task = batch("srun -n2 sleep 1000; echo rc $?", cpus=2)
    assert wait_until(lambda: len(_sleeping(task)) == 2, seconds=30)
    for pid in _sleeping(task):
        os.kill(pid, signal.SIGKILL)
    assert task.wait() == [0]
    assert task.out() == "rc 137\n"


def _sleeping(task: BatchTask) -> list[int]:
    """Without what only has their words in its own, or has not executed them yet."""
    return [pid for pid in task.find("sleep 1000") if Path(f"/proc/{pid}/comm").read_bytes() == b"sleep\n"]


def test_who_does_not_know_the_word_starts_nothing(batch: Start, tmp_path: Path) -> None:
    task = batch("until [ -e done ]; do sleep 0.05; done", nodes=2)
    port = json.loads((tmp_path / "task/1/task.json").read_text())["step_port"]
    spec: dict[str, Any] = {"token": "guess", "node": 0, "env": {}, "argv": ["touch", str(tmp_path / "touched")]}

    def answer() -> bytes:
        with socket.create_connection(("127.0.0.2", port), timeout=60) as stranger:
            steps.send(stranger, steps.SPEC, 0, json.dumps(spec).encode())
            return stranger.recv(100)

    assert wait_until(lambda: _is_refused(answer), seconds=60)
    (tmp_path / "task/done").touch()
    assert task.wait() == [0, 0]
    assert not (tmp_path / "touched").exists()


def _is_refused(answer: Callable[[], bytes]) -> bool:
    """Once somebody listens."""
    try:
        return answer() == b""
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        return True


# -- the other commands


def test_a_script_finds_scontrol_and_hears_where_the_rest_is_not(batch: Start) -> None:
    commands = """scontrol show hostnames; scontrol show hostnames 'a[1-2]'; scontrol show hostlist b2,b1
scontrol show hostlistsorted b2,b1; scontrol -o show job $SLURM_JOB_ID | grep -o 'JobId=7 .*RUNNING'
squeue --me; echo $?"""
    task = batch(commands, nodes=2)
    assert task.wait() == [0, 0], task.err()
    assert task.out().splitlines()[:6] == ["127.0.0.1", "127.0.0.2", "a1", "a2", "b[2,1]", "b[1-2]"]
    assert task.out().splitlines()[6].startswith("JobId=7 JobName=t ")
    assert task.out().splitlines()[7:] == ["1"]
    assert task.err() == "squeue: there is no Slurm on this machine, and no `flow`\n"


def test_commands_ask_flow_where_there_is_one(batch: Start, tmp_path: Path) -> None:
    program = tmp_path / "flow"
    program.write_text('#!/bin/sh\necho "$FLOW_HOME" "$@"\n')
    program.chmod(0o755)
    slurm = {"flow": [str(program)], "flow_home": "/my home"}
    task = batch("squeue -j 7; sbatch 'a b.sh'; scontrol requeue 8; scontrol hold 7", slurm=slurm)
    assert task.wait() == [0], task.err()
    assert task.out().splitlines() == [
        "/my home squeue -j 7", "/my home sbatch a b.sh", "/my home scontrol requeue 8", "/my home scontrol hold 7",
    ]  # fmt: skip


def test_modules_come_from_a_table_or_a_warning(batch: Start) -> None:
    table = {"cuda/12.1": {"env": {"CUDA_HOME": "/opt/it's"}, "path": ["/opt/cuda/bin"]}, "gcc": {"env": {"CC": "gcc"}}}
    commands = """set -eu; before=$PATH; module purge; module load cuda gcc/13; echo "$CUDA_HOME $CC ${PATH%%:*}"
module list 2>&1; module unload cuda; echo "${CUDA_HOME-none}"; [ "$PATH" = "$before" ] && echo same
ml unknown/1; module load unknown/1; ml -gcc; echo "${CC-none}"; (module load gcc; bash -c 'module list' 2>&1 | tail -1)
sh -c 'module load gcc'; module avail 2>&1; if module is-loaded gcc; then echo yes; else echo no; fi"""
    task = batch(commands, slurm={"modules": table})
    assert task.wait() == [0], task.err()
    assert task.out().splitlines() == [
        "/opt/it's gcc /opt/cuda/bin", "  1) cuda", "  2) gcc/13", "none", "same", "none", "  2) gcc",
        "  1) cuda/12.1", "  2) gcc", "no",
    ]  # fmt: skip
    assert task.err() == "module: `unknown/1` is not in the table of modules here; the script goes on without it\n"


def test_modules_of_the_machine_are_left_alone(batch: Start, tmp_path: Path) -> None:
    task = batch("type module", env={"PATH": os.environ["PATH"], "LMOD_CMD": "/opt/lmod"})
    assert task.wait() == [1]
    assert not (tmp_path / "task/0/bin/module").exists()


def test_an_old_python_does_all_of_it(tmp_path: Path) -> None:
    script = "#!/bin/bash\nmodule load x; scontrol show hostnames; srun -l bash -c 'echo hi $SLURM_NODEID' | sort\n"
    with BatchTask(tmp_path / "task", script, nodes=2, python=str(old_pythons()[0])) as task:
        assert task.wait() == [0, 0], task.err()
        assert task.out() == "127.0.0.1\n127.0.0.2\n0: hi 0\n1: hi 1\n"


def test_a_step_costs_little(batch: Start) -> None:
    """No time is asserted: only that nothing of a step is left behind in the folder, whatever their number."""
    task = batch("for i in {1..20}; do srun true; done; ls 0/steps | sort | xargs")
    assert task.wait() == [0], task.err()
    assert task.out() == "19.step lock next\n"


def test_programs_are_found_as_srun_finds_them(batch: Start) -> None:
    done = subprocess.run(["bash", "-c", "type -p bash"], capture_output=True, text=True).stdout.strip()
    commands = r"""printf '#!/bin/sh\necho mine\n' >mine; chmod +x mine; srun mine; srun ./mine; srun bash -c 'echo $0'
say() { echo said; }; export -f say; srun bash -c say"""
    task = batch(commands)
    assert task.wait() == [0], task.err()
    assert task.out() == f"mine\nmine\n{done}\nsaid\n"
