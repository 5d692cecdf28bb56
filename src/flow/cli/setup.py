"""What `flow init` knows: what was given on its command line, what holds now, what is to be written at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flow.cli.group import UsageError
from flow.errors import ValidationError
from flow.settings import Settings


@dataclass
class Setup:
    """`asks`: somebody is there, and wants to be asked. `given`: options, by name. `changes`: by setting, None: out.

    `profile`: what they are written into, which may be new; None: none.
    """

    settings: Settings
    given: Mapping[str, str | None]
    asks: bool
    profile: str | None
    changes: dict[str, str | None] = field(default_factory=dict)

    def now(self, name: str) -> str | None:
        """What a setting is, as text; None for a secret that the keyring has lost, too."""
        try:
            value = self.settings.get(name)
        except ValidationError:
            return None
        return None if value is None else str(value)

    def answer(self, name: str, value: str | None) -> None:
        """Have it written, if it is another one; also what is the same elsewhere, as the environment, if an option
        gives it, and into a profile what a file has only without it."""
        is_of_file = ":" in self.settings.origin(name)
        is_there = self.settings.has_of_profile(name) if self.profile else is_of_file
        is_said = value is not None and bool(is_of_file or self.given.get(name.rpartition(".")[2]))
        if value != self.now(name) or (is_said and not is_there):
            self.changes[name] = value


def nobody_to_ask(for_what: str, *more: str) -> UsageError:
    """The error of what cannot go on without an answer."""
    return UsageError(
        f"{for_what}, and there is nobody to ask",
        suggestions=[*more, "say it all: `flow init --provider mithril --api-key KEY --project NAME --yes`"],
    )
