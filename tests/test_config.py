"""TaskConfig: what a user may ask for, how mistakes are told, and that what is written is read back."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow.config import DependsOn, TaskConfig, VolumeMount, task_schema
from flow.errors import FlowError, ResourceNotFoundError, ValidationError
from flow.mistakes import MistakesError
from flow.plan import Elements
from flow.task_fields import TaskFields

FULL = """\
name: exp-lr-0.001_v2
instance_type: 8xa100
command: |
  torchrun --nproc_per_node=8 \\
    train.py
image: pytorch/pytorch:2.0.0-cuda11.8-cudnn8
env:
  BATCH_SIZE: "256"
  LEARNING_RATE: 0.10
  DEBUG: yes
  EMPTY: ""
working_dir: src
volumes:
  - name: training-data
    size_gb: 500
    mount_path: /data
  - volume_id: vol_1
    mount_path: /models/
    interface: file
    ephemeral: true
mounts:
  /input: s3://bucket/data/
  /output: volume://results
ports: [8888, 6006]
num_instances: 4
max_price_per_hour: 25
wait_for_price: true
keep: true
max_run_time_hours: 72.0
ssh_keys: [my-ssh-key]
region: no
upload_code: false
provider: local
cpus: 0.5
memory_gb: 64
retries: 2
priority: -10
labels: {team: 1.10, on: yes}
array: 1-100%8
depends_on:
  - task-06f3k2m9q7xw1d
  - prepare:ended
  - {task: ":1", state: started}
