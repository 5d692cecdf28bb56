"""A keyring whose entries lie in a file of the test's home; `PYTHON_KEYRING_BACKEND=tests.support.keyring.Kept`."""

from __future__ import annotations

import json
from pathlib import Path

from keyring.backend import KeyringBackend


class Kept(KeyringBackend):
    priority = 1  # type: ignore[assignment]

    @property
    def _file(self) -> Path:
        return Path.home() / "keyring.json"

    def _entries(self) -> dict[str, str]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}

    def get_password(self, service: str, username: str) -> str | None:
        return self._entries().get(f"{service}/{username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        self._file.write_text(json.dumps({**self._entries(), f"{service}/{username}": password}))
