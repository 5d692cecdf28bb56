"""Tasks as jobs of a real Slurm cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flow.client import Flow
from tests.support.contract import ProviderContract
from tests.support.slurm import Cluster
from tests.support.sshd import Sshd, sshd


@pytest.fixture
def client(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """A client on the login node."""
    monkeypatch.setenv("FLOW_SLURM_FOLDER", str(tmp_path / "shared"))
    return Flow("slurm")


class TestContract(ProviderContract):
    """On the login node of a real cluster."""


@pytest.fixture
def login_node(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """The login node as another machine, which ssh reaches; without it there are no commands of Slurm here."""
    with sshd(tmp_path / "sshd", slurm.environment()) as server:
        monkeypatch.setenv("FLOW_SLURM_LOGIN", server.name)
        monkeypatch.setenv("FLOW_SLURM_SSH_CONFIG", str(server.config))
        monkeypatch.setenv("FLOW_SLURM_FOLDER", str(tmp_path / "shared"))
        monkeypatch.delenv("SLURM_CONF")
        yield server


class TestContractFromAfar(ProviderContract):
    """Through ssh to the login node."""

    @pytest.fixture
    def client(self, login_node: Sshd) -> Flow:
        return Flow("slurm")