depends_on_any: true
singleton: false
unmet_dependency: wait
begin: 2030-01-31T08:00:00
hold: true
requeue: false
signal: USR1@90
grace_seconds: 5
output: logs/%x-%j.out
error: logs/%x-%j.err
options: {partition: gpu, exclusive: true, nested: {list: [1, null]}}
"""


def refused(make: Callable[..., Any], *args: Any, **fields: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        make(*args, **fields)
    return caught.value


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "task.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_every_field_is_read_from_yaml(tmp_path: Path) -> None:
    config = TaskConfig.from_yaml(written(tmp_path, FULL))
    assert config.to_dict() == {
        "name": "exp-lr-0.001_v2",
        "instance_type": "8xa100",
        "command": "torchrun --nproc_per_node=8 \\\n  train.py\n",
        "image": "pytorch/pytorch:2.0.0-cuda11.8-cudnn8",
        "env": {"BATCH_SIZE": "256", "LEARNING_RATE": "0.10", "DEBUG": "yes", "EMPTY": ""},
        "working_dir": "src",
        "volumes": [
            {"name": "training-data", "size_gb": 500, "mount_path": "/data"},
            {"volume_id": "vol_1", "mount_path": "/models", "interface": "file", "ephemeral": True},
        ],
        "mounts": {"/input": "s3://bucket/data/", "/output": "volume://results"},
        "ports": [8888, 6006],
        "num_instances": 4,
        "max_price_per_hour": 25.0,
        "wait_for_price": True,
        "keep": True,
        "max_run_time_hours": 72.0,
        "ssh_keys": ["my-ssh-key"],
        "region": "no",
        "upload_code": False,
        "provider": "local",
        "cpus": 0.5,
        "memory_gb": 64.0,
        "retries": 2,
        "priority": -10,
        "labels": {"team": "1.10", "on": "yes"},
        "array": "1-100%8",
        "depends_on": [
            {"task": "task-06f3k2m9q7xw1d", "state": "completed"},
            {"task": "prepare", "state": "ended"},
            {"task": ":1", "state": "started"},
        ],
        "depends_on_any": True,
        "singleton": False,
        "unmet_dependency": "wait",
        "begin": "2030-01-31T08:00:00",
        "hold": True,
        "requeue": False,
        "signal": "USR1@90",
        "grace_seconds": 5.0,
        "output": "logs/%x-%j.out",
        "error": "logs/%x-%j.err",
        "options": {"partition": "gpu", "exclusive": True, "nested": {"list": [1, None]}},
    }
    assert config.elements == Elements(tuple(range(1, 101)), 8)
    assert set(config.to_dict()) | {"gpu", "batch"} == set(TaskConfig.model_fields)  # the other spellings


def test_nothing_asked_is_a_task_with_defaults() -> None:
    config = TaskConfig()
    assert config.to_dict() == {}
    assert config.to_yaml() == ""
    assert (config.num_instances, config.upload_code, config.grace_seconds, config.elements) == (1, True, 30.0, None)
    assert (config.env, config.volumes, config.mounts, config.ports, config.depends_on) == ({}, [], {}, [], [])


def test_defaults_are_not_shared_between_tasks() -> None:
    TaskConfig().env["A"] = "b"
    assert TaskConfig().env == {}


def test_none_means_the_default() -> None:
    config = TaskConfig(name=None, env=None, ports=None, upload_code=None, num_instances=None)
    assert config == TaskConfig()
    config.num_instances = 3
    config.num_instances = None  # type: ignore[assignment]
    assert config.num_instances == 1


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("command", ["python", Path("a b.py"), "--n", 5, 0.1, ""], ["python", "a b.py", "--n", "5", "0.1", ""]),
        ("command", ("ls",), ["ls"]),
        ("env", {"A": 1, "B": 0.5, "C": True, "D": False, "E": "x", "F": Path("/p"), "G": ""}, None),
        ("working_dir", Path("src"), "src"),
        ("gpu", 4, "4"),
        ("gpu", "a100:8", "a100:8"),
        ("mounts", "s3://bucket/data", {"/data": "s3://bucket/data"}),
        ("mounts", {"/data/": "volume://my.data"}, {"/data": "volume://my.data"}),
        ("volumes", {"/data": "training-data"}, [{"mount_path": "/data", "name": "training-data"}]),
        ("volumes", {"name": "a"}, [{"name": "a"}]),
        ("ports", 8888, [8888]),
        ("ports", ("8888",), [8888]),
        ("ssh_keys", "mine", ["mine"]),
        ("num_instances", 2.0, 2),
        ("array", range(3), [0, 1, 2]),
        ("array", 7, "7"),
        ("depends_on", "prepare:failed", [{"task": "prepare", "state": "failed"}]),
        ("depends_on", [DependsOn(task="a")], [{"task": "a"}]),
        ("begin", datetime(2030, 1, 31, 8, tzinfo=timezone.utc), "2030-01-31T08:00:00+00:00"),
        ("begin", 1900000000, "1900000000"),
        ("signal", 15, "15"),
        ("upload_code", "no", False),
        ("options", {"a": (1, 2)}, {"a": [1, 2]}),
    ],
)
def test_values_are_taken_as_people_write_them(field: str, given: Any, kept: Any) -> None:
    if field == "env":
        kept = {"A": "1", "B": "0.5", "C": "true", "D": "false", "E": "x", "F": "/p", "G": ""}
    made = TaskConfig.from_dict({field: given})
    assigned = TaskConfig()
    setattr(assigned, field, given)
    assert made.to_dict() == assigned.to_dict() == {field: kept}


def test_a_task_can_depend_on_a_task_in_hand() -> None:
    class Handle:
        task_id = "task-06f3k2m9q7xw1d"

    assert TaskConfig(depends_on=[Handle()]).depends_on == [DependsOn(task="task-06f3k2m9q7xw1d")]


@pytest.mark.parametrize("name", ["a", "exp-lr-0.001", "1e-05", "_x", "A.b_c-d", "x" * 128])
def test_names_have_letters_digits_and_a_few_signs(name: str) -> None:
    assert TaskConfig(name=name).name == name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", one) for one in ("", "-a", ".a", "a b", "a/b", "ä", "x" * 129, "a\n", ":1", "@last", 5, True)),
        *(("command", one) for one in ("", "  ", [], [""], ["a", None], ["a", True], ["a\0"], "a\0", 5, {"a": "b"})),
        *(("env", one) for one in ("A=1", ["A=1"], {"": "x"}, {"A=B": "x"}, {"A": None}, {"A": [1]}, {1: "x"})),
        *(("gpu", one) for one in ("", "8x", "x8", "a100:0", 0, -1, 1.5, True, [])),
        *(("instance_type", one) for one in ("", "a b", 8)),
        *(("image", one) for one in ("", "a b", True)),
        *(("ports", one) for one in (0, 65536, "http", [80, 80], [True], "8080:80", {})),
        *(("num_instances", one) for one in (0, -1, 1.5, "two", True, [1], 10**30)),
        *(("max_price_per_hour", one) for one in (0, -1, "free", True, float("nan"), float("inf"))),
        *(("max_run_time_hours", one) for one in (0, -1, "1h", float("nan"), 1e300)),
        *(("cpus", one) for one in (0, "all", False)),
        *(("retries", one) for one in (-1, 0.5, "a")),
        *(("grace_seconds", one) for one in (-1, float("nan"))),
        *(("mounts", one) for one in ("bucket", "s3://", "volume://", {"data": "s3://b"}, {"/": "s3://b"}, ["s3://b"])),
        *(("mounts", {target: "volume://v"}) for target in ("/../etc", "", "/a\0")),
        *(("volumes", one) for one in ("data", ["data"], 5, [{}], [{"name": "a", "size": 3}], [{"size_gb": 5}])),
        *(("volumes", [{"name": "a", "size_gb": one}]) for one in (0, -1, "big", True, 0.5)),
        *(("volumes", [{"name": "a", "mount_path": one}]) for one in ("data", "/", "/a/../b", 5)),
        ("volumes", [{"name": "a", "interface": "nfs"}]),
        ("volumes", [{"name": "a", "volume_id": "v", "mount_path": "/a"}]),
        ("volumes", [{"volume_id": "v", "size_gb": 3, "mount_path": "/a"}]),
        ("volumes", [{"volume_id": "v"}]),
        *(("array", one) for one in ("", "a", "5-1", [], [-1], ["x"], True, 1.5, {"a": 1})),
        *(("depends_on", one) for one in ("", "a:done", [{"task": "a", "state": "done"}], [{"state": "ended"}], [5])),
        *(("begin", one) for one in ("", "soon", True, [])),
        *(("signal", one) for one in ("", "HUP@", "nope@3", True)),
        *(("hold", one) for one in ("perhaps", 2, [])),
        *(("output", one) for one in ("", 5, "a\0")),
        *(("options", one) for one in ([], "a", {"a": object()}, {"a": float("nan")})),
        ("comand", "ls"),
    ],
)
def test_what_is_not_allowed_is_refused_when_made_and_when_assigned(field: str, value: Any) -> None:
    config = TaskConfig(priority=1)
    for error in (refused(TaskConfig.from_dict, {field: value}), refused(setattr, config, field, value)):
        assert field in error.message
        assert error.suggestions or "; " in error.message
    assert config.to_dict() == {"priority": 1}


def test_an_unknown_field_is_told_with_the_nearest() -> None:
    error = refused(TaskConfig.from_dict, {"comand": "ls"})
    assert (error.message, error.suggestions) == ("unknown field `comand`", ("did you mean `command`?",))
    error = refused(TaskConfig, volumes=[{"name": "a", "mountpath": "/a"}])
    assert (error.message, error.suggestions) == (
        "unknown field `volumes[0].mountpath`",
        ("did you mean `mount_path`?",),
    )
    for name in ("n", "field", " "):  # also where the words of the message hold it
        assert refused(TaskConfig, volumes=[{"name": "a", name: 1}]).message == f"unknown field `volumes[0].{name}`"
    error = refused(TaskConfig.from_dict, {"xyz": 1})
    assert error.suggestions[0].startswith("the fields are name, instance_type, gpu, command,")


def test_all_mistakes_are_told_at_once_each_with_its_path() -> None:
    error = refused(
        TaskConfig.from_dict,
        {
            "gpu": "a100",
            "instance_type": "a100",
            "num_instances": 0,
            "env": {"A": None, "B": [1]},
            "command": ["ls", None],
            "volumes": [{"name": "a"}, {"name": "b", "size_gb": -5, "size": 1}],
            "depends_on": [{"task": "a", "state": "done"}],
        },
    )
    assert error.message.splitlines() == [
        "8 mistakes in the task",
        "`gpu` and `instance_type` both say which machine; keep one of them",
        "command[1]: has no value; write `''` where it shall be empty",
        "env.A: has no value; write `''` where it shall be empty",
        "env.B: a list is not text; write text or a number",
        "volumes[1].size_gb: `-5` is too small; write 1 or more",
        "unknown field `volumes[1].size`; did you mean `size_gb`?",
        "num_instances: `0` is too small; write 1 or more",
        "depends_on[0].state: `done` is not allowed; write 'completed', 'failed', 'ended', "
        "'started', 'started_or_ended' or 'corresponding'",
    ]


def test_a_singleton_waits_for_all_of_its_name_so_not_for_any_task() -> None:
    error = refused(TaskConfig, depends_on=["a", "b"], depends_on_any=True, singleton=True)
    assert error.message == "`singleton` waits for all of its tasks, `depends_on_any` for one"


def test_a_refused_assignment_leaves_everything_as_it_was() -> None:
    config = TaskConfig(instance_type="a100", mounts={"/data": "volume://a"})
    assert refused(setattr, config, "gpu", "h100").message == "`gpu` and `instance_type` both say which machine"
    error = refused(setattr, config, "volumes", [{"name": "b", "mount_path": "/data/"}])
    assert error.message == "two things are mounted at `/data`"
    assert config.to_dict() == {"instance_type": "a100", "mounts": {"/data": "volume://a"}}
    config.instance_type = None
    config.gpu = "h100"
    assert config.to_dict() == {"gpu": "h100", "mounts": {"/data": "volume://a"}}


def test_two_volumes_at_one_place_are_refused() -> None:
    error = refused(TaskConfig, volumes=[{"name": "a", "mount_path": "/mnt/b"}, {"name": "b"}])
    assert error.message == "two things are mounted at `/mnt/b`"


def test_parts_are_checked_like_the_whole() -> None:
    config = TaskConfig(volumes=[{"name": "data"}])
    assert config.volumes[0].target == "/mnt/data"
    assert refused(setattr, config.volumes[0], "size_gb", 0).message == "size_gb: `0` is too small"
    assert (
        refused(setattr, config.volumes[0], "volume_id", "v").message == "`name` and `volume_id` both say which volume"
    )
    assert refused(VolumeMount).message.splitlines()[0] == "2 mistakes in the task"


def test_a_copy_has_other_values_and_is_checked_anew() -> None:
    config = TaskConfig(instance_type="a100", command="ls", env={"A": "1"})
    other = config.copy_with(gpu="h100", env={"B": 2})
    assert other.to_dict() == {"gpu": "h100", "command": "ls", "env": {"B": "2"}}
    assert config.to_dict() == {"instance_type": "a100", "command": "ls", "env": {"A": "1"}}
    refused(config.copy_with, num_instances=0)


def test_what_was_changed_in_place_is_checked_by_a_copy() -> None:
    config = TaskConfig(command="ls")
    config.env["N"] = 3  # type: ignore[assignment]
    config.volumes.append({"name": "data"})  # type: ignore[arg-type]
    assert config.copy_with().to_dict() == {"command": "ls"}


def test_a_config_can_be_copied_and_pickled_and_so_can_its_error() -> None:
    config = TaskConfig(command="ls", env={"A": "1"}, volumes=[{"name": "a"}])
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    error = pickle.loads(pickle.dumps(refused(TaskConfig, num_instances=0, retries=-1)))
    assert isinstance(error, MistakesError)
    assert [one.location for one in error.mistakes] == [("num_instances",), ("retries",)]


def test_secrets_are_never_shown() -> None:
    config = TaskConfig(env={"WANDB_API_KEY": "hush", "hf_token": "hush", "DB_PASSWORD": "hush", "LR": "0.1"})
    assert "hush" not in repr(config) + str(config)
    assert "'LR': '0.1'" in repr(config)
    for value in (["hush"], {"MY_SECRET": ["hush"]}, "API_KEY=hush", ["API_KEY=hush"]):
        assert "hush" not in refused(TaskConfig.from_dict, {"env": value}).message


def test_text_fields_are_text_whatever_yaml_takes_them_for(tmp_path: Path) -> None:
    config = TaskConfig.from_yaml(
        written(
            tmp_path,
            """\
