"""Settings: flag > environment > profile > project file > own file; every value remembers where it came from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flow.errors import UnknownProfileError, ValidationError, did_you_mean
from flow.masking import MASK
from flow.settings_names import PROFILES, entries, named, provider_name, setting_name

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
    own: bool = False  # a project's file, which may be a stranger's, has no say in it

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
    Known("provider", str, "local", "where tasks run; none: `mithril` where there is a key for it, else `local`"),
    Known("upload_limit_mb", float, None, "largest project taken, compressed, in MB; none: what the provider takes"),
    Known(
        "records",
        str,
        None,
        "`s3://bucket/path` to which a machine that costs money copies what its task left, to end with no client there",
        own=True,
    ),
    Known("dev.instance_type", str, None, "kind of machine for `flow dev`; none: h100, or another with a GPU, or any"),
    Known("dev.region", str, None, "region, or host of a fleet, of the machine of `flow dev`; none: any"),
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
    Known("mithril.api_url", str, "https://api.mithril.ai", "where the API is", own=True),
    Known(
        "mithril.price_factor", float, 1.5, "limit price, where no cap is given: the current price times this", least=1
    ),
    Known(
        "mithril.grace_minutes", float, 10.0, "how long a machine waits to have its task collected, before it is paused"
    ),
    Known(
        "mithril.lost_after_minutes",
        float,
        30.0,
        "how long a machine may be out of reach, or dead, before it is given up",
    ),
)
_KNOWN = {known.name: known for known in SETTINGS}
_SECTIONS = {name.partition(".")[0] for name in _KNOWN if "." in name}


class Settings:
    """All settings, each with its origin; made by `load`. `warnings` tell what was passed over in files.

    `profile`: the one that was chosen.
    """

    def __init__(
        self, settings: Mapping[str, Setting], warnings: tuple[str, ...] = (), profile: str | None = None
    ) -> None:
        self.warnings, self.profile = warnings, profile
        self._settings = dict(settings)
        self._of_profile: set[str] = set()

    @classmethod
    def load(
        cls, flags: Mapping[str, Any] | None = None, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Settings:
        """Read all layers; None (an empty variable, a key without a value) leaves the word to the next one.

        flags: by setting name. cwd: where the search for the project's file starts. FLOW_PROFILE chooses a profile.
        Raises ValidationError, with the place, for values that are not allowed, UnknownProfileError; unknown names in
        files only warn.
        """
        env = os.environ if env is None else env
        settings = {one.name: Setting(one.name, one.default, "default", one.help, one.secret) for one in SETTINGS}
        warnings: list[str] = []
        profile = env.get("FLOW_PROFILE") or None
        files = [_read(file, profile, warnings, is_own=is_own) for file, is_own in _files(env, cwd, warnings)]
        for file in files:
            settings.update(file.settings)
        of_profile = {name: one for file in files for name, one in file.of_profile.items()}
        settings.update(of_profile)
        _refuse_unknown_profile(profile, {name for file in files for name in file.profiles})
        for known in SETTINGS:
            variables = [(env.get(name), name) for name in (*reversed(known.also), known.variable)]
            for raw, origin in (*variables, ((flags or {}).get(known.name), known.flag)):
                if raw not in (None, ""):
                    settings[known.name] = _from_outside(known, raw, origin)
        key, provider = settings["mithril.api_key"], settings["provider"]
        if provider.origin == "default" and key.value:
            origin = f"default, as {key.name} is in {key.origin}"
            settings["provider"] = provider._replace(value="mithril", origin=origin)
        loaded = cls(settings, tuple(warnings), profile)
        loaded._of_profile = set(of_profile)
        return loaded

    def with_profile(self, profile: str | None) -> Settings:
        """These, or those of another profile. Raises UnknownProfileError."""
        if profile == self.profile:
            return self
        return Settings.load(env={**os.environ, "FLOW_PROFILE": profile or ""})

    def has_of_profile(self, name: str) -> bool:
        """Whether the profile sets it, or anything in the section of that name."""
        return any(one == name or one.startswith(f"{name}.") for one in self._of_profile)

    def get(self, name: str) -> Any:
        """The value of a setting; of a secret that is in the keyring, what is there.

        Raises ValidationError for a name that is none, and where the keyring does not have it.
        """
        setting = self.setting(name)
        if not setting.secret or not is_in_keyring(setting.value):
            return setting.value
        from flow.keyring_entries import read_entry

        return read_entry(setting.name, setting.value)

    def origin(self, name: str) -> str:
        """Where the value came from: `--provider`, `FLOW_PROVIDER`, `/path/config.yaml:3` or `default`."""
        return self.setting(name).origin

    def all(self) -> list[Setting]:
        """Every setting, in the order of the table."""
        return list(self._settings.values())

    def setting(self, name: str) -> Setting:
        """The setting, by its name or another way to write it. Raises ValidationError for a name that is none."""
        return self._settings[known_setting(name).name]


def known_setting(name: str) -> Known:
    """The setting of that name, or written that way. Raises ValidationError."""
    found = _KNOWN.get(setting_name(name))
    if found is None:
        raise ValidationError(f"no setting `{name}`", suggestions=_near(name))
    return found


def is_in_keyring(value: object) -> bool:
    """Whether this stands in a setting for a secret that the system's keyring has."""
    return isinstance(value, str) and value.partition(":")[0] == "keyring"


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


