"""Objects of S3 as a folder without a mount: a copy, brought up to date for each task. Needs boto3; Python 3.8 and up.

By boto3 and not by requests of ours: parts in parallel, retries and checksums are its field.
"""

from __future__ import annotations

import importlib
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from flow.node.s3_place import Place


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


fuse, folders = _beside("fuse"), _beside("s3_folders")
CannotMount = _beside("mount_points").CannotMount
AT_ONCE = 8  # objects
A_DAY = 86400


def copied(place: Place, access: dict[str, str], cache: str, check: Callable[[], None]) -> tuple[str, int]:
    """The folder with the objects as they are now, and a descriptor that keeps it. Raises CannotMount.

    What an earlier task copied is used again where size and time are still the same.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    folder = folders.folder_of(cache, "copy", place)
    lock = fuse.soon(lambda: fuse.locked(os.path.join(folder, "lock")), check, A_DAY)
    if lock is None:
        raise CannotMount("another task has been copying it for a day")
    try:
        folders.touch(folder)
        files = os.path.join(folder, "files")
        os.makedirs(files, mode=0o755, exist_ok=True)
        try:
            _bring_up_to_date(_client(place, access), place, files, check)
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise CannotMount(f"cannot copy it: {error}") from None
        return files, fuse.locked(os.path.join(folder, "users"), fuse.SHARED, wait=True)
    finally:
        os.close(lock)
        folders.remove_old(cache)


def _client(place: Place, access: dict[str, str]) -> Any:
    import boto3
    import botocore

    style = {"addressing_style": "path" if place.has_bucket_in_path else "auto"}
    unsigned = {"signature_version": botocore.UNSIGNED} if access.get("AWS_NO_SIGN_REQUEST") else {}
    session = boto3.session.Session(
        access.get("AWS_ACCESS_KEY_ID"), access.get("AWS_SECRET_ACCESS_KEY"), access.get("AWS_SESSION_TOKEN"),
        place.region,
    )  # fmt: skip
    config = botocore.config.Config(s3=style, max_pool_connections=4 * AT_ONCE, **unsigned)
    return session.client("s3", endpoint_url=place.endpoint or None, config=config)


def _bring_up_to_date(client: Any, place: Place, files: str, check: Callable[[], None]) -> None:
    wanted = _files_wanted(client, place, check)
    _remove_others(files, wanted)
    missing = {path: found for path, found in wanted.items() if not _is_there(os.path.join(files, path), found)}
    size, free = sum(found["Size"] for found in missing.values()), shutil.disk_usage(files).free
    if size > free:
        raise CannotMount(f"a copy needs {size >> 20} MB, and {free >> 20} MB are free at {files}")
    given_up = threading.Event()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        going = [pool.submit(_copy, client, place.bucket, found, os.path.join(files, path), given_up)
                 for path, found in missing.items()]  # fmt: skip
        try:
            for one in going:
                fuse.soon(one.done, check, A_DAY)
                one.result()
        finally:
            given_up.set()
            for one in going:
                one.cancel()


def _files_wanted(client: Any, place: Place, check: Callable[[], None]) -> dict[str, Any]:
    """Each object by its path below the prefix; what no path can say (`a//b`, `..`) is left out, as mounts do.

    An object whose name is also a folder's is left out too.
    """
    wanted: dict[str, Any] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=place.prefix):
        check()
        for found in page.get("Contents", []):
            path = found["Key"][len(place.prefix) :]
            if not {"", ".", ".."}.intersection(path.split("/")) and "\0" not in path:
                wanted[path] = found
    above = {folder for path in wanted for folder in _above(path)}
    return {path: found for path, found in wanted.items() if path not in above}


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _remove_others(files: str, wanted: dict[str, Any]) -> None:
    """Remove the files of objects that are no more, and folders that became empty."""
    for folder, _, names in os.walk(files, topdown=False):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.relpath(path, files) not in wanted:
                os.remove(path)
        if folder != files and not os.listdir(folder):
            os.rmdir(folder)


def _is_there(path: str, found: dict[str, Any]) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_size, int(status.st_mtime)) == (found["Size"], int(found["LastModified"].timestamp()))


def _copy(client: Any, bucket: str, found: dict[str, Any], path: str, given_up: threading.Event) -> None:
    """Put it in place whole: a task that reads the earlier one goes on with that."""

    def go_on(_: int) -> None:
        if given_up.is_set():
            raise CannotMount("given up")

    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = path + ".part~"
    client.download_file(bucket, found["Key"], partial, Callback=go_on)
    time = found["LastModified"].timestamp()
    os.utime(partial, (time, time))
    os.chmod(partial, 0o444)
    os.replace(partial, path)
