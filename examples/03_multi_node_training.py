"""Train one model on several machines by torchrun: `python examples/03_multi_node_training.py [MACHINES]`.

Run it in the folder of this project, which goes with the task. Needs torch where the task runs. On this machine the
nodes are processes with an address each, and meet as machines do.
"""

from __future__ import annotations

import sys

import flow
from flow import TaskConfig

TRAIN = r"""
case $FLOW_MAIN_IP in 127.*) export GLOO_SOCKET_IFNAME=lo ;; esac  # nodes of one machine meet there
torchrun --nproc_per_node=1 --nnodes="$FLOW_NUM_NODES" --node_rank="$FLOW_NODE_RANK" \
  --master_addr="$FLOW_MAIN_IP" --master_port="$MASTER_PORT" examples/two-nodes/train.py
"""


def main() -> int:
    """Follow the training on all machines, then show its result; the exit code is the training's own."""
    config = TaskConfig(
        name="multi-node-training",
        instance_type="a100",
        num_instances=int(sys.argv[1]) if len(sys.argv) > 1 else 2,
        command=TRAIN,
        env={"OMP_NUM_THREADS": "1"},
        max_run_time_hours=0.5,
        retries=2,  # one node that fails ends the attempt of all; torch has been seen to abort as it leaves
    )
    task = flow.run(config)
    for line in task.lines(follow=True):
        print(f"[{line.rank}] {line.text.decode()}")
    if task.wait() == "completed":
        print(f"{task.num_instances} machines, accuracy {task.result()['accuracy']}")
    return task.exit_code or 0


if __name__ == "__main__":
    sys.exit(main())