name: 2030
command: true
image: 1.10
working_dir: 007
region: off
provider: yes
env: {1: 2030-01-31, on: 0x10, A: 1_000, B: 12:30:00, C: .5, D: No, E: =, F: <<}
labels: {date: 2030-01-31}
ssh_keys: [1.0, no]
begin: 1900000000
signal: 15
volumes: [{name: 123, mount_path: /a}]
output: 5
""",
        )
    )
    assert config.to_dict() == {
        "name": "2030",
        "command": "true",
        "image": "1.10",
        "working_dir": "007",
        "region": "off",
        "provider": "yes",
        "env": {
            "1": "2030-01-31",
            "on": "0x10",
            "A": "1_000",
            "B": "12:30:00",
            "C": ".5",
            "D": "No",
            "E": "=",
            "F": "<<",
        },
        "labels": {"date": "2030-01-31"},
        "ssh_keys": ["1.0", "no"],
        "begin": "1900000000",
        "signal": "15",
        "volumes": [{"name": "123", "mount_path": "/a"}],
        "output": "5",
    }
    config = TaskConfig.from_yaml(
        written(tmp_path, "command: [python, train.py, --lr, 1e-3, --flag, on, 0.10]\narray: [1, 2]")
    )
    assert config.command == ["python", "train.py", "--lr", "1e-3", "--flag", "on", "0.10"]
    assert config.array == [1, 2]


def test_all_mistakes_of_a_file_are_told_with_line_column_and_caret(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """\
name: my task
comand: python train.py
instance_type: 8xa100
env:
  API_KEY: [hush]
  LR:
