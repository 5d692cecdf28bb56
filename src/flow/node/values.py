"""Arguments and results as JSON: what would not come back as it is, is refused, with the path to it and what to do.

Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import json
import math
from typing import Any

DEEPEST = 500  # levels of lists and dicts; Python's own reader gives up somewhat later
MOST_PATH = 300  # characters

_WHOLE = {type(None), bool, int, str}
_ADVICE = {  # the first that holds counts
    "enum.Enum": "take its `.value`",
    "builtins.tuple": "make it a list: `list(…)`",
    "builtins.set": "make it a list: `sorted(…)`",
    "builtins.frozenset": "make it a list: `sorted(…)`",
    "builtins.range": "make it a list: `list(…)`",
    "builtins.generator": "make it a list: `list(…)`",
    "builtins.coroutine": "run it to its end: `asyncio.run(…)` inside of a plain function",
    "builtins.bytes": "make it text, by `base64.b64encode(…).decode()`, or write a file and give its path",
    "builtins.bytearray": "make it text, by `base64.b64encode(…).decode()`, or write a file and give its path",
    "builtins.complex": "make it a list of two numbers",
    "builtins.dict": "make it a plain dict: `dict(…)`",
    "builtins.list": "make it a plain list: `list(…)`",
    "numpy.ndarray": "make it a list, by `.tolist()`, or save it with `numpy.save` and give the path",
    "numpy.generic": "make it a plain number: `.item()`",
    "torch.Tensor": "make it a list, by `.tolist()`, or save it with `torch.save` and give the path",
    "pandas.DataFrame": "save it, by `.to_parquet(path)`, and give the path",
    "pandas.Series": "make it a list, by `.tolist()`, or save it and give the path",
    "pydantic.BaseModel": "make it a dict: `.model_dump(mode='json')`",
    "datetime.date": "make it text: `.isoformat()`",
    "datetime.time": "make it text: `.isoformat()`",
    "datetime.timedelta": "make it seconds: `.total_seconds()`",
    "decimal.Decimal": "make it text: `str(…)`",
    "fractions.Fraction": "make it text: `str(…)`",
    "uuid.UUID": "make it text: `str(…)`",
    "pathlib.PurePath": "make it text: `str(…)`",
    "builtins.str": "make it plain text: `str(…)`",
    "builtins.float": "make it a plain number: `float(…)`",
    "builtins.int": "make it a plain number: `int(…)`",
}
_PLAIN = "give numbers, text, True, False, None, and lists and dicts (with text as keys) of these"


class NotJson(Exception):  # noqa: N818  # what it is, to be told by who knows whose value it is
    """`path` leads to something that JSON cannot hold, `what` says what it is, `advice` what to do."""

    def __init__(self, path: str, what: str, advice: str) -> None:
        super().__init__(f"`{path}` {what}")
        self.path, self.what, self.advice = path, what, advice


def encode(value: Any, name: str) -> bytes:
    """`value` as one line of JSON in UTF-8, such that reading it gives the same value again.

    Raises NotJson, with the path to what stands in the way, as `name[0].lr[2]`.
    """
    try:
        _check(value, 0)
    except NotJson as refused:
        path = name + refused.path
        short = path if len(path) <= MOST_PATH else path[:MOST_PATH] + "…"
        raise NotJson(short, refused.what, refused.advice) from None
    try:
        text = json.dumps(value, ensure_ascii=False, check_circular=False, separators=(",", ":"))
    except ValueError:  # Python writes no longer ones
        raise NotJson(name, "holds a whole number of thousands of digits", "make it text, by `hex(…)`") from None
    return text.encode("utf-8", "surrogatepass")  # as `json.loads` decodes it


def _check(value: Any, depth: int) -> None:
    """Raise NotJson, its path that from `value` on, for anything in it that JSON would change."""
    kind = type(value)
    if kind in _WHOLE or (kind is float and math.isfinite(value)):
        return
    if kind is float:
        raise NotJson("", f"is {value!r}: JSON has no such number", f"give None, or text: `'{value!r}'`")
    if kind is not list and kind is not dict:
        raise NotJson("", *_refusal(value))
    if depth > DEEPEST:
        raise NotJson("", "is nested too deep, or holds itself", f"keep to {DEEPEST} levels of lists and dicts")
    if kind is dict:
        for key in value:
            if type(key) is not str:
                what = f"has the key `{key!r:.80}`: JSON has only text as keys"
                raise NotJson("", what, "make its keys text: `{str(key): … for key, … in ….items()}`")
    inner = value if kind is list else value.values()
    kinds = set(map(type, inner))
    if kinds <= _WHOLE or (kinds == {float} and all(map(math.isfinite, inner))):
        return
    for key, one in enumerate(value) if kind is list else value.items():
        try:
            _check(one, depth + 1)
        except NotJson as refused:
            refused.path = _step(key) + refused.path
            raise


def _step(key: Any) -> str:
    return f".{key}" if type(key) is str and key.isidentifier() else f"[{key!r}]"


def _refusal(value: Any) -> tuple[str, str]:
    """What a value is that JSON does not have, and what to do instead."""
    kind = type(value)
    if hasattr(kind, "__dataclass_fields__"):
        return f"is a dataclass, `{kind.__name__}`", "make it a dict: `dataclasses.asdict(…)`"
    names = [f"{one.__module__.partition('.')[0]}.{one.__qualname__}" for one in kind.__mro__]
    advice = next((text for name, text in _ADVICE.items() if name in names), "")
    shown = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if not advice and hasattr(kind, "__next__"):
        advice = _ADVICE["builtins.generator"]
    return f"is a `{shown}`, which would not come back as it is", advice or _PLAIN
