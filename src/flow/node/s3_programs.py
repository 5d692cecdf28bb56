"""The programs that mount S3, and how each is told to do it read-only, with its cache on disk and without a hang.

Each gives its command line, to which the place to mount at is added, and the variables that bring the credentials.
Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow.node.s3_place import Place

KEPT_HOURS = 7 * 24  # how long rclone keeps what no task used; s3_folders.py does so for all
FRESH_SECONDS = 10  # how soon what changed in the bucket is seen
# How long one try waits for a server that says nothing. The programs try often: a read fails after two to five minutes.
SILENT_SECONDS = 10
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_ESCAPES = {ord("\\"): "\\\\", ord(","): "\\,"}  # in an option of FUSE


def s3fs(place: Place, access: dict[str, str], cache: str, free_megabytes: int) -> tuple[list[str], dict[str, str]]:
    """Source: s3fs(1). The umask is for objects that carry a mode of their own."""
    options: dict[str, Any] = {"url": place.url, "endpoint": place.region, "use_cache": cache}
    options.update(umask="0222", mp_umask="0222", stat_cache_expire=FRESH_SECONDS, ensure_diskfree=free_megabytes // 4)
    options.update(connect_timeout=SILENT_SECONDS, readwrite_timeout=SILENT_SECONDS, retries=3)
    words = [f"{name}={str(value).translate(_ESCAPES)}" for name, value in options.items()] + ["ro"]
    words += ["use_path_request_style"] if place.has_bucket_in_path else []
    words += ["public_bucket=1"] if access.get("AWS_NO_SIGN_REQUEST") else []
    source = f"{place.bucket}:/{place.prefix.rstrip('/')}"
    env = {name: access[name] for name in KEYS if name in access}
    env.update({name.replace("_", ""): value for name, value in env.items()})  # as older releases know them
    return ["s3fs", source, "-f", "-o", ",".join(words)], env


def rclone(place: Place, access: dict[str, str], cache: str, free_megabytes: int) -> tuple[list[str], dict[str, str]]:
    """Source: rclone.org, "rclone mount" and "s3". Credentials by its own names, or it asks AWS's library."""
    argv = ["rclone", "mount", f":s3:{place.bucket}/{place.prefix}", "--config", "", "--read-only"]
    argv += ["--s3-provider", "Other" if place.endpoint else "AWS", "--s3-region", place.region]
    argv += ["--s3-endpoint", place.endpoint] if place.endpoint else []
    argv += ["--s3-force-path-style=" + ("true" if place.has_bucket_in_path else "false"), "--umask", "0222"]
    argv += ["--cache-dir", cache, "--vfs-cache-mode", "full", "--vfs-cache-max-age", f"{KEPT_HOURS}h"]
    argv += ["--vfs-cache-max-size", f"{free_megabytes // 4 * 3}M", "--dir-cache-time", f"{FRESH_SECONDS}s"]
    argv += ["--use-server-modtime", "--contimeout", f"{SILENT_SECONDS}s", "--timeout", f"{SILENT_SECONDS}s"]
    argv += ["--low-level-retries", "1", "--retries", "1"]
    env = {name.replace("AWS", "RCLONE_S3"): access[name] for name in KEYS if name in access}
    return argv, env


def mount_s3(place: Place, access: dict[str, str], cache: str, free_megabytes: int) -> tuple[list[str], dict[str, str]]:
    """Source: Mountpoint for Amazon S3, doc/CONFIGURATION.md. It keeps 5 % of the disk free by itself."""
    os.makedirs(cache, mode=0o700, exist_ok=True)
    argv = ["mount-s3", "--foreground", "--read-only", "--cache", cache, "--metadata-ttl", str(FRESH_SECONDS)]
    argv += ["--region", place.region, "--file-mode", "0444", "--dir-mode", "0555"]
    argv += ["--endpoint-url", place.endpoint] if place.endpoint else []
    argv += ["--force-path-style"] if place.has_bucket_in_path else []
    argv += ["--prefix", place.prefix] if place.prefix else []
    argv += ["--no-sign-request"] if access.get("AWS_NO_SIGN_REQUEST") else []
    return [*argv, place.bucket], {name: access[name] for name in KEYS if name in access}


# In this order: rclone keeps what it read from mount to mount, and what may not be read is an error; s3fs keeps it, but
# shows such an object as an empty file; mount-s3 keeps nothing.
COMMANDS = {"rclone": rclone, "s3fs": s3fs, "mount-s3": mount_s3}
