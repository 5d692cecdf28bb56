"""A task's output: read again at the end, and followed while it is written."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flow
from bench.figures import Figure, in_turns, median, p99
from bench.floors import run_quietly
from bench.place import own_home
from bench.startup import flow_words

WRITE = """import sys
for start in range(0, LINES, 1000):
    lines = range(start, start + 1000)
    sys.stdout.writelines(f"step {i:>9} loss 0.{i % 1000:03} lr 0.0001 in 12.5 ms\\n" for i in lines)"""
TICK = "import time\nfor _ in range(LINES): print(time.time_ns(), flush=True); time.sleep(0.02)"


def measure_replay(*, quick: bool) -> list[Figure]:
    """`flow logs` of a task that wrote a million lines, its output thrown away, beside `cat` of the same file."""
    lines = 100_000 if quick else 1_000_000
    with own_home():
        task = flow.run(**_python(WRITE, lines))
        task.wait(120)
        file = (task.folder or Path()) / "stdout.log"
        size = file.stat().st_size
        spent = in_turns(
            3 if quick else 7,
            cat=run_quietly(["cat", str(file)]),
            logs=run_quietly([*flow_words(), "logs", task.task_id]),
            grep=run_quietly([*flow_words(), "logs", task.task_id, "--grep", "loss 0.999"]),
            lines=lambda: sum(1 for _ in task.lines()),
        )
        _check(task.task_id, lines)
    cat, logs = median(spent["cat"]), median(spent["logs"])
    rate, least = lines * 1000 / logs, lines * 1000 / cat
    return [
        Figure(f"flow logs, {lines:,} lines", rate, "lines/s", least, "cat", aim=1_000_000, key="replay"),
        Figure("  the same in bytes", size / 1000 / logs, "MB/s", size / 1000 / cat, "cat"),
        Figure("flow logs --grep", lines * 1000 / median(spent["grep"]), "lines/s", least, "cat"),
        Figure("Task.lines()", lines * 1000 / median(spent["lines"]), "lines/s", least, "cat"),
    ]


def measure_follow(*, quick: bool) -> list[Figure]:
    """A line that tells the time it was written at, read by one who follows: in Python, and through `flow logs -f`."""
    count = 50 if quick else 300
    with own_home():
        task = flow.run(**_python(TICK, count))
        inside = [(time.time_ns() - int(line.text)) / 1e6 for line in task.lines(follow=True)]
        task = flow.run(**_python(TICK, count))
        words = [*flow_words(), "logs", "-f", task.task_id]
        outside = []
        with subprocess.Popen(words, stdout=subprocess.PIPE) as command:
            for line in command.stdout or ():
                outside.append((time.time_ns() - int(line)) / 1e6)
    if len(inside) != count or len(outside) != count:
        raise AssertionError(f"{len(inside)} and {len(outside)} lines of {count}")
    outside = outside[count // 5 :]  # the first ones were written while the command started
    return [
        Figure("line written to Task.lines(), p50", median(inside), "ms", aim=20, key="follow"),
        Figure("line written to Task.lines(), p99", p99(inside), "ms"),
        Figure("line written to `flow logs -f`, p50", median(outside), "ms", aim=20),
    ]


def _python(code: str, lines: int) -> dict[str, Any]:
    return {"command": [sys.executable, "-c", code.replace("LINES", str(lines))]}


def _check(task_id: str, lines: int) -> None:
    out = subprocess.run([*flow_words(), "logs", task_id], check=True, stdout=subprocess.PIPE).stdout
    if out.count(b"\n") != lines:
        raise AssertionError(f"{out.count(bytes([10]))} lines came out of {lines}")
