"""Changes the user's settings file: the lines that must, and no others; comments and order stay as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow.durable import Lock, write_durably, writing
from flow.errors import ValidationError
from flow.settings import Known, is_text, known_setting, user_file, value_of
from flow.settings_names import FLAT, PROFILES, Entry, entries, setting_name

if TYPE_CHECKING:
    import yaml

    from flow.mistakes import Location
    from flow.yaml_positions import Document

_PROFILE = re.compile(r"[\w-]+")
_STEP = 2  # columns that a section is set in


def change_settings(changes: Mapping[str, Any], profile: str | None = None) -> Path:
    """Write these settings, by name (None: take it out), into the user's own file, or a profile of it: all or none.

    Where the file is. It is made where there is none, and only the user may read it.
    Raises ValidationError for a name or a value that is not allowed, StorageError where it cannot be written.
    """
    from flow.yaml_positions import read_text

    file = user_file()
    with writing(file.parent):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Lock(file.parent / ".config.lock"):
            text = read_text(file, str(file)) if file.exists() else ""
            for name, value in changes.items():
                text = changed(text, name, value, profile=profile, file=str(file))
            write_durably(file.resolve(), text.encode())  # a link stays one
    return file


def changed(text: str, name: str, value: Any, *, profile: str | None = None, file: str = "config.yaml") -> str:
    """`text` of a settings file with one setting changed, or taken out (None). Raises ValidationError."""
    if profile is not None and not _PROFILE.fullmatch(profile):
        raise ValidationError(f"`{profile}` cannot be the name of a profile", suggestions=["use letters, digits, `-`"])
    known = known_setting(name)
    wanted = None if value is None else _checked(known, value)
    document = _parsed(text, file)
    found = [one for one in entries(document.values) if (one.name, one.profile) == (known.name, profile)]
    if value is None:
        new = text
        for one in reversed(found):
            new = _without(new, _parsed(new, file).root, one.location)
    elif found:
        new = _replaced(text, document.root, found[-1].location, _shown(known.kind, value))
    else:
        new = _added(text, document.root, _place(document, known.name, profile), _shown(known.kind, value))
    expected = {**_said(document), (profile, known.name): wanted}
    if _said(_parsed(new, file)) != {key: one for key, one in expected.items() if one is not None}:
        raise ValidationError(
            f"`{file}` is written in a way that `{known.name}` cannot be changed in", suggestions=["change it by hand"]
        )
    return new


def _parsed(text: str, file: str) -> Document:
    from flow.yaml_positions import parse_document

    return parse_document(text, file, is_text)


def _checked(known: Known, value: Any) -> Any:
    try:
        return value_of(known, value)
    except ValidationError as error:
        raise ValidationError(f"{known.name}: {error.message}", suggestions=error.suggestions) from None


def _said(document: Document) -> dict[tuple[str | None, str], Any]:
    """What a file says, by profile and setting; values that are allowed, as what they mean."""
    said = {}
    for one in entries(document.values):
        if one.value is not None:
            try:
                said[one.profile, one.name] = value_of(known_setting(one.name), one.value)
            except ValidationError:
                said[one.profile, one.name] = one.value
    return said


def _place(document: Document, name: str, profile: str | None) -> tuple[str, ...]:
    """Where a setting that the file does not have yet is to stand: beside its like, written as they are."""
    above: tuple[str, ...] = () if profile is None else (PROFILES, profile)
    alike: list[Entry] = [one for one in entries(document.values) if one.profile == profile]
    flat = {setting: key for key, setting in FLAT.items()}
    if name in flat and any(one.location[-1] in FLAT and len(one.location) == len(above) + 1 for one in alike):
        return (*above, flat[name])
    section, _, key = name.partition(".")
    if not key:
        return (*above, section)
    written = next((one for one in _keys(document, above) if setting_name(one) == section), section)
    return (*above, written, key)


def _keys(document: Document, location: Sequence[str]) -> list[str]:
    values: Any = document.values
    for step in location:
        values = values.get(step) if isinstance(values, Mapping) else None
    return list(values) if isinstance(values, Mapping) else []


def _shown(kind: type, value: Any) -> str:
    """A value as YAML, on one line."""
    import yaml

    if kind in (int, float, bool):
        return str(value).strip().lower()
    plain = [one.strip() for one in value.split(",")] if kind is list and isinstance(value, str) else value
    plain = str(plain) if isinstance(plain, Path) else plain
    style = '"' if "\n" in str(plain) else None
    options: dict[str, Any] = {"default_flow_style": True, "default_style": style, "width": float("inf")}
    return str(yaml.safe_dump([plain], allow_unicode=True, **options)).strip()[1:-1]  # as it must be within braces, too


def _replaced(text: str, root: yaml.Node, location: Location, shown: str) -> str:
    key, value = _find(root, location)
    end = _end(text, value)
    if value.start_mark.line != key.end_mark.line or value.start_mark.index == value.end_mark.index:
        return f"{text[: key.end_mark.index]}: {shown}{text[max(end, key.end_mark.index + 1) :]}"
    return text[: value.start_mark.index] + shown + text[end:]


def _added(text: str, root: yaml.Node, place: Sequence[str], shown: str) -> str:
    """With `place: shown`, in the section that is there, or in a new one."""
    node, depth, key = root, 0, None
    while depth < len(place) - 1 and (pair := _child(node, place[depth])):
        (key, node), depth = pair, depth + 1
    missing = place[depth:]
    if getattr(node, "flow_style", False):
        within = "".join(f"{step}: {{" for step in missing[:-1]) + f"{missing[-1]}: {shown}" + "}" * (len(missing) - 1)
        at = node.end_mark.index - 1
        return f"{text[:at].rstrip()}{', ' if node.value else ''}{within}{text[at:]}"
    if key is None:
        column, at = 0, len(text)
    elif node.value:
        column, at = node.value[0][0].start_mark.column, _line_end(text, _end(text, node))
    else:  # a section without anything in it
        column, at = key.start_mark.column + _STEP, _line_end(text, key.end_mark.index)
    lines = [" " * (column + _STEP * level) + f"{step}:" for level, step in enumerate(missing)]
    before = text[:at] if not text[:at] or text[:at].endswith("\n") else text[:at] + "\n"
    return before + "\n".join(lines) + f" {shown}\n" + text[at:]


def _without(text: str, root: yaml.Node, location: Location) -> str:
    """Without the line of a setting, and without what then is an empty section; a profile may be empty."""
    kept, least = location, 3 if location[0] == PROFILES else 1
    while len(kept) > least and len(_find(root, kept[:-1])[1].value) == 1:
        kept = kept[:-1]
    parent = _find(root, kept[:-1])[1]
    key, value = _find(root, kept)
    if not getattr(parent, "flow_style", False):
        start = text.rfind("\n", 0, key.start_mark.index) + 1
        return text[:start] + text[_line_end(text, _end(text, value)) :]
    pairs = parent.value
    at = next(index for index, pair in enumerate(pairs) if pair[0] is key)
    if at + 1 < len(pairs):
        return text[: key.start_mark.index] + text[pairs[at + 1][0].start_mark.index :]
    start = _end(text, pairs[at - 1][1]) if at else key.start_mark.index
    return text[:start] + text[_end(text, value) :]


def _find(root: yaml.Node, location: Location) -> tuple[yaml.Node, yaml.Node]:
    key = node = root
    for step in location:
        pair = _child(node, step)
        assert pair is not None, location
        key, node = pair
    return key, node


def _child(node: yaml.Node, step: object) -> tuple[yaml.Node, yaml.Node] | None:
    if not isinstance(node.value, list) or not node.value or not isinstance(node.value[0], tuple):
        return None
    return next((pair for pair in node.value if pair[0].value == str(step)), None)


def _end(text: str, node: yaml.Node) -> int:
    """Where a value ends; a block has no end of its own but its last line's."""
    if isinstance(node.value, list) and node.value and not getattr(node, "flow_style", False):
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    return len(text[: node.end_mark.index].rstrip())


def _line_end(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1
