"""A real Slurm and we take the same words alike: jobs are compared by what `scontrol` shows, or by what they see."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flow.slurm.options import parse_command_line, read_directives
from flow.slurm.script import read_script
from flow.slurm.values import parse_value
from tests import test_slurm_options, test_slurm_values
from tests.support.processes import wait_until
from tests.support.slurm import Cluster

SUBMIT = ("sbatch", "--hold", "--parsable")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("SBATCH_", "SLURM_")) and name != "SLURM_CONF"]:
        monkeypatch.delenv(name)


def shown(slurm: Cluster, job: str) -> dict[str, str]:
    """The fields of a job; a value may have blanks in it, and one behind it where it is a comment."""
    text = slurm.run("scontrol", "-o", "show", "job", job).stdout.rstrip("\n")
    return dict(re.findall(r"(?:^| )([A-Z][\w/:]*)=(.*?)(?= [A-Z][\w/:]*=|$)", text))


def split_table() -> Iterator[list[str]]:
    marks = [one for one in test_slurm_options.test_a_line_is_split_as_sbatch_splits_it.pytestmark if one.args]
    for lines, _ in marks[0].args[1]:
        if not {"-W", "--wrap=x", "-koff"} & set(" ".join(lines).split()):
            yield lines


def test_lines_are_split_alike(slurm: Cluster) -> None:
    ours, theirs = {}, {}
    for lines in split_table():
        text = "#!/bin/sh\n" + "".join(f"#SBATCH {line}\n" for line in lines)
        Path("job.sh").write_text(text)
        held = {one.name: one.value for one in read_directives(text, "job.sh").given}
        ours[text] = held.get("comment", ""), held.get("job-name", "job.sh")
        fields = shown(slurm, slurm.run(*SUBMIT, "job.sh").stdout.strip())
        theirs[text] = fields.get("Comment", "").removesuffix(" "), fields["JobName"]
    assert ours == theirs


def test_values_are_taken_and_refused_alike(slurm: Cluster) -> None:
    Path("job.sh").write_text("#!/bin/sh\n")
    tables: dict[str, dict[str, Any]] = {
        "time": test_slurm_values.TIMES, "mem": test_slurm_values.MEMORY, "nodes": test_slurm_values.NODES,
        "ntasks": test_slurm_values.COUNTS, "signal": test_slurm_values.SIGNALS, **test_slurm_values.OTHERS,
    }  # fmt: skip
    differing: dict[str, set[str]] = {}
    for name, forms in tables.items():
        for text in forms:
            words = (f"--{name}={text}",) if text or name not in ("exclusive", "nice", "no-kill") else (f"--{name}",)
            theirs = slurm.run(*SUBMIT, *words, "job.sh", check=False).returncode == 0
            if theirs != (forms[text] != test_slurm_values.REFUSED):
                differing.setdefault(name, set()).add(text)
    assert differing == {"ntasks": {"99999999999"}}


def test_moments_are_the_same(slurm: Cluster) -> None:
    Path("job.sh").write_text("#!/bin/sh\n")
    for text in ("2030-01-20", "01/20/30-10:00", "0120", "midnight", "teatime", "4:30pm", "20:00 01/20/30", "tomorrow"):
        fields = shown(slurm, slurm.run(*SUBMIT, f"--begin={text}", "job.sh").stdout.strip())
        assert (text, datetime.fromtimestamp(parse_value("begin", text)).isoformat()) == (text, fields["EligibleTime"])


VARIED = (
    "", "-n4", "-N2", "-N2 -n2", "--ntasks-per-node=2", "-N2 -n3 --ntasks-per-node=2", "-c2 -n2", "-G2", "-N2 -Ga100:4",
    "--gres=gpu:1", "--gpus-per-node=a100:2 -n2", "-n2 --gpus-per-task=1", "-G4 --gpus-per-task=2", "--mem=1G",
    "--mem-per-cpu=200", "--mem=0", "-G1 --mem-per-gpu=300M", "-G2 --cpus-per-gpu=2", "-G2 --ntasks-per-gpu=1",
    "-N2 --gpus-per-task=1", "-n5 --ntasks-per-node=2", "-n2 -N3", "--gres=gpu:1 -G2",
    "--overcommit", "--open-mode=append", "--export=NONE", "--export=ALL,A=1", "-m plane=2 -n2", "--mincpus=4",
    "--threads-per-core=1", "--hint=nomultithread", "-n2 --ntasks-per-core=1 --ntasks-per-socket=2",
)  # fmt: skip
# What the nodes decide, or the site.
NOT_DECIDED = re.compile(
    r"SLURM_(CLUSTER_NAME|CONF|CPUS_ON_NODE|GPUS_ON_NODE|GTIDS|JOBID|JOB_ACCOUNT|JOB_CPUS_PER_NODE|JOB_GID|JOB_GPUS|JOB_ID"
    r"|JOB_NODELIST|JOB_PARTITION|JOB_QOS|JOB_UID|JOB_USER|LOCALID|NODEID|NODELIST|NODE_ALIASES|PRIO_PROCESS|PROCID"
    r"|SUBMIT_DIR|SUBMIT_HOST|TASK_PID|TOPOLOGY_ADDR|TOPOLOGY_ADDR_PATTERN|WORKING_CLUSTER)"
)


def test_the_variables_that_options_decide_are_the_same(slurm: Cluster) -> None:
    Path("see").mkdir()
    Path("job.sh").write_text(
        "#!/bin/sh\n/usr/bin/env -0 > see/new.$SLURM_JOB_ID\n/bin/mv see/new.$SLURM_JOB_ID see/$SLURM_JOB_ID\n"
    )
    for words in VARIED:  # one after another: where a node is busy, a job is spread over others
        job = Path("see", slurm.run("sbatch", "--parsable", *words.split(), "job.sh").stdout.strip())
        assert wait_until(lambda: job.exists() and slurm.run("squeue", "-h").stdout == "", seconds=60)  # noqa: B023
        seen = dict(one.partition("=")[::2] for one in job.read_text().split("\0"))
        theirs = {
            name: one for name, one in seen.items() if name.startswith("SLURM_") and not NOT_DECIDED.fullmatch(name)
        }
        ours = read_script(
            b"#!/bin/sh\n", {}, name="s", file=Path("job.sh"), given=parse_command_line(words.split())[0]
        )
        if "mem" not in words:
            theirs.pop("SLURM_MEM_PER_CPU", None)  # the site's default
        assert (words, ours.fields["batch"]["variables"]) == (words, theirs)
