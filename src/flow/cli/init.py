"""`flow init`: asks what a provider needs, checks it at once, and writes the settings; all of it or nothing."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from flow.cli import output
from flow.cli.group import FlowCommand, UsageError
from flow.cli.questions import Choice, choose

if TYPE_CHECKING:
    from flow.cli.setup import Setup
    from flow.settings import Settings

_SECTIONS = {"Mithril": ("api_key", "project", "region", "ssh_key", "keyring")}
_PROVIDERS = (
    Choice("mithril", "mithril", "machines with GPUs of the Mithril cloud (FCP), paid by the hour"),
    Choice("local", "local", "this machine"),
    Choice("ssh", "ssh", "machines of your own, which you can `ssh` to"),
    Choice("slurm", "slurm", "a Slurm cluster"),
)
_NEXT = {
    "mithril": ("`flow offers` shows what there is, and its price", "run with `flow run -i a100 'nvidia-smi' --watch`"),
    "local": ("run with `flow run 'echo hello' --watch`",),
    "ssh": ("add machines with `flow host add gpu1`, as ssh knows them", "run with `flow run hostname --watch`"),
    "slurm": (
        "if this is no machine of the cluster: `flow config set slurm.login NAME`, as ssh knows it",
        "run with `flow run hostname --watch`",
    ),
}
_KEY = "mithril.api_key"


@click.command(cls=FlowCommand, sections=_SECTIONS)
@click.option("--provider", metavar="NAME", help="Where tasks are to run: `mithril`, `local`, `ssh` or `slurm`.")
@click.option("--api-key", metavar="KEY", help="Key of its API; `-` reads it from the standard input.")
@click.option("--project", metavar="NAME", help="Project, by name or id.")
@click.option("--region", metavar="NAME", help="Region of the machines; `any`: wherever they are cheapest.")
@click.option("--ssh-key", metavar="KEY", help="A key there, by name or id, or a file here; `new`: one of Flow's own.")
@click.option("--keyring", is_flag=True, help="Keep the API key in the system's keyring, not in the file.")
@click.option("--completion/--no-completion", default=None, help="Have your shell complete `flow` commands, or not.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask: what no option says is as the question proposes it.")
def init(*, yes: bool, keyring: bool, completion: bool | None, **given: str | None) -> int:
    """Set Flow up: where tasks run, and what that needs. It asks, checks, and writes your own settings file.

    Run again, it changes only what you answer otherwise: a bare Enter keeps what is there. With `--profile NAME` all of
    it goes into that profile of the file.

    Example:
      flow init
    """
    from flow.cli.setup import Setup
    from flow.settings_edit import change_settings

    settings, is_new = _settings()
    setup = Setup(settings, given, not yes and _is_somebody_there(), os.environ.get("FLOW_PROFILE") or None)
    output.notes(settings.warnings)
    name = _provider(setup, yes=yes)
    if is_new or settings.origin("provider").startswith("default") or name != settings.get("provider"):
        setup.changes["provider"] = name
    mithril = None
    if name == "mithril":
        from flow.cli.init_mithril import Mithril

        mithril = Mithril(setup)
    shell = _shell(setup, completion, yes=yes)
    if mithril:
        mithril.prepare()
    _keep_key(setup, keyring=keyring)
    file = change_settings(setup.changes, setup.profile)
    output.say(f"`{file}` is written" if setup.changes else f"`{file}` is as it was")
    _tell_overridden(setup, str(file))
    if shell:
        _install(shell)
    for hint in _NEXT.get(name, ()):
        output.hint(hint)
    return 0


def _settings() -> tuple[Settings, bool]:
    """What holds now, and whether the profile that was chosen is a new one."""
    from flow.errors import UnknownProfileError
    from flow.settings import Settings

    try:
        return Settings.load(), False
    except UnknownProfileError:
        return Settings.load(env={**os.environ, "FLOW_PROFILE": ""}), True


def _is_somebody_there() -> bool:
    return output.is_terminal(sys.stdin) and output.is_terminal(sys.stderr)


def _provider(setup: Setup, *, yes: bool) -> str:
    from flow.cli.setup import nobody_to_ask
    from flow.providers.registry import provider_target
    from flow.settings_names import provider_name

    of_mithril = [f"--{name.replace('_', '-')}" for name in _SECTIONS["Mithril"] if setup.given.get(name)]
    if given := setup.given.get("provider"):
        name = provider_name(given)
        provider_target(name)
        if of_mithril and name != "mithril":
            raise UsageError(f"`{of_mithril[0]}` is for `--provider mithril`, not for `{name}`")
        return name
    if of_mithril:
        return "mithril"
    now = str(setup.settings.get("provider"))
    is_known = now == "mithril" or not setup.settings.origin("provider").startswith("default")
    if setup.asks:
        output.say("Where shall tasks run?")
        return choose("Provider", _PROVIDERS, now if is_known else "mithril", read=provider_name)
    if not (is_known or yes):
        raise nobody_to_ask("it is not said where tasks shall run")
    return now


def _shell(setup: Setup, completion: bool | None, *, yes: bool) -> str | None:
    """The shell to complete our commands in; None where it is not wanted, or done already."""
    from flow.cli.shell_start import is_installed, users_shell
    from flow.settings import user_file

    shell = users_shell()
    if completion and shell is None:
        raise UsageError(
            "your shell ($SHELL) is neither bash nor zsh nor fish", suggestions=["name it: `flow completion bash -h`"]
        )
    if shell is None or completion is False:
        return None
    if completion:
        return shell
    if is_installed(shell):
        return None
    is_wanted = not user_file().exists()  # else it was asked before
    if setup.asks:
        is_wanted = click.confirm(f"Complete `flow` commands in {shell}?", default=is_wanted, err=True)
    return shell if is_wanted and (setup.asks or yes) else None


def _keep_key(setup: Setup, *, keyring: bool) -> None:
    """Put a new key where it belongs, and what stands for it into the settings."""
    from flow.keyring_entries import write_entry
    from flow.settings import is_in_keyring

    raw = setup.settings.setting(_KEY).value
    secret = setup.changes.get(_KEY) or (setup.now(_KEY) if keyring and not is_in_keyring(raw) else None)
    if secret and (keyring or is_in_keyring(raw)):
        setup.changes[_KEY] = write_entry(_KEY, secret, setup.profile)


def _tell_overridden(setup: Setup, file: str) -> None:
    from flow.settings import Settings

    settings = Settings.load()
    for name in setup.changes:
        now = settings.setting(name)
        if now.origin.rpartition(":")[0] != file and setup.changes[name] is not None:
            output.note(f"{now.origin} overrides `{name}`: it is now `{now.shown}`")


def _install(shell: str) -> None:
    from flow.cli.shell_start import install
    from flow.durable import why

    try:
        output.say(f"`{install(shell)}` completes `flow` commands in a new {shell}")
    except OSError as error:  # what Flow needs is done
        output.note(f"completion in {shell} could not be installed: {why(error)}")
