"""Tasks on hosts that ssh reaches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flow.client import Flow
from tests.support.contract import ProviderContract
from tests.support.sshd import sshd


class TestContract(ProviderContract):
    """Through a real sshd, to one host."""

    @pytest.fixture
    def client(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
        with sshd(tmp_path / "sshd", {}) as server:
            monkeypatch.setenv("FLOW_SSH_HOSTS", server.name)
            monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(server.config))
            yield Flow("ssh")
