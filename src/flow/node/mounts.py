"""Mounts that only one task sees: a mount namespace of its own, in which folders are bound at their targets.

Standard library, Python 3.8 and up, Linux. As root a namespace is all that it takes; as another user it takes a user
namespace, in which `sudo` and the like have no effect. `python3 mounts.py add DIR SOURCE NAME` binds one more folder,
at /mnt/NAME, for the task that runs in DIR.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import importlib
import json
import os
import sys
import time
from typing import Any, Callable, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
WORKSPACE = "/workspace"
CONTAINER_SECONDS = 30
OURS = "flow"  # what the file systems are called that are put over others
DOCKER = "/var/lib/docker"  # for the daemon, not for what it runs
# Of unshare(2), mount(2), umount2(2) and the calls that have no function in older C libraries.
NEWNS, NEWUSER = 0x20000, 0x10000000
RDONLY, REMOUNT, BIND, REC, SLAVE, RELATIME = 0x1, 0x20, 0x1000, 0x4000, 0x80000, 0x200000
DETACH = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
OPEN_TREE, MOVE_MOUNT = 428, 429  # on every architecture; Linux 5.2
TREE_CLONE, FROM_NOTHING = 0x1, 0x4
NOT_ALLOWED = (
    "this machine allows no mounts of its own to a task ({}): give it an `image`, run Flow as root, or allow user "
    "namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
)


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


mount_points = _beside("mount_points")
CannotMount = mount_points.CannotMount


def arrange(
    task: dict[str, Any], folder: str, check: Callable[[], None]
) -> tuple[list[dict[str, Any]], Namespace | None]:
    """What the task of `folder` is to see: each folder ("source", "target", maybe "read_only"), and the namespace.

    No namespace for a container, nor where the machine does not allow it and nothing needs it. Raises CannotMount.
    """
    binds = [_folder_of(one, folder, check) for one in task.get("mounts", [])]
    binds = [one for one in binds if one["target"] != DOCKER]
    if task.get("image"):
        return binds, None
    for one in binds:
        if _is_within(os.path.realpath(folder), os.path.realpath(one["target"])):
            raise CannotMount(f"a mount at `{one['target']}` would hide the task's own folder")
    try:
        space = Namespace()
    except OSError as error:
        if binds:
            raise CannotMount(NOT_ALLOWED.format(_said(error))) from None
        return binds, None
    workspace, is_shown = os.path.join(folder, "workspace"), _is_free(WORKSPACE)
    for one in binds:
        target = one["target"]
        if is_shown and target.startswith(WORKSPACE + "/"):  # seen by either path
            target = workspace + target[len(WORKSPACE) :]
        space.bind(one["source"], target, read_only=one.get("read_only", False))
    if is_shown:
        space.show_workspace(workspace)
    return binds, space


def _is_within(path: str, folder: str) -> bool:
    return (path + "/").startswith(folder.rstrip("/") + "/")


def _is_free(path: str) -> bool:
    """Whether nothing is there, or an empty folder."""
    try:
        return not os.listdir(path)
    except OSError:
        return not os.path.lexists(path)


def _folder_of(mount: dict[str, Any], folder: str, check: Callable[[], None]) -> dict[str, Any]:
    """A mount as the folder of this machine that it comes from; a device is mounted at its target, for all to see."""
    source, target = mount["source"], mount["target"]
    if mount["kind"] == "folder" and not os.path.isdir(source):  # an engine would make one
        raise CannotMount(_why_not_there(source))
    if mount["kind"] == "device":
        _beside("volumes").mount_device(source, target)
        source = target
    if mount["kind"] == "sshfs":
        source = _beside("sshfs").attach(source, folder, check)
    if mount["kind"] == "s3":
        source = _objects(source, folder, mount["cache"], check)
    return {"source": source, "target": target, "read_only": mount["kind"] == "s3"}


def _why_not_there(source: str) -> str:
    """What who was to bring a folder has left beside it."""
    try:
        with open(source + ".why", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return f"the folder `{source}` is not there"


def _objects(source: str, folder: str, cache: str, check: Callable[[], None]) -> str:
    """The folder of this machine in which objects of S3 can be read, for as long as this process lives."""
    s3 = _beside("s3")
    with open(os.path.join(folder, "inbox", "s3.json"), encoding="utf-8") as file:
        access = json.load(file)
    found: str = s3.attach(source, access, cache, check)[0]  # the descriptor beside it keeps them until we end
    return found


class Namespace:
    """This process in a mount namespace of its own, which its children are born in. One thread only."""

    def __init__(self) -> None:
        """Enter it. Raises OSError where that is not allowed."""
        self.outside = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self.is_users = os.geteuid() != 0
        self.places: list[tuple[int, str, list[str]]] = []  # folders that were made to mount on, and their locks
        try:
            if self.is_users:
                _enter_user_namespace()
            else:
                _call("unshare", NEWNS)
            _call("mount", b"none", b"/", None, REC | SLAVE, None)
        except OSError:
            os.close(self.outside)
            raise
        self.owner = os.getpid(), os.stat("/proc/self/ns/mnt").st_ino  # as `join_task` asks for

    def leave(self) -> bool:
        """Go back to where it came from; False where that cannot be, and this process should do nothing else."""
        for held, target, made in reversed(self.places):
            _remove_place(held, target, made)
        try:
            if self.is_users:
                return False
            _call("setns", self.outside, NEWNS)
            return True
        except OSError:
            return False
        finally:
            os.close(self.outside)

    def bind(self, source: str, target: str, *, read_only: bool = False) -> None:
        """Have what is in the folder `source` seen at `target`, too. Raises CannotMount."""
        if not os.path.isdir(source):
            raise CannotMount(f"the folder `{source}` is not there")
        try:
            self.places.append(_hold_place(target))
            _bind(source, target)
            if read_only:
                _call("mount", b"none", os.fsencode(target), None, BIND | REMOUNT | RDONLY | _flags_of(target), None)
        except OSError as error:
            raise CannotMount(f"nothing can be mounted at `{target}`: {_said(error)}") from None

    def show_workspace(self, folder: str) -> None:
        """Have the task's copy of the project seen at /workspace, where the machine has nothing itself."""
        with contextlib.suppress(CannotMount):
            self.bind(folder, WORKSPACE)


