"""Settings: flag > environment > project file > `$FLOW_HOME/config.yaml`; every value remembers where it came from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flow.errors import ValidationError, did_you_mean
from flow.masking import MASK

if TYPE_CHECKING:
    from flow.mistakes import Location

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_PROJECT_FILE = Path(".flow", "config.yaml")


class Known(NamedTuple):
    """A setting that there is; `least` is the smallest number allowed."""

    name: str
    kind: type
    default: Any
    help: str
    least: float = 0
    secret: bool = False
    also: tuple[str, ...] = ()  # more variables that set it, which others read as well

    @property
    def variable(self) -> str:
        """The environment variable that sets it: FLOW_LOCAL_STRICT for `local.strict`."""
        return "FLOW_" + self.name.upper().replace(".", "_")

    @property
    def flag(self) -> str:
        """The flag that sets it: `--local-strict` for `local.strict`."""
        return "--" + self.name.replace(".", "-").replace("_", "-")


class Setting(NamedTuple):
    """A setting as it is now. `origin`: a flag, a variable, `file:line`, or `default`."""

    name: str
    value: Any
    origin: str
    help: str
    secret: bool

    @property
    def shown(self) -> str:
        """The value as it may be printed: never a secret; "" where there is none."""
        if self.value is None:
            return ""
        if self.secret:
            return MASK
        if isinstance(self.value, list):
            return ", ".join(self.value)
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value)


SETTINGS: tuple[Known, ...] = (
    Known("provider", str, "local", "where tasks run"),
    Known("upload_limit_mb", float, None, "largest project taken, compressed, in MB; none: what the provider takes"),
    Known("dev.instance_type", str, None, "kind of machine for `flow dev`; none: h100, or another with a GPU, or any"),
    Known("dev.image", str, None, "container image that `flow dev -c` runs in; none: on the machine itself"),
    Known("local.strict", bool, False, "refuse instance types that this machine lacks, instead of emulating them"),
    Known("local.cpus", int, None, "CPUs given out to tasks; none: all of this machine", least=1),
    Known("local.gpus", int, None, "GPUs given out to tasks; none: all of this machine"),
    Known("local.state_dir", Path, None, "where queue and locks live when FLOW_HOME is on a network file system"),
    Known("slurm.login", str, None, "login node of the cluster, as ssh knows it; none: this machine is one"),
    Known("slurm.folder", str, None, "folder for tasks that all nodes of the cluster share, as seen on its login node"),
    Known("slurm.partition", str, None, "`--partition` of its jobs"),
    Known("slurm.account", str, None, "`--account` of its jobs"),
    Known("slurm.qos", str, None, "`--qos` of its jobs"),
    Known("slurm.constraint", str, None, "`--constraint` of its jobs"),
    Known("slurm.reservation", str, None, "`--reservation` of its jobs"),
    Known("slurm.sbatch_options", str, None, "more options for each `sbatch`"),
    Known("slurm.python", str, "python3", "Python 3.8 or newer of the cluster"),
    Known(
        "slurm.modules", Path, None, "file of what `module load` gives in a Slurm script elsewhere: image, env, path"
    ),
    Known("slurm.ssh_config", Path, None, "file that ssh reads in place of ~/.ssh/config"),
    Known("ssh.hosts", list, None, "machines that run tasks, as ssh knows them, beside those of `flow host add`"),
    Known("ssh.folder", str, "~/.flow-host", "folder for tasks on each host"),
    Known("ssh.lost_after_minutes", float, 30.0, "how long a host may be out of reach before its tasks are lost"),
    Known("ssh.python", str, "python3", "Python 3.8 or newer of the hosts"),
    Known("ssh.ssh_config", Path, None, "file that ssh reads in place of ~/.ssh/config"),
    Known("mithril.api_key", str, None, "key of the Mithril API", secret=True, also=("MITHRIL_API_KEY", "FCP_API_KEY")),
    Known("mithril.project", str, None, "project, by name or id", also=("MITHRIL_PROJECT", "FCP_PROJECT")),
    Known("mithril.region", str, None, "region of its machines; none: the cheapest that has them"),
    Known(
        "mithril.ssh_key", str, None, "SSH key to log in with: its name or id there, or a file here; none: Flow's own"
    ),
    Known("mithril.api_url", str, "https://api.mithril.ai", "where the API is"),
    Known(
        "mithril.price_factor", float, 1.5, "limit price, where no cap is given: the current price times this", least=1
    ),
    Known(
        "mithril.grace_minutes", float, 10.0, "how long a machine waits to have its task collected, before it is paused"
    ),
)
_KNOWN = {known.name: known for known in SETTINGS}
_SECTIONS = {name.partition(".")[0] for name in _KNOWN if "." in name}


class Settings:
    """All settings, each with its origin; made by `load`. `warnings` tell what was passed over in files."""

    def __init__(self, settings: Mapping[str, Setting], warnings: tuple[str, ...] = ()) -> None:
        self.warnings = warnings
        self._settings = dict(settings)

    @classmethod
    def load(
        cls, flags: Mapping[str, Any] | None = None, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Settings:
        """Read all layers; None (an empty variable, a key without a value) leaves the word to the next one.

        flags: by setting name. cwd: where the search for the project's file starts.
        Raises ValidationError, with the place, for values that are not allowed; unknown names in files only warn.
        """
        env = os.environ if env is None else env
        settings = {one.name: Setting(one.name, one.default, "default", one.help, one.secret) for one in SETTINGS}
        warnings: list[str] = []
        for file in _files(env, cwd, warnings):
            settings.update(_from_file(file, warnings))
        for known in SETTINGS:
            variables = [(env.get(name), name) for name in (*reversed(known.also), known.variable)]
            for raw, origin in (*variables, ((flags or {}).get(known.name), known.flag)):
                if raw not in (None, ""):
                    settings[known.name] = _from_outside(known, raw, origin)
        return cls(settings, tuple(warnings))

    def get(self, name: str) -> Any:
        """The value of a setting. Raises ValidationError for a name that is none."""
        return self._named(name).value

    def origin(self, name: str) -> str:
        """Where the value came from: `--provider`, `FLOW_PROVIDER`, `/path/config.yaml:3` or `default`."""
        return self._named(name).origin

    def all(self) -> list[Setting]:
        """Every setting, in the order of the table."""
        return list(self._settings.values())

    def _named(self, name: str) -> Setting:
        if name not in self._settings:
            raise ValidationError(f"no setting `{name}`", suggestions=_near(name))
        return self._settings[name]


def flow_home(env: Mapping[str, str] | None = None) -> Path:
    """Flow's own folder, absolute: FLOW_HOME, by default `~/.flow`. It is neither made nor looked at here."""
    env = os.environ if env is None else env
    asked = env.get("FLOW_HOME")
    if not asked:
        return _home(env) / ".flow"
    try:
        return _expanded(asked).absolute()
    except FileNotFoundError:
        raise ValidationError(
            f"FLOW_HOME `{asked}` is relative to a folder that is gone", suggestions=["give it an absolute path"]
        ) from None


