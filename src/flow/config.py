"""TaskConfig: what the user asked for. Pure data, checked when made and when assigned, all mistakes told at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, field_validator

from flow.errors import ValidationError
from flow.field_types import (
    AbsolutePath,
    ArrayText,
    BeginText,
    Command,
    GpuText,
    Minutes,
    Mounts,
    Name,
    Options,
    OrElse,
    Ports,
    Positive,
    Seconds,
    SignalText,
    Size,
    Text,
    Texts,
    TextsByName,
    WholeNumber,
    Word,
    Words,
    as_dependency,
    as_list,
    as_volumes,
)
from flow.masking import masked, masked_batch
from flow.mistakes import Location, Mistake, MistakesError, from_pydantic, shown_value
from flow.plan import Elements
from flow.spellings import DependencyState, parse_array, parse_begin, parse_signal

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from flow.task_fields import TaskFields

__all__ = [
    "Batch",
    "DependsOn",
    "TaskConfig",
    "VolumeMount",
    "parse_array",
    "parse_begin",
    "parse_signal",
    "task_schema",
]


_CALLED = "the task"  # what messages call the whole, where it has no file


class _Checked(BaseModel):
    """Fields that are checked when made and when assigned. Raises flow's ValidationError, never pydantic's."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    if not TYPE_CHECKING:  # editors shall show the fields

        def __init__(self, /, **fields: Any) -> None:
            mistakes = self._contradictions(fields)
            try:
                super().__init__(**fields)
            except pydantic.ValidationError as error:
                mistakes += from_pydantic(error.errors(), type(self).model_fields)
            except UnicodeEncodeError:
                mistakes += _not_text(fields)
            if mistakes:
                raise MistakesError.of(mistakes, _CALLED)

        def __setattr__(self, name: str, value: Any) -> None:
            # asked before assigning, so that what is refused leaves everything as it was
            mistakes = self._contradictions({**self.__dict__, name: value})
            if not mistakes:
                try:
                    return super().__setattr__(name, value)
                except pydantic.ValidationError as error:
                    mistakes = from_pydantic(error.errors(), type(self).model_fields)
                except UnicodeEncodeError:
                    mistakes = _not_text({name: value})
            raise MistakesError.of(mistakes, _CALLED)

        @classmethod
        def model_validate(cls, *args: Any, **options: Any) -> Self:
            with _in_our_words(cls):
                return super().model_validate(*args, **options)

        @classmethod
        def model_validate_json(cls, *args: Any, **options: Any) -> Self:
            with _in_our_words(cls):
                return super().model_validate_json(*args, **options)

    @field_validator("*", mode="before")
    @classmethod
    def _default_for_none(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """None, or a field left empty in YAML, is the default."""
        field = cls.model_fields[info.field_name or ""]
        if value is not None or field.is_required():
            return value
        return field.get_default(call_default_factory=True)

    @classmethod
    def _contradictions(cls, fields: Mapping[str, Any]) -> list[Mistake]:
        """What is wrong with fields together; they may be wrong themselves."""
        return []


@contextlib.contextmanager
def _in_our_words(model: type[BaseModel]) -> Iterator[None]:
    """Turns pydantic's error into ours: its own way in finds what `__init__` raises, and wraps it."""
    try:
        yield
    except pydantic.ValidationError as error:
        raise MistakesError.of(from_pydantic(error.errors(), model.model_fields), _CALLED) from None


def _not_text(fields: Mapping[str, Any]) -> list[Mistake]:
    """The fields that hold bytes which are no UTF-8, as a shell may pass them on."""
    wrong = [name for name, value in fields.items() if "\\udc" in ascii(value)]
    return [
        Mistake(f"{name}: holds bytes that are no text", ("write it in UTF-8",), (name,)) for name in wrong or fields
    ]


class VolumeMount(_Checked):
    """Storage that outlives tasks, seen by the task at `mount_path`."""

    name: Name | None = Field(None, description="Name of the volume; with `size_gb`, made when there is none.")
    volume_id: Word | None = Field(None, description="The provider's id of an existing volume, instead of a name.")
    size_gb: Size | None = Field(None, description="Size in GB of a volume to be made.")
    mount_path: AbsolutePath | None = Field(None, description="Where the task sees it; by default `/mnt/<name>`.")
    interface: Literal["block", "file"] = Field(
        "block", description="`block`: one machine at a time; `file`: shared by all machines of the task."
    )
    ephemeral: bool = Field(False, description="Whether the volume goes when the task ends.")

    @classmethod
    def _contradictions(cls, fields: Mapping[str, Any]) -> list[Mistake]:
        name, volume_id, size = (fields.get(key) for key in ("name", "volume_id", "size_gb"))
        mistakes = []
        if name is not None and volume_id is not None:
            mistakes.append(Mistake("`name` and `volume_id` both say which volume", ("keep one of them",)))
        if name is None and volume_id is None and size is None:
            mistakes.append(Mistake("says no volume", ("add `name`, `volume_id`, or `size_gb` for a new one",)))
        if volume_id is not None and size is not None:
            mistakes.append(Mistake("`size_gb` is for a new volume, `volume_id` for an existing one", ("keep one",)))
        if name is None and fields.get("mount_path") is None:
            mistakes.append(Mistake("mount_path is missing", ("add `mount_path`, as `/data`",)))
        return mistakes

    @property
    def target(self) -> str:
        """The absolute path at which the task sees the volume."""
        return self.mount_path or f"/mnt/{self.name}"


class DependsOn(_Checked):
    """Another task, and the state of it that is waited for."""

    task: Text = Field(description="The task: its id, a unique prefix, a name, `:1` or `@last`.")
    state: DependencyState = Field(
        "completed",
        description="`ended` is any final state; `corresponding`: elements wait for those of the same index to "
        "be completed.",
    )
    delay_minutes: Minutes = Field(0.0, description="Minutes to wait after that.")


_Dependency = Annotated[DependsOn, as_dependency, OrElse("string")]


class Batch(_Checked):
    """A Slurm batch script, as `sbatch` takes it: its text, and what its options say that no field of a task holds."""

    script: str = Field(description="The whole script, to the byte; its first line says what runs it.")
    encoding: Literal["utf-8", "latin-1"] = Field("utf-8", description="Of the script's bytes.")
    file: Text | None = Field(None, description="Where it was read.")
    args: Words = Field([], description="What the script is called with.")
    options: Words = Field([], description="The options of sbatch that hold, as `--name=value`.")
    variables: TextsByName = Field({}, description="The SLURM_* variables that the options decide.")
    export: Text = Field("ALL", description="The submitter's variables that it gets: `ALL`, `NONE`, or a list.")

    @property
    def content(self) -> bytes:
        """The script's bytes."""
        return self.script.encode(self.encoding)


class TaskConfig(_Checked):
    """What the user asks for. All fields are optional; None is the default.

    Raises ValidationError, with every mistake in it, when made, and on assignment of a value that is not allowed.
    """

    name: Name | None = Field(None, description="Name of the task; need not be unique.")
    instance_type: Word | None = Field(None, description="Kind of machine, as `a100`, `8xa100` or a provider's own.")
    gpu: GpuText | None = Field(None, description="GPUs of each machine, as `a100` or `a100:8`; or `instance_type`.")
    command: Command = Field(None, description="Shell command, or list of arguments; none: an interactive machine.")
    image: Word | None = Field(None, description="Container image to run in.")
    env: TextsByName = Field({}, description="Environment variables.")
    working_dir: Text | None = Field(None, description="Folder to run in, relative to the project, or absolute.")
    volumes: Annotated[list[VolumeMount], as_volumes, OrElse("object")] = Field([], description="Volumes to attach.")
    mounts: Mounts = Field({}, description="Target path -> `s3://bucket/path` or `volume://name`; alone: at `/data`.")
    ports: Ports = Field([], description="TCP ports of the first machine to make reachable, 1 to 65535.")
    num_instances: WholeNumber = Field(1, ge=1, le=100_000, description="Number of machines.")
    max_price_per_hour: Positive | None = Field(None, description="Most to pay, in US dollars for each hour.")
    wait_for_price: bool = Field(False, description="Whether to wait where machines cost more than that now.")
    keep: bool = Field(False, description="Whether machines that cost money are kept after the task's end.")
    max_run_time_hours: Positive | None = Field(None, description="Time limit in hours, of all attempts.")
    ssh_keys: Texts = Field([], description="SSH keys of the cloud that may log in, too, by name or id.")
    region: Word | None = Field(None, description="Region of the provider.")
    upload_code: bool = Field(True, description="Whether the project folder is sent along.")
    provider: Word | None = Field(None, description="Where to run; by default what the settings say.")
    cpus: Positive | None = Field(None, description="CPUs of each machine.")
    memory_gb: Positive | None = Field(None, description="Memory of each machine, in GB.")
    retries: WholeNumber = Field(0, ge=0, le=1_000_000, description="How often to run again after a failure.")
    priority: WholeNumber = Field(0, ge=-(10**9), le=10**9, description="Higher starts first.")
    labels: TextsByName = Field({}, description="Text by name, to find the task again.")
    array: ArrayText | None = Field(None, description="One task for each index, as `0-9`, `1-100%8` (8 at once).")
    depends_on: Annotated[list[_Dependency], as_list, OrElse("string")] = Field(
        [], description="Tasks to wait for, as `ref:ended`; `ref:started+10` is ten minutes later."
    )
    depends_on_any: bool = Field(False, description="Whether one of `depends_on` is enough.")
    singleton: bool = Field(False, description="Whether to wait for the end of all earlier tasks of this name.")
    unmet_dependency: Literal["cancel", "wait"] = Field(
        "cancel", description="What a task does whose dependencies can never be met: end as cancelled, or wait on."
    )
    begin: BeginText | None = Field(None, description="Earliest start: `now+1hour`, an ISO time, or seconds of 1970.")
    hold: bool = Field(False, description="Whether to wait for `flow resume`.")
    signal: SignalText | None = Field(None, description="Signal before the time limit: `USR1@90` is 90 seconds before.")
    requeue: bool = Field(True, description="Whether it may be requeued: stopped, and run again from its beginning.")
    grace_seconds: Seconds = Field(30.0, description="Seconds between SIGTERM and SIGKILL.")
    output: Text | None = Field(None, description="File for a copy of stdout; Slurm's `%` patterns are filled in.")
    error: Text | None = Field(None, description="File for a copy of stderr; Slurm's `%` patterns are filled in.")
    options: Options = Field({}, description="The provider's own settings for this task.")
    batch: Batch | None = Field(None, description="A Slurm batch script to run, in place of `command`.")

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[TaskFields]) -> None: ...

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The config with these fields, as a YAML file or `to_dict` has them."""
        if not isinstance(fields, Mapping):
            raise ValidationError(f"{shown_value(fields)} is not a mapping", suggestions=["give fields by their names"])
        return cls(**{str(name): value for name, value in fields.items()})

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Self:
        """The config in a YAML file. Raises ValidationError, each mistake with line, column and a caret."""
        from flow.yaml_positions import read_document

        document = read_document(path, _is_text)
        if not document.values:
            raise ValidationError(f"`{document.name}` is empty", suggestions=["write a task, as `command: echo hello`"])
        try:
            return cls.from_dict(document.values)
        except MistakesError as error:
            raise document.error(error.mistakes) from None

    def to_dict(self) -> dict[str, Any]:
        """What was set, as JSON-ready values. Secrets are in it."""
        values = self.model_dump(exclude_unset=True, warnings=False)  # what was changed in place may be anything
        return {name: value for name, value in values.items() if value is not None}

    def to_yaml(self) -> str:
        """What was set, as YAML that `from_yaml` reads back. Secrets are in it."""
        from flow.yaml_text import dump

        return dump(self.to_dict())

    def copy_with(self, **fields: Unpack[TaskFields]) -> Self:
        """A copy with other values; None takes a field back to its default.

        `gpu` and `instance_type` are two spellings of one thing: giving one of them takes the other back.
        All of it is checked anew: `copy_with()` also finds what was changed in place, as by `config.env["A"] = []`.
        """
        given: dict[str, Any] = dict(fields)
        for one, other in (("gpu", "instance_type"), ("instance_type", "gpu")):
            if given.get(one) is not None:
                given.setdefault(other, None)
        return self.from_dict({**self.to_dict(), **given})

    @property
    def elements(self) -> Elements | None:
        """The elements of the array; None for a single task."""
        return None if self.array is None else parse_array(self.array)

    @classmethod
    def _contradictions(cls, fields: Mapping[str, Any]) -> list[Mistake]:
        mistakes = []
        if fields.get("batch") is not None and fields.get("command") is not None:
            mistakes.append(Mistake("`batch` and `command` both say what runs", ("keep one of them",), ("command",)))
        if fields.get("gpu") is not None and fields.get("instance_type") is not None:
            mistakes.append(
                Mistake("`gpu` and `instance_type` both say which machine", ("keep one of them",), ("gpu",))
            )
        if fields.get("singleton") and fields.get("depends_on_any"):
            mistakes.append(
                Mistake("`singleton` waits for all of its tasks, `depends_on_any` for one", ("keep one of them",))
            )
        first: dict[str, Location] = {}
        for location, target in _targets(fields):
            if target in first:
                mistakes.append(Mistake(f"two things are mounted at `{target}`", ("give each its own path",), location))
            first.setdefault(target, location)
        return mistakes

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in self.to_dict().items():
            yield name, masked(value) if name == "env" else masked_batch(value) if name == "batch" else value


def task_schema() -> dict[str, Any]:
    """The JSON schema of a task's YAML file, for editors."""
    schema = TaskConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Flow task"
    schema["description"] = "What to run, and on which machines."
    return schema


