"""`setup.sh` on a machine that has nothing but a Python: it installs Flow, again and again, or says what is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.components import require
from tests.support.fleet import Fleet, Host

PROJECT = Path(__file__).parents[1]
WANTED = ["uv", "hatchling>=1.26", "click>=8.1.7", "pydantic>=2.7", "pyyaml>=6.0", "urllib3>=2.2"]
# The machine has no network: its package index is a folder.
INDEX = """
export PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/wheels UV_NO_INDEX=1 UV_FIND_LINKS=/srv/wheels UV_OFFLINE=1
cd /root
"""
OTHER = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "flow-compute"
version = "3.28"
scripts = {flow = "other:main"}
[tool.hatch.build]
include = ["other.py"]
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the machine needs to install Flow, for the system's own Python."""
    folder = tmp_path_factory.mktemp("wheels")
    told = ["/usr/bin/python3", "-c", "import sys; print('{}.{}'.format(*sys.version_info))"]
    version = subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()
    download = [sys.executable, "-m", "pip", "download", "-q", "-d", folder, "--only-binary=:all:"]
    done = subprocess.run([*download, "--python-version", version, *WANTED], capture_output=True, text=True)
    require("package index", f"a machine is given packages: {done.stderr[-300:]}", found=done.returncode == 0)
    return folder


@pytest.fixture
def bare(empty_fleet: Fleet, wheels: Path) -> Host:
    """A machine with the packages and a clone of this repository in /srv."""
    host = empty_fleet.boot("bare")
    there = host.folder / "root" / "srv"
    shutil.copytree(wheels, there / "wheels")
    (there / "flow").mkdir()
    files = "git ls-files -z --cached --others --exclude-standard | xargs -0 ls -d 2>/dev/null | tar -cT - | tar -xC $0"
    subprocess.run(["sh", "-c", files, there / "flow"], cwd=PROJECT, check=True)
    return host


def installed(host: Host, script: str, *, code: int = 0) -> list[str]:
    """The lines that it writes to stderr."""
    done = host.run(INDEX + script, check=False)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    return done.stderr.splitlines()


def test_it_is_a_plain_shell_script() -> None:
    require("shellcheck", "setup.sh is looked through by it")
    done = subprocess.run(["shellcheck", PROJECT / "setup.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("word", "code", "told"),
    [("-h", 0, "Installs Flow"), ("--help", 0, "Installs Flow"), ("--hlp", 1, "`--hlp` is not")],
)
def test_it_installs_nothing_where_it_is_asked_for_help(word: str, code: int, told: str) -> None:
    before = set(Path.home().rglob("*"))
    done = subprocess.run(["sh", PROJECT / "setup.sh", word], capture_output=True, text=True)
    assert (done.returncode, told in done.stdout + done.stderr) == (code, True), done
    assert set(Path.home().rglob("*")) == before


def test_a_machine_without_anything_gets_uv_and_flow(bare: Host) -> None:
    piped = "FLOW_SOURCE=/srv/flow sh </srv/flow/setup.sh"
    lines = installed(bare, piped)
    assert lines[:3] == [
        "fetching uv, which installs Flow and the Python that it needs",
        "installing Flow from /srv/flow",
        lines[2],
    ]
    assert lines[2].startswith("flow ") and lines[2].endswith(" is installed: /root/.local/bin/flow")
    assert lines[3].startswith("next: put it on PATH") and lines[4] == '  export PATH="/root/.local/bin:$PATH"'
    assert bare.run("/root/.local/bin/flow run 'echo $((6 * 7))' --watch").stdout == "42\n"
    bare.run("sed -i 's/^__version__ = .*/__version__ = \"99.0.0\"/' /srv/flow/src/flow/__init__.py")
    again = installed(bare, 'PATH="/root/.local/bin:$PATH"; sh /srv/flow/setup.sh')
    assert again == [
        "installing Flow from /srv/flow",
        "flow 99.0.0 is installed: /root/.local/bin/flow",
        "next: flow init",
    ]
    assert bare.run("/root/.local/bin/flow --version").stdout == "flow 99.0.0\n"
    again = installed(bare, "mkdir u; cp .local/share/flow/uv/bin/uv u; FLOW_UV=u/uv dash /srv/flow/setup.sh")
    assert again[:2] == [lines[1], "flow 99.0.0 is installed: /root/.local/bin/flow"]


def test_what_is_missing_is_told(bare: Host) -> None:
    script = "sh /srv/flow/setup.sh"
    nothing = installed(bare, f"export PIP_FIND_LINKS=/nowhere; {script}", code=1)
    assert "error: uv could not be fetched: neither from astral.sh nor by pip" in nothing
    assert installed(bare, f"FLOW_UV=/bin/false {script}", code=1) == ["error: FLOW_UV `/bin/false` is no uv that runs"]
    installed(bare, script)
    told = installed(bare, f"FLOW_SOURCE=/nowhere {script}", code=1)
    assert "error: uv could not install `/nowhere`: see above" in told
    (bare.folder / "root/srv/other").mkdir()
    (bare.folder / "root/srv/other/pyproject.toml").write_text(OTHER)
    (bare.folder / "root/srv/other/other.py").write_text("def main():\n    print('flow, version 3.28')\n")
    told = installed(bare, f"FLOW_SOURCE=/srv/other {script}", code=1)
    assert "error: what `/srv/other` installed as `flow-compute` is another program" in told
    (bare.folder / "root/srv/bin").mkdir()
    for name in ("sh", "uname", "dirname", "grep"):
        (bare.folder / "root/srv/bin" / name).symlink_to(f"/usr/bin/{name}")
    told = installed(bare, f"FLOW_SOURCE=git+file:///x PATH=/srv/bin {script}", code=1)
    assert told == ["error: git is not here, which `git+file:///x` is fetched with", "hint: install git"]
