"""Whatever is killed, and whenever: every acknowledged task ends once, its command ran once for each attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults import run_story


@pytest.mark.parametrize("seed", range(20))
def test_what_was_acknowledged_survives_every_kill(seed: int, tmp_path: Path) -> None:
    assert run_story(seed, tmp_path / "story").violations == ()
