"""A real registry that asks for a login, and is found under the name of one of Amazon's."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.components import require
from tests.support.processes import free_port, wait_until

HOST = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
TOKEN = "123456789012-auth-token"  # the password that moto gives for it


@dataclass(frozen=True, slots=True)
class Registry:
    """`variables`: with them, podman and dockerd take this registry for HOST: they ask it as if it were their proxy."""

    folder: Path
    variables: dict[str, str]

    def put(self, image: str, name: str, password: str, environment: dict[str, str]) -> str:
        """Have podman's `image` in the registry as `name`, and no longer in podman by that name; its whole name."""
        whole = f"{HOST}/{name}"
        word = base64.b64encode(f"AWS:{password}".encode()).decode()
        (self.folder / "auth.json").write_text(json.dumps({"auths": {HOST: {"auth": word}}}))
        for words in (["tag", image, whole], ["push", "--authfile", self.folder / "auth.json", whole], ["rmi", whole]):
            subprocess.run(["podman", *words], env=environment | self.variables, check=True, capture_output=True)
        return whole


@contextmanager
def registry(folder: Path, password: str, address: str = "127.0.0.1") -> Iterator[Registry]:
    """One at this address that lets in `AWS` with `password`; skips without Debian's docker-registry."""
    for program in ("docker-registry", "perl"):
        require(program, "private images are pulled from a registry that asks for a login")
    port = free_port()
    # bcrypt, which is all that it takes, and of no more rounds than it must
    crypt = ["perl", "-e", "print crypt($ARGV[0], q($2y$04$abcdefghijklmnopqrstuu))", password]
    word = subprocess.run(crypt, capture_output=True, text=True, check=True).stdout
    (folder / "htpasswd").write_text(f"AWS:{word}\n")
    (folder / "config.yml").write_text(
        f'version: 0.1\nhttp: {{addr: "{address}:{port}"}}\n'
        f'storage: {{filesystem: {{rootdirectory: "{folder}/data"}}}}\n'
        f'auth: {{htpasswd: {{realm: tests, path: "{folder}/htpasswd"}}}}\n'
    )
    (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{HOST}"\ninsecure = true\n')
    with (folder / "log").open("wb") as log:
        serve = ["docker-registry", "serve", folder / "config.yml"]
        server = subprocess.Popen(serve, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)})
    try:
        assert wait_until(lambda: answers(port, address)), (folder / "log").read_text()
        yield Registry(folder, proxied(port, address) | {"CONTAINERS_REGISTRIES_CONF": str(folder / "registries.conf")})
    finally:
        server.terminate()
        server.wait(10)


def proxied(port: int, address: str = "127.0.0.1") -> dict[str, str]:
    """The variables that send every request to this port, but for those to the machine itself."""
    proxy = f"http://{address}:{port}"
    return {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}


def answers(port: int, address: str = "127.0.0.1") -> bool:
    """Whether somebody listens there."""
    with socket.socket() as one:
        return one.connect_ex((address, port)) == 0
