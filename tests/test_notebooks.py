"""Notebooks on machines that are reached by ssh, in a real browser: JupyterLab's own page, and one like Colab's."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.colab import allow, cell, colab
from tests.support.commands import flow, started
from tests.support.components import require
from tests.support.fleet import Fleet, Host
from tests.support.processes import wait_until
from tests.test_transfer import end, running

pytestmark = pytest.mark.timeout(300)  # a browser and a server in one: on a machine with much to do
COLAB = "https://colab.research.google.com"


@pytest.fixture
def machine(empty_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """The only one that tasks run on, called `gpu1`; its user has installed JupyterLab."""
    require("jupyterlab", "notebooks are run in its page")
    require("chromium", "notebooks are run in a browser")
    folders = tuple(one for one in (sys.base_prefix, sys.prefix) if one not in ("/usr", "/usr/local"))
    host = empty_fleet.boot("gpu1", gpus=4, copies=folders)
    host.run('mkdir -p /root/.local/bin; ln -s "$1" /root/.local/bin', f"{sys.prefix}/bin/jupyter-lab")
    monkeypatch.setenv("FLOW_PROVIDER", "ssh")
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(empty_fleet.config))
    assert flow("host", "add", "gpu1").returncode == 0
    yield host
    host.clean()  # ssh hears of its end


def test_a_cell_runs_in_jupyterlab(machine: Host, project: Path, tmp_path: Path) -> None:
    task = running("sleep 300", gpu="a100:2")
    with started("jupyter", str(task)) as (_, url), Browser() as browser:
        page = browser.open(url.strip())
        page.click(".jp-LauncherCard[data-category=Notebook]")
        page.wait_for("document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')")
        page.click(".jp-Notebook .cm-content")
        page.wait_for("document.activeElement.matches('.jp-Notebook .cm-content')")
        page.type("import os; print(os.uname().nodename, os.environ['CUDA_VISIBLE_DEVICES'], 6 * 7)")
        for _ in range(10):  # a kernel that says it is idle may not hear yet
            page.click(".jp-Notebook .cm-content")
            page.shift_enter()
            if wait_until(lambda: bool(page.get("!!document.querySelector('.jp-OutputArea-output')")), seconds=8):
                break
        page.wait_for("document.querySelector('.jp-OutputArea-output')", seconds=1)
        assert page.get("document.querySelector('.jp-OutputArea-output').innerText").strip() == "gpu1 0,1 42"
    end(task)


def test_a_cell_runs_at_a_page_as_colab_has_it(machine: Host, project: Path, tmp_path: Path) -> None:
    words = ("colab", "connect", "--instance-type", "a100", "--hours", "4")
    with started(*words) as (process, line), colab(tmp_path / "page") as browser:
        url = line.split()[1]
        assert re.fullmatch(r"http://localhost:\d+/\?token=[0-9a-f]{48}", url)
        page = browser.open(COLAB)
        assert cell(page, url, "1") == "error: TypeError: Failed to fetch"
        assert "Permission was denied for this request to access the `loopback` address space." in page.complaints[0]
        allow(browser, COLAB)
        where = "import os; where = os.uname().nodename, os.environ['CUDA_VISIBLE_DEVICES']; print(*where)"
        assert cell(page, url, where) == "gpu1 0\n"
        assert cell(page, f"{url}1", where) == "error: TypeError: Failed to fetch"
        other = browser.open("https://other.example.com")
        allow(browser, "https://other.example.com")
        assert cell(other, url, where) == "error: TypeError: Failed to fetch"
        assert "that is not equal to the supplied origin" in " ".join(other.complaints)

        process.send_signal(signal.SIGINT)
        tunnel, said = (text.decode() for text in process.communicate(timeout=60))
        assert process.returncode == 130
        assert re.fullmatch(rf"tunnel  flow forward \S+ \d+:{url.split(':')[2].partition('/')[0]}\n", tunnel)
        assert re.search(r"note: `task-\w+` goes on for 3h5\dm at most\nhint: end it with `flow cancel task", said)
        assert cell(page, url, where) == "error: TypeError: Failed to fetch"
        with started(*words) as (_, again):
            assert again == line
            assert cell(page, url, "print(*where)") == "gpu1 0\n"
    assert flow("cancel", "colab").returncode == 0
