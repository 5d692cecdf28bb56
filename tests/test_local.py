"""The local provider: the contract, and what is its own."""

from __future__ import annotations

import pytest

from flow.client import Flow
from tests.support.contract import ProviderContract


@pytest.fixture
def client() -> Flow:
    return Flow(provider="local")


class TestLocal(ProviderContract):
    """The contract, unchanged."""
