"""A real sshd on a loopback port of this machine, with keys and an ssh config of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flow.channel import ssh
from tests.support.components import require
from tests.support.processes import free_port, wait_until

_SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
{variables}"""
_CLIENT = """\
Host {name}
  HostName 127.0.0.1
  Port {port}
  IdentityFile {folder}/user
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking accept-new
"""


@dataclass(frozen=True, slots=True)
class Sshd:
    """`name` is the host as the ssh config in the file `config` has it."""

    name: str
    config: Path


@contextmanager
def sshd(folder: Path, variables: Mapping[str, str]) -> Iterator[Sshd]:
    """Serves while the block lasts, every session with these variables too; skips where there is no sshd."""
    program = "/usr/sbin/sshd"
    require("sshd", "what is far away is reached by ssh", found=os.access(program, os.X_OK))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where Debian's drops its privileges to
    (folder / "home").mkdir(exist_ok=True)  # so that no session reads what this user's shell does at its start
    variables = {"HOME": str(folder / "home"), **variables}
    given = "SetEnv " + " ".join(f"{key}={value}" for key, value in variables.items())
    server = Sshd("far-away", folder / "config")
    port = free_port()
    (folder / "sshd_config").write_text(_SERVER.format(port=port, folder=folder, variables=given))
    server.config.write_text(_CLIENT.format(name=server.name, port=port, folder=folder))
    with subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL) as process:
        try:
            words = ["ssh", "-F", server.config, server.name, "true"]
            assert wait_until(lambda: subprocess.run(words, capture_output=True).returncode == 0, seconds=60)
            yield server
        finally:
            kept = ssh(server.name, config=str(server.config)).prefix[:-2]  # the connection that outlives its users
            subprocess.run([*kept, "-O", "exit", server.name], capture_output=True)
            process.terminate()
