"""The command line: what it takes, what it prints where, and the exit code it ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from flow.cli import COMMANDS, SYNONYMS, flow, main
from flow.cli.variables import read_variables
from flow.errors import FlowError
from flow.operand import read_operand


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Ended]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], project: Path) -> Run:
    """Runs a command line in this process, in an empty project folder."""

    def run(*words: str) -> Ended:
        code = main(words)
        return Ended(code, *capfd.readouterr())

    return run


NOTHING_TO_RUN = (
    "there is nothing to run",
    [
        "give a command, a script or a task file: `flow run 'echo hello'`",
        "for a machine to log in to, give its kind or name: `flow run --name box`",
    ],
)
WHICH_TASKS = (
    "say which tasks to end, in one way",
    "name them: `flow cancel train`",
    "or give `--name-pattern 'dev-*'` or `--all`",
)
ALL_STATES = "pending, starting, running, paused, preempted, completed, failed, cancelled, timed_out, lost"


def error(message: str, *hints: str) -> str:
    return "\n".join([f"error: {message}", *([""] if hints else []), *(f"hint: {hint}" for hint in hints), ""])


def test_help_lists_every_command_in_its_section_and_ends_with_an_example(run: Run) -> None:
    ended = run("--help")
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout == run().stdout == run("-h").stdout
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] in COMMANDS] == list(
        COMMANDS
    )
    assert lines[-2:] == ["Example:", "  flow run 'echo hello' --watch"]
    assert max(map(len, lines)) <= 80


NO_HEADER = ("sinfo", "squeue")  # where `-h` leaves out the titles, as with Slurm


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_ends_with_an_example(run: Run, name: str) -> None:
    long = run(name, "--help")
    assert name in NO_HEADER or run(name, "-h") == long
    assert (long.code, long.stderr) == (0, "")
    heading, example = long.stdout.splitlines()[-2:]
    assert heading == "Example:"
    assert f"flow {name}" in example
    assert max(map(len, long.stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_names_commands_that_exist_under_their_own_name(name: str) -> None:
    command = flow.get_command(click.Context(flow), name)
    assert command is not None
    assert command.name == name
    assert COMMANDS[name].help.endswith(".")


def test_synonyms_lead_to_commands_and_hide_none() -> None:
    assert set(SYNONYMS.values()) <= set(COMMANDS)
    assert not set(SYNONYMS) & set(COMMANDS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stats"], error("no command `stats`", "did you mean `flow status`?", "see `flow --help`")),
        (["ps"], error("no command `ps`", "did you mean `flow status`?", "see `flow --help`")),
        (["xyzzy"], error("no command `xyzzy`", "see `flow --help`")),
        (["--verison"], error("no such option `--verison`", "did you mean `--version`?", "see `flow --help`")),
        (["logs"], error("missing `TASK`", "see `flow logs --help`")),
        (
            ["logs", "x", "--folow"],
            error("no such option `--folow`", "did you mean `--follow`?", "see `flow logs --help`"),
        ),
        (["logs", "x", "-n", "-1"], error("`--tail`: -1 is not in the range x>=0", "see `flow logs --help`")),
        (
            ["logs", "x", "--grep", "*"],
            error("`--grep`: cannot read `*` as a pattern: nothing to repeat at position 0"),
        ),
        (["run", "x", "--name"], error("option '--name' requires an argument", "see `flow run --help`")),
        (
            ["status", "--state", "runing"],
            error("no state `runing`", "did you mean `running`?", f"the states are {ALL_STATES}"),
        ),
        (
            ["completion", "tcsh"],
            error("`bash|zsh|fish`: 'tcsh' is not one of 'bash', 'zsh', 'fish'", "see `flow completion --help`"),
        ),
        (["cancel"], error(*WHICH_TASKS)),
        (["cancel", "x", "--all"], error(*WHICH_TASKS)),
        (
            ["prune"],
            error("say what to delete", "by age: `flow prune --older-than 30d`", "or by `--keep` or `--max-size`"),
        ),
        (
            ["prune", "--older-than", "long"],
            error("cannot read `long` as a time span", "write a number and s, m, h, d or w, as `10m`"),
        ),
    ],
)
def test_a_mistaken_line_is_told_in_one_message_with_what_was_meant(run: Run, words: list[str], expected: str) -> None:
    assert run(*words) == Ended(2, "", expected)


@pytest.mark.parametrize(
    ("words", "message", "hints"),
    [
        (
            ["python", "train.py", "--lr", "0.1"],
            "a command of several words must be quoted",
            [
                "quote it: `flow run 'python train.py --lr 0.1'`",
                "or put it after `--`: `flow run -- python train.py --lr 0.1`",
            ],
        ),
        (
            ["-i", "a100", "python", "train.py", "--watch"],
            "a command of several words must be quoted",
            [
                "quote it: `flow run -i a100 'python train.py' --watch`",
                "or put it after `--`: `flow run -i a100 --watch -- python train.py`",
            ],
        ),
        (
            ["train.py", "--lr", "0.1"],
            "a command of several words must be quoted",
            ["quote it: `flow run 'train.py --lr 0.1'`", "or put it after `--`: `flow run -- train.py --lr 0.1`"],
        ),
        (
            ["true", "--max-price", "0.5"],
            "a command of several words must be quoted",
            ["did you mean `--max-price-per-hour`?", "quote it: `flow run 'true --max-price 0.5'`"],
        ),
        (["--nmae", "x", "echo hi"], "no such option `--nmae`", ["did you mean `--name`?", "see `flow run --help`"]),
        (["echo hi", "--nmae", "x"], "no such option `--nmae`", ["did you mean `--name`?", "see `flow run --help`"]),
        (["task.yaml", "--wach"], "no such option `--wach`", ["did you mean `--watch`?", "see `flow run --help`"]),
        (
            ["echo a", "--", "b c"],
            "there is an operand before `--` and there are words after it",
            ["quote it all as one command: `flow run 'echo a '\"'\"'b c'\"'\"''`"],
        ),
        ([], *NOTHING_TO_RUN),
        (["--watch"], *NOTHING_TO_RUN),
        (["--"], "there is nothing after `--`", ["type `flow run -- echo hello`"]),
        ([" "], "the command is empty", ["type `flow run 'echo hello'`"]),
        (
            ["echo", "-i", "a100", "--gpu", "a100"],
            "`--gpu` and `--instance-type` say the same thing",
            ["give one of them"],
        ),
        (["echo", "-p", "0"], "`--port`: 0 is not in the range 1<=x<=65535", ["see `flow run --help`"]),
        (["echo", "-N", "0"], "`--num-instances`: 0 is not in the range x>=1", ["see `flow run --help`"]),
    ],
)
def test_run_takes_one_operand_and_says_what_was_meant(
    run: Run, words: list[str], message: str, hints: list[str]
) -> None:
    assert run("run", *words) == Ended(2, "", error(message, *hints))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a task file, scripts and a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.yaml").write_text("command: echo hi\n")
    (tmp_path / "my task.yaml").write_text("command: echo hi\n")
    (tmp_path / "train.py").write_text("print('hi')\n")
    (tmp_path / "job.sh").write_text("#!/bin/sh\n#SBATCH --nodes=2\n")
    (tmp_path / "plain.sh").write_text("#!/bin/sh\necho '#SBATCH'\n")
    (tmp_path / "old.slurm").write_text("")
    (tmp_path / "tool").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "operand"),
    [
        ("jobs/train.yaml", Path("jobs/train.yaml")),
        ("my task.yaml", Path("my task.yaml")),
        ("train.py", Path("train.py")),
        ("plain.sh", Path("plain.sh")),
        ("job.sh", Path("job.sh")),
        ("old.slurm", Path("old.slurm")),
        ("./tool", "./tool"),
        ("echo hi", "echo hi"),
        ("cat missing.yaml", "cat missing.yaml"),
        ("python other.py", "python other.py"),
        ("x" * 5000, "x" * 5000),
        ("nul \0", "nul \0"),
    ],
)
def test_an_operand_is_a_file_where_it_can_be_one(files: Path, text: str, operand: str | Path) -> None:
    assert read_operand(text) == operand


@pytest.mark.parametrize(
    ("text", "message", "hints"),
    [
        ("jobs/trian.yaml", "no file `jobs/trian.yaml`", ("did you mean `jobs/train.yaml`?",)),
        ("trian.py", "no file `trian.py`", ("did you mean `train.py`?",)),
        ("nosuch.yaml", "no file `nosuch.yaml`", ()),
        ("jobs/other.yaml", "no file `jobs/other.yaml`", ()),
        ("nowhere/x.yaml", "no file `nowhere/x.yaml`: there is no folder `nowhere`", ()),
        ("jobs", "`jobs` is a folder", ("did you mean `jobs/train.yaml`?",)),
    ],
)
def test_an_operand_that_is_neither_is_refused(files: Path, text: str, message: str, hints: object) -> None:
    with pytest.raises(FlowError) as raised:
        read_operand(text)
    assert raised.value.message == message
    assert hints in (raised.value.suggestions, ...)


def test_variables_come_from_files_then_the_line_then_our_environment(tmp_path: Path) -> None:
    file = tmp_path / "vars"
    file.write_text("# ours\nA=1\nexport B='two words'\n\nC=x=y\nD=\n")
    found = read_variables(["A=2", "HERE", "E=é\n\"'"], [str(file)], environment={"HERE": "h"})
    assert found == {"A": "2", "B": "two words", "C": "x=y", "D": "", "HERE": "h", "E": "é\n\"'"}


@pytest.mark.parametrize(
    ("given", "line", "message"),
    [
        (["GONE"], "", "-e: `GONE` is not set here, so it cannot be passed on"),
        (["2X=1"], "", "-e: `2X` cannot name a variable"),
        ([], "A=1\nb c=2", "vars:2: `b c` cannot name a variable"),
    ],
)
def test_a_variable_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vars").write_text(line)
    with pytest.raises(FlowError) as raised:
        read_variables(given, ["vars"], environment={})
    assert raised.value.message == message


def test_with_json_a_failure_is_one_document_on_stdout(run: Run) -> None:
    ended = run("status", "--json", "--bogus")
    assert (ended.code, ended.stderr) == (2, "")
    failure = json.loads(ended.stdout)["error"]
    assert failure == {
        "code": "usage",
        "message": "no such option `--bogus`",
        "suggestions": ["see `flow status --help`"],
    }


def test_a_json_after_the_dashes_is_the_tasks_own(run: Run) -> None:
    assert run("run", "x", "--", "--json").stderr.startswith("error: there is an operand before `--`")


def test_an_unexpected_failure_is_one_line_without_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "schema", COMMANDS["schema"]._replace(target="flow.cli.no_such_module:schema"))
    what = "ModuleNotFoundError: No module named 'flow.cli.no_such_module'"
    told = f"internal error: {what} (set FLOW_DEBUG=1 for the traceback)\n"
    assert run("schema", "task") == Ended(1, "", told)
    monkeypatch.setenv("FLOW_DEBUG", "1")
    assert "Traceback (most recent call last)" in run("schema", "task").stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "flow", "--help"]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize("words", [["--help"], ["offers"], ["offers", "--json"]])
def test_output_that_finds_no_room_is_told_of(words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run([sys.executable, "-m", "flow", *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, "error: cannot write the output: No space left on device\n")


def test_a_name_that_is_no_text_can_be_told() -> None:
    run = subprocess.run([sys.executable, "-m", "flow", "run", b"caf\xe9.yaml"], capture_output=True)
    assert (run.returncode, run.stdout) == (4, b"")
    assert run.stderr.startswith(b"error: no file `caf\\udce9.yaml`")


def test_the_schema_of_a_task_file_is_json(run: Run) -> None:
    schema = json.loads(run("schema", "task").stdout)
    assert {"command", "instance_type", "env"} <= set(schema["properties"])


def test_settings_are_shown_with_where_they_come_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "3")
    lines = run("config", "show", "--origin").stdout.splitlines()
    assert lines[0].split() == ["SETTING", "VALUE", "FROM"]
    assert ["local.cpus", "3", "FLOW_LOCAL_CPUS"] in [line.split() for line in lines]
    assert ["provider", "local"] in [line.split() for line in run("config").stdout.splitlines()]
    found = json.loads(run("config", "show", "--json").stdout)["settings"]
    assert {"name": "local.cpus", "value": 3, "origin": "FLOW_LOCAL_CPUS"} in found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_asks_flow(run: Run, shell: str) -> None:
    assert f"_FLOW_COMPLETE={shell}_complete" in run("completion", shell).stdout


def completed(*words: str) -> list[str]:
    """What bash is offered for the last of `words`."""
    given = {"_FLOW_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    command = [sys.executable, "-c", "from flow.cli import main; raise SystemExit(main())"]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **given})
    assert run.stderr == ""
    return [line.partition(",")[2] for line in run.stdout.splitlines()]


def test_commands_and_options_are_completed() -> None:
    assert completed("flow", "") == list(COMMANDS)
    assert completed("flow", "co") == ["colab", "config", "completion"]
    assert completed("flow", "logs", "x", "--std") == ["--stdout", "--stderr"]
    assert completed("flow", "completion", "z") == ["zsh"]
