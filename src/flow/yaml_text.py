"""Plain values -> YAML text that people like to read: in the order given, long text as blocks."""

from __future__ import annotations

import re
from typing import Any

import yaml


def dump(values: dict[str, Any]) -> str:
    """`values` as YAML; "" when there are none. What YAML readers might take for something else is quoted."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) if values else ""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # what YAML 1.1 takes for line ends, or for a byte order mark, is kept by escapes alone
    escaped = re.search("[\r\x85\u2028\u2029\ufeff]", text)
    style = '"' if escaped else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
