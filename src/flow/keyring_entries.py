"""Secrets of the settings in the system's keyring, by way of the package `keyring`."""

from __future__ import annotations

from types import ModuleType

from flow.errors import ValidationError

_SERVICE = "flow"


def read_entry(name: str, value: str) -> str:
    """The secret of the setting `name`, where `value` (`keyring`, `keyring:PROFILE`) stands for it.

    Raises ValidationError where it is not there.
    """
    entry = name + value.removeprefix("keyring")
    found = _asked("get_password", _SERVICE, entry)
    if not found:
        raise ValidationError(
            f"`{name}` is not in the keyring", suggestions=[f"put it there with `keyring set {_SERVICE} {entry}`"]
        )
    return str(found)


def write_entry(name: str, secret: str, profile: str | None = None) -> str:
    """Keep the secret there. What stands for it in the settings."""
    value = f"keyring:{profile}" if profile else "keyring"
    _asked("set_password", _SERVICE, name + value.removeprefix("keyring"), secret)
    return value


def _asked(function: str, *words: str) -> object:
    keyring = _keyring()
    try:
        return getattr(keyring, function)(*words)
    except keyring.errors.KeyringError as error:
        raise ValidationError(
            f"the keyring cannot be used: {error}", suggestions=["is it unlocked? Keep the key in the file otherwise"]
        ) from error


def _keyring() -> ModuleType:
    try:
        import keyring
        import keyring.errors
    except ImportError:
        raise ValidationError(
            "the keyring needs the package `keyring`", suggestions=["install Flow with the extra `keyring`"]
        ) from None
    return keyring
