"""The SSH key by which machines at Mithril are reached: Flow's own, one of the user's, or one that is there already."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow.errors import StorageError, ValidationError, did_you_mean
from flow.providers.mithril.account import Account

_USERS = Path("~/.ssh")


@dataclass(frozen=True, slots=True)
class Keys:
    """identity: the private key's file here; None where the user's own ssh finds it. key_ids: for a bid."""

    identity: Path | None
    key_ids: tuple[str, ...]


def login_keys(account: Account, folder: Path, named: str | None, label: str) -> Keys:
    """What a bid is given to let us in, with the keys that the project requires; ours is made and sent where needed.

    folder: for Flow's own key, which is called `label` there. named: a key's name or id at Mithril, or a file here.
    Raises ValidationError, also where what is named is not there: a task is not to wait for it.
    """
    there = list(account.api.list("/v2/ssh-keys", project=account.project))
    required = [str(one["fid"]) for one in there if one.get("required")]
    identity = identity_file(folder, named)
    if named and identity is None:
        key = _named(there, named)
        return Keys(_private_of(str(key.get("public_key", ""))), tuple(dict.fromkeys([str(key["fid"]), *required])))
    assert identity
    if not identity.exists():
        make_key(identity)
    public = _public(identity)
    ours = next((one for one in there if _same(str(one.get("public_key", "")), public)), None)
    if ours is None:
        body = {"project": account.project, "name": label, "public_key": public, "required": False}
        ours = account.api.create("/v2/ssh-keys", body)
    return Keys(identity, tuple(dict.fromkeys([str(ours["fid"]), *required])))


def keys_of_others(account: Account, names: Sequence[str]) -> tuple[str, ...]:
    """The ids of keys of the project, by name or id. Raises ValidationError where there is none of these."""
    there = list(account.api.list("/v2/ssh-keys", project=account.project)) if names else []
    ids = {str(one[what]): str(one["fid"]) for what in ("name", "fid") for one in there if one.get(what)}
    if missing := [one for one in names if one not in ids]:
        raise ValidationError(
            f"the project has no SSH key `{missing[0]}`, which `ssh_keys` names",
            suggestions=[*did_you_mean(missing[0], list(ids)), "`mithril ssh-keys list` has those of the project"],
        )
    return tuple(ids[one] for one in names)


def identity_file(folder: Path, named: str | None) -> Path | None:
    """Flow's own private key, which may have to be made, or the file that is named; None where a key at Mithril is.

    Raises ValidationError where there is no such file.
    """
    if named is None:
        return folder / "id_ed25519"
    file = Path(named.removesuffix(".pub")).expanduser()
    if file.is_file():
        return file
    if "/" not in named and not named.startswith("~"):
        return None
    raise ValidationError(
        f"there is no SSH key `{file}`",
        suggestions=[
            *_near_files(file.name, file.parent),
            f"make it: `ssh-keygen -t ed25519 -f {file}`",
            "`flow init --ssh-key new` takes one of Flow's own",
        ],
    )


def make_key(file: Path) -> None:
    """A new pair of keys without a passphrase, unless another client has made one. Raises StorageError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="key-") as folder:
        new = Path(folder) / file.name
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "flow", "-f", str(new)]
        done = subprocess.run(words, capture_output=True, check=False)
        if done.returncode:
            raise StorageError(f"no SSH key could be made: {done.stderr.decode(errors='replace').strip()}")
        with suppress(FileExistsError):
            os.link(new, file)  # the public one, which is read off it, may be missing or of another
            Path(f"{new}.pub").rename(f"{file}.pub")


def _public(identity: Path) -> str:
    file = Path(f"{identity}.pub")
    if file.exists():
        return file.read_text().strip()
    done = subprocess.run(["ssh-keygen", "-y", "-P", "", "-f", str(identity)], capture_output=True, check=False)
    if done.returncode:
        raise ValidationError(
            f"`{identity}` is no key that can be used: {done.stderr.decode(errors='replace').strip()}",
            suggestions=[f"is there a `{file}`?", "`flow config set mithril.ssh_key …` names another"],
        )
    return done.stdout.decode().strip()


def _named(there: list[dict[str, Any]], named: str) -> dict[str, Any]:
    for one in there:
        if named in (one["fid"], one.get("name")):
            return one
    names = [str(one.get("name")) for one in there]
    raise ValidationError(
        f"the project has no SSH key `{named}`, and here is no such file",
        suggestions=[
            *(did_you_mean(named, names) or _near_files(named, _USERS.expanduser())),
            "`mithril ssh-keys list` has those of the project; a file is named with its folder, as `~/.ssh/id_ed25519`",
        ],
    )


def _near_files(name: str, folder: Path) -> list[str]:
    """That one of the private keys in a folder may be meant."""
    there = {file.stem: str(file.with_suffix("")) for file in sorted(folder.glob("*.pub"))}
    near = did_you_mean(name, there)
    return [one.replace(f"`{stem}`", f"`{path}`") for one in near for stem, path in there.items() if f"`{stem}`" in one]


def _private_of(public: str) -> Path | None:
    """The user's private key that belongs to a public one."""
    for file in sorted(_USERS.expanduser().glob("*.pub")):
        if _same(file.read_text(errors="replace"), public) and file.with_suffix("").exists():
            return file.with_suffix("")
    return None


def _same(one: str, other: str) -> bool:
    """Whether two lines hold the same key, whatever comment is behind it."""
    return bool(one.split()[:2]) and one.split()[:2] == other.split()[:2]
