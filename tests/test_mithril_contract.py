"""The contract of providers, on a stand-in for the Mithril cloud, which really boots a machine for each instance."""

from __future__ import annotations

import pytest

from flow.client import Flow
from tests.support.contract import ProviderContract


class TestContract(ProviderContract):
    """On a machine for each task."""

    @pytest.fixture
    def client(self, at_mithril: Flow) -> Flow:
        return at_mithril