def _enter_user_namespace() -> None:
    """As who we are: every file keeps its owner, and those of others are theirs as before."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", NEWNS | NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def join_task(folder: str, pid: int, number: int) -> None:
    """Enter the namespaces of the task of `folder`: those of its runner, where they are those of that number.

    A runner leaves them after it has reported the end of the task: what was opened before a look at the report that
    tells no end is the task's own, and not the machine's or the next task's. Raises OSError. One thread only.
    """
    try:
        spaces = _open_namespaces(pid)
    except FileNotFoundError:
        raise _over() from None
    _check_goes_on(folder)
    if os.fstat(spaces["mnt"]).st_ino != number:
        raise _over()
    _join(spaces)


def _check_goes_on(folder: str) -> None:
    """Raises ProcessLookupError where the task of `folder` has ended."""
    with open(os.path.join(folder, "status.json"), encoding="utf-8") as file:
        if json.load(file)["phase"] == "ended":
            raise _over()


def _over() -> ProcessLookupError:
    return ProcessLookupError(errno.ESRCH, "it has ended")


def _open_namespaces(pid: int) -> dict[str, int]:
    return {name: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "mnt")}


def _join(spaces: dict[str, int]) -> None:
    if not os.path.sameopenfile(spaces["user"], os.open("/proc/self/ns/user", os.O_RDONLY)):
        _call("setns", spaces["user"], NEWUSER)
    _call("setns", spaces["mnt"], NEWNS)


def _hold_place(target: str) -> tuple[int, str, list[str]]:
    """A folder to mount on, with a lock by which other tasks see that it is used, and which of it was made for that."""
    for _ in range(10):
        made = _make_place(target)
        with contextlib.suppress(FileNotFoundError):  # one who used it removed it just now
            held = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(held, fcntl.LOCK_SH)
            if os.path.exists(target):
                return held, target, made
            os.close(held)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _remove_place(held: int, target: str, made: list[str]) -> None:
    """Leave nothing behind: what was made to mount on goes, unless another task mounts there or something is in it."""
    with contextlib.suppress(OSError):
        if made:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _call("umount2", os.fsencode(target), DETACH)
            for folder in reversed(made):
                os.rmdir(folder)
    os.close(held)


def _make_place(target: str) -> list[str]:
    """A folder at `target` to mount on; the folders that were made on the disk for that.

    Where none can be made, what is above it is shown anew, with one more entry.
    """
    missing: list[str] = []
    above = target
    while not os.path.lexists(above):
        missing.insert(0, above)
        above = os.path.dirname(above)
    try:
        os.makedirs(target, exist_ok=True)
        return missing
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    above = os.path.dirname(target)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    _show_anew(above)
    os.makedirs(target)
    return []


def _show_anew(folder: str) -> None:
    """Put an empty file system over a folder, with every entry of it bound to what it was."""
    if folder == "/":
        return _show_root_anew()
    held = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    names = os.listdir(folder)
    _call("mount", OURS.encode(), os.fsencode(folder), b"tmpfs", 0, b"mode=555")
    _bind_entries(f"/proc/self/fd/{held}", names, folder)
    os.close(held)
    return None


def _show_root_anew() -> None:
    """The same for `/`, which cannot be covered: it is exchanged, twice, so that nothing covers what is to be seen."""
    _call("mount", OURS.encode(), b"/tmp", b"tmpfs", 0, b"mode=755")
    os.mkdir("/tmp/old")
    os.mkdir("/tmp/new", 0o555)  # nobody could write there before, and what is written there now would be lost
    os.chdir("/tmp")
    _pivot(b".", b"old")
    os.chdir("/")
    _bind("/new", "/new")  # only a mount can become the root
    _bind_entries("/old", os.listdir("/old"), "/new")
    _call("umount2", b"/old", DETACH)
    os.chdir("/new")
    _pivot(b".", b".")
    _call("umount2", b".", DETACH)
    os.chdir("/")


def _bind_entries(source: str, names: list[str], target: str) -> None:
    for name in names:
        entry, place = os.path.join(source, name), os.path.join(target, name)
        if os.path.islink(entry):
            os.symlink(os.readlink(entry), place)
            continue
        if os.path.isdir(entry):
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
        _bind(entry, place)


def _pivot(root: bytes, old: bytes) -> None:
    number = PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "not on this kind of processor")
    _call("syscall", number, root, old)


def _bind(source: str, target: str) -> None:
    _call("mount", os.fsencode(source), os.fsencode(target), None, BIND | REC, None)


def _call(name: str, *args: Any) -> int:
    result: int = getattr(LIBC, name)(*args)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _flags_of(path: str) -> int:
    """What a mount is limited to already: in a user namespace none of it may be left out when it is mounted anew."""
    flags = os.statvfs(path).f_flag
    return flags & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME) | (
        RELATIME if flags & os.ST_RELATIME else 0
    )


def _said(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def add(folder: str, source: str, name: str) -> None:
    """Bind `source` at /mnt/NAME for the task that runs in `folder`. Raises CannotMount."""
    target = "/mnt/" + name
    try:
        with open(os.path.join(folder, "env.json"), encoding="utf-8") as file:
            place = json.load(file)
        if not place.get("container") and not place.get("namespace_of"):
            raise CannotMount(
                "it has no mounts of its own, as it was started by an ordinary user without a volume: start it with "
                "`volumes`, or with `options: {private_mounts: true}`"
            )
        if not source.startswith("/"):
            source = _beside("sshfs").attach(source, folder)
        if place.get("container"):
            return _add_to_container(folder, place["container"], source, target)
        ours = os.stat(source)
        tree = _tree(source) if os.path.ismount(source) else None
        join_task(folder, *place["namespace_of"])
        if ("/mnt", OURS) not in [(one.path, one.source) for one in mount_points.mounted()]:
            _hold_place("/mnt")
            _show_anew("/mnt")  # so that nothing is left there when the task has ended
        os.makedirs(target, exist_ok=True)
        if os.path.samestat(ours, os.stat(target)):
            return None  # it is there already
        if tree is not None:
            return _move(tree, target)
        if not os.path.samestat(ours, os.stat(source)):
            raise CannotMount("a mount does not get into the task of an ordinary user: start it with `volumes`")
        _bind(source, target)
    except FileNotFoundError as error:
        raise CannotMount(f"`{error.filename}` is not there") from None
    except OSError as error:
        raise CannotMount(_said(error)) from None


def _add_to_container(folder: str, container: list[str], source: str, target: str) -> None:
    """Take the folder along as a mount of its own, since the container's namespace does not hold its path."""
    if os.geteuid() != 0:
        raise CannotMount("a container of an ordinary user takes no volume later: start the task with `volumes`")
    pid = _first_process(folder, *container)
    ours, tree = os.stat(source), _tree(source)
    _join(_open_namespaces(pid))
    os.makedirs(target, exist_ok=True)
    if not os.path.samestat(ours, os.stat(target)):  # else it is there already
        _move(tree, target)


