"""The task that serves notebooks to Google Colab's page: started where there is none at the provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flow import standing
from flow.errors import ValidationError
from flow.jupyter import COLAB, COLAB_LABEL, serving

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.task import Task

NAME = "colab"
HOURS = 4.0


def find_or_start(
    client: Flow, *, instance_type: str | None = None, image: str | None = None, hours: float | None = None
) -> tuple[Task, bool]:
    """It, which may still wait, and whether it was started now; by default it ends after HOURS.

    Raises ValidationError where it is there, and is another than what is asked for.
    """
    with standing.alone(client, NAME):
        found = standing.find(client, NAME, COLAB_LABEL)
        if found is None:
            config = client.load(
                name=NAME,
                provider=client.provider().name,
                instance_type=instance_type,
                image=image,
                upload_code=False,
                max_run_time_hours=HOURS if hours is None else hours,
                labels={COLAB_LABEL: ""},
            )
            return client.run(config.copy_with(command=serving(COLAB))), True
    task = found[0]
    differences = {
        f"is of type `{task.instance_type}`": instance_type and not standing.is_kind(task, instance_type),
        f"runs in `{task.config.image or 'no image'}`": image and image != task.config.image,
        f"ends after {task.config.max_run_time_hours:g} hours": hours and hours != task.config.max_run_time_hours,
    }
    for what in (what for what, differs in differences.items() if differs):
        raise ValidationError(
            f"`{task}` serves Colab already, and {what}",
            suggestions=[f"end it first with `flow cancel {task}`", "or leave that option out"],
        )
    return task, False
