"""What must not be shown: names that hold a secret, and text with the secret taken out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
# A secret name, then `:` or `=`: what follows on that line is hidden. `ssh_keys` holds names of keys, not keys.
_ASSIGNED = r"(?i)((?!ssh_keys\b)\b[\w.-]*(?:key|token|secret|password)[\w.-]*[\"']?\s*[:=]\s*)\S.*"


def is_secret(name: str) -> bool:
    """Whether a variable or setting of that name holds a secret: KEY, TOKEN, SECRET or PASSWORD is in it."""
    upper = name.upper()
    return any(word in upper for word in _WORDS)


def masked(env: Mapping[str, str]) -> dict[str, str]:
    """`env` as it may be shown: the values of secret names are `***`; empty ones stay, there is nothing to hide."""
    return {name: MASK if value and is_secret(name) else value for name, value in env.items()}


def masked_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch script's fields as they may be shown: without its text, and without the secrets that options name."""
    shown = {name: value for name, value in batch.items() if name not in ("script", "encoding")}
    for name in ("options", "args"):
        shown[name] = [masked_text(one) for one in batch.get(name) or ()]
    shown["variables"] = {name: masked_text(value) for name, value in (batch.get("variables") or {}).items()}
    if "export" in batch:
        shown["export"] = masked_text(batch["export"])
    return shown


def masked_text(text: str) -> str:
    """Text as it may be shown: on each line, what follows `NAME:` or `NAME=` of a secret name is `***`."""
    return re.sub(_ASSIGNED, lambda found: found[1] + MASK, text)
