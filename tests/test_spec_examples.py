"""The uses that Flow was specified by, as scripts in a user's project; a short run stands in for a long training."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.aws import ANYBODY, Aws
from tests.support.components import require
from tests.support.processes import free_port

Script = Callable[..., str]

TRAIN = """
import os, sys
print("training", *sys.argv[1:])
for step in range(3):
    print(f"step {step} loss: {1 / (step + 1):.2f}", flush=True)
"""
FROM = "import os\nimport flow\nfrom flow import Flow, TaskConfig\n"
FULL_CONFIG = FROM + textwrap.dedent("""
    config = TaskConfig(
        name="distributed-training",
        instance_type="8xa100",
        command=["python", "train.py", "--distributed"],
        max_price_per_hour=25.0,
        max_run_time_hours=24.0,
    )
    """)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs Python text in a project that has a train.py; what it printed."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text(TRAIN)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def run(*parts: str) -> str:
        text = "".join(textwrap.dedent(part) for part in parts)
        ended = subprocess.run([sys.executable, "-c", text], cwd=project, capture_output=True, text=True)
        assert ended.returncode == 0, f"{text}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    return run


def test_a_simple_gpu_task_is_run_and_waited_for(script: Script) -> None:
    told = script(
        FROM,
        """
        task = flow.run("python train.py", instance_type="a100")
        task.wait()
        print(task.logs())
        """,
    )
    assert told == "training\nstep 0 loss: 1.00\nstep 1 loss: 0.50\nstep 2 loss: 0.33\n\n"


def test_a_full_config_is_run_and_looked_at(script: Script) -> None:
    told = script(
        FULL_CONFIG,
        """
        task = flow.run(config)
        print(f"Status: {task.status}")
        print(f"Shell: {task.shell_command}")
        print(f"Cost: {task.cost_per_hour}")
        task.wait()
        print(task.logs(tail=100).splitlines()[0])
        """,
    )
    pattern = r"Status: (pending|starting|running)\nShell: flow ssh task-\w+\nCost: \$0\.00\ntraining --distributed\n"
    assert re.fullmatch(pattern, told)


def test_code_goes_along_unless_it_is_told_to_stay(script: Script) -> None:
    told = script(
        FROM,
        """
        for upload_code in (True, False):
            task = flow.run("ls", instance_type="a100", upload_code=upload_code)
            task.wait()
            print(task.logs().split())
        """,
    )
    assert told == "['train.py']\n[]\n"


@pytest.mark.parametrize("instance_type", ["a100", "4xa100", "8xh100", "h100x8", "h100", "a100:8", "A100-80GB:8"])
def test_every_spelling_of_a_machine_is_taken(script: Script, instance_type: str) -> None:
    told = script(FROM, f'print(flow.run("true", instance_type="{instance_type}").wait())')
    assert told == "completed\n"


def test_a_handle_tells_and_acts(script: Script) -> None:
    told = script(
        FULL_CONFIG,
        """
        config.command = "sleep 60"
        task = flow.run(config)
        again = flow.get_task(task.task_id)
        assert again == task and again.created_at == task.created_at
        assert (again.shell_command, again.cost_per_hour) == (task.shell_command, task.cost_per_hour)
        again.refresh()
        try:
            again.wait(timeout=0.01)
        except TimeoutError:
            again.cancel()
        print(task.wait(timeout=3600), task.status == "cancelled")
        """,
    )
    assert told == "cancelled True\n"


def test_lines_are_streamed_as_they_come(script: Script) -> None:
    told = script(
        FROM,
        """
        task = flow.run("python train.py", instance_type="a100")
        for line in task.logs(follow=True):
            if "loss:" in line:
                print(line)
        """,
    )
    assert told == "step 0 loss: 1.00\nstep 1 loss: 0.50\nstep 2 loss: 0.33\n"


def test_commands_run_inside_and_on_each_node(script: Script) -> None:
    told = script(
        FROM,
        """
        import subprocess, time
        task = flow.run("echo ready > train.log; sleep 60", instance_type="a100", num_instances=2)
        while task.refresh().status != "running" or task.shell("test -s train.log") != 0:
            time.sleep(0.01)
        task.shell("cat train.log")
        task.shell("echo node $FLOW_NODE_RANK", node=1)
        user = task.get_user()
        print(f"Created by: {user.username} ({user.email})", flush=True)
        for inst in task.get_instances():
            print(f"Node {inst.instance_id}: {inst.public_ip} {inst.private_ip} {inst.status}")
        task.cancel()
        task.wait()
        """,
    )
    assert told.startswith("ready\nnode 1\nCreated by: ")
    assert told.endswith("Node local-0: None 127.0.0.1 running\nNode local-1: None 127.0.0.2 running\n")


def test_nodes_find_each_other_by_what_is_set_for_each(script: Script) -> None:
    told = script(
        FROM,
        """
        config = TaskConfig(
            name="multi-node-training",
            instance_type="8xa100",
            num_instances=4,
            env={"FLOW_NODE_RANK": "0", "FLOW_NUM_NODES": "4", "FLOW_MAIN_IP": "10.0.0.1"},
            command=["python", "train.py", "--nnodes=4", "--node_rank=$FLOW_NODE_RANK", "--main=$FLOW_MAIN_IP"],
            cpus=0.25,
        )
        task = flow.run(config)
        task.wait(check=True)
        print(*sorted(line for line in task.logs().splitlines() if "rank" in line), sep="\\n")
        print(*task.plan.notes, sep="\\n")
        """,
    )
    ranks = [f"training --nnodes=4 --node_rank={rank} --main=127.0.0.1" for rank in range(4)]
    assert told.splitlines()[:4] == ranks
    assert "set on each node by Flow, so not taken from `env`: FLOW_NODE_RANK, FLOW_MAIN_IP, FLOW_NUM_NODES" in told


def test_torchrun_of_one_machine_trains_in_several_processes(script: Script) -> None:
    require("torch", "torchrun starts the processes")
    told = script(
        FROM,
        """
        config = TaskConfig(
            name="distributed-training",
            instance_type="8xa100",
            command="torchrun --nproc_per_node=2 --standalone train.py",
            env={"OMP_NUM_THREADS": "1"},
        )
        task = flow.run(config)
        print(task.wait(), task.logs().count("step 2"))
        """,
    )
    assert told == "completed 2\n"


def test_caps_on_price_and_time_are_kept(script: Script) -> None:
    told = script(
        FROM,
        """
        config = TaskConfig(name="experiment", instance_type="a100", max_price_per_hour=5.0, max_run_time_hours=12.0)
        config.command, config.max_run_time_hours = "sleep 60", 0.2 / 3600
        task = flow.run(config)
        print(task.wait(), task.reason)
        """,
    )
    assert told.startswith("timed_out time limit ")


def test_an_environment_is_set_up_by_assignment(script: Script, containers: str) -> None:
    told = script(
        FULL_CONFIG,
        f"""
        config.image = "{containers}"
        config.env = {{"WANDB_API_KEY": "a-b-c", "HF_TOKEN": "d", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}}
        config.working_dir = "/workspace"
        config.command = 'echo "$WANDB_API_KEY" "$HF_TOKEN" "$CUDA_VISIBLE_DEVICES"; pwd; ls'
        task = flow.run(config)
        task.wait(check=True)
        print(task.logs(), end="")
        """,
    )
    assert told == "a-b-c d 0,1,2,3\n/workspace\ntrain.py\n"


def test_errors_tell_what_to_do(script: Script) -> None:
    told = script(
        FULL_CONFIG,
        """
        from flow.errors import (
            AuthenticationError, FlowError, QuotaExceededError, ResourceNotFoundError, ValidationError,
        )

        def attempt(what, **fields):
            try:
                task = flow.run(what, **fields)
            except ValidationError as e:
                print(f"Configuration error: {e.message}")
                for suggestion in e.suggestions:
                    print(f"  - {suggestion}")
            except QuotaExceededError as e:
                print(f"Quota exceeded: {e.message}")
                print("Suggestions:", e.suggestions)
            except FlowError as e:
                print(f"Error: {e}")

        attempt(config, instance_type="a10o")
        attempt("trian.py")
        """,
    )
    assert told.splitlines() == [
        "Configuration error: no instance type `a10o` at local",
        "  - did you mean `a10`?",
        "  - list what there is with `flow offers`",
        "Error: no file `trian.py`",
    ]


def test_a_notebook_is_opened_at_the_address_printed(script: Script) -> None:
    require("jupyter_server", "the task starts one")
    port = free_port()
    told = script(
        FROM,
        f"""
        config = TaskConfig(
            name="notebook",
            instance_type="a100",
            command="jupyter server --ip=0.0.0.0 --no-browser --allow-root --port={port}",
            ports=[{port}],
            max_run_time_hours=8.0,
        )
        task = flow.run(config)
        print(f"Access at: {{task.endpoints['jupyter']}}")
        task.cancel()
        task.wait()
        """,
    )
    assert re.fullmatch(rf"Access at: http://127\.0\.0\.1:{port}/(lab|tree)?\?token=\w+\n", told)


def test_a_sweep_runs_a_task_for_each_rate(script: Script) -> None:
    told = script(
        FROM,
        """
        for lr in [0.001, 0.01, 0.1]:
            config = TaskConfig(
                name=f"exp-lr-{lr}",
                instance_type="a100",
                command=f"python train.py --lr {lr}",
                env={"WANDB_RUN_NAME": f"lr_{lr}"},
            )
            flow.run(config)
        for task in reversed(flow.tasks(name_pattern="exp-*")):
            task.wait(check=True)
            print(task.name, task.logs().splitlines()[0])
        """,
    )
    assert told == "".join(f"exp-lr-{lr} training --lr {lr}\n" for lr in (0.001, 0.01, 0.1))


def test_a_loop_takes_the_place_of_an_array(script: Script) -> None:
    told = script(
        FROM,
        """
        tasks = [
            flow.run(f"python train.py --task-id {i}", name=f"sweep-{i}", instance_type="a100") for i in range(1, 5)
        ]
        print([task.wait() == "completed" for task in tasks])
        print(tasks[3].logs().splitlines()[0])
        """,
    )
    assert told == "[True, True, True, True]\ntraining --task-id 4\n"


def test_a_client_submits_in_a_block(script: Script) -> None:
    told = script(
        FROM,
        """
        with Flow() as client:
            task = client.submit("python train.py --data /data", gpu="a100:4")
        print(task.wait(), task.instance_type)
        """,
    )
    assert told == "completed 4xa100\n"


def test_a_volume_is_named_in_a_config_by_id_and_then_by_name(script: Script) -> None:
    told = script(
        FROM,
        """
        with Flow() as client:
            vol = client.create_volume(size_gb=1000, name="datasets")
        config = TaskConfig(
            name="training",
            instance_type="a100",
            command="python train.py && touch /data/done",
            volumes=[{"volume_id": vol.volume_id, "mount_path": "/data"}],
        )
        flow.run(config).wait(check=True)
        config.volumes = [{"name": "datasets", "mount_path": "/data"}]
        config.command = "ls /data"
        task = flow.run(config)
        task.wait(check=True)
        print(task.logs())
        """,
    )
    assert told == "done\n\n"


def test_a_volume_is_mounted_in_a_task_that_runs(script: Script) -> None:
    told = script(
        FROM,
        """
        import time
        flow.create_volume(size_gb=100, name="training-data")
        task = flow.run("sleep 1000")
        while task.refresh().status != "running":
            time.sleep(0.01)
        flow.mount_volume("training-data", task.task_id)
        task.shell("touch /mnt/training-data/here && ls /mnt/training-data")
        task.cancel()
        """,
    )
    assert told == "here\n"


def test_a_docker_cache_is_accepted_where_docker_keeps_its_own(script: Script, containers: str) -> None:
    told = script(
        FROM,
        f"""
        cache = flow.create_volume(size_gb=100, name="docker-cache")
        task = flow.run(
            "echo trained",
            instance_type="a100",
            image="{containers}",
            volumes=[{{"volume_id": cache.volume_id, "mount_path": "/var/lib/docker"}}],
        )
        print(task.wait())
        """,
    )
    assert told == "completed\n"


def test_a_training_pipeline_reads_s3_and_writes_to_a_volume(
    script: Script, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("s3fs", "the example mounts S3")
    aws.bucket("ml-datasets", {"imagenet/train/1.jpg": b"1", "imagenet/val/2.jpg": b"2"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
    told = script(
        FROM,
        f"""
        def get_secret(name):
            return {{"aws_key": "{ANYBODY["AWS_ACCESS_KEY_ID"]}", "aws_secret": "any"}}[name]

        os.environ["AWS_ACCESS_KEY_ID"] = get_secret("aws_key")
        os.environ["AWS_SECRET_ACCESS_KEY"] = get_secret("aws_secret")

        with Flow() as client:
            task = client.submit(
                \"\"\"
                python train.py \\\\
                    --data /datasets/train \\\\
                    --validation /datasets/val \\\\
                    --output /outputs && ls /datasets > /outputs/seen
                \"\"\",
                gpu="a100:8",
                mounts={{
                    "/datasets": "s3://ml-datasets/imagenet",
                    "/outputs": "volume://experiment-results"
                }}
            )
        task.wait(check=True)
        task = client.submit("cat /outputs/seen", mounts={{"/outputs": "volume://experiment-results"}})
        task.wait(check=True)
        print(task.logs())
        """,
    )
    assert told == "train\nval\n\n"
