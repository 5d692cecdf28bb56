"""Start Jupyter on a machine and print where to open it: `python examples/02_jupyter_server.py [PORT]`.

Needs `jupyterlab`, or `jupyter-server` alone, where the task runs.
"""

from __future__ import annotations

import sys

import flow
from flow import TaskConfig

SERVE = r"""
jupyter "$(command -v jupyter-lab >/dev/null && echo lab || echo server)" \
  --ip=0.0.0.0 --port="$PORT" --no-browser --allow-root  # a machine's user may be root
"""


def main() -> None:
    """Submit the server, and wait until it answers."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8888
    config = TaskConfig(
        name="notebook",
        instance_type="a100",
        command=SERVE,
        env={"PORT": port},
        ports=[port],
        max_run_time_hours=8,
    )
    task = flow.run(config)
    print(f"Starting as {task.task_id}; its output: flow logs {task.name} -f")
    print(f"Open {task.endpoints['jupyter']}")
    print(f"End it with `flow cancel {task.name}`; it ends by itself after {config.max_run_time_hours:g} hours.")


if __name__ == "__main__":
    try:
        main()
    except flow.errors.FlowError as error:
        sys.exit("\n".join([f"error: {error}", *error.suggestions]))
