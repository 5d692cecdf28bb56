"""Tasks on hosts that ssh reaches: a fleet of four machines."""

from __future__ import annotations

import pytest

from flow.client import Flow
from tests.support.contract import ProviderContract
from tests.support.fleet import Fleet


@pytest.fixture
def client(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Flow:
    monkeypatch.setenv("FLOW_SSH_HOSTS", ",".join(fleet.hosts))
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))
    return Flow("ssh")


class TestContract(ProviderContract):
    """On four machines."""
