"""Provider names -> providers: a table of ours; other packages add theirs by the entry points `flow.providers`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from flow.errors import ValidationError, did_you_mean

if TYPE_CHECKING:
    from flow.providers import Provider
    from flow.settings import Settings

PROVIDERS = {
    "local": "flow.providers.local.provider:Local",
    "slurm": "flow.providers.slurm.provider:Slurm",
    "mithril": "flow.providers.mithril.provider:Mithril",
    "ssh": "flow.providers.ssh.provider:Ssh",
}


def open_provider(name: str, home: Path, settings: Settings) -> Provider:
    """The provider called `name`, with its options from the settings, which are those of PROFILE in `NAME@PROFILE`.

    Raises ValidationError for an unknown name.
    """
    section, _, profile = name.partition("@")
    module, _, attribute = provider_target(section).partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    options = {option.name: settings.get(f"{section}.{option.name}") for option in kind.options}
    kind = type(kind.__name__, (kind,), {"name": name}) if profile else kind
    provider: Provider = kind(home, options)
    return provider


def provider_target(name: str) -> str:
    """Where the provider of this name is, "module:class". Raises ValidationError for an unknown name."""
    target = PROVIDERS.get(name) or _entry_points().get(name)
    if target is None:
        known = [*PROVIDERS, *_entry_points()]
        raise ValidationError(
            f"unknown provider `{name}`",
            suggestions=[*did_you_mean(name, known), f"there is: {', '.join(known)}"],
        )
    return target


def _entry_points() -> dict[str, str]:
    """Providers of other packages; their metadata is read only when a name is not ours."""
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group="flow.providers")}
