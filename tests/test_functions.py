"""Functions that run as tasks: `invoke`, the decorators, what travels and what is refused, and how errors come back."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flow
from flow.calls import Target, encode_arguments, make_call
from flow.errors import FlowError, RemoteError, ResourceNotFoundError, ValidationError
from flow.node import connect, serve
from flow.node.values import NotJson, encode
from tests.support.components import require
from tests.support.containers import import_python_image
from tests.support.processes import wait_until
from tests.support.programs import Project
from tests.support.pythons import old_pythons

TRAIN = """
    def train_model(data_path: str, epochs: int = 100):
        print("training on", data_path)
        return {"accuracy": 0.95, "data": data_path, "epochs": epochs}
"""


@pytest.fixture
def project(project: Path) -> Project:
    return Project(project)


def raised(project: Project, body: str, *args: Any, **fields: Any) -> RemoteError:
    """What a call of `f(x=None)` with this body raises here."""
    project.write(mod=f"import os, sys\ndef f(x=None):\n{body}\n")
    with pytest.raises(RemoteError) as error:
        flow.invoke("mod.py", "f", args, **fields)
    return error.value


# -- invoke

_BAD = ValidationError


def test_a_function_of_a_plain_file_runs_and_its_value_comes_back(project: Project) -> None:
    project.write(train=TRAIN)
    value = flow.invoke("train.py", "train_model", args=["s3://data"], kwargs={"epochs": 200}, gpu="a100")
    assert value == {"accuracy": 0.95, "data": "s3://data", "epochs": 200}
    task = flow.tasks()[0]
    assert (task.name, task.result(), task.logs()) == ("train_model", value, "training on s3://data\n")


def test_large_and_odd_arguments_arrive_unchanged(project: Project) -> None:
    project.write(echo="def echo(*args, **kwargs): return [list(args), kwargs]")
    args = [
        "true",
        None,
        True,
        1,
        1.5,
        -0.0,
        "'\"\\\n$HOME `ls` \x00 é 🎈 \udcff",
        [],
        {},
        {"": [{"a b": [1]}]},
        10**100,
    ]
    kwargs = {"big": "x" * 3_000_000, "class": 1}
    assert flow.invoke("echo.py", "echo", args, kwargs) == [args, kwargs]


def test_a_file_in_a_package_may_import_relatively_and_a_nested_script_its_neighbour(project: Project) -> None:
    project.write(
        {
            "pkg/__init__.py": "",
            "pkg/sizes.py": "WIDTH = 64",
            "pkg/model.py": "from .sizes import WIDTH\ndef f(): return WIDTH",
            "scripts/values.py": "DEPTH = 3",
            "scripts/run.py": "import values\ndef f(): return [values.DEPTH, __name__]",
            "tools/01-start.py": "import json\ndef f(): return [__name__, __file__[-18:]]",
            "json.py": "def f(): return __name__",
            "tools/1.2.py": "def f(): return __name__",
        }
    )
    assert flow.invoke("pkg/model.py", "f") == 64
    assert flow.invoke(Path("scripts/run.py"), "f") == [3, "run"]
    assert flow.invoke("tools/01-start.py", "f") == ["01-start", "/tools/01-start.py"]
    assert flow.invoke("json.py", "f") == "json__"
    assert flow.invoke("tools/1.2.py", "f") == "1_2"


def test_working_dir_environment_and_retries_are_those_of_the_task(project: Project) -> None:
    project.write(
        {
            "sub/here.py": """
            import os
            def f():
                if os.environ["FLOW_ATTEMPT"] == "1":
                    raise RuntimeError("once more")
                return [os.path.basename(os.getcwd()), os.environ["RATE"]]
            """
        }
    )
    assert flow.invoke("sub/here.py", "f", working_dir="sub", env={"RATE": "0.1"}, retries=1) == ["sub", "0.1"]


@pytest.mark.parametrize(
    ("file", "function", "kind", "message", "hint"),
    [
        ("trian.py", "f", ResourceNotFoundError, "there is no file `trian.py`", "did you mean `train.py`?"),
        ("pkg.train", "f", ResourceNotFoundError, "there is no file `pkg.train`", "did you mean `pkg/train.py`?"),
        ("", "f", ResourceNotFoundError, "there is no file ``", None),
        ("notes.txt", "f", _BAD, "`notes.txt` is no Python file", "name a file that ends in `.py`"),
        ("train.py", "train_modl", _BAD, "`train.py` has no function `train_modl`", "did you mean `train_model`?"),
        ("train.py", "a.b", _BAD, "`a.b` is no name of a function", "name a function of the file's top level"),
        ("broken.py", "f", _BAD, "`broken.py`, line 2: '(' was never closed", None),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_told_before_anything_is_submitted(
    project: Project, *, file: str, function: str, kind: type[FlowError], message: str, hint: str | None
) -> None:
    project.write({"train.py": TRAIN, "broken.py": "\ndef f(\n", "pkg/train.py": "", "notes.txt": ""})
    with pytest.raises(kind) as error:
        flow.invoke(file, function)
    assert (error.value.message, error.value.suggestions) == (message, (hint,) if hint else ())
    assert flow.tasks() == []


def test_a_file_outside_of_the_project_or_left_out_of_the_upload_is_refused(project: Project, tmp_path: Path) -> None:
    Project(tmp_path).write(elsewhere="def f(): pass")
    with pytest.raises(ValidationError, match="is not in the project"):
        flow.invoke(tmp_path / "elsewhere.py", "f")
    project.write(hidden="def f(): pass")
    (project.folder / ".flowignore").write_text("hidden.py\n")
    with pytest.raises(ValidationError, match=r"`hidden.py` is left out of the upload"):
        flow.invoke("hidden.py", "f")
    with pytest.raises(ValidationError, match="`upload_code` is false"):
        flow.invoke("hidden.py", "f", upload_code=False)


@pytest.mark.parametrize("field", ["command", "array", "gpus"])
def test_a_field_that_a_function_cannot_have_is_refused(project: Project, field: str) -> None:
    project.write(train=TRAIN)
    with pytest.raises(ValidationError, match=f"a function has no field `{field}`"):
        flow.invoke("train.py", "train_model", ["x"], **{field: "1"})  # type: ignore[arg-type]


# -- what JSON holds


class Colour(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class Rates:
    lr: float = 0.1


class Array:
    pass


Array.__module__, Array.__qualname__ = "numpy", "ndarray"
_loop: list[Any] = []
_loop.append(_loop)
_deep: list[Any] = []
for _ in range(600):
    _deep = [_deep]
_generator = (one for one in ())

REFUSED: list[tuple[Any, str, str, str]] = [
    ((1, 2), "", "is a `tuple`", "list("),
    ({1}, "", "is a `set`", "sorted("),
    ({"lr": [0, 1, (2,)]}, ".lr[2]", "is a `tuple`", "list("),
    ([{"a b": math.nan}], "[0]['a b']", "is nan", "None"),
    ([1.0, -math.inf], "[1]", "is -inf", "None"),
    ({1: "one"}, "", "has the key `1`", "text"),
    ({"x": {None: 1}}, ".x", "has the key `None`", "text"),
    (Rates(), "", "is a dataclass, `Rates`", "asdict"),
    (b"bytes", "", "is a `bytes`", "base64"),
    (datetime.datetime(2025, 1, 1), "", "is a `datetime.datetime`", "isoformat"),
    (datetime.timedelta(1), "", "is a `datetime.timedelta`", "total_seconds"),
    (decimal.Decimal("1.1"), "", "is a `decimal.Decimal`", "str("),
    (Path("/x"), "", "is a `pathlib", "str("),
    (Colour.RED, "", "Colour`, which", ".value"),
    (Array(), "", "is a `numpy.ndarray`", "tolist"),
    (OrderedDict(a=1), "", "is a `collections.OrderedDict`", "dict("),
    (namedtuple("Point", "x")(1), "", "Point`", "list("),
    (1j, "", "is a `complex`", "two numbers"),
    (_generator, "", "is a `generator`", "list("),
    (print, "", "is a `builtin_function_or_method`", "numbers, text"),
    (_loop, "[0]" * 60, "is nested too deep, or holds itself", "500 levels"),
    (_deep, "[0]" * 60, "is nested too deep, or holds itself", "500 levels"),
    (10**5000, "", "holds a whole number of thousands of digits", "hex("),
]  # fmt: skip


@pytest.mark.parametrize(("value", "path", "what", "advice"), REFUSED, ids=[row[2][:30] for row in REFUSED])
def test_what_json_would_change_is_refused_with_the_path_to_it(value: Any, path: str, what: str, advice: str) -> None:
    with pytest.raises(NotJson) as error:
        encode([0, value], "args")
    if not isinstance(value, int) or isinstance(value, enum.Enum):
        assert error.value.path.startswith(f"args[1]{path}")
    assert what in error.value.what and advice in error.value.advice


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_what_is_not_refused_comes_back_as_it_is(value: Any) -> None:
    line = encode(value, "args")
    assert b"\n" not in line
    back = json.loads(line)
    assert (back, repr(back)) == (value, repr(value))


def test_arguments_are_refused_before_a_task_is_made_and_results_on_the_machine(project: Project) -> None:
    project.write(train=TRAIN)
    with pytest.raises(ValidationError) as error:
        flow.invoke("train.py", "train_model", args=[{"lr": [0.1, 0.2, (0.3,)]}])
    assert error.value.message == "`args[0].lr[2]` is a `tuple`, which would not come back as it is"
    assert error.value.suggestions == ("make it a list: `list(…)`",)
    assert flow.tasks() == []
    refused = raised(project, "    return {'loss': [1.0, (2, 3)]}")
    assert refused.message == (
        "`f` returned, but the function's `result.loss[1]` is a `tuple`, which would not come back as it is"
    )
    assert refused.suggestions[0] == "make it a list: `list(…)`"
    assert (refused.remote_type, refused.traceback) == ("ResultError", "")


@pytest.mark.parametrize(("name", "value"), [("args", "text"), ("args", {"a": 1}), ("kwargs", ["a"])])
def test_arguments_that_are_no_list_or_no_dict_are_refused(project: Project, name: str, value: Any) -> None:
    project.write(train=TRAIN)
    with pytest.raises(ValidationError, match=f"`{name}` is a `{type(value).__name__}`"):
        flow.invoke("train.py", "train_model", **{name: value})


def test_a_result_of_10_mb_comes_back_and_one_of_11_is_refused_with_what_to_do(project: Project) -> None:
    project.write(big="def f(n): return 'x' * n")
    for size in (10_000_000, 10 * 1024 * 1024):
        assert len(flow.invoke("big.py", "f", [size])) == size
    with pytest.raises(RemoteError) as error:
        flow.invoke("big.py", "f", [11_000_000])
    assert "has 11.0 MB, and at most 10 MB are sent back" in error.value.message
    assert error.value.suggestions[0] == "write it to a file in `$FLOW_OUTPUT`, and return the file's name"


# -- errors


def test_a_remote_exception_is_raised_here_with_its_type_message_traceback_and_output(project: Project) -> None:
    project.write(
        mod="""
        class DataError(ValueError):
            pass
        def load(path):
            raise DataError(f"no data at {path}\\nsecond line")
        def f(path):
            print("reading", path)
            return load(path)
        """
    )
    with pytest.raises(RemoteError) as caught:
        flow.invoke("mod.py", "f", ["s3://x"])
    error = caught.value
    assert (error.remote_type, error.remote_message) == ("mod.DataError", "no data at s3://x\nsecond line")
    assert error.message == "`f` raised mod.DataError: no data at s3://x"
    assert (error.logs, error.code, error.exit_code) == ("reading s3://x\n", "remote", 1)
    lines = [line.strip() for line in error.traceback.splitlines()]
    assert lines[0] == "Traceback (most recent call last):" and lines[1].endswith('mod.py", line 8, in f')
    assert "invoke.py" not in error.traceback
    assert str(error).startswith(error.message) and "reading s3://x" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.suggestions) == (str(error), error.suggestions)
    task = flow.tasks()[0]
    assert (task.status, task.exit_code) == ("failed", 1)
    assert "mod.DataError: no data" in task.logs()
    assert task.task_id == error.task_id


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("    sys.exit(3)", "SystemExit", "`f` raised SystemExit: 3"),
        ("    sys.exit(0)", "SystemExit", "`f` raised SystemExit: 0"),
        ("    sys.exit('bad')", "SystemExit", "`f` raised SystemExit: bad"),
        ("    os._exit(0)", "", "`f` did not return: `{task}` ended (exit 0)"),
        ("    os._exit(9)", "", "`f` did not return: `{task}` ended as failed (exit 9)"),
        ("    os.kill(os.getpid(), 9)", "", "`f` did not return: `{task}` ended as failed (killed by SIGKILL)"),
        ("    os.kill(os.getpid(), 11)", "", "`f` did not return: `{task}` ended as failed (killed by SIGSEGV)"),
        ("    import ctypes; ctypes.string_at(0)", "", "`f` did not return: `{task}` ended as failed (killed by SIG…)"),
        ("    return f(x)", "RecursionError", "`f` raised RecursionError: maximum recursion depth exceeded"),
        ("    yield 1", "ResultError", "`f` returned, but the function's `result` is a `generator`, which would not …"),
        ("    raise KeyboardInterrupt", "KeyboardInterrupt", "`f` raised KeyboardInterrupt"),
        ("    os.close(1); os.close(2); raise OSError('x')", "OSError", "`f` raised OSError: x"),
    ],
)  # fmt: skip
def test_whatever_ends_a_function_is_told(project: Project, body: str, kind: str, message: str) -> None:
    error = raised(project, body)
    assert error.remote_type == kind
    assert re.fullmatch(re.escape(message.format(task=error.task_id)).replace("…", ".*"), error.message)
    assert len(error.traceback) < 25_000


def test_a_crash_shows_where_it_was(project: Project) -> None:
    error = raised(project, "    import ctypes; ctypes.string_at(0)")
    assert "Fatal Python error: Segmentation fault" in error.logs
    assert 'mod.py", line 3 in f' in error.logs


def test_the_exit_code_of_sys_exit_is_the_tasks_own(project: Project) -> None:
    raised(project, "    sys.exit(3)")
    assert flow.tasks()[0].exit_code == 3


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("import zzz\ndef f(): pass", "ModuleNotFoundError", "`f` raised ModuleNotFoundError: No module named 'zzz'"),
        ("import sys\nsys.exit(4)\ndef f(): pass", "SystemExit", "`f` raised SystemExit: 4"),
        ("import os as f", "NotFound", "`f` could not be called: `f` of `mod.py` is a module and no function"),
        ("g = 1\nif g == 2:\n    def f(): pass", "NotFound", "`f` could not be called: `mod.py` has no function `f`"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_is_told_of(project: Project, source: str, kind: str, message: str) -> None:
    project.write(mod=source)
    with pytest.raises(RemoteError) as error:
        flow.invoke("mod.py", "f")
    assert (error.value.remote_type, error.value.message) == (kind, message)


def test_a_cancelled_call_and_one_out_of_time_raise_what_happened(project: Project) -> None:
    project.write(mod="import time\ndef f(): time.sleep(600)")
    with pytest.raises(RemoteError, match="ended as timed_out"):
        flow.invoke("mod.py", "f", max_run_time_hours=0.0001, grace_seconds=1)


def test_a_function_that_prints_100_mb_returns_and_all_of_it_is_kept(project: Project) -> None:
    project.write(mod="def f():\n    for _ in range(100): print('x' * 999_999)\n    return 'done'")
    assert flow.invoke("mod.py", "f") == "done"
    folder = flow.tasks()[0].folder
    assert folder and (folder / "stdout.log").stat().st_size == 100_000_000


# -- decorators


SPEC = """
    from flow import FlowApp, function

    app = FlowApp()

    @app.function(gpu="a100")
    def train_model(data_path: str, epochs: int = 100):
        print("training on", data_path)
        return {"accuracy": 0.95, "loss": 0.01, "epochs": epochs}

    @function(gpu="a100")
    def inference(text: str) -> dict:
        return {"sentiment": "positive", "text": text}

    # Execute remotely on GPU
    result = train_model.remote("s3://data.csv", epochs=50)

    # Execute locally for testing
    local_result = train_model("./local_data.csv")

    print(result, local_result)
    task_id = train_model.spawn("config.yaml")
    print(task_id.result(), str(task_id).startswith("task-"), inference.remote("fine"))