def _tree(source: str) -> int | None:
    """What is seen at `source`, to be taken into another namespace; None for an ordinary user."""
    if os.geteuid() != 0:
        return None
    return _call("syscall", OPEN_TREE, -100, os.fsencode(source), TREE_CLONE | os.O_CLOEXEC)


def _move(tree: int | None, target: str) -> None:
    _call("syscall", MOVE_MOUNT, tree, b"", -100, os.fsencode(target), FROM_NOTHING)


def _first_process(folder: str, engine: str, name: str) -> int:
    """The process of a container, which may just be on its way."""
    import subprocess  # the local scheduler loads this module, and pays for `threading` at each of its forks

    deadline = time.monotonic() + CONTAINER_SECONDS
    while True:
        ask = [engine, "inspect", "--format", "{{.State.Pid}}", name]
        asked = subprocess.run(ask, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        if asked.returncode == 0 and int(asked.stdout) > 0:
            return int(asked.stdout)
        _check_goes_on(folder)
        if time.monotonic() > deadline:
            raise CannotMount(f"its container has not started after {CONTAINER_SECONDS} s")
        time.sleep(0.1)


def main(argv: list[str]) -> NoReturn:
    """`add DIR SOURCE NAME`."""
    if argv[:1] == ["keep"]:  # for who was sent along
        _beside("sshfs").keep(*argv[1:])
        sys.exit(0)
    if len(argv) != 4 or argv[0] != "add":
        sys.exit("usage: mounts.py add DIR SOURCE NAME")
    try:
        add(*argv[1:])
    except CannotMount as error:
        sys.exit(str(error))
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
