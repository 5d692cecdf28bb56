"""Warm functions: workers that stay, what of a call survives their death, and that none of them is left behind."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flow
from flow.channel import Channel
from flow.providers.local.provider import Local
from flow.task import Task
from tests.support.processes import is_alive, wait_until
from tests.support.programs import Project

APP = """
    import os, sys, time
    from flow import FlowApp
    from flow.errors import FlowError, RemoteError

    app = FlowApp()
    print("imported", flush=True)

    def note(what):
        with open(os.environ["NOTES"], "a") as file:
            file.write(f"{what}\\n")

    @app.function
    def pid():
        return os.getpid()

    @app.function(env={"NOTES": os.environ.get("NOTES", "")})
    def f(x):
        if isinstance(x, str):
            note(x)
            exec(x)
        return x

    @app.function(env={"NOTES": os.environ.get("NOTES", "")}, retries=1)
    def retried(x):
        return f(x)
"""


@pytest.fixture
def project(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    made = Project(project)
    made.write(lib=APP)
    return made


def program(project: Project, text: str, *, code: int = 0) -> str:
    """What a program with this text prints, of which the app's import is the first line."""
    project.write(use="from lib import *\n" + "\n".join(text.splitlines()))
    return project.run("use.py", code=code).removeprefix("imported\n")


def notes() -> list[str]:
    path = Path(os.environ["NOTES"])
    return path.read_text().splitlines() if path.exists() else []


def ended(*statuses: str) -> list[Task]:
    """The tasks, newest first, once they have these statuses."""
    assert wait_until(lambda: [str(task.status) for task in flow.tasks()] == list(statuses), seconds=30), flow.tasks()
    return flow.tasks()


def test_a_run_of_an_app_keeps_one_process_for_each_function_and_ends_it(project: Project) -> None:
    text = """
with app.run():
    pids = {pid.remote() for _ in range(10)} | set(pid.starmap([()] * 10))
    print(len(pids), f.remote({"a": [1, None]}), list(f.map(range(1000), concurrency=1)) == list(range(1000)))
print(pid.remote() in pids)
"""
    assert program(project, text) == "1 {'a': [1, None]} True\nFalse\n"
    tasks = ended("completed", "completed", "completed")
    assert [task.name for task in tasks] == ["pid", "f", "pid"]
    assert [task.logs() for task in tasks] == ["imported\n"] * 3


def test_what_a_warm_function_prints_is_in_its_tasks_log_when_it_returns(project: Project) -> None:
    text = """
import flow
with app.run():
    for n in range(3): f.remote(f"print('call', {n}); sys.stdout.write('no line end')")
    print(repr(flow.tasks()[0].logs()))
"""
    assert "call 0" in program(project, text)
    assert flow.tasks()[0].logs().splitlines()[1:3] == ["call 0", "no line endcall 1"]


def test_an_error_is_that_call_s_own_and_the_worker_goes_on(project: Project) -> None:
    text = """
with app.run():
    first = pid.remote()
    for bad in ("1/0", "sys.exit(3)", "x = [(1,)]; raise ValueError(x)", "sys.stdout.close()"):
        try:
            f.remote(bad)
            print("returned")
        except RemoteError as error:
            print(error.message, error.task_id != "", "in f" in error.traceback)
    for bad in ((1,), object(), lambda: 1):
        try:
            f.remote([0, bad])
        except FlowError as error:
            print(error.message[:22])
    print(f.remote(1), pid.remote() == first)
"""
    assert program(project, text).splitlines() == [
        "`f` raised ZeroDivisionError: division by zero True True",
        "`f` raised SystemExit: 3 True True",
        "`f` raised ValueError: [(1,)] True True",
        "returned",
        *("`args[0][1]` is a `tup", "`args[0][1]` is a `obj", "`args[0][1]` is a `fun"),
        "1 True",
    ]