def _files(env: Mapping[str, str], cwd: Path | None, warnings: list[str]) -> Iterator[Path]:
    """The user's file, then the project's: a later one overrides."""
    user_file = flow_home(env) / "config.yaml"
    if _is_there(user_file):
        yield user_file
    project_file = _project_file(cwd, {user_file, _home(env) / _PROJECT_FILE})
    if project_file and _is_foreign(project_file):
        warnings.append(f"`{project_file}` was passed over: it belongs to another user")
    elif project_file:
        yield project_file


def _project_file(cwd: Path | None, others: set[Path]) -> Path | None:
    """The `.flow/config.yaml` of `cwd` or of its nearest parent that has one."""
    try:
        start = Path.cwd() if cwd is None else cwd.absolute()
    except FileNotFoundError:  # the folder that we are in was deleted
        return None
    candidates = (folder / _PROJECT_FILE for folder in (start, *start.parents))
    return next((file for file in candidates if file not in others and _is_there(file)), None)


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # a folder above it is closed to us
        return False


def _is_foreign(file: Path) -> bool:
    """Whether somebody else could have laid the file there, to have our tasks run where he likes."""
    return os.getuid() != 0 and file.stat().st_uid not in (0, os.getuid())


def _from_file(file: Path, warnings: list[str]) -> dict[str, Setting]:
    """What a file sets; nested (`local: {strict: true}`) and dotted (`local.strict: true`) are the same."""
    from flow.mistakes import Mistake
    from flow.yaml_positions import read_document

    document = read_document(file, _is_text)
    found: dict[str, Setting] = {}
    mistakes: list[Mistake] = []
    for name, location, value in _flat(document.values):
        line = document.place(location, of_key=True).line
        known = _KNOWN.get(name)
        if known is None and name not in _SECTIONS:
            warnings.append("; ".join((f"{file}:{line}: unknown setting `{name}`", *_near(name))))
            continue
        try:
            if known is None:
                raise ValidationError("has settings, but no value", suggestions=[f"write `{name}.…: value`"])
            if name in found:
                raise ValidationError("is set twice", suggestions=["keep one of them"])
            found[name] = _setting(known, value, f"{file}:{line}")
        except ValidationError as error:
            mistakes.append(Mistake(f"{name}: {error.message}", error.suggestions, location))
    if mistakes:
        raise document.error(mistakes)
    return found


