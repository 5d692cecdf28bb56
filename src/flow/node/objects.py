"""One object of S3: put there whole, in parts where it is large, and read back. Standard library, Python 3.8 and up."""

from __future__ import annotations

import contextlib
import importlib
import time
from typing import TYPE_CHECKING, Any, Iterator
from urllib.parse import quote

if TYPE_CHECKING:
    from flow.node.s3_place import Place

request = importlib.import_module(f"{__package__}.s3_request" if __package__ else "s3_request")
PART_BYTES = 64 << 20  # an object has at most 10,000 parts, so 640 GB
PAUSES = (1, 4, 16)  # before it is tried again where there is no answer


class Failed(Exception):  # noqa: N818  # it is what S3 or the network says
    """Why an object cannot be put or read, in one sentence for the user."""


def locate(source: str, access: dict[str, str]) -> Place:
    """The place of `source` ("bucket/path"), in the region where the bucket is; it may be empty. Raises Failed."""
    with _in_words(place := _place_of(source, access), access):
        try:
            return request.first_keys(place, place.prefix, access)[1]  # type: ignore[no-any-return]
        except request.Refused as refusal:
            if refusal.args[0] != 403 or refusal.args[2] in request.WHY:
                raise
            return place  # who may write may not be one who may list


def check_writable(place: Place, access: dict[str, str], key: str) -> None:
    """Raises Failed where such an object could not be put; leaves none."""
    with _in_words(place, access):
        url = request.object_url(place, place.prefix + key)
        upload = _begin(place, access, url)
        request.ask(place, access, "DELETE", f"{url}?uploadId={upload}")


def put(place: Place, access: dict[str, str], key: str, source: Any) -> None:
    """What `source.read` gives: all of it is there when this returns, and nothing before. Raises Failed."""
    with _in_words(place, access):
        url = request.object_url(place, place.prefix + key)
        part = source.read(PART_BYTES)
        if len(part) < PART_BYTES:
            _ask(place, access, "PUT", url, part)
            return
        upload = _begin(place, access, url)
        tags: list[str] = []
        try:
            while part or not tags:
                at = f"{url}?partNumber={len(tags) + 1}&uploadId={upload}"
                tags.append(_ask(place, access, "PUT", at, part)[1]["ETag"])
                part = source.read(PART_BYTES)
            _complete(place, access, f"{url}?uploadId={upload}", tags)
        except BaseException:
            with contextlib.suppress(request.Refused, *request.BROKEN):
                request.ask(place, access, "DELETE", f"{url}?uploadId={upload}")
            raise


def is_there(place: Place, access: dict[str, str], key: str) -> bool:
    """Whether there is such an object. Raises Failed."""
    found = opened(place, access, key, method="HEAD")
    if found:
        found.close()
    return found is not None


def opened(place: Place, access: dict[str, str], key: str, *, method: str = "GET") -> Any:
    """The object, to be read; None where there is none. Raises Failed."""
    with _in_words(place, access):
        try:
            return request.opened(place, access, method, request.object_url(place, place.prefix + key))
        except request.Refused as refusal:
            if refusal.args[0] == 404 and refusal.args[2] != "NoSuchBucket":
                return None
            status, _, *said = refusal.args
            raise request.Refused(status, "HEAD", *said) from None  # to read one object is another right than to list


def _place_of(source: str, access: dict[str, str]) -> Place:
    try:
        return request.place_of(source, access)  # type: ignore[no-any-return]
    except request.CannotMount as error:
        raise Failed(str(error)) from None


def _begin(place: Place, access: dict[str, str], url: str) -> str:
    """The id of an upload in parts, as a URL has it."""
    answer = request.ask(place, access, "POST", f"{url}?uploads=")[0].decode()
    return quote(request.between(answer, "UploadId"), safe="-_.~")


def _complete(place: Place, access: dict[str, str], url: str, tags: list[str]) -> None:
    """S3 may say only in the answer's text that it failed. Source: S3 API, "CompleteMultipartUpload"."""
    parts = [f"<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>" for n, tag in enumerate(tags, 1)]
    body = f"<CompleteMultipartUpload>{''.join(parts)}</CompleteMultipartUpload>".encode()
    answer = _ask(place, access, "POST", url, body)[0].decode()
    if "<CompleteMultipartUploadResult" not in answer:
        raise ValueError(request.between(answer, "Message") or "it does not answer as S3 does")


def _ask(place: Place, access: dict[str, str], method: str, url: str, body: bytes) -> Any:
    """Also where the network fails for a while."""
    for pause in PAUSES:
        try:
            return request.ask(place, access, method, url, body)
        except OSError:
            time.sleep(pause)
    return request.ask(place, access, method, url, body)


@contextlib.contextmanager
def _in_words(place: Place, access: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except request.Refused as refusal:
        raise Failed(request.reason(place, access, refusal)) from None
    except request.BROKEN as error:
        raise Failed(request.unreachable(place, error)) from None
