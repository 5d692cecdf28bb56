"""What a user installs: small, typed, complete."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import flow

PROJECT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]

pytestmark = pytest.mark.timeout(400)  # it asks the package index


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", folder, PROJECT], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel and what it needs, and nothing else."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", "--no-compile", wheel], check=True)
    return environment


def site_packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


def test_the_wheel_holds_the_whole_package_and_only_it(wheel: Path) -> None:
    source = PROJECT / "src"
    files = [path for path in (source / "flow").rglob("*") if path.suffix in (".py", ".typed")]
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {str(path.relative_to(source)) for path in files}


def test_it_is_small_and_brings_few_others(installed: Path) -> None:
    folder = site_packages(installed)
    distributions = sorted(path.name for path in folder.glob("*.dist-info"))
    assert len(distributions) <= 14, distributions
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc") / 1e6
    assert megabytes <= 21


def test_the_installed_command_tells_its_version_and_its_types_are_seen(installed: Path) -> None:
    run = subprocess.run([installed / "bin" / "flow", "--version"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"flow {flow.__version__}\n"), run.stderr
    assert (site_packages(installed) / "flow" / "py.typed").is_file()


def test_the_licence_goes_with_it(wheel: Path) -> None:
    texts = [zipfile.ZipFile(wheel).read(name) for name in zipfile.ZipFile(wheel).namelist() if "/licenses/" in name]
    assert texts == [(PROJECT / "LICENSE.txt").read_bytes()]
