"""The `mithril` command: what the API of the Mithril cloud has, in the words of a shell. A thin face of its client."""

from __future__ import annotations

from collections.abc import Sequence

from flow.cli import run_program
from flow.cli.group import Entry, TaskGroup

_ACCOUNT = "Account"
_MARKET = "Market"
_HELD = "Machines and storage"
_SETUP = "Setup"

COMMANDS = {
    "me": Entry("flow.mithril_cli.commands:me", "Who the API key belongs to.", _ACCOUNT),
    "projects": Entry("flow.mithril_cli.commands:projects", "Projects: list, get.", _ACCOUNT),
    "quotas": Entry("flow.mithril_cli.commands:quotas", "Limits of a project: list, get.", _ACCOUNT),
    "api-keys": Entry("flow.mithril_cli.commands:api_keys", "API keys: list, get, create, delete.", _ACCOUNT),
    "ssh-keys": Entry("flow.mithril_cli.commands:ssh_keys", "SSH keys: list, get, create, update, delete.", _ACCOUNT),
    "instance-types": Entry("flow.mithril_cli.commands:instance_types", "Kinds of machines: list, get.", _MARKET),
    "regions": Entry("flow.mithril_cli.commands:regions", "Regions, and what they offer: list, get.", _MARKET),
    "availability": Entry("flow.mithril_cli.commands:availability", "What is to be had where: list, get.", _MARKET),
    "pricing": Entry("flow.mithril_cli.commands:pricing", "Prices: get those of now, list earlier ones.", _MARKET),
    "bids": Entry("flow.mithril_cli.commands:bids", "Spot bids: list, get, create, update, delete.", _HELD),
    "instances": Entry("flow.mithril_cli.commands:instances", "Machines that there are: list, get, update.", _HELD),
    "volumes": Entry("flow.mithril_cli.commands:volumes", "Volumes: list, get, create, delete.", _HELD),
    "reservations": Entry("flow.mithril_cli.commands:reservations", "Reservations: list, get, create, update.", _HELD),
    "completion": Entry("flow.mithril_cli.commands:completion", "Print the completion script of a shell.", _SETUP),
}

SYNONYMS = {
    "apikeys": "api-keys", "bid": "bids", "instance": "instances", "keys": "ssh-keys", "machines": "instances",
    "offers": "availability", "price": "pricing", "prices": "pricing", "project": "projects", "quota": "quotas",
    "region": "regions", "reservation": "reservations", "sshkeys": "ssh-keys", "types": "instance-types",
    "user": "me", "volume": "volumes", "whoami": "me",
}  # fmt: skip

mithril = TaskGroup(
    COMMANDS,
    SYNONYMS,
    name="mithril",
    help="What the API of the Mithril cloud has: look at it, make it, change it, remove it.",
    example="mithril bids list --status Open",
    is_program=True,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (those of the process by default) and return its exit code."""
    return run_program(mithril, arguments)