# Fields (of a volume, too) whose scalars are text as it was written, whatever YAML takes `no`, `1.10` or `12:30` for.
_TEXT_FIELDS = frozenset(TaskConfig.model_fields) - {
    "volumes", "ports", "num_instances", "max_price_per_hour", "wait_for_price", "keep", "max_run_time_hours",
    "upload_code", "cpus", "memory_gb", "retries", "priority", "depends_on_any", "singleton", "hold", "requeue",
    "grace_seconds", "options", "batch",
}  # fmt: skip
_VOLUME_TEXT_FIELDS = ("name", "volume_id", "mount_path", "interface")


def _is_text(location: Location) -> bool:
    if location[0] == "volumes":
        return location[-1] in _VOLUME_TEXT_FIELDS
    return location[0] in _TEXT_FIELDS


def _targets(fields: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    """Where things are to be mounted, as far as it can be told of fields not checked yet."""
    volumes, mounts = fields.get("volumes"), fields.get("mounts")
    for target in volumes if isinstance(volumes, Mapping) else ():
        if str(target).startswith("/"):
            yield ("volumes", str(target)), str(target).rstrip("/")
    for index, one in enumerate(volumes if isinstance(volumes, (list, tuple)) else ()):
        get = one.get if isinstance(one, Mapping) else lambda key, one=one: getattr(one, key, None)
        target = get("mount_path") or (get("name") and f"/mnt/{get('name')}")
        if isinstance(target, str):
            yield ("volumes", index, "mount_path"), target.rstrip("/")
    for target in mounts if isinstance(mounts, Mapping) else ["/data"] if isinstance(mounts, str) else ():
        if isinstance(target, str):
            yield ("mounts", target), target.rstrip("/")