volumes:
  - name: data
    size_gb: -5
  - hello
gpu: a100:8
""",
    )
    assert (
        refused(TaskConfig.from_yaml, file).message
        == f"""\
7 mistakes in `{file}`
{file}:1:7: name: `my task` is not allowed; use up to 128 letters, digits, `-`, `_` and `.`, none of `-.` first
    name: my task
          ^
{file}:2:1: unknown field `comand`; did you mean `command`?
    comand: python train.py
    ^
{file}:5:12: env.API_KEY: a list is not text; write text or a number
      API_KEY: ***
               ^
{file}:6:6: env.LR: has no value; write `''` where it shall be empty
      LR:
         ^
{file}:9:14: volumes[0].size_gb: `-5` is too small; write 1 or more
        size_gb: -5
                 ^
{file}:10:5: volumes[1]: `hello` is not a mapping; write a mapping
      - hello
        ^
{file}:11:6: `gpu` and `instance_type` both say which machine; keep one of them
    gpu: a100:8
         ^"""
    )


def test_one_mistake_of_a_file_keeps_its_advice_apart(tmp_path: Path) -> None:
    file = written(tmp_path, "comand: ls\n")
    error = refused(TaskConfig.from_yaml, file)
    assert error.message == f"{file}:1:1: unknown field `comand`\n    comand: ls\n    ^"
    assert error.suggestions == ("did you mean `command`?",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("{}", "is empty"),
        ("- a\n- b\n", "holds a list"),
        ("just text\n", "holds one value"),
        ("a: [1, 2\nb: 3\n", "2:2: not YAML"),
        ('name: a\ncommand: "ls\n', "2:10: not YAML: found unexpected end of stream"),
        ("command: ls: -l\n", "1:12: not YAML"),
        ("env:\n\tA: 1\n", "2:1: not YAML"),
        ("command: ls\n---\ncommand: ls\n", "2:1: not YAML"),
        ("command: *nothing\n", "1:10: not YAML"),
        ("name: a\ncommand: [ls\n\n", "while parsing a flow sequence\n    command: [ls\n             ^"),
        ("command: !!python/object:os.system ls\n", "1:10: not YAML"),
        ("env: {A: !!binary aGk=}\n", "1:10: env.A"),
        ("options: {x: !mine ls}\n", "1:14: not YAML"),
        ("name: a\ncommand: ls\nname: b\n", "3:1: `name` is given twice, first in line 1"),
        ("env:\n  A: 1\n  A: 2\n", "3:3: `A` is given twice, first in line 2"),
        ("? [a, b]\n: c\n", "a key must be text"),
        ("options: {d: 2030-02-31}\n", "1:14: cannot read this value"),
        ("options: {n: " + "9" * 5000 + "}\n", "1:14: cannot read this value"),
        ("options: &a [*a]\n", "holds itself"),
        ("options: " + "[" * 2000 + "]" * 2000, "nested too deep"),
        ("options: " + "[" * 100_000, "ested too deep"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "not a text file"),
        (b"command: \xff\xfe", "not a text file: byte 9, in line 1, is not UTF-8"),
        ("command: a\x00b", "not a text file"),
    ],
)
def test_a_file_that_is_no_task_is_refused_with_its_place(tmp_path: Path, text: str | bytes, told: str) -> None:
    error = refused(TaskConfig.from_yaml, written(tmp_path, text))
    assert told in error.message
    assert str(tmp_path / "task.yaml") in error.message


def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "too deep" in refused(TaskConfig.from_yaml, written(tmp_path, "\n".join(lines))).message


def test_aliases_and_merged_mappings_are_read_and_their_mistakes_found(tmp_path: Path) -> None:
    text = "options: &o {A: 1}\nenv: {<<: *o, B: 2}\nlabels: {<<: *o, A: 3}\n"
    config = TaskConfig.from_yaml(written(tmp_path, text))
    assert (config.env, config.labels) == ({"A": "1", "B": "2"}, {"A": "3"})
    error = refused(TaskConfig.from_yaml, written(tmp_path, "options: &o {A: [1]}\nenv: {<<: *o, B: 2}\n"))
    assert ":1:17: env.A: a list is not text" in error.message


def test_a_missing_file_is_told_with_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "command: ls")
    with pytest.raises(ResourceNotFoundError) as caught:
        TaskConfig.from_yaml(tmp_path / "taks.yaml")
    assert caught.value.suggestions == ("did you mean `task.yaml`?",)
    with pytest.raises(ResourceNotFoundError) as caught:
        TaskConfig.from_yaml(tmp_path / "other.yaml")
    assert caught.value.suggestions == ()
    with pytest.raises(ResourceNotFoundError):
        TaskConfig.from_yaml(tmp_path / "nowhere" / "task.yaml")


def test_a_folder_or_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refused(TaskConfig.from_yaml, tmp_path).message == f"`{tmp_path}` is a folder"
    assert "cannot read" in refused(TaskConfig.from_yaml, tmp_path / ("x" * 300)).message
    assert "cannot read" in refused(TaskConfig.from_yaml, f"{tmp_path}/a\0b").message
    file = written(tmp_path, "command: ls")
    assert "cannot read" in refused(TaskConfig.from_yaml, file / "below").message
    file.chmod(0)
    if os.getuid() != 0:
        assert "cannot read" in refused(TaskConfig.from_yaml, file).message


def test_a_huge_file_is_not_read_to_its_end() -> None:
    assert "longer than 10 MB" in refused(TaskConfig.from_yaml, "/dev/zero").message


def test_a_secret_is_not_shown_with_its_line(tmp_path: Path) -> None:
    for text in (
        'env:\n  API_KEY: "hush\n',
        "env: {TOKEN: hush, A: [1]}\n",
        "password: hush\n",
        "env: {A_SECRET: hush: x}\n",
    ):
        assert "hush" not in refused(TaskConfig.from_yaml, written(tmp_path, text)).message


def test_windows_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    assert TaskConfig.from_yaml(written(tmp_path, b"\xef\xbb\xbfname: a\r\ncommand: ls\r\n")).command == "ls"
    error = refused(TaskConfig.from_yaml, written(tmp_path, b"\xef\xbb\xbfname: a\r\ncomand: ls\r\n"))
    assert error.message.endswith(":2:1: unknown field `comand`\n    comand: ls\n    ^")


def test_a_long_line_is_cut_around_the_caret(tmp_path: Path) -> None:
    error = refused(TaskConfig.from_yaml, written(tmp_path, f"env: {{B: '{'x' * 500}', C: [1]}}\n"))
    message, source, caret = error.message.splitlines()
    assert message.endswith(":1:517: env.C: a list is not text")
    assert source[caret.index("^") :].startswith("[1]")
    assert len(source) < 120


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SAYING = TEXT.filter(lambda text: bool(text.strip()))
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
BY_NAME = st.dictionaries(TEXT.filter(lambda name: name != "" and "=" not in name), TEXT, max_size=4)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
POSITIVE = st.floats(0.001, 1e6)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES,
        "gpu": st.sampled_from(["a100", "8xa100", "2"]),
        "command": SAYING | st.builds(lambda first, rest: [first, *rest], SAYING, st.lists(TEXT, max_size=3)),
        "env": BY_NAME,
        "working_dir": SAYING,
        "volumes": st.lists(
            st.builds(lambda name, size: {"name": name, "size_gb": size}, NAMES, st.integers(1, 10**6)),
            max_size=2,
            unique_by=lambda volume: volume["name"],
        ),
        "mounts": st.dictionaries(st.sampled_from(["/a", "/b"]), NAMES.map(lambda name: f"volume://{name}")),
        "ports": st.lists(st.integers(1, 65535), unique=True, max_size=3),
        "num_instances": st.integers(1, 100),
        "max_run_time_hours": POSITIVE,
        "upload_code": st.booleans(),
        "cpus": POSITIVE,
        "priority": st.integers(-(10**9), 10**9),
        "labels": BY_NAME,
        "array": st.lists(st.integers(0, 10**6), min_size=1, max_size=3),
        "depends_on": st.lists(st.builds(lambda name: {"task": name, "state": "ended"}, NAMES), max_size=2),
        "output": SAYING,
        "options": st.dictionaries(TEXT, JSON_VALUES, max_size=3),
    },
)


@given(CONFIGS)
@settings(max_examples=300, deadline=None)
def test_what_is_written_as_yaml_is_read_back(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]) -> None:
    config = TaskConfig.from_dict(fields)
    if not fields:
        return
    read = TaskConfig.from_yaml(written(tmp_path_factory.getbasetemp(), config.to_yaml()))
    assert read == config
    assert read.to_dict() == config.to_dict() == json.loads(json.dumps(config.to_dict()))


@given(st.dictionaries(st.sampled_from(sorted(TaskConfig.model_fields)), JSON_VALUES, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_values_make_a_config_or_our_error(fields: dict[str, Any]) -> None:
    try:
        config = TaskConfig.from_dict(fields)
    except ValidationError as error:
        assert error.message
        return
    assert TaskConfig.from_dict(config.to_dict()) == config


@given(st.text(max_size=60) | st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_file_makes_a_config_or_our_error(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        TaskConfig.from_yaml(written(tmp_path_factory.getbasetemp(), data))
    except FlowError as error:
        assert error.message


def test_yaml_is_nice_to_read() -> None:
    config = TaskConfig(name="a", command="set -e\npython train.py\n", env={"A": "1", "B": "é", "C": "yes"}, ports=[80])
    assert (
        config.to_yaml()
        == """\
