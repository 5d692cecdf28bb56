"""The secret files that go with a task to its machines, each under the name that it has in `inbox/` there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flow.aws import s3_access
from flow.errors import ValidationError
from flow.mounts import S3
from flow.outbox import RECORDS
from flow.registries import registry_login, wants_login

if TYPE_CHECKING:
    from flow.plan import Plan


def secret_files(plan: Plan, environ: Mapping[str, str]) -> dict[str, bytes]:
    """Who may read what the task mounts of S3, the login to its image's registry, who may write its record to S3.

    `environ`: of the shell that submits. Raises what `s3_access` and `registry_login` do, and where nothing can be
    written there.
    """
    files = {}
    if plan.records:
        files[RECORDS] = json.dumps(_records_access(plan, environ)).encode()
    if any(mount.kind == S3 for mount in plan.mounts):
        files["s3.json"] = json.dumps(s3_access(plan.env, environ)).encode()
    if plan.image and wants_login(plan.image) and not _is_here(plan.engine, plan.image):
        login = registry_login(plan.image, plan.env, environ)
        if login:
            files["registry.json"] = json.dumps(login).encode()
    return files


def _records_access(plan: Plan, environ: Mapping[str, str]) -> dict[str, str]:
    """Looked at now, as the task's machines have nobody to tell."""
    from flow.node import objects  # which other tasks need not load

    access = s3_access(plan.env, environ)
    try:
        objects.check_writable(objects.locate(plan.records, access), access, plan.task_id)
    except objects.Failed as error:
        raise ValidationError(
            f"`records` cannot be written to `s3://{plan.records}`: {error}",
            suggestions=["`flow config unset records`: then machines wait, paused, until a client collects"],
        ) from None
    return access


def _is_here(engine: str | None, image: str) -> bool:
    """Whether this machine is the task's and holds the image: then nobody has to be asked for it."""
    if engine is None:
        return False
    return subprocess.run([engine, "image", "inspect", image], capture_output=True, check=False).returncode == 0
