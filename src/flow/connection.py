"""An SQLite connection that is closed when nobody holds it any more."""

from __future__ import annotations

import contextlib
import os
import sqlite3


def connect(path: str | os.PathLike[str], *, timeout_seconds: float) -> sqlite3.Connection:
    """A connection that commits by itself, and waits so long for another's transaction. Raises sqlite3.Error."""
    return sqlite3.connect(
        path,
        timeout=timeout_seconds,
        isolation_level=None,
        check_same_thread=False,  # the last to hold it may be of any thread
        factory=_Connection,
    )


class _Connection(sqlite3.Connection):
    """Python 3.13 and newer warn of every connection that was not closed, and clients are never closed."""

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.close()
