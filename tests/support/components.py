"""What a test needs of the machine: there, or the test is left out by name; where everything is required, it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest


def require(component: str, why: str, *, found: bool | None = None) -> None:
    """Go on only if `component` is here: a program on PATH or a Python module; `found` tells where neither can.

    Otherwise the test is skipped, saying `why` it needs the component; with FLOW_TEST_REQUIRE=all it fails.
    """
    if found is None:
        found = bool(shutil.which(component)) or importlib.util.find_spec(component) is not None
    if found:
        return
    message = f"no {component} here: {why}"
    if os.environ.get("FLOW_TEST_REQUIRE") == "all":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
