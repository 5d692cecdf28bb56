"""A plan or a configuration as text to read: YAML-like, secrets masked, what is not set left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from flow.masking import masked, masked_batch
from flow.plan import Plan


def masked_plan(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready values, without secrets."""
    values = plan.to_dict()
    batch = {"batch": masked_batch(values["batch"])} if plan.batch else {}
    return {**values, "env": masked(plan.env), "shell_env": masked(plan.shell_env), **batch}


def plan_lines(plan: Plan) -> list[str]:
    """The plan, one decision a line: of the shell's variables only the names, of an array the ranges.

    The id is left out, for the task will have another; so are the notes, which are told apart, and the switches that
    nobody has turned.
    """
    switches = [one for one in fields(Plan) if isinstance(one.default, bool) or one.name == "output_mode"]
    unturned = [one.name for one in switches if getattr(plan, one.name) == one.default]
    values = {**masked_plan(plan), "shell_env": sorted(plan.shell_env)}
    values.update(dict.fromkeys(("task_id", "notes", *unturned)))
    if plan.elements:
        values["elements"] = {"indices": ranges(plan.elements.indices), "at_once": plan.elements.at_once}
    return value_lines(values)


def ranges(indices: Sequence[int]) -> str:
    """`1-3,7` for 1, 2, 3, 7: a million indices are still one line."""
    starts = [at for at, index in enumerate(indices) if at == 0 or index != indices[at - 1] + 1]
    ends = [*(start - 1 for start in starts[1:]), len(indices) - 1]
    pairs = [(indices[first], indices[last]) for first, last in zip(starts, ends, strict=True)]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in pairs)


def value_lines(values: Mapping[str, Any], indent: int = 0) -> list[str]:
    """`key: value` lines; a mapping under its key, two columns further in; empty values left out."""
    lines = []
    pad = " " * indent
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{pad}{key}:", *value_lines(value, indent + 2)]
        elif value is not None and value not in ("", [], (), {}):
            lines.append(f"{pad}{key}: {scalar(value)}")
    return lines


def scalar(value: Any) -> str:
    """One value on one line; text is quoted where YAML would read something else, or where it has several lines."""
    if isinstance(value, str):
        return value if _is_plain(value) else _quoted(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_quoted(str(key))}: {_item(item)}' for key, item in value.items())}}}"
    if isinstance(value, Sequence):
        return f"[{', '.join(_item(item) for item in value)}]"
    return json.dumps(value)


def _item(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else scalar(value)


def _quoted(text: str) -> str:
    """In double quotes, as JSON and YAML have them; what does not print is an escape of YAML's."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(text, ensure_ascii=False))


def _is_plain(text: str) -> bool:
    """Whether YAML reads `text`, unquoted, as this very text."""
    if text.strip() != text or not text.isprintable() or ": " in text or " #" in text or text.endswith(":"):
        return False
    if text[0] in "!&*-?|>@`%{}[],#'\":=~<":
        return False
    return not _is_number(text) and text.lower() not in ("true", "false", "null", "yes", "no", "on", "off", "y", "n")


def _is_number(text: str) -> bool:
    return text[0] in "0123456789.+"
