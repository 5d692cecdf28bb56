"""Tasks as jobs of a real Slurm cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from flow.client import Flow
from tests.support.contract import ProviderContract
from tests.support.slurm import Cluster


@pytest.fixture
def client(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """A client on the login node."""
    monkeypatch.setenv("FLOW_SLURM_FOLDER", str(tmp_path / "shared"))
    return Flow("slurm")


class TestContract(ProviderContract):
    """On the login node of a real cluster."""
