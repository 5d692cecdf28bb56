"""Words of a command line -> values as the API wants them."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flow.errors import ResourceNotFoundError, ValidationError


class Kind(NamedTuple):
    """How one kind of value is written. `read` raises ValidationError."""

    metavar: str
    read: Callable[[str], object]


def price(word: str) -> str:
    """`6`, `6.5` or `$6.50` -> `$6.50`."""
    found = re.fullmatch(r"\$?(\d+(?:,\d{3})*(?:\.\d{1,2})?)", word.strip())
    if not found:
        raise ValidationError(f"`{word}` is no price", suggestions=["write dollars for an hour, as `6` or `6.50`"])
    return f"${float(found[1].replace(',', '')):.2f}"


def count(word: str) -> int:
    """A whole number."""
    if not re.fullmatch(r"\d+", word):
        raise ValidationError(f"`{word}` is no whole number", suggestions=["write a whole number"])
    return int(word)


def moment(word: str) -> str:
    """A time, as the API writes it; a span is from now on."""
    from datetime import datetime, timezone

    from flow.cli import times

    now = time.time()
    seconds = times.parse_moment(word, now) if re.match(r"\d{4}-", word) else now + times.parse_span(word)
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def text_of(file: str) -> str:
    """What is in it; `-` is standard input."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text()
    except FileNotFoundError:
        raise ResourceNotFoundError(f"no file `{file}`", suggestions=["give the path of a file, or `-`"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationError(f"cannot read `{file}`: {error}") from error


def public_key(file: str) -> str:
    """The line in it, which may be seen by all. Raises ValidationError for the private half."""
    text = text_of(file).strip()
    if "PRIVATE KEY" in text:
        raise ValidationError(f"`{file}` is a private key, and stays here", suggestions=[f"give `{file}.pub`"])
    return text


KINDS = {
    "text": Kind("TEXT", str),
    "price": Kind("PRICE", price),
    "count": Kind("N", count),
    "time": Kind("TIME", moment),
    "file": Kind("FILE", text_of),
    "key": Kind("FILE", public_key),
}