def _flat(values: Mapping[str, Any], above: Location = ()) -> Iterator[tuple[str, Location, Any]]:
    """(dotted name, location, value) of everything that has a value."""
    for key, value in values.items():
        location = (*above, key)
        if isinstance(value, Mapping):
            yield from _flat(value, location)
        elif value is not None:
            yield ".".join(str(step) for step in location), location, value


def _is_text(location: Location) -> bool:
    """Whether YAML shall leave the value as it was written: `provider: no` is a name."""
    known = _KNOWN.get(".".join(str(step) for step in location))
    return known is not None and known.kind in (str, Path)


def _from_outside(known: Known, raw: Any, origin: str) -> Setting:
    try:
        return _setting(known, raw, origin)
    except ValidationError as error:
        raise ValidationError(f"{origin}: {error.message}", suggestions=error.suggestions) from None


def _setting(known: Known, raw: Any, origin: str) -> Setting:
    return Setting(known.name, _value(known, raw), origin, known.help, known.secret)


def _value(known: Known, raw: Any) -> Any:
    """`raw`, from a file, a variable or a flag, as the kind that the setting has. Raises ValidationError."""
    if known.kind is bool:
        word = str(raw).lower()
        if word not in _TRUE + _FALSE:
            raise _refused(known, raw, "is neither true nor false", "write `true` or `false`")
        return word in _TRUE
    if known.kind in (int, float):
        return _number(known, raw)
    if known.kind is list:
        parts = raw.split(",") if isinstance(raw, str) else raw
        if not isinstance(parts, list) or not all(isinstance(one, str) for one in parts):
            raise _refused(known, raw, "is no list of words", "write `[one, two]`, or `one,two`")
        return [one.strip() for one in parts if one.strip()]
    if not isinstance(raw, (str, Path)):
        raise _refused(known, raw, "is not text", "write text")
    if known.kind is str:
        return str(raw)
    path = _expanded(raw)
    if not path.is_absolute():
        raise _refused(known, raw, "is a relative path", "write an absolute path, or one from `~`")
    return path


def _number(known: Known, raw: Any) -> float:
    try:
        number: float = known.kind(str(raw)) if not isinstance(raw, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        asked = "a whole number" if known.kind is int else "a number"
        raise _refused(known, raw, f"is not {asked}", f"write {asked}")
    if number < known.least:
        raise _refused(known, raw, "is too small", f"write {known.least:g} or more")
    return number


def _refused(known: Known, raw: Any, what: str, advice: str) -> ValidationError:
    from flow.mistakes import shown_value

    shown = f"`{MASK}`" if known.secret else shown_value(raw, known.name)
    return ValidationError(f"{shown} {what}", suggestions=[advice])


def _near(name: str) -> list[str]:
    return did_you_mean(name, _KNOWN) or [f"the settings are {', '.join(_KNOWN)}"]


def _home(env: Mapping[str, str]) -> Path:
    return Path(env["HOME"]) if env.get("HOME") else _expanded("~")


def _expanded(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser() raises for a user that there is not
