"""See which machine a task gets: `python examples/01_verify_instance.py [INSTANCE_TYPE]`."""

from __future__ import annotations

import sys

import flow

LOOK = r"""
echo "host    $(hostname)"
echo "CPUs    $(getconf _NPROCESSORS_ONLN)"
echo "python  $(python3 -V 2>&1)"
if command -v nvidia-smi >/dev/null; then nvidia-smi -L; else echo "GPUs    none: there is no nvidia-smi"; fi
"""


def main() -> int:
    """Run the look around and show what it sees; 0 if it went well."""
    instance_type = sys.argv[1] if len(sys.argv) > 1 else "a100"
    task = flow.run(LOOK, name="verify", instance_type=instance_type, upload_code=False)
    print(f"{task.task_id} on {task.provider}, {task.cost_per_hour}/h")
    for note in task.plan.notes:
        print(f"note: {note}")
    for line in task.logs(follow=True):
        print(f"  {line}")
    print(f"{task.wait()}, {task.total_cost} in all")
    return 0 if task.status == "completed" else 1


if __name__ == "__main__":
    sys.exit(main())
