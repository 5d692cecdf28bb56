"""Each startup script of a machine at Mithril is short, secret-free, and right in bash's and shellcheck's eyes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from flow.client import Flow
from flow.providers.mithril.volumes import on_machine
from flow.providers.startup import Mark, read_mark, startup_script
from tests.support.components import require
from tests.support.mithril_cloud import Cloud

MOST, AIM, PLAIN = 10_000, 6_500, 5_000  # characters: what is taken, and what we allow ourselves
_BLOCK, _SHARE = "us-central1-b", "us-central5-a"
TASKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with an image": {"image": "python:3.12", "gpu": "8xa100"},
    "an array": {"array": "1-1000"},
    "with a long environment": {"env": {f"SETTING_{n}": "'$(false)`false`\"\n" * 50 for n in range(50)}},
    "with block volumes": {"volumes": [{"mount_path": f"/d{n}", "size_gb": 1} for n in range(4)], "region": _BLOCK},
    "several nodes with a share": {
        "num_instances": 4,
        "volumes": [{"mount_path": "/data", "size_gb": 1, "interface": "file"}],
        "gpu": "8xa100",
        "region": _SHARE,
    },
}


@pytest.fixture
def client(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Flow:
    monkeypatch.setenv("FLOW_PROVIDER", "mithril")
    monkeypatch.setenv("FLOW_MITHRIL_API_URL", cloud.url)
    monkeypatch.setenv("MITHRIL_API_KEY", cloud.key)
    return Flow()


@pytest.mark.parametrize("task", TASKS)
def test_the_script_of_a_task_is_short_and_clean(client: Flow, cloud: Cloud, tmp_path: Path, task: str) -> None:
    from flow.task_volumes import make_volumes, store_of

    plan = client.plan(client.load("echo $HOME", **{"region": _BLOCK, "upload_code": False, **TASKS[task]}))
    plan = make_volumes(plan, store_of(client.provider())) if plan.mounts else plan
    volumes = on_machine(store_of(client.provider()).list(), [one.source for one in plan.mounts])  # type: ignore[arg-type]
    assert len(volumes) == len(plan.mounts)
    mark = Mark(plan.task_id, 1, plan.hash, "0123456789abcdef", ("200",))
    script = startup_script(
        plan,
        mark=mark,
        user="ubuntu",
        notice="/opt/mithril/*_SIGNAL.yml",
        scratch="/mnt/local",
        volumes=volumes,
        grace_seconds=600,
    )
    assert script.startswith("#!/bin/bash\n")
    assert len(script) <= (PLAIN if task == "plain" else AIM) < MOST
    assert read_mark(script) == mark
    assert not [one for one in (cloud.key, "echo $HOME", "SETTING_") if one in script]
    file = tmp_path / "startup_script.sh"
    file.write_text(script)
    done = subprocess.run(["bash", "-n", file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    require("shellcheck", "startup scripts are looked through by it")
    words = ["shellcheck", "--exclude=SC2016", file]  # what is packed may look like a variable
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout == ""
