"""YAML text -> plain values that remember line and column; every mistake is a ValidationError that shows its line."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flow.errors import ResourceNotFoundError, ValidationError
from flow.mistakes import Location, Mistake, MistakesError, Place

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times faster, where it was built in
_MOST_BYTES = 10_000_000
_MOST_VALUES = 1_000_000  # with every alias written out
_DEEPEST = 100
_TAG = "tag:yaml.org,2002:"
_STRING = _TAG + "str"
_GUESSED = {_TAG + kind for kind in ("bool", "int", "float", "timestamp")}  # what YAML may take text for
_SIGNS = {_TAG + kind for kind in ("value", "merge")}  # a lone `=` or `<<`
_ADVICE = {
    "found character": "put the text in quotes; indent with spaces, not with tabs",
    "mapping values are not allowed": "put text that holds `: ` in quotes",
    "undefined alias": "put text that begins with `*` in quotes",
    "another document": "take out the second `---`: a file holds one document",
    "could not determine a constructor": "leave out the tag",
}


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file, read. `values` is its mapping; `name` is what messages call it."""

    name: str
    lines: Sequence[str]
    values: dict[str, Any]
    root: yaml.MappingNode

    def place(self, location: Location, *, of_key: bool = False) -> Place:
        """Where the value at `location` (or its key) stands; what is not there has the place of what is around it."""
        node: yaml.Node = self.root
        mark = node.start_mark
        for step in location:
            found = _child(node, step)
            if found is None:
                break
            key, node = found
            mark = key.start_mark if of_key else node.start_mark
        return _place(self.name, self.lines, mark)

    def error(self, mistakes: Sequence[Mistake]) -> MistakesError:
        """The error that tells `mistakes` in the order of their places in this file."""
        placed = [
            Mistake(one.message, one.advice, one.location, one.of_key, self.place(one.location, of_key=one.of_key))
            for one in mistakes
        ]
        return MistakesError.of(sorted(placed, key=_order), f"`{self.name}`")


def read_document(path: str | os.PathLike[str], is_text: Callable[[Location], bool] = lambda _: False) -> Document:
    """The mapping that a YAML file holds, {} where it is empty. Where `is_text(location)`, a scalar is text as written.

    Raises ResourceNotFoundError when the file is missing, ValidationError when it is anything but one YAML mapping.
    """
    name = os.fspath(path)
    return parse_document(read_text(Path(path), name), name, is_text)


def parse_document(text: str, name: str, is_text: Callable[[Location], bool] = lambda _: False) -> Document:
    """As `read_document`, from text; `name` is what messages call it."""
    _refuse_control_characters(text, name)
    lines = text.splitlines()
    try:
        _refuse_depth(text)
        loader = _LOADER(text)
        root = loader.get_single_node()
        if root is None:
            return Document(name, lines, {}, _nothing(name))
        if not isinstance(root, yaml.MappingNode):
            raise _not_a_mapping(root, name)
        walk = _Walk(loader, is_text)
        walk.visit(root, ())
        if walk.mistakes:
            placed = [Mistake(told, place=_place(name, lines, mark)) for told, mark in walk.mistakes]
            raise MistakesError.of(sorted(placed, key=_order), f"`{name}`")
        return Document(name, lines, loader.construct_document(root), root)
    except (RecursionError, OverflowError):
        raise _too_deep(name) from None
    except yaml.MarkedYAMLError as error:
        is_deep = "maximum nesting" in str(error.problem)  # libyaml's own limit, since 0.2.6
        raise (_too_deep(name) if is_deep else _malformed(error, name, lines)) from None


def _too_deep(name: str) -> ValidationError:
    return ValidationError(f"`{name}` is nested too deep, or holds itself")


