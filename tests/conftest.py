"""Every test in an environment of its own: home, Flow's folder, temporary files; and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from flow.client import Flow
from flow.settings import flow_home
from tests.support.aws import Aws, aws_server
from tests.support.containers import IMAGE, podman
from tests.support.fleet import Fleet
from tests.support.mithril_cloud import Cloud, serve
from tests.support.processes import end, end_attendant, end_scheduler, processes_of, wait_until
from tests.support.slurm import Cluster
from tests.support.story import write_quick_ssh

pytest.register_assert_rewrite("tests.support.contract")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a shell that began the tests with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# What Flow or a task would read; FLOW_TEST_* is for the tests themselves.
_OURS = (
    "FLOW_",
    "AWS_",
    "FCP_",
    "MITHRIL_",
    "SLURM_",
    "SBATCH_",
    "MASTER_",
    "CUDA_VISIBLE_DEVICES",
    "PYTHONUNBUFFERED",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is required, a test that is skipped, for whatever reason, has failed."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and os.environ.get("FLOW_TEST_REQUIRE") == "all":
        report.outcome, report.longrepr = "failed", f"left out: {report.longrepr[2]}"
    return report


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty home, an empty Flow home and a temporary folder below `tmp_path`; a plain 80-column console."""
    for name in list(os.environ):
        if name.startswith(_OURS) and not name.startswith("FLOW_TEST_"):
            monkeypatch.delenv(name)
    own = tmp_path / ".own"  # out of the way of tests that look at all of `tmp_path`
    for name, folder in (("HOME", "home"), ("TMPDIR", "tmp")):
        (own / folder).mkdir(parents=True)
        monkeypatch.setenv(name, str(own / folder))
    monkeypatch.setenv("FLOW_HOME", str(own / "flow"))
    monkeypatch.setenv("FLOW_S3_LINGER_SECONDS", "0")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    end_scheduler(own / "flow", tmp_path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, which the test is in."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a disk of its own, of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small tmpfs: " + mounted.stderr.decode().strip())
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(autouse=True, scope="session")
def no_process_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails after the last test where a process of any test is still alive."""
    root = tmp_path_factory.getbasetemp()
    yield
    if wait_until(lambda: not processes_of(root), seconds=60):
        return
    left = processes_of(root)
    end([one.pid for one in left])
    pytest.fail("processes were left running:\n  " + "\n  ".join(map(str, left)), pytrace=False)


@pytest.fixture(scope="session")
def podman_variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with podman(tmp_path_factory.mktemp("podman")) as variables:
        yield variables


@pytest.fixture
def containers(podman_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a small image (busybox) that `podman`, as the test finds it, can run; skips where there is none."""
    for name, value in podman_variables.items():
        monkeypatch.setenv(name, value)
    return IMAGE


@pytest.fixture(scope="session")
def aws_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with aws_server(tmp_path_factory.mktemp("aws")) as server:
        yield server


@pytest.fixture
def aws(aws_at: Aws) -> Iterator[Aws]:
    """A server that answers as AWS does over HTTP, with nothing in it; skips where there is none."""
    aws_at.reset()
    yield aws_at
    aws_at.reset()


@pytest.fixture(scope="session")
def slurm_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm"), accounting=True) as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_at: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A real Slurm with accounting, which Slurm's commands find here; skips where there can be none."""
    for name, value in slurm_at.environment().items():
        monkeypatch.setenv(name, value)
    yield slurm_at
    slurm_at.clear()


@pytest.fixture(scope="session")
def fleet_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.boot_all("gpu1", "gpu2", "gpu3", "gpu4", gpus=4)
        yield fleet


@pytest.fixture
def fleet(fleet_at: Fleet) -> Iterator[Fleet]:
    """Four machines with 4 pretend GPUs each, `gpu1` to `gpu4`, with nothing on them; skips where there can be none."""
    yield fleet_at
    end_attendant(flow_home())  # it would look at them once more
    fleet_at.clean()


@pytest.fixture
def empty_fleet(tmp_path: Path) -> Iterator[Fleet]:
    """One for machines that are asked for otherwise; skips where there can be none."""
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture(scope="session")
def cloud_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with serve(tmp_path_factory.mktemp("cloud")) as cloud:
        yield cloud


@pytest.fixture
def cloud(cloud_at: Cloud) -> Iterator[Cloud]:
    """A stand-in for the Mithril cloud that really boots machines; nothing is in it; skips where there can be none."""
    yield cloud_at
    cloud_at.reset()


@pytest.fixture(scope="session")
def cloud_aws_at(cloud_at: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with aws_server(tmp_path_factory.mktemp("cloud-aws"), host=cloud_at.gateway) as server:
        yield server


@pytest.fixture
def cloud_aws(cloud_aws_at: Aws) -> Iterator[Aws]:
    """As `aws`, where the machines of `cloud` reach it too."""
    cloud_aws_at.reset()
    yield cloud_aws_at
    cloud_aws_at.reset()


@pytest.fixture
def quick_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `ssh` that soon gives up a machine that is gone, as when its client was killed."""
    (tmp_path / "bin").mkdir()
    write_quick_ssh(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.fixture
def at_mithril(cloud: Cloud, quick_ssh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
    """A client of that cloud; whatever it rents is given back after the test."""
    monkeypatch.setenv("FLOW_PROVIDER", "mithril")
    monkeypatch.setenv("FLOW_MITHRIL_API_URL", cloud.url)
    monkeypatch.setenv("MITHRIL_API_KEY", cloud.key)
    monkeypatch.setenv("FLOW_MITHRIL_REGION", "us-central1-b")
    client = Flow()
    yield client
    client.cancel(*(task for task in client.tasks(limit=None, refresh=False) if not task.status.is_final))
    assert wait_until(lambda: [client.tasks(), client.held()][1] == [], seconds=60), client.held()
    end_attendant(client.home)
    assert wait_until(lambda: not processes_of(tmp_path), seconds=30)
