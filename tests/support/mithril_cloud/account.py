"""Routes of whoever asks: who he is, his projects, quotas, API keys and SSH keys."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.mithril_cloud.checks import Field, RefusedError, boolean, moment, read_fields, text
from tests.support.mithril_cloud.faults import Answer, answer
from tests.support.mithril_cloud.records import USER, ApiKey, Json, SshKey

if TYPE_CHECKING:
    from tests.support.mithril_cloud.cloud import Cloud
    from tests.support.mithril_cloud.server import Request

_YEAR = 366 * 86400
_PUBLIC_KEY = r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-\S+) [A-Za-z0-9+/]+=*( .*)?\n?"


def show_me(cloud: Cloud, request: Request) -> Answer:
    return answer(200, {**_user(), "created_at": "2025-06-01T09:00:00Z", "organization": "org_Zx1"})


def show_user(cloud: Cloud, request: Request, fid: str) -> Answer:
    if fid != USER:
        raise RefusedError(404, "User not found")
    return answer(200, _user())


def list_teammates(cloud: Cloud, request: Request, fid: str) -> Answer:
    return answer(200, [_user()])


def list_projects(cloud: Cloud, request: Request) -> Answer:
    return answer(200, [one.json() for one in cloud.projects])


def list_quotas(cloud: Cloud, request: Request) -> Answer:
    project = cloud.project_of(request)
    types = cloud.spot.types.values()
    return answer(
        200,
        [
            {
                "fid": f"quota_{at}",
                "project": project,
                "name": f"spot {one.name}",
                "product_type": "spot",
                "instance_type": one.fid,
                "instance_type_name": one.name,
                "used_quantity": cloud.quota_used(project, one.fid),
                "total_quantity": cloud.quotas[one.fid],
                "units": "instances",
            }
            for at, one in enumerate(types)
        ],
    )


def list_api_keys(cloud: Cloud, request: Request) -> Answer:
    return answer(200, [one.json() for one in cloud.api_keys.values()])


def create_api_key(cloud: Cloud, request: Request) -> Answer:
    given = read_fields(request.json(), {"name": Field(text), "expires_at": Field(moment)})
    now = cloud.clock.now()
    if len(given["name"]) >= 60:
        raise RefusedError(400, "Name must be shorter than 60 characters")
    if not now < given["expires_at"] <= now + _YEAR:
        raise RefusedError(400, "expires_at must be between now and one year from now")
    key = ApiKey(given["name"], now, given["expires_at"])
    cloud.api_keys[key.fid] = key
    return answer(201, {**key.json(), "secret": key.secret})


def delete_api_key(cloud: Cloud, request: Request, fid: str) -> Answer:
    key = cloud.api_keys.get(fid)
    if not key or key.deactivated is not None:
        raise RefusedError(404, "API key not found")
    key.deactivated = cloud.clock.now()
    return answer(204)


def list_ssh_keys(cloud: Cloud, request: Request) -> Answer:
    project = cloud.project_of(request)
    return answer(200, [one.json() for one in cloud.spot.ssh_keys.values() if one.project == project])


def create_ssh_key(cloud: Cloud, request: Request) -> Answer:
    fields = {
        "project": Field(text),
        "name": Field(text),
        "public_key": Field(text, needed=False),
        "required": Field(boolean, needed=False, default=False),
    }
    given = read_fields(request.json(), fields)
    cloud.check_project(given["project"])
    if given["required"]:
        _check_admin(cloud)
    made: Json = {}
    public_key = given["public_key"]
    if public_key is None:
        public_key, made["private_key"] = _generate(given["name"])
    elif not re.fullmatch(_PUBLIC_KEY, public_key):
        raise RefusedError(400, "Invalid public key")
    key = SshKey(given["name"], given["project"], public_key.strip(), cloud.clock.now(), given["required"])
    cloud.spot.ssh_keys[key.fid] = key
    return answer(201, {**key.json(), **made})


def change_ssh_key(cloud: Cloud, request: Request, fid: str) -> Answer:
    given = read_fields(request.json(), {"required": Field(boolean)})
    key = _ssh_key(cloud, fid)
    _check_admin(cloud)
    key.required = given["required"]
    return answer(200, key.json())


def delete_ssh_key(cloud: Cloud, request: Request, fid: str) -> Answer:
    _ssh_key(cloud, fid)
    if any(fid in one.launch.ssh_keys for one in cloud.spot.bids.values() if one.is_live):
        raise RefusedError(400, "SSH key is in use by an active bid")
    del cloud.spot.ssh_keys[fid]
    return answer(204)


def _user() -> Json:
    return {"fid": USER, "email": "ada@example.com", "name": "Ada", "username": "ada"}


def _ssh_key(cloud: Cloud, fid: str) -> SshKey:
    if fid not in cloud.spot.ssh_keys:
        raise RefusedError(404, "SSH key not found")
    return cloud.spot.ssh_keys[fid]


def _check_admin(cloud: Cloud) -> None:
    if not cloud.is_admin:
        raise RefusedError(403, "Only administrators may change required keys")


def _generate(name: str) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "key"
        words: list[str | Path] = [
            "ssh-keygen",
            "-q",
            "-t",
            "rsa",
            "-b",
            "2048",
            "-m",
            "PEM",
            "-N",
            "",
            "-C",
            name,
            "-f",
            file,
        ]
        subprocess.run(words, check=True, capture_output=True)
        return file.with_suffix(".pub").read_text(), file.read_text()
