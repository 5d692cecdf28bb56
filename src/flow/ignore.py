"""One ignore file -> what it says of a path, byte for byte as git does.

Written out here: the libraries for it differ from git in bracket expressions, `dir/**` and trailing blanks, and cost
30 ms at start-up. Source: gitignore(5); git's dir.c and wildmatch.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CLASSES = {  # POSIX character classes, in ASCII as in git
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"!-~",
    b"lower": rb"a-z",
    b"print": rb" -~",
    b"punct": rb"!-/:-@\[-`{-~",
    b"space": rb" \t\n\r\x0b\x0c",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}
_SPECIAL = re.compile(rb"[*?\[\\]")
_NEVER = b"(?!)"


class _MalformedError(Exception):
    """The pattern is malformed: git lets it match nothing."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    regex: re.Pattern[bytes]
    brings_back: bool
    folders_only: bool
    by_name: bool  # held against the last part of the path only


@dataclass(frozen=True, slots=True)
class Rules:
    """The patterns of one ignore file, the last one that matches deciding."""

    patterns: tuple[_Pattern, ...]  # last line first
    any_name: re.Pattern[bytes]
    any_path: re.Pattern[bytes]

    def verdict(self, path: bytes, *, is_folder: bool) -> bool | None:
        """True: ignored; False: brought back by `!`; None: nothing said.

        `path` is relative to the ignore file's folder. Only the path itself is judged: whoever walks the tree does not
        enter what is ignored, so nothing below it comes back.
        """
        name = path[path.rfind(b"/") + 1 :]
        if not self.any_name.fullmatch(name) and not self.any_path.fullmatch(path):
            return None
        for pattern in self.patterns:
            if pattern.folders_only and not is_folder:
                continue
            if pattern.regex.fullmatch(name if pattern.by_name else path):
                return not pattern.brings_back
        return None


def parse_rules(content: bytes) -> Rules:
    """The rules of an ignore file with this content; malformed patterns match nothing, as in git."""
    patterns = []
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if not line.startswith(b"#"):
            text = _without_trailing_blanks(line.removesuffix(b"\r").split(b"\0")[0])
            patterns.append(_parse_pattern(text))
    patterns.reverse()
    return Rules(
        tuple(patterns),
        _any_of([pattern for pattern in patterns if pattern.by_name]),
        _any_of([pattern for pattern in patterns if not pattern.by_name]),
    )


def _any_of(patterns: list[_Pattern]) -> re.Pattern[bytes]:
    alternatives = [pattern.regex.pattern for pattern in patterns if pattern.regex.pattern != _NEVER]
    return re.compile(b"|".join(alternatives) or _NEVER, re.DOTALL)


def _without_trailing_blanks(line: bytes) -> bytes:
    """`line` without the spaces at its end, but for one that is escaped."""
    bare = line.rstrip(b" ")
    backslashes = len(bare) - len(bare.rstrip(b"\\"))
    return line[: len(bare) + 1] if backslashes % 2 else bare


def _parse_pattern(text: bytes) -> _Pattern:
    brings_back = text.startswith(b"!")
    text = text[1:] if brings_back else text
    folders_only = text.endswith(b"/")
    text = text[:-1] if folders_only else text
    by_name = b"/" not in text
    try:
        regex = _name_regex(text) if by_name else _path_regex(text.removeprefix(b"/"))
    except _MalformedError:
        regex = _NEVER
    return _Pattern(re.compile(regex, re.DOTALL), brings_back, folders_only, by_name)


def _name_regex(text: bytes) -> bytes:
    return _translate(text) if text else _NEVER


def _path_regex(text: bytes) -> bytes:
    """git compares what stands before the first wildcard literally, and lets the wildcards begin afresh after it."""
    first = _SPECIAL.search(text)
    literal = first.start() if first else len(text)
    return re.escape(text[:literal]) + _translate(text[literal:])


def _translate(glob: bytes) -> bytes:
    """A wildmatch pattern as a regular expression."""
    parts = []
    at = 0
    while at < len(glob):
        char = glob[at : at + 1]
        if char == b"*":
            part, at = _stars(glob, at)
        elif char == b"[":
            part, at = _bracket(glob, at)
        elif char == b"?":
            part, at = b"[^/]", at + 1
        elif char == b"\\":
            if at + 1 == len(glob):
                raise _MalformedError
            part, at = re.escape(glob[at + 1 : at + 2]), at + 2
        else:
            part, at = re.escape(char), at + 1
        parts.append(part)
    return b"".join(parts)


def _stars(glob: bytes, start: int) -> tuple[bytes, int]:
    end = start
    while glob[end : end + 1] == b"*":
        end += 1
    alone = start == 0 or glob[start - 1 : start] == b"/"
    rest = glob[end:]
    if end - start < 2 or not alone or not (rest == b"" or rest.startswith((b"/", b"\\/"))):
        return b"[^/]*", end
    if rest.startswith(b"/"):
        return b"(?:.*/)?", end + 1
    return b".*", end


def _bracket(glob: bytes, start: int) -> tuple[bytes, int]:
    """A bracket expression; it never matches `/`, and one that is not closed makes the whole pattern match nothing."""
    at = start + 1
    negated = glob[at : at + 1] in (b"!", b"^")
    at += negated
    first, members = at, []
    before: int | None = None  # the character a following `-` makes a range of
    while at == first or glob[at : at + 1] != b"]":
        if glob[at : at + 2] == b"[:" and (end := glob.find(b"]", at + 2)) > at + 2 and glob[end - 1 : end] == b":":
            if glob[at + 2 : end - 1] not in _CLASSES:
                raise _MalformedError
            members.append(_CLASSES[glob[at + 2 : end - 1]])
            before, at = None, end + 1
        elif glob[at : at + 1] == b"-" and before is not None and glob[at + 1 : at + 2] not in (b"", b"]"):
            last, at = _member(glob, at + 1)
            if before <= last:
                members.append(_range(before, last))
            before = None
        else:
            before, at = _member(glob, at)
            members.append(_range(before, before))
    if not members:
        return (b"[^/]" if negated else _NEVER), at + 1
    return b"(?!/)[" + (b"^" if negated else b"") + b"".join(members) + b"]", at + 1


def _member(glob: bytes, at: int) -> tuple[int, int]:
    """The character at `at` of a bracket expression, unescaped, and the place after it."""
    at += glob[at : at + 1] == b"\\"
    if at >= len(glob):
        raise _MalformedError
    return glob[at], at + 1


def _range(first: int, last: int) -> bytes:
    return b"\\x%02x-\\x%02x" % (first, last)
