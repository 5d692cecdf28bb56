"""Scripts of every kind do with us what they do on a real Slurm: the same files, the same ends, the same variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.processes import end_scheduler
from tests.support.slurm import Cluster
from tests.support.slurm_corpus import SCRIPTS, OurSlurm, Outcome, RealSlurm, Runs

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "slurm.md"
# What the guide tells of as different: variables that Slurm sets otherwise, or does not set, and what some scripts see.
OTHERWISE = {"HOSTNAME", "SLURM_CONF", "SLURM_WORKING_CLUSTER", "SLURMD_TRES_BIND"}
EMPTY = {"CUDA_VISIBLE_DEVICES"}  # where Slurm does not set it
DIFFERENT = {
    "042-nodes-and-tasks": "as many CPUs on each node as the fullest needs",
    "104-unknown-dependency": "A dependency on a number that no task has is refused",
    "117-output-folder-missing": "its exit code is 126",
    "128-chdir-missing": "its exit code is 126",
    "270-standard-input": "A script from standard input",
    "254-host-names": "`hostname` prints the same",
}
Outcomes = Mapping[str, tuple[Outcome, Outcome]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    """What the real Slurm made of each script of the tests that are chosen, and what we did, all at the same time.

    The nodes are large, so that no job has to be spread over what others left.
    """
    chosen = {script for item in request.session.items for script in SCRIPTS if item.name.endswith(f"[{script}]")}
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "commands").mkdir()
    ours = OurSlurm(folder)
    try:
        with (
            Cluster(folder / "slurm", cpus=128, gpus=16, accounting=True) as cluster,
            pytest.MonkeyPatch.context() as patch,
            ThreadPoolExecutor() as pool,
        ):
            patch.setenv("FLOW_HOME", str(ours.home))
            sides = (RealSlurm(cluster, folder / "commands"), ours)
            real, own = pool.map(lambda side: Runs(side, folder / side.name).outcomes(sorted(chosen)), sides)
        yield {script: (real[script], own[script]) for script in chosen}
    finally:
        end_scheduler(ours.home, folder)


@pytest.mark.timeout(400)  # the first one waits for all
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_does_with_us_what_it_does_on_slurm(outcomes: Outcomes, script: str) -> None:
    real, ours = (as_told(one) for one in outcomes[script])
    differ = {what: (real.get(what), ours.get(what)) for what in real | ours if real.get(what) != ours.get(what)}
    if script in DIFFERENT:
        assert differ, "no longer different: take it from the table and the guide"
    else:
        assert not differ


def test_the_guide_tells_of_every_difference() -> None:
    told = " ".join(GUIDE.read_text().split())
    assert [name for name in (*OTHERWISE, *EMPTY) if f"`{name}`" not in told] == []
    assert [words for words in DIFFERENT.values() if words not in told] == []


def as_told(outcome: Outcome) -> dict[str, str]:
    """Every end, file and variable of an outcome, but for the variables of which the guide says that they differ."""
    seen = {
        f"{file}: {name}": value
        for file, variables in outcome.variables.items()
        for name, value in variables.items()
        if name not in OTHERWISE and (value or name not in EMPTY)
    }
    return {**{f"job {name}": end for name, end in outcome.ends.items()}, **outcome.files, **seen}