def user_file(env: Mapping[str, str] | None = None) -> Path:
    """The user's own settings file, which need not be there."""
    return flow_home(env) / "config.yaml"


def _files(env: Mapping[str, str], cwd: Path | None, warnings: list[str]) -> Iterator[tuple[Path, bool]]:
    """The user's own file, then the project's: a later one overrides. With each, whether it is the user's own."""
    own = user_file(env)
    if _is_there(own):
        yield own, True
    project_file = _project_file(cwd, {own, _home(env) / _PROJECT_FILE})
    if project_file and _is_foreign(project_file):
        warnings.append(f"`{project_file}` was passed over: it belongs to another user")
    elif project_file:
        yield project_file, False


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


class _File(NamedTuple):
    """What a file sets, what the chosen profile in it sets, and the profiles that it has."""

    settings: dict[str, Setting]
    of_profile: dict[str, Setting]
    profiles: set[str]


def _read(file: Path, profile: str | None, warnings: list[str], *, is_own: bool) -> _File:
    from flow.mistakes import Mistake
    from flow.yaml_positions import read_document

    document = read_document(file, is_text)
    found = _File({}, {}, set())
    mistakes: list[Mistake] = []
    for name, of, location, value in entries(document.values):
        known = _KNOWN.get(name)
        if of is not None:
            found.profiles.add(of)
        if known and known.secret and value is not None and not is_in_keyring(value):
            _warn_if_open(file, warnings)
        if value is None or of not in (None, profile):
            continue
        line = document.place(location, of_key=True).line
        if known is None and name not in (*_SECTIONS, PROFILES, ""):
            warnings.append("; ".join((f"{file}:{line}: unknown setting `{name}`", *_near(name))))
            continue
        if known and known.own and not is_own:
            warnings.append(f"{file}:{line}: `{name}` was passed over: it belongs into `{user_file()}`")
            continue
        settings = found.settings if of is None else found.of_profile
        try:
            if known is None:
                raise ValidationError("has settings, but no value", suggestions=[f"write `{name or of}.…: value`"])
            if name in settings:
                raise ValidationError("is set twice", suggestions=["keep one of them"])
            settings[name] = _setting(known, value, f"{file}:{line}")
        except ValidationError as error:
            mistakes.append(Mistake(f"{name or of}: {error.message}", error.suggestions, location))
    if mistakes:
        raise document.error(mistakes)
    return found


def _warn_if_open(file: Path, warnings: list[str]) -> None:
    warning = f"`{file}` holds a key, and others can read it: `chmod 600 {file}`"
    if file.stat().st_mode & 0o077 and warning not in warnings:
        warnings.append(warning)


def _refuse_unknown_profile(profile: str | None, there: set[str]) -> None:
    if profile is None or profile in there:
        return
    names = ", ".join(f"`{one}`" for one in sorted(there))
    near = did_you_mean(profile, there) or ([f"there is {names}"] if there else [])
    raise UnknownProfileError(
        f"no profile `{profile}` in the settings", suggestions=[*near, f"make it with `flow --profile {profile} init`"]
    )


def is_text(location: Location) -> bool:
    """Whether YAML shall leave the value as it was written: `provider: no` is a name."""
    known = _KNOWN.get(named(location)[0])
    return known is not None and known.kind in (str, Path)


def _from_outside(known: Known, raw: Any, origin: str) -> Setting:
    try:
        return _setting(known, raw, origin)
    except ValidationError as error:
        raise ValidationError(f"{origin}: {error.message}", suggestions=error.suggestions) from None


def _setting(known: Known, raw: Any, origin: str) -> Setting:
    return Setting(known.name, value_of(known, raw), origin, known.help, known.secret)


def value_of(known: Known, raw: Any) -> Any:
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
        return provider_name(str(raw)) if known.name == "provider" else str(raw)
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