def test_calls_that_had_not_begun_when_a_worker_died_are_made_once_and_the_one_that_had_is_not_made_again(
    project: Project,
) -> None:
    text = """
def calls():
    for n in range(300):
        yield f"'call {n}'" if n not in (7, 200) else f"'call {n}'; os.kill(os.getpid(), 9)"
with app.run():
    values = list(f.map(calls(), concurrency=1, on_error="return"))
    print([n for n, value in enumerate(values) if isinstance(value, RemoteError)], values[199], values[7].message)
"""
    told = program(project, text)
    killed = "ended as failed (killed by SIGKILL)\n"
    assert told.startswith("[7, 200] 'call 199' `f` did not return: `task-") and told.endswith(killed)
    assert notes() == [f"'call {n}'" + "; os.kill(os.getpid(), 9)" * (n in (7, 200)) for n in range(300)]
    ended("completed", "failed", "failed")


def test_retries_are_of_a_call(project: Project) -> None:
    text = """
once = "mark = os.environ['NOTES'] + '.once'\\nif not os.path.exists(mark): open(mark, 'w'); os.kill(os.getpid(), 11)"
with app.run():
    print(retried.remote(once) == once)
    for bad in ("raise OSError", "os._exit(3)"):
        try: retried.remote(bad)
        except RemoteError as error: print(error.remote_type or error.remote_message)
"""
    assert program(project, text) == "True\nOSError\nexit 3\n"
    assert notes()[-4:] == ["raise OSError"] * 2 + ["os._exit(3)"] * 2


def test_a_module_that_cannot_be_imported_fails_every_call(project: Project) -> None:
    project.write(lib=APP + "\n    if 'FLOW_TASK_ID' in os.environ: import no_such_module\n")
    text = """
with app.run():
    print([error.remote_type for error in pid.starmap([()] * 3, on_error="return")])
"""
    assert program(project, text) == "['ModuleNotFoundError', 'ModuleNotFoundError', 'ModuleNotFoundError']\n"


def test_a_worker_that_always_dies_is_not_started_for_ever(project: Project) -> None:
    project.write(lib=APP + "\n    if 'FLOW_TASK_ID' in os.environ: os.kill(os.getpid(), 9)\n")
    text = """
with app.run():
    print([error.message.rpartition(" (")[2] for error in pid.starmap([()] * 3, on_error="return")])
"""
    assert program(project, text) == "['killed by SIGKILL)', 'killed by SIGKILL)', 'killed by SIGKILL)']\n"
    ended("failed", "failed", "failed")


def test_a_map_is_ordered_bounded_lazy_and_in_several_processes_where_that_helps(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "4")
    text = """
from itertools import count, islice
meet = ["while len(open(os.environ['NOTES']).readlines()) < 3: time.sleep(0.01)" for _ in range(8)]  # three at once
print(list(f.map(meet, concurrency=4)) == meet)
taken = []
def items():
    for n in count():
        taken.append(n)
        yield n
print(list(islice(f.map(items()), 5)), len(taken) < 1000)
values = f.map(["1/0", 1, 2], concurrency=1)
try: next(values)
except RemoteError as error: print(error.remote_type)
print(list(values), list(f.map([])))
left = f.map(range(9))
print(next(left))
"""
    assert program(project, text) == "True\n[0, 1, 2, 3, 4] True\nZeroDivisionError\n[] []\n0\n"
    assert wait_until(lambda: all(task.status.is_final for task in flow.tasks()))


def test_what_is_left_of_a_map_that_is_given_up_is_not_made(project: Project) -> None:
    text = """
with app.run():
    values = f.map(["time.sleep(0.2)"] * 500, concurrency=1)
    next(values)
    values.close()
    print(f.remote(1))
    def broken():
        yield from ["time.sleep(0.2)"] * 100
        1 / 0
    try: list(f.map(broken(), concurrency=1))
    except ZeroDivisionError: print(f.remote(2))
"""
    assert program(project, text) == "1\n2\n"
    assert 1 <= len(notes()) < 20


def test_one_cpu_is_enough_for_several_functions_and_a_spawned_call(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "1")
    text = """
with app.run():
    print(f.remote(1), pid.remote() > 0, f.remote(2), f.spawn(3).result(), list(f.map([4, 5])))
"""
    assert program(project, text) == "1 True 2 3 [4, 5]\n"


