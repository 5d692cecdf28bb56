"""The project in the current folder -> the bundle of a plan, with the files that a call adds to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flow.bundle import add_files, check_upload_limit, empty_bundle, make_bundle
from flow.errors import ValidationError
from flow.slurm.submitting import SCRIPT

if TYPE_CHECKING:
    from flow.calls import Call
    from flow.config import TaskConfig
    from flow.plan import Plan


def with_project(
    plan: Plan, config: TaskConfig, home: Path, *, call: Call | None, limit_mb: float | None, notes: list[str]
) -> Plan:
    """The plan with the project as it is now, stored in `home`; as it was where nothing is to be uploaded.

    A batch script goes along as it was given, with the project or, where it runs in place, alone.
    `notes` gains what the user should know. To be called under `store_lock(home)` until the plan is recorded.
    Raises ValidationError for a project that is too large, and where the file that `call` needs does not go along.
    """
    here = current_folder()
    is_project = here not in (Path.home(), Path(here.anchor))  # not the whole home, not the whole disk
    is_wanted = config.upload_code and not plan.in_place
    if not is_project and is_wanted:
        notes.append(f"`{here}` is not uploaded: run from a project's folder to have your code there")
    if not (is_project and is_wanted) and not config.batch:
        if call:
            why = "the current folder is no project" if config.upload_code else "`upload_code` is false"
            raise ValidationError(
                f"`{call.file}` is not sent to the machine: {why}",
                suggestions=["run from a project's folder, with `upload_code` as it is by default"],
            )
        return plan
    bundle = make_bundle(here, home) if is_project and is_wanted else empty_bundle(home)
    if config.batch:
        bundle = add_files(home, bundle, {SCRIPT: config.batch.content}, mode=0o755)
    if call:
        bundle = add_files(home, bundle, call.files, beside=call.file)
        plan = replace(plan, function=call.function)
    if limit_mb:
        check_upload_limit(home, bundle, limit_mb)
    return replace(plan, bundle=bundle.id, notes=(*plan.notes, *bundle.notes))


def current_folder() -> Path:
    """The folder we are in. Raises ValidationError where it is gone."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ValidationError(
            f"the current folder cannot be used: {error.strerror}", suggestions=["go to another one, `cd` for example"]
        ) from error
