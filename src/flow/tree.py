"""A project folder -> its entries that no rule leaves out; what an index knows is neither listed nor read again.

A file or folder is trusted when its size, times, inode and mode are as they were, unless it had changed so shortly
before they were taken that a later change could have left the same times (git calls that racily clean).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import stat
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from flow.durable import private, why
from flow.errors import ValidationError
from flow.ignore import Rules, parse_rules

Signature = list[int]  # size, mtime_ns, ctime_ns, inode, mode; size -1: not to be trusted

_VERSION = 1
_NEVER_TAKEN = frozenset((".git", ".hg", ".svn"))
_MARKS_OF_THE_LEFT_OUT = frozenset(("pyvenv.cfg", "CACHEDIR.TAG"))  # virtual environments, caches
_TICK_NS = 20_000_000  # file times advance in steps of up to 10 ms
_COARSE_TICK_NS = 2_000_000_000  # on file systems that keep whole seconds


@dataclass(slots=True)
class File:
    """A regular file of the bundle; `digest` is "" until its content was read."""

    name: str
    signature: Signature  # as it was when its content was read
    digest: str = ""


@dataclass(slots=True)
class Folder:
    """What one folder holds for the bundle. `path` is relative to the project, "" for the project itself."""

    path: str
    signature: Signature
    rules: str = ""  # stands for every ignore file that had a say in what is taken
    own_rules: tuple[Signature, str] | None = None  # signature and SHA-256 of the ignore file in it
    left_out: bool = False  # it says itself that it is no part of a project
    files: list[File] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Index:
    """The folders by path, as they were when the bundle was made of them; "" where it was not finished."""

    bundle_id: str = ""
    files: int = 0
    bytes: int = 0
    folders: dict[str, Folder] = field(default_factory=dict)


def read_index(path: Path) -> Index:
    """The index in this file; an empty one where there is none that can be read."""
    try:
        version, head, folders = json.loads(path.read_bytes())
        index = Index(*head)
        if version != _VERSION:
            return Index()
        for name, signature, rules, own, left_out, files, links, inner, notes in folders:
            index.folders[name] = Folder(
                name,
                signature,
                rules,
                own and (own[0], own[1]),
                left_out,
                [File(*f) for f in files],
                links,
                inner,
                notes,
            )
        return index
    except (OSError, ValueError, LookupError, TypeError):
        return Index()


def write_index(path: Path, index: Index) -> None:
    """Replace the index whole; it is a cache, so nothing waits for the disk. Raises OSError."""
    folders = []
    for f in index.folders.values():
        files = [(file.name, file.signature, file.digest) for file in f.files]
        folders.append((f.path, f.signature, f.rules, f.own_rules, f.left_out, files, f.links, f.folders, f.notes))
    values = (_VERSION, (index.bundle_id, index.files, index.bytes), folders)
    temporary = path.with_suffix(f".{os.getpid()}-{time.monotonic_ns():x}")
    with open(temporary, "w", opener=private) as file:
        file.write(json.dumps(values, separators=(",", ":")))
    temporary.replace(path)


class Walk:
    """One look at a whole project: `folders` by path, and the files `unread` since they changed.

    What vanishes meanwhile is not in it. Raises ValidationError naming what cannot be read.
    """

    def __init__(self, root: str, known: Index, *, excluded: Collection[str] = ()) -> None:
        """`root` is absolute and real; `excluded` are folders to leave out, relative to it."""
        self.folders: dict[str, Folder] = {}
        self.unread: list[tuple[Folder, File]] = []
        self.listed_again = False
        self.ignore_file = ".flowignore" if os.path.lexists(f"{root}/.flowignore") else ".gitignore"
        self._root = root
        self._known = known.folders
        self._excluded = frozenset(excluded)
        self._began_ns = time.time_ns()
        self._walk()

    def index(self, bundle_id: str = "", files: int = 0, size: int = 0) -> Index:
        """What to know next time: entries that may have changed unseen after they were looked at are marked."""
        for folder in self.folders.values():
            self._distrust_if_fresh(folder.signature)
            if folder.own_rules:
                self._distrust_if_fresh(folder.own_rules[0])
            for file in folder.files:
                self._distrust_if_fresh(file.signature)
        return Index(bundle_id, files, size, self.folders)

    def forget(self, folder: Folder, name: str) -> None:
        """`name` has vanished from `folder`, which is to be listed again next time."""
        folder.files = [file for file in folder.files if file.name != name]
        folder.folders = [inner for inner in folder.folders if inner != name]
        folder.signature[0] = -1
        self.listed_again = True

    def unreadable(self, error: OSError) -> NoReturn:
        """Raise what the user is told when a file or folder of the project cannot be read."""
        full = Path(error.filename)
        while full != Path(self._root) and not os.access(full.parent, os.R_OK | os.X_OK):
            full = full.parent
        readable = f"make it readable: `chmod u+rX {shlex.quote(shown(str(full)))}`"
        if full == Path(self._root):
            raise ValidationError(
                f"the project `{shown(self._root)}` cannot be read: {why(error)}", suggestions=[readable]
            )
        path = shown(os.path.relpath(full, self._root))
        raise ValidationError(
            f"`{path}` of the project cannot be read: {why(error)}",
            suggestions=[f"leave it out by a line `/{path}` in the project's `{self.ignore_file}`", readable],
        ) from error

    def _walk(self) -> None:
        beginning = "\0".join((self.ignore_file, *sorted(self._excluded)))
        waiting: list[tuple[str, str, tuple[_RuleFile, ...]]] = [("", beginning, ())]
        while waiting:
            path, rules, chain = waiting.pop()
            try:
                folder, chain = self._look(path, rules, chain)
            except (FileNotFoundError, NotADirectoryError) as error:
                if not path:
                    self.unreadable(error)
                above, _, name = path.rpartition("/")
                self.forget(self.folders[above], name)
                continue
            except OSError as error:
                self.unreadable(error)
            self.folders[path] = folder
            if not folder.left_out:
                prefix = f"{path}/" if path else ""
                waiting.extend((prefix + name, folder.rules, chain) for name in folder.folders)

    def _look(self, path: str, rules: str, chain: tuple[_RuleFile, ...]) -> tuple[Folder, tuple[_RuleFile, ...]]:
        signature = signature_of(os.lstat(f"{self._root}/{path}"))
        if not stat.S_ISDIR(signature[-1]):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", path)
        known = self._known.get(path)
        as_it_was = known is not None and known.signature == signature
        own = self._own_rules(path, known if as_it_was else None)
        if own:
            rules = hashlib.sha256(f"{rules}\0{path}\0{own.digest}".encode(errors="surrogateescape")).hexdigest()
            chain = (*chain, own)
        if known and as_it_was and known.rules == rules:
            folder = known
        else:
            self.listed_again = True
            folder = self._list(Folder(path, signature, rules), chain)
        folder.own_rules = (own.signature, own.digest) if own else None
        self._look_at_files(folder, known)
        return folder, chain

    def _own_rules(self, path: str, known: Folder | None) -> _RuleFile | None:
        """The ignore file in this folder; `known` is given where its list of names is as it was."""
        if known and not known.own_rules:
            return None
        full = _join(self._root, path, self.ignore_file)
        try:
            signature = signature_of(os.lstat(full))
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(signature[-1]) and self.ignore_file == ".flowignore":
            raise ValidationError(
                f"`{_join('', path, self.ignore_file)[1:]}` is a link, and links are not followed",
                suggestions=["copy the file there"],
            )
        if not stat.S_ISREG(signature[-1]):  # as git does
            return None
        depth = len(os.fsencode(path)) + 1 if path else 0
        if known and known.own_rules and known.own_rules[0] == signature:
            return _RuleFile(full, depth, signature, known.own_rules[1])
        return _RuleFile(full, depth, signature)

    def _list(self, folder: Folder, chain: tuple[_RuleFile, ...]) -> Folder:
        prefix = f"{folder.path}/" if folder.path else ""
        with os.scandir(f"{self._root}/{folder.path}") as entries:
            listing = sorted(entries, key=lambda entry: entry.name)
        if prefix and any(e.name in _MARKS_OF_THE_LEFT_OUT and e.is_file(follow_symlinks=False) for e in listing):
            folder.left_out = True
            return folder
        for entry in listing:
            path = prefix + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name in _NEVER_TAKEN or path in self._excluded or (is_folder and entry.name == "__pycache__"):
                continue
            if chain and _is_ignored(os.fsencode(path), chain, is_folder=is_folder):
                continue
            if is_folder:
                folder.folders.append(entry.name)
            elif entry.is_symlink():
                folder.links.append((entry.name, os.readlink(f"{self._root}/{path}")))  # noqa: PTH115
            elif entry.is_file(follow_symlinks=False):
                folder.files.append(File(entry.name, [-1, 0, 0, 0, 0]))
            else:
                folder.notes.append(f"`{shown(path)}` is not uploaded: it is neither a file, a folder nor a link")
        return folder

    def _look_at_files(self, folder: Folder, known: Folder | None) -> None:
        """Find out which files are as the index knows them; the others are unread."""
        before = {} if folder is known or not known else {file.name: file for file in known.files}
        prefix = f"{folder.path}/" if folder.path else ""
        full = f"{self._root}/{prefix}"
        for file in tuple(folder.files):
            if file.name in before:
                file.signature, file.digest = before[file.name].signature, before[file.name].digest
            try:
                now = os.lstat(full + file.name)
            except FileNotFoundError:
                self.forget(folder, file.name)
                continue
            if [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_mode] != file.signature:
                self.unread.append((folder, file))

    def _distrust_if_fresh(self, signature: Signature) -> None:
        _, mtime, ctime, _, _ = signature
        tick = _TICK_NS if mtime % 1_000_000_000 or ctime % 1_000_000_000 else _COARSE_TICK_NS
        if max(mtime, ctime) + tick >= self._began_ns:
            signature[0] = -1


class _RuleFile:
    """An ignore file, opened only when its digest is not known or a path must be held against it."""

    def __init__(self, path: str, depth: int, signature: Signature, digest: str = "") -> None:
        self.depth = depth  # length of the path of its folder, with the slash
        self.signature = signature
        self._path = path
        self._rules: Rules | None = None
        self.digest = digest or hashlib.sha256(self._read()).hexdigest()

    @property
    def rules(self) -> Rules:
        if self._rules is None:
            self._rules = parse_rules(self._read())
        return self._rules

    def _read(self) -> bytes:
        handle = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            return file.read()


def _is_ignored(path: bytes, chain: Iterable[_RuleFile], *, is_folder: bool) -> bool:
    """The nearest ignore file that says anything of the path decides."""
    for own in reversed(tuple(chain)):
        verdict = own.rules.verdict(path[own.depth :], is_folder=is_folder)
        if verdict is not None:
            return verdict
    return False


def signature_of(now: os.stat_result) -> Signature:
    """What tells a file or folder from what it was before."""
    return [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_mode]


def shown(path: str) -> str:
    """A path as text that can be printed, whatever its bytes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _join(root: str, path: str, name: str) -> str:
    return f"{root}/{path}/{name}" if path else f"{root}/{name}"
