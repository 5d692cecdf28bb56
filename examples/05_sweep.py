"""Run one training for each seed, as many at once as there are CPUs: `python examples/05_sweep.py [SEED …]`."""

import sys

import flow
from flow import TaskConfig

seeds = [int(word) for word in sys.argv[1:]] or [1, 2, 3]
tasks = []
for seed in seeds:
    config = TaskConfig(
        name=f"sweep-seed-{seed}",
        command=["python3", "train.py", "--epochs", 3, "--seed", seed],
        working_dir="examples/digits",  # of the folder that this is started in
        cpus=1,
        labels={"sweep": "seed"},
    )
    tasks.append(flow.run(config))
    print(f"{tasks[-1]}  {config.name}", file=sys.stderr)

accuracy = {}
for seed, task in zip(seeds, tasks, strict=True):
    task.wait(check=True)
    accuracy[seed] = task.result()["accuracy"]
    print(f"seed {seed}: accuracy {accuracy[seed]:.3f}")
print(f"best: seed {max(accuracy, key=accuracy.get)}")