def test_threads_share_a_worker_and_large_values_pass_both_ways(project: Project) -> None:
    text = """
from concurrent.futures import ThreadPoolExecutor
big = "x" * 3_000_000
with app.run(), ThreadPoolExecutor(8) as pool:
    print(list(pool.map(f.remote, range(400))) == list(range(400)))
    print(all(value == [big] for value in f.map([[big]] * 12, concurrency=1)))
    print({pid.remote() for _ in range(3)} == set(pool.map(lambda _: pid.remote(), range(8))))
"""
    assert program(project, text) == "True\nTrue\nTrue\n"


def test_a_warm_function_may_use_processes_of_its_own(project: Project) -> None:
    text = """
with app.run():
    for way in ("fork", "spawn"):
        code = f"import multiprocessing as m; assert m.get_context('{way}').Pool(2).map(abs, [-1, -2]) == [1, 2]"
        print(f.remote(code) == code)
    f.remote("import os; os.fork() or time.sleep(600)")
"""
    assert program(project, text) == "True\nTrue\n"
    ended("completed")


@pytest.mark.parametrize("how", ["raise KeyError", "os.kill(os.getpid(), 2)", "sys.exit(1)"])
def test_whatever_leaves_the_run_ends_its_workers_at_once(project: Project, how: str) -> None:
    text = f"""
import threading
with app.run():
    f.remote(1)
    threading.Thread(target=f.map, args=(["time.sleep(600)"],), daemon=True)
    call = threading.Thread(target=lambda: list(f.map(["time.sleep(600)"], on_error="return")), daemon=True)
    call.start()
    while not os.path.exists(os.environ["NOTES"]): time.sleep(0.01)
    {how}
"""
    program(project, text, code=-2 if "kill" in how else 1)  # it does not wait for them
    ended("cancelled")


@pytest.mark.parametrize("busy", [False, True])
def test_a_client_that_is_killed_leaves_no_worker(project: Project, busy: bool) -> None:
    last = "f.remote('note(0); time.sleep(600)')" if busy else "note(0); time.sleep(600)"
    project.write(use=f"from lib import *\nwith app.run():\n    f.remote(1)\n    {last}")
    client = project.start("use.py")
    assert wait_until(lambda: "0" in notes(), seconds=30)
    client.kill()
    client.communicate()
    task = ended("failed")[0]
    assert "the client is gone" in task.logs()


def test_a_worker_that_is_cancelled_fails_the_call_it_had(project: Project) -> None:
    text = """
import threading, flow
with app.run():
    def cancel():
        while not os.path.exists(os.environ["NOTES"]): time.sleep(0.01)
        flow.tasks()[0].cancel()
    threading.Thread(target=cancel).start()
    try: f.remote("time.sleep(600)")
    except RemoteError as error: print(error.message.partition("ended as ")[2])
    print(f.remote(2))
"""
    assert program(project, text) == "cancelled\n2\n"


def test_a_run_within_a_run_is_the_same_and_a_call_after_it_is_a_task_of_its_own(project: Project) -> None:
    text = """
with app.run():
    one = pid.remote()
    with app.run(): print(pid.remote() == one)
    print(pid.remote() == one)
print(pid.remote() == one)
"""
    assert program(project, text) == "True\nTrue\nFalse\n"


@pytest.fixture
def through_a_channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine, reached by words before the command, as another one would be."""
    monkeypatch.setattr(Local, "channel", lambda *_: Channel(("env", "FAR=1")))
    yield


@pytest.mark.usefixtures("through_a_channel")
def test_workers_are_reached_over_any_channel(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project.folder)
    lib = importlib.import_module("lib")
    try:
        with lib.app.run():
            worker = lib.pid.remote()
            assert list(lib.f.map(range(500))) == list(range(500))
            assert lib.f.remote(["y" * 2_000_000]) == ["y" * 2_000_000]
            os.kill(worker, signal.SIGKILL)
            assert wait_until(lambda: not is_alive(worker))
            assert lib.pid.remote() != worker
    finally:
        del sys.modules["lib"]
    assert all(task.status.is_final for task in flow.tasks())