"""
SAID = """\
training on ./local_data.csv
{'accuracy': 0.95, 'loss': 0.01, 'epochs': 50} {'accuracy': 0.95, 'loss': 0.01, 'epochs': 100}
{'accuracy': 0.95, 'loss': 0.01, 'epochs': 100} True {'sentiment': 'positive', 'text': 'fine'}
"""


def test_a_script_without_a_guard_runs_as_the_readme_prints_it_and_submits_nothing_twice(project: Project) -> None:
    project.write(app=SPEC)
    assert project.run("app.py") == SAID
    assert [task.status for task in flow.tasks()] == ["completed"] * 3


def test_functions_run_from_a_module_from_main_of_a_package_and_behind_a_guard(project: Project) -> None:
    project.write(
        {
            "pkg/__init__.py": "",
            "pkg/shared.py": "from flow import function\n@function\ndef shared(): return __name__",
            "pkg/main.py": """
            from flow import FlowApp
            from .shared import shared
            app = FlowApp()
            @app.function()
            def here(x): return [x, __name__, shared()]
            if __name__ == "__main__":
                print(here.remote(1), shared.remote())
            """,
        }
    )
    assert project.run("-m", "pkg.main") == "[1, 'pkg.main', 'pkg.shared'] pkg.shared\n"
    project.write(
        {"src/lib.py": "from flow import function\n@function\ndef f(): import lib; return lib.__file__[-10:]"}
    )
    project.write(use="import sys; sys.path.insert(0, 'src')\nimport lib\nprint(lib.f.remote())")
    assert project.run("use.py") == "src/lib.py\n"


def test_a_module_that_submits_before_its_function_is_there_is_refused_clearly(project: Project) -> None:
    project.write(
        app="""
        from flow import function
        @function
        def first(): return 1
        first.remote()
        @function
        def second(): return 2
        second.remote()
        """
    )
    told = project.run("app.py", code=1)
    assert "`app.py`, line 5, submits a task while it is imported, and has no `second` by then" in told
    hint = 'hint: put what submits tasks under `if __name__ == "__main__":`'
    assert hint in told or sys.version_info < (3, 11)
    assert len(flow.tasks()) == 2


def test_a_program_that_an_import_starts_submits_nothing(project: Project) -> None:
    project.write(
        app="""
        import subprocess, sys
        def f(): return OUTPUT
        code = "import flow; flow.run('true')"
        OUTPUT = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
        """
    )
    assert "`app.py` submits a task while it is imported on the machine" in flow.invoke("app.py", "f")
    assert len(flow.tasks()) == 1


def test_a_function_may_submit_tasks_when_it_is_called(project: Project) -> None:
    project.write(app="import flow\ndef f(): return str(flow.run('true', cpus=0.1).wait())")
    home = {"FLOW_HOME": os.environ["FLOW_HOME"]}
    assert flow.invoke("app.py", "f", cpus=0.1, env=home) == "completed"


def test_a_function_that_submits_itself_from_its_own_task_is_refused(project: Project) -> None:
    project.write(
        app="""
        import atexit
        from flow import function
        @function(cpus=0.1)
        def f(n): return g.remote(n - 1)
        @function(cpus=0.1)
        def g(n): return f.remote(n - 1)
        @function
        def h(): atexit.register(h.spawn)
        if __name__ == "__main__":
            h.remote()
            f.remote(9)
        """
    )
    told = project.run("app.py", code=1)
    assert "ValidationError: `f` submits itself from its own task" in told
    assert len(flow.tasks()) == 2  # the nested one has a home of its own


def test_the_task_of_a_spawned_call_keeps_its_meaning_for_who_finds_it_later(project: Project) -> None:
    project.write(app="from flow import function\n@function\ndef f(x): return x")
    project.write(use="from app import f\nprint(f.spawn(None), f.spawn([1]))")
    first, second = project.run("use.py").split()
    assert (flow.get_task(second).result(), flow.get_task(first).result()) == ([1], None)
    plain = flow.run("sleep 600")
    assert plain.result() is None  # at once: it is no call of a function
    plain.cancel()
    plain.wait()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("f = function(lambda x: x)", "`<lambda>` cannot run elsewhere: it is a lambda"),
        ("class A:\n    @function\n    def m(self): pass", "`A.m` cannot run elsewhere: it is no plain function of a"),
        ("def g():\n    @function\n    def inner(): pass\ng()", "it is defined inside of another function"),
        ("f = function(len)\nf.remote([])", "`len` cannot run elsewhere: it is in no file (`builtins`)"),
        ("@function\nclass A: pass", "`A` cannot run elsewhere"),
        ("import functools\nfunction(functools.partial(print))", "cannot run elsewhere: it is no plain function"),
        ("@function(gpuu='a100')\ndef f(): pass", "a function has no field `gpuu`"),
        ("@function\ndef f(a, b=1): pass\nf.remote()", "`f`: missing a required argument: 'a'"),
        ("@function\ndef f(a, b=1): pass\nf.spawn(1, c=2)", "`f`: got an unexpected keyword argument 'c'"),
        ("@function(gpu='nonsense!')\ndef f(): pass\nf.remote()", "gpu: "),
        ("@function\ndef f(x): pass\nlist(f.map([1], on_error='ignore'))", "`on_error` is `ignore`"),
        ("@function\ndef f(x): pass\nlist(f.map([1], concurrency=0))", "`concurrency` is `0`"),
        ("@function(num_instances=2)\ndef f(x): pass\nf.map([1])", "a function on several machines cannot be mapped"),
    ],
)  # fmt: skip
def test_what_cannot_run_elsewhere_is_refused_before_anything_is_submitted(
    project: Project, source: str, message: str
) -> None:
    project.write(app=f"from flow import function\n{source}\n")
    told = project.run("app.py", code=1)
    assert f"flow.errors.ValidationError: {message}" in told or message in told
    assert flow.tasks() == []


def test_what_was_typed_in_is_refused(project: Project) -> None:
    told = project.run("-c", "import flow\n@flow.function\ndef f(): pass\nf.remote()", code=1)
    assert "`f` cannot run elsewhere: it is in no file (`__main__`)" in told


def test_a_decorated_function_is_what_it_was(project: Project) -> None:
    project.write(
        app='from flow import function\n@function(cpus=1)\ndef f(x: int) -> int:\n    "Twice."\n    return 2 * x'
    )
    project.write(
        use="""
        import inspect, multiprocessing
        from app import f
        if __name__ == "__main__":
            print(f(2), f.__name__, f.__doc__, inspect.signature(f))
            print(multiprocessing.get_context("spawn").Pool(1).map(f, [1, 2]))
        """
    )
    assert project.run("use.py") == "4 f Twice. (x: int) -> int\n[2, 4]\n"


def test_ctrl_c_at_a_remote_call_ends_its_task(project: Project) -> None:
    project.write(app="import time\nfrom flow import function\n@function\ndef f(): time.sleep(600)\nf.remote()")
    program = project.start("app.py")
    assert wait_until(lambda: [str(task.status) for task in flow.tasks()] == ["running"], seconds=30)
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=30)
    assert wait_until(lambda: [str(task.status) for task in flow.tasks()] == ["cancelled"], seconds=30)


@pytest.mark.parametrize("python", old_pythons())
@pytest.mark.parametrize("mode", ["once", "serve"])
def test_an_old_python_that_has_no_flow_makes_calls_too(
    project: Project, tmp_path: Path, *, python: str, mode: str
) -> None:
    project.write(
        app="""
        import flow, flow.errors
        from flow import FlowApp, TaskConfig, function
        from flow.errors import RemoteError
        app = FlowApp("trainer")
        config = TaskConfig(command="true", gpu="a100")
        @app.function(gpu="a100")
        def f(x): return [x, g(x), flow.__file__[-12:]]
        @function
        def g(x):
            try:
                flow.run("true")
            except flow.errors.FlowError as error:
                return error.message
        with app.run():
            f.remote(1)
        """
    )
    arguments = encode_arguments([2], {})
    target = Target(project.folder / "app.py", "app", "f")
    call = make_call(target, project.folder, arguments if mode == "once" else None)
    for path, content in call.files.items():
        (project.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / path).write_bytes(content)
    environment = {"FLOW_OUTPUT": str(tmp_path), "PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    place: dict[str, Any] = {"cwd": project.folder, "env": environment, "stdout": subprocess.PIPE}
    argv = [python, "-S", ".flow/call/invoke.py"]
    with subprocess.Popen([*argv, mode], **place) as machine:
        if mode == "once":
            assert machine.wait(30) == 0
            told = (tmp_path / "result.json").read_bytes()
        else:
            join = [python, "-S", connect.__file__, str(project.folder / ".flow/call" / serve.SOCKET), "60"]
            talk = subprocess.run(join, input=arguments + b"\n.\n", **place)
            assert machine.wait(30) == 0
            told = talk.stdout.removeprefix(b"+\n=")
    assert json.loads(told) == [2, "a task is submitted, and flow is not installed on this machine", "flow_stub.py"]


def test_functions_run_in_containers_once_and_warm(project: Project, containers: str) -> None:
    image = import_python_image(dict(os.environ))
    project.write(
        app=f"""
        import os
        from flow import FlowApp
        app = FlowApp()
        @app.function(image="{image}")
        def f(x): return [x, os.getcwd(), os.path.exists("/usr/bin/gcc"), os.getpid()]
        if __name__ == "__main__":
            print(f.remote("é")[:3])
            with app.run():
                print(f.remote(1)[:3], len({{value[3] for value in f.map(range(100))}}))
        """
    )
    assert project.run("app.py") == "['é', '/workspace', False]\n[1, '/workspace', False] 1\n"


def test_a_function_sees_its_volumes_and_a_map_makes_do_with_one_worker_where_only_one_may_hold_them(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("root", "a function sees its volumes", found=os.getuid() == 0)
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "4")
    flow.create_volume(1, name="training-data")
    project.write(
        app="""
        import time
        from flow import FlowApp
        app = FlowApp()

        @app.function(gpu="h100:8", volumes={"/data": "training-data"}, env={"WANDB_API_KEY": "..."})
        def distributed_training(config_path: str):
            time.sleep(0.1)
            with open("/data/runs", "a+") as runs:
                runs.write(config_path)
                runs.seek(0)
                return {"status": runs.read()}

        task_id = distributed_training.spawn("a")
        print(task_id.result(), distributed_training.remote("b"))
        print(list(distributed_training.map("cdef", concurrency=3))[-1])
        """
    )
    assert project.run("app.py") == "{'status': 'a'} {'status': 'ab'}\n{'status': 'abcdef'}\n"