class _Walk:
    """Visits a node tree as it will be read: merge keys applied, aliases written out, text made text."""

    def __init__(self, loader: Any, is_text: Callable[[Location], bool]) -> None:
        self.mistakes: list[tuple[str, yaml.Mark]] = []
        self._loader = loader
        self._is_text = is_text
        self._visited = 0
        self._checked: set[int] = set()

    def visit(self, node: yaml.Node, location: Location) -> None:
        self._visited += 1
        if self._visited > _MOST_VALUES or len(location) > _DEEPEST:
            raise OverflowError
        if isinstance(node, yaml.ScalarNode):
            self._scalar(node, location)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*location, index))
        elif isinstance(node, yaml.MappingNode):
            self._mapping(node, location)

    def _mapping(self, node: yaml.MappingNode, location: Location) -> None:
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._refuse_repeated_keys(node)
            self._loader.flatten_mapping(node)
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.mistakes.append(("a key must be text", key.start_mark))
                continue
            key.tag = _STRING  # `on:` and `8080:` are names
            self.visit(value, (*location, key.value))

    def _refuse_repeated_keys(self, node: yaml.MappingNode) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                self.mistakes.append(
                    (f"`{key.value}` is given twice, first in line {first[key.value]}", key.start_mark)
                )
            first.setdefault(key.value, line)

    def _scalar(self, node: yaml.ScalarNode, location: Location) -> None:
        if node.tag in _SIGNS or (node.tag in _GUESSED and self._is_text(location)):
            node.tag = _STRING
            return
        try:
            self._loader.construct_object(node)
        except yaml.MarkedYAMLError:
            raise
        except ValueError as error:  # a date of month 13, a number of 5,000 digits
            self.mistakes.append((f"cannot read this value: {error}", node.start_mark))


def read_text(path: Path, name: str) -> str:
    """A file's text, if it may be YAML. Raises what `read_document` does."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ResourceNotFoundError(f"no file `{name}`", suggestions=_files_nearby(path)) from None
    except IsADirectoryError:
        raise ValidationError(f"`{name}` is a folder", suggestions=["name a YAML file in it"]) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ValidationError(f"cannot read `{name}`: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > _MOST_BYTES:
        raise ValidationError(f"`{name}` is longer than {_MOST_BYTES // 1_000_000} MB: this is some other file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValidationError(
            f"`{name}` is not a text file: byte {error.start}, in line {line}, is not UTF-8",
            suggestions=["name a YAML file, saved as UTF-8"],
        ) from None


def _files_nearby(path: Path) -> list[str]:
    """A hint at a YAML file beside it whose name is nearly the same: the ending alone makes no two files alike."""
    from difflib import get_close_matches  # 5 ms, and most files are there

    try:
        names = {one.stem: one.name for one in path.parent.iterdir() if one.suffix in (".yaml", ".yml")}
    except OSError:
        return []
    near = get_close_matches(path.stem, names, n=1)
    return [f"did you mean `{names[stem]}`?" for stem in near]


def _refuse_control_characters(text: str, name: str) -> None:
    found = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - text.rfind("\n", 0, found.start())
        raise ValidationError(
            f"{name}:{line}:{column}: not a text file: it holds the character `{found[0]!a}`",
            suggestions=["name a YAML file, saved as UTF-8"],
        )


def _refuse_depth(text: str) -> None:
    """Raises OverflowError for what is nested too deep; asked first, since libyaml's composer would crash on it."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise OverflowError


def _nothing(name: str) -> yaml.MappingNode:
    start = yaml.Mark(name, 0, 0, 0, None, 0)
    return yaml.MappingNode(_TAG + "map", [], start, start)


def _not_a_mapping(root: yaml.Node, name: str) -> ValidationError:
    holds = "a list" if isinstance(root, yaml.SequenceNode) else "one value"
    return ValidationError(
        f"`{name}` holds {holds}, not a mapping", suggestions=["write fields, one a line, as `name: value`"]
    )


def _malformed(error: yaml.MarkedYAMLError, name: str, lines: Sequence[str]) -> ValidationError:
    problem = error.problem or error.context or "malformed"
    told = f"{problem} {error.context}" if error.problem and error.context else problem
    mark = error.problem_mark or error.context_mark
    if mark and error.context_mark and not "".join(lines[mark.line : mark.line + 1]).strip():
        mark = error.context_mark  # at the end of the file there is nothing to show: what was never closed is
    if mark and error.context_mark and error.context_mark.line < mark.line:
        told += f" that begins in line {error.context_mark.line + 1}"
    advice = tuple(text for start, text in _ADVICE.items() if start in told)
    place = _place(name, lines, mark) if mark else Place(name, 1, 1, lines[0] if lines else "")
    return MistakesError.of([Mistake(f"not YAML: {told}", advice, place=place)], f"`{name}`")


def _place(name: str, lines: Sequence[str], mark: yaml.Mark) -> Place:
    source = lines[mark.line] if mark.line < len(lines) else ""
    return Place(name, mark.line + 1, mark.column + 1, source)


def _order(mistake: Mistake) -> tuple[int, int]:
    return (mistake.place.line, mistake.place.column) if mistake.place else (0, 0)


def _child(node: yaml.Node, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """The key and the value at one step below `node`; an item of a list is its own key."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    if isinstance(node, yaml.MappingNode):
        found = [
            (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.value == str(step)
        ]
        return found[-1] if found else None  # of merged keys, the last one counts
    return None
