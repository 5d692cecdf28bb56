"""A user's module that is imported on the machine, for a call of its function, must not submit that call again."""

from __future__ import annotations

import os

from flow.errors import SubmittedWhileImportedError


def refuse_while_importing() -> None:
    """Raise SubmittedWhileImportedError while a module is imported for a call; what it starts meanwhile is told too."""
    module = os.environ.get("FLOW_IMPORTING")
    if module:
        raise SubmittedWhileImportedError(
            f"`{module}` submits a task while it is imported on the machine that runs its function",
            suggestions=['put what submits tasks under `if __name__ == "__main__":`'],
        )
