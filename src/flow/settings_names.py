"""What a settings file says -> its entries, by the settings' own names, whichever way they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from flow.mistakes import Location

PROFILES = "profiles"
# What may be written at the top of a file, or of a profile, without a section.
FLAT = {
    "api_key": "mithril.api_key", "project": "mithril.project", "region": "mithril.region",
    "default_ssh_key": "mithril.ssh_key",
}  # fmt: skip
_PROVIDERS = {"fcp": "mithril"}  # former names


class Entry(NamedTuple):
    """One line of a settings file. `name` is "" for a profile without any; `value` is None for a key without one."""

    name: str
    profile: str | None
    location: Location
    value: Any


def entries(values: Mapping[str, Any], above: Location = ()) -> Iterator[Entry]:
    """All of a file's, in its order. Nested (`local: {cpus: 2}`) and dotted (`local.cpus: 2`) are the same."""
    for key, value in values.items():
        location = (*above, key)
        if value and isinstance(value, Mapping):
            yield from entries(value, location)
        else:
            yield Entry(*named(location), location, None if value == {} else value)


def named(location: Location) -> tuple[str, str | None]:
    """The setting that is written at a place, and the profile that it is part of."""
    written, profile = ".".join(str(step) for step in location), None
    if written.startswith(PROFILES + "."):
        _, profile, written = f"{written}.".split(".", 2)
    return setting_name(written.rstrip(".")), profile


def setting_name(written: str) -> str:
    """A setting's own name: `mithril.project` for `fcp.project`, and for `project`."""
    section, dot, rest = written.partition(".")
    return FLAT.get(written) or provider_name(section) + dot + rest


def provider_name(written: str) -> str:
    """A provider's own name: `mithril` for `fcp`, with a profile (`fcp@work`) or without."""
    kind, at, profile = written.partition("@")
    return _PROVIDERS.get(kind, kind) + at + profile
