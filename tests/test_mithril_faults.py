"""Clients and attendants are killed and the API fails, at random moments of a task's life on the stand-in cloud."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.aws import Aws
from tests.support.mithril_cloud import Cloud
from tests.support.mithril_faults import run_story


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_or_left_whoever_is_killed(cloud: Cloud, cloud_aws: Aws, tmp_path: Path, seed: int) -> None:
    verdict = run_story(seed, tmp_path / "story", cloud, cloud_aws)
    assert verdict.violations == (), f"seed {seed}, {verdict.kills}"
