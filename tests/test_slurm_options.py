"""The words of sbatch: of a command line, of a script's leading #SBATCH lines, of SBATCH_* variables."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow.errors import ValidationError
from flow.slurm.options import Given, merged, parse_command_line, read_directives, read_variables


def directives(*lines: str) -> list[str]:
    read = read_directives("#!/bin/sh\n" + "".join(f"#SBATCH {line}\n" for line in lines), "job.sh")
    assert not read.mistakes
    return [str(one) for one in read.given]


# Each of these was submitted to Slurm 22.05.8, which took the same.
@pytest.mark.parametrize(
    ("lines", "options"),
    [
        (['--comment="a b"'], ["--comment=a b"]),
        (["--comment='a b'"], ["--comment=a b"]),
        (['--comment "a b"'], ["--comment=a b"]),
        (['--comment="a\\"b"'], ['--comment=a"b']),
        (["--comment='a\\'b'"], ["--comment=a'b"]),
        (["--comment='a\\b'"], ["--comment=ab"]),
        (["--comment=a\\\\"], ["--comment=a\\"]),
        (["--comment=a#b"], ["--comment=a"]),
        (["--comment=a\\#b"], ["--comment=a#b"]),
        (["--comment=ab # more words"], ["--comment=ab"]),
        (['--comment="a # b"'], ["--comment=a # b"]),
        (["--comment=a'b c'd"], ["--comment=ab cd"]),
        (['--comment="x""y"'], ["--comment=xy"]),
        (["--comment=$HOME"], ["--comment=$HOME"]),
        (['"--comment=x y"'], ["--comment=x y"]),
        (["'-J' x"], ["--job-name=x"]),
        (['--comment="" -J x'], ["--comment=", "--job-name=x"]),
        (["--comment= -J x"], ["--comment=", "--job-name=x"]),
        (['"" --comment=x'], []),
        (["# --comment=x"], []),
        ([" \t --comment=z"], ["--comment=z"]),
        (["--comment", "foo"], ["--comment=foo"]),
        (["-J", "--comment=x"], ["--job-name=--comment=x"]),
        (['--comment ":x"'], ["--comment=:x"]),
        (["-N2 -n 4 -c2"], ["--nodes=2", "--ntasks=4", "--cpus-per-task=2"]),
        (["-HN2"], ["--hold", "--nodes=2"]),
        (["-HJfoo"], ["--hold", "--job-name=foo"]),
        (["-koff --exclusive=user --nice"], ["--no-kill=off", "--exclusive=user", "--nice"]),
        (["--comm=x --job=yy"], ["--comment=x", "--job-name=yy"]),
        (["--tasks-per-node=2"], ["--ntasks-per-node=2"]),
        (["--wrap=x --help", "--usage -V"], []),
        (["--parsable -W"], ["--parsable", "--wait"]),
    ],
)
def test_a_line_is_split_as_sbatch_splits_it(lines: list[str], options: list[str]) -> None:
    assert directives(*lines) == options


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("#SBATCH--comment=x\n", ["--comment=x"]),
        ("#SBATCH\t--comment=x", ["--comment=x"]),
        ("\n   \n# c\n   # c\n#SBATCH --comment=x\n", ["--comment=x"]),
        (" #SBATCH --comment=x\n", []),
        ("##SBATCH --comment=x\n# SBATCH --comment=x\n#sbatch --comment=x\n", []),
        ("true\n#SBATCH --comment=x\n", []),
        ("set -e\n#SBATCH --nope\n", []),
        ("#SBATCH --comment=a \\\n#SBATCH -J x\n", ["--comment=a", "--job-name=x"]),
    ],
)
def test_only_lines_before_the_first_command_count(text: str, options: list[str]) -> None:
    read = read_directives("#!/bin/sh\n" + text, "job.sh")
    assert ([str(one) for one in read.given], read.notes, read.mistakes) == (options, [], [])


def test_an_unknown_option_is_told_of_with_what_was_meant_and_everything_malformed_at_once() -> None:
    lines = ["--tme=1 --requeue", "--nodez 2 -J a", "-Z3", "junk", '--comment="open', ": x", "--mem-per=1", "--hold=1"]
    read = read_directives("#!/bin/sh\n#PBS -N x\n" + "".join(f"#SBATCH {line}\n" for line in [*lines, "--time"]), "s")
    assert [str(one) for one in read.given] == ["--requeue", "--job-name=a"]
    assert read.notes == [
        "s:2: `#PBS` lines are not read: write `#SBATCH`",
        "s:3: unknown option `--tme`, left out; did you mean `--time`?",
        "s:4: unknown option `--nodez`, left out; did you mean `--nodes`?",
        "s:5: unknown option `-Z`, left out",
    ]
    assert [one.message for one in read.mistakes] == [
        's:7: the `"` has no second one',
        "s:8: a `:` cannot begin a word",
        "s:6: `junk` is no option of sbatch",
        "s:9: `--mem-per` may be `--mem-per-cpu`, `--mem-per-gpu`",
        "s:10: `--hold` takes no value",
        "s:11: `--time` has no value",
    ]


def test_jobs_of_several_parts_are_refused() -> None:
    read = read_directives("#!/bin/sh\n#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n2\n", "s")
    assert [one.message for one in read.mistakes] == ["s:3: jobs of several parts (`hetjob`) are not taken"]
    with pytest.raises(ValidationError, match="several parts"):
        parse_command_line(["-n1", ":", "-n2", "job.sh"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ([], None, [])),
        (["job.sh"], ([], "job.sh", [])),
        (["-N2", "job.sh", "-N3", "--x", "a b"], (["--nodes=2"], "job.sh", ["-N3", "--x", "a b"])),
        (["--wrap", "echo hi", "--parsable"], (["--wrap=echo hi", "--parsable"], None, [])),
        (["--", "job.sh", "a"], ([], "job.sh", ["a"])),
        (["-", "a"], ([], "-", ["a"])),
        (["--test-only", "-WQ", "-t", "5", "x"], (["--test-only", "--wait", "--quiet", "--time=5"], "x", [])),
    ],
)
def test_the_first_word_that_is_no_option_is_the_script(
    words: list[str], expected: tuple[list[str], str | None, list[str]]
) -> None:
    options, operand, args = parse_command_line(words)
    assert ([str(one) for one in options], operand, args) == expected


def test_a_command_line_must_be_known() -> None:
    with pytest.raises(ValidationError) as refused:
        parse_command_line(["--tme=1", "-Z", "--no=1", "--time"])
    assert refused.value.message.splitlines() == [
        "4 mistakes in the command line",
        "unknown option `--tme`; did you mean `--time`?",
        "unknown option `-Z`",
        "`--no` may be `--no-kill`, `--no-requeue`, `--nodefile`, `--nodelist`, `--nodes`; write the whole name",
        "`--time` has no value",
    ]


def test_variables_stand_for_options() -> None:
    environ = {
        "SBATCH_TIMELIMIT": "7", "SBATCH_ARRAY_INX": "1-2", "SBATCH_NO_REQUEUE": "no", "SBATCH_OVERCOMMIT": "",
        "SBATCH_WAIT": "yes", "SBATCH_SPREAD_JOB": "2", "SBATCH_EXCLUSIVE": "", "SBATCH_TIME": "1", "SLURM_HINT": "x",
        "SBATCH_MEM_PER_NODE": "1G", "SBATCH_NONSENSE": "1",
    }  # fmt: skip
    assert sorted(str(one) for one in read_variables(environ)) == [
        "--array=1-2", "--exclusive", "--hint=x", "--mem=1G", "--overcommit", "--spread-job", "--time=7", "--wait",
    ]  # fmt: skip


def test_later_sources_win_and_rivals_push_each_other_out() -> None:
    script = [Given("time", "5", "s:2"), Given("mem", "1G", "s:3"), Given("requeue", "", "s:4"), Given("exclusive")]
    variables = [Given("time", "7", "SBATCH_TIMELIMIT"), Given("mem-per-cpu", "1", "SBATCH_MEM_PER_CPU")]
    line = [Given("time", "9"), Given("no-requeue"), Given("oversubscribe")]
    assert [str(one) for one in merged(script, variables).values()] == [
        "--mem=1G", "--requeue", "--exclusive", "--time=7",
    ]  # fmt: skip
    assert [str(one) for one in merged(script, variables, line).values()] == [
        "--mem=1G", "--time=9", "--no-requeue", "--oversubscribe",
    ]  # fmt: skip


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\0"), min_size=1))
def test_any_quoted_word_arrives_unchanged(word: str) -> None:
    quoted = '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'
    assert directives(f"--comment={quoted} -J x") == [f"--comment={word}", "--job-name=x"]


@given(st.lists(st.sampled_from(["-N2", "--nodes=2-4", "-H", "--time", "5", "-J", "x y", "--exclusive", "a.sh", "--"])))
def test_options_written_out_are_read_as_the_same(words: list[str]) -> None:
    try:
        options, operand, args = parse_command_line(words)
    except ValidationError:
        return
    again = [*(str(one) for one in options), "--", *([operand] if operand else []), *args]
    assert parse_command_line(again) == (options, operand, args)
