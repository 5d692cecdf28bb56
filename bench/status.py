"""`flow status` where many tasks are held: one runs, the others are queued behind it."""

from __future__ import annotations

import json
from pathlib import Path

import flow
from bench.figures import Figure, in_turns, median
from bench.floors import bare_python, run_quietly
from bench.place import own_home
from bench.startup import flow_words
from bench.submit import machine_held
from flow.providers.local.queue import Queue
from flow.record import new_task_id

_SHOWN_WHOLE = 10_000  # of more, nobody reads a list


def measure(*, quick: bool) -> list[Figure]:
    """The list of the newest 20, one task's line, and all of them as Slurm's `squeue` lists them."""
    figures = []
    for count, aim in ((10_000, 120), (100_000, 250))[: 1 if quick else 2]:
        with own_home(FLOW_LOCAL_CPUS="1") as home, machine_held():
            last = hold(home, count)
            run_quietly([*flow_words(), "status"])()  # makes the index
            spent = in_turns(
                5 if quick else 15,
                bare=bare_python,
                all=run_quietly([*flow_words(), "status"]),
                one=run_quietly([*flow_words(), "status", last]),
                **({"queue": run_quietly([*flow_words(), "squeue"])} if count == _SHOWN_WHOLE else {}),
            )
        floor = (median(spent["bare"]), "bare Python")
        figures += [
            Figure(f"flow status, {count:,} held", median(spent["all"]), "ms", *floor, aim=aim, key="status"),
            Figure(f"flow status TASK, {count:,} held", median(spent["one"]), "ms", *floor, aim=aim),
        ]
        if "queue" in spent:
            figures.append(Figure(f"flow squeue, {count:,} held", median(spent["queue"]), "ms", *floor, aim=150))
    return figures


def hold(home: Path, count: int) -> str:
    """Submit one task, then put `count` copies of its record and of its row in the queue; the id of the last.

    Written as Flow writes them, but for the waiting on the disk. The index is left to be made anew from the records.
    """
    task = flow.run("true")
    folder = home / "record" / task.task_id
    text = (folder / "record.json").read_text()
    created = json.loads(text)["created"]
    task_ids = [new_task_id(created + number / 100) for number in range(count)]
    for number, task_id in enumerate(task_ids):
        copy = folder.with_name(task_id)
        copy.mkdir(mode=0o700)
        again = text.replace(task.task_id, task_id).replace(repr(created), repr(created + number / 100))
        (copy / "record.json").write_text(again)
        (copy / "allocated").touch(mode=0o600)
    queue = Queue(home / "local" / "local.db")
    with queue.transaction():
        plan = "INSERT INTO plan SELECT ?1, created, hash, replace(plan, base, ?1) FROM plan WHERE base = ?2"
        queue.db.executemany(plan, [(task_id, task.task_id) for task_id in task_ids])
        row = "INSERT INTO task (id, base, state, priority) VALUES (?1, ?1, 'queued', 0)"
        queue.db.executemany(row, [(task_id,) for task_id in task_ids])
    queue.close()
    for path in home.glob("index.db*"):
        path.unlink()
    return task_ids[-1]