name: a
command: |
  set -e
  python train.py
env:
  A: '1'
  B: é
  C: 'yes'
ports:
- 80
"""
    )


def test_the_schema_describes_every_field_and_forbids_others() -> None:
    schema = task_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(TaskConfig.model_fields)
    parts = [schema, *schema["$defs"].values()]
    for part in parts:
        assert part["title"]
        assert all(field["description"] for field in part["properties"].values())
    assert schema["$defs"]["VolumeMount"]["additionalProperties"] is False
    assert schema["properties"]["ports"]["anyOf"][1]["items"] == {"maximum": 65535, "minimum": 1, "type": "integer"}
    assert not {'"ge"', '"gt"', '"le"'} & set(json.dumps(schema).replace(":", " ").split())


def test_editors_are_offered_every_field() -> None:
    assert list(TaskFields.__annotations__) == list(TaskConfig.model_fields)


def test_one_spelling_of_the_machine_replaces_the_other() -> None:
    config = TaskConfig(instance_type="8xa100")
    assert config.copy_with(gpu="h100:2").to_dict() == {"gpu": config.copy_with(gpu="h100:2").gpu}
    assert config.copy_with(gpu="h100").copy_with(instance_type="a10").to_dict() == {"instance_type": "a10"}


def test_bytes_that_are_no_text_are_refused() -> None:
    error = refused(TaskConfig, name="n\udcff", command="ls")
    assert "name: holds bytes that are no text" in error.message
    config = TaskConfig(name="kept")
    refused(setattr, config, "name", "n\udcff")
    assert config.name == "kept"
