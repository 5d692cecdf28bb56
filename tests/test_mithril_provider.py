"""The Mithril provider on a stand-in for its cloud, which really boots a machine for each instance."""

from __future__ import annotations

from pathlib import Path

import pytest

from flow.client import Flow
from tests.support.contract import ProviderContract
from tests.support.mithril_cloud import Cloud


@pytest.fixture
def client(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    monkeypatch.setenv("FLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLOW_PROVIDER", "mithril")
    monkeypatch.setenv("FLOW_MITHRIL_API_URL", cloud.url)
    monkeypatch.setenv("MITHRIL_API_KEY", cloud.key)
    return Flow()


class TestMithril(ProviderContract):
    """The contract, unchanged."""
