"""Project folder -> content-addressed bundle, by .flowignore (or .gitignore): a manifest and the contents it names."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flow.blobs import Incoming, SourceChangedError, blob_path, manifest_path, store_lock
from flow.durable import write_durably, writing
from flow.errors import StorageError, ValidationError
from flow.tree import File, Folder, Walk, read_index, shown, signature_of, write_index

_TRIES = 4  # at reading a file that is being written
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A project as it was at one moment; the same content has the same id."""

    id: str
    files: int
    bytes: int
    new_files: int = 0  # contents that the store did not have yet
    new_bytes: int = 0
    notes: tuple[str, ...] = ()


def make_bundle(project: Path, store: Path, *, exclude: Collection[Path] = ()) -> Bundle:
    """Take the project as it is now; its contents and manifest are on disk when this returns.

    Left out are what the ignore files say, version control, caches, virtual environments, `store` and `exclude`. Links
    are kept as links and never followed. To be called under `store_lock(store)` until the bundle's id is recorded.
    Raises ValidationError naming what cannot be read, StorageError when the store cannot take it.
    """
    root = _real_root(project)
    excluded = {path for path in (_inside(root, one) for one in (store, *exclude)) if path}
    with store_lock(store), Incoming(store) as incoming:
        index_path = store / "bundles-index" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.json"
        known = read_index(index_path)
        whole = bool(known.bundle_id) and manifest_path(store, known.bundle_id).exists()
        walk = Walk(root, known, excluded=excluded)
        if whole and not walk.listed_again and not walk.unread:
            return Bundle(known.bundle_id, known.files, known.bytes, notes=_notes(walk))
        if not whole:  # what the index knows may not be in the store
            walk.unread += _not_stored(walk, incoming)
        for folder, file in walk.unread:
            _read(walk, root, folder, file, incoming)
        return _store(walk, store, incoming, index_path)


def empty_bundle(store: Path) -> Bundle:
    """The bundle of a project without a file."""
    return Bundle(_keep_manifest(store, _manifest([])), files=0, bytes=0)


def add_files(
    store: Path, bundle: Bundle, files: Mapping[str, bytes], *, beside: str | None = None, mode: int = 0o644
) -> Bundle:
    """The bundle with these files (path in the project -> content) too; to be called under the same `store_lock`.

    Raises ValidationError where `beside` is no file of the bundle, StorageError when the store cannot take more.
    """
    manifest = read_manifest(store, bundle.id)
    kept = [tuple(one) for one in manifest["files"] if one[0] not in files]
    if beside is not None and not any(name == beside for name, *_ in kept):
        raise ValidationError(
            f"`{beside}` is left out of the upload by the project's ignore file",
            suggestions=["take the line that names it out of `.flowignore` (or `.gitignore`)"],
        )
    with store_lock(store), Incoming(store) as incoming:
        added = [(path, mode, incoming.add_content(content), len(content)) for path, content in files.items()]
        incoming.commit()
    content = json.dumps({**manifest, "files": sorted([*kept, *added])}, separators=(",", ":")).encode()
    bundle_id = _keep_manifest(store, content)
    sizes = sum(map(len, files.values()))
    return replace(bundle, id=bundle_id, files=len(kept) + len(added), bytes=bundle.bytes + sizes)


def read_manifest(store: Path, bundle_id: str) -> dict[str, Any]:
    """The files, links and empty folders of a bundle; raises StorageError when it is missing or damaged."""
    path = manifest_path(store, bundle_id)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"the uploaded project `{path}` cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != bundle_id:
        raise StorageError(f"the uploaded project `{path}` is damaged", suggestions=["submit the task again"])
    manifest: dict[str, Any] = json.loads(content)
    return manifest


def compressed_megabytes(store: Path, bundle_id: str, *, enough: float = float("inf")) -> float:
    """Size of the bundle's contents under gzip, in MB (10^6 bytes); beyond `enough` the rest is estimated."""
    files = read_manifest(store, bundle_id)["files"]
    total = float(sum(size for *_, size in files))
    squeeze = zlib.compressobj(6)
    read = written = 0
    for _, _, digest, _ in files:
        with blob_path(store, digest).open("rb") as blob:
            while chunk := blob.read(_CHUNK_BYTES):
                read += len(chunk)
                written += len(squeeze.compress(chunk))
                if written > enough * 1_000_000:
                    return written / read * total / 1_000_000
    return (written + len(squeeze.flush())) / 1_000_000


def check_upload_limit(store: Path, bundle: Bundle, limit_mb: float) -> None:
    """Raise ValidationError, with what to do instead, when the bundle takes more than `limit_mb` compressed."""
    if bundle.bytes <= limit_mb * 1_000_000:  # compressed it can only be smaller
        return
    size = compressed_megabytes(store, bundle.id, enough=4 * limit_mb)
    if size <= limit_mb:
        return
    raise ValidationError(
        f"Project size ({size:.1f}MB) exceeds limit ({limit_mb:g}MB)",
        suggestions=[
            f"leave out what the task does not need by `.flowignore`; the largest here: {_largest(store, bundle.id)}",
            "let the task fetch its code: `git clone … . && python train.py` with `upload_code: false`",
            "use an image that holds the code, with `upload_code: false`",
            "let the task download it from S3: `aws s3 cp s3://… .`",
            "keep it on a volume and mount that",
            "raise `upload_limit_mb` in the settings where the provider takes more",
        ],
    )


def _real_root(project: Path) -> str:
    root = os.path.realpath(project)
    if not Path(root).exists():
        raise ValidationError(f"the project folder `{project}` does not exist")
    if not Path(root).is_dir():
        raise ValidationError(f"the project `{project}` is not a folder", suggestions=["name the folder that holds it"])
    return root


def _inside(root: str, path: Path) -> str | None:
    """`path` relative to the project, or None when it lies elsewhere."""
    real = os.path.realpath(path)
    prefix = root.rstrip("/") + "/"
    return real[len(prefix) :] if real.startswith(prefix) else None


def _not_stored(walk: Walk, incoming: Incoming) -> list[tuple[Folder, File]]:
    to_read = {id(file) for _, file in walk.unread}
    return [
        (folder, file) for folder, file in _all_files(walk) if id(file) not in to_read and not incoming.has(file.digest)
    ]


def _read(walk: Walk, root: str, folder: Folder, file: File, incoming: Incoming) -> None:
    path = f"{folder.path}/{file.name}" if folder.path else file.name
    for _ in range(_TRIES):
        try:
            file.digest, now = incoming.add(f"{root}/{path}")
        except SourceChangedError:
            continue
        except FileNotFoundError:
            return walk.forget(folder, file.name)
        except OSError as error:
            walk.unreadable(error)
        file.signature = signature_of(now)
        return None
    raise ValidationError(
        f"`{shown(path)}` of the project keeps changing while it is read",
        suggestions=[
            f"leave it out by a line `/{shown(path)}` in the project's `{walk.ignore_file}`",
            "stop what writes to it",
        ],
    )


def _store(walk: Walk, store: Path, incoming: Incoming, index_path: Path) -> Bundle:
    content = _manifest(walk.folders.values())
    sizes = [file.signature[0] for _, file in _all_files(walk)]
    incoming.commit()
    bundle_id = _keep_manifest(store, content)
    with writing(store):
        index_path.parent.mkdir(mode=0o700, exist_ok=True)
        write_index(index_path, walk.index(bundle_id, len(sizes), sum(sizes)))
    return Bundle(bundle_id, len(sizes), sum(sizes), incoming.new_files, incoming.new_bytes, _notes(walk))


def _keep_manifest(store: Path, content: bytes) -> str:
    """Put a manifest into the store; its id."""
    bundle_id = hashlib.sha256(content).hexdigest()
    path = manifest_path(store, bundle_id)
    with writing(store):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            write_durably(path, content)
    return bundle_id


def _manifest(folders: Collection[Folder]) -> bytes:
    """Canonical: the same content gives the same bytes. Names that are not UTF-8 are as `os.fsdecode` gives them."""
    taken = {folder.path for folder in folders if not folder.left_out}
    files: list[tuple[str, int, str, int]] = []
    links: list[tuple[str, str]] = []
    empty: list[str] = []
    for folder in folders:
        prefix = f"{folder.path}/" if folder.path else ""
        files += [(prefix + f.name, f.signature[4] & 0o777, f.digest, f.signature[0]) for f in folder.files]
        links += [(prefix + name, target) for name, target in folder.links]
        inner = any(prefix + name in taken for name in folder.folders)
        if folder.path in taken and folder.path and not (folder.files or folder.links or inner):
            empty.append(folder.path)
    values = {"v": 1, "files": sorted(files), "links": sorted(links), "dirs": sorted(empty)}
    return json.dumps(values, separators=(",", ":")).encode()


def _all_files(walk: Walk) -> list[tuple[Folder, File]]:
    return [(folder, file) for folder in walk.folders.values() for file in folder.files]


def _notes(walk: Walk) -> tuple[str, ...]:
    return tuple(note for folder in walk.folders.values() for note in folder.notes)


def _largest(store: Path, bundle_id: str, count: int = 3) -> str:
    """The largest entries at the top of the project, before compression."""
    sizes: dict[str, int] = {}
    for path, _, _, size in read_manifest(store, bundle_id)["files"]:
        top, slash, _ = path.partition("/")
        sizes[top + slash] = sizes.get(top + slash, 0) + size
    largest = sorted(sizes.items(), key=lambda entry: -entry[1])[:count]
    return ", ".join(f"`{name}` ({size / 1_000_000:.1f}MB)" for name, size in largest)
