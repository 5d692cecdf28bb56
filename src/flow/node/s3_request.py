"""Signed questions to S3; before anything is mounted: is there something at this path, and in which region.

So that whatever is wrong is told in a sentence, not by a mount that shows an empty folder. Standard library, Python 3.8
and up.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import importlib
import re
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    from flow.node.s3_place import Place


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


CannotMount = _beside("mount_points").CannotMount
SECONDS = 10  # until an endpoint that says nothing is given up
PAUSES = (0.5, 2)  # before the question is asked again, where S3 says that it is busy
WHY = {
    "NoSuchBucket": "there is no bucket `{bucket}` at {where}",
    "InvalidBucketName": "no bucket can be called `{bucket}`",
    "InvalidAccessKeyId": "{where} does not know the key in AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not the secret of the key in AWS_ACCESS_KEY_ID",
    "ExpiredToken": "AWS_SESSION_TOKEN has expired: get new credentials and submit again",
    "InvalidToken": "AWS_SESSION_TOKEN does not belong to the key in AWS_ACCESS_KEY_ID",
    "RequestTimeTooSkewed": "the clock of this machine is wrong by minutes, and S3 refuses what it signs",
}


BROKEN = (OSError, http.client.HTTPException, ET.ParseError, ValueError)  # what is raised where there is no answer


class Refused(Exception):  # noqa: N818
    """S3's answer that is none: status, method, code, message, and the bucket's region where it tells that."""


def find(source: str, access: dict[str, str]) -> Place:
    """The place of `source` ("bucket/path"), in the region where the bucket is, once something was seen there.

    An empty bucket will do, an empty path will not. Raises CannotMount.
    """
    place = place_of(source, access)
    bucket, path = place.bucket, place.prefix.rstrip("/")
    try:
        keys, place = first_keys(place, place.prefix, access)
        if keys:
            _check_readable(place, access, keys[0])  # s3fs shows what may not be read as empty files
        if keys or not path:
            return place
        if path in first_keys(place, path, access)[0]:
            folder = path.rpartition("/")[0]
            raise CannotMount(f"that is an object, not a folder; mount `s3://{bucket}/{folder}` and read it there")
    except Refused as refusal:
        raise CannotMount(reason(place, access, refusal)) from None
    except CannotMount:
        raise
    except BROKEN as error:
        raise CannotMount(unreachable(place, error)) from None
    raise CannotMount(f"there is nothing at that path in the bucket `{bucket}`")


def place_of(source: str, access: dict[str, str]) -> Place:
    """The place of `source`, in the region that `access` says. Raises CannotMount where no bucket is called so."""
    bucket, _, path = source.partition("/")
    path = path.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{1,254}", bucket):
        raise CannotMount(WHY["InvalidBucketName"].format(bucket=bucket))
    endpoint = access.get("AWS_ENDPOINT_URL", "").rstrip("/")
    region = access.get("AWS_REGION") or "us-east-1"
    return _beside("s3_place").Place(bucket, path and path + "/", endpoint, region)  # type: ignore[no-any-return]


def _check_readable(place: Place, access: dict[str, str], key: str) -> None:
    try:
        ask(place, access, "HEAD", object_url(place, key))
    except Refused as refusal:
        if refusal.args[0] != 404:  # else it was there a moment ago
            raise


def unreachable(place: Place, error: Exception) -> str:
    """Why there was no answer."""
    return f"cannot reach {place.url}: {getattr(error, 'reason', None) or error}"


def reason(place: Place, access: dict[str, str], refusal: Refused) -> str:
    """What an answer that is none means, in a sentence."""
    status, method, code, message, _ = refusal.args
    denied = {"GET": "list `s3://{bucket}/{prefix}` (permission s3:ListBucket)"}
    denied["HEAD"] = "read what is in `s3://{bucket}/{prefix}` (permission s3:GetObject)"
    denied["PUT"] = "write to `s3://{bucket}/{prefix}` (permission s3:PutObject)"
    who = "who has no credentials" if access.get("AWS_NO_SIGN_REQUEST") else "who has these credentials"
    sentence = WHY.get(code) or "{where} answers {status} {code} {message}"
    if status == 403 and code not in WHY:
        sentence = f"{who} may not {denied['PUT' if method == 'POST' else method]}"
    told = {"where": place.url, "status": status, "code": code, "message": message}
    return sentence.format(**place._asdict(), **told).strip()


def first_keys(place: Place, prefix: str, access: dict[str, str]) -> tuple[list[str], Place]:
    """The first keys that begin with `prefix`, and the place with its true region. Raises Refused, OSError."""
    try:
        text = ask(place, access, "GET", list_url(place, prefix))[0]
    except Refused as refusal:
        region = refusal.args[-1]
        if not region or region == place.region:
            raise
        place = place._replace(region=region)  # S3 answers 301 or 400 where the bucket is elsewhere
        text = ask(place, access, "GET", list_url(place, prefix))[0]
    tree = ET.fromstring(text)
    if not tree.tag.endswith("ListBucketResult"):
        raise ValueError("it does not answer as S3 does")
    return [str(key.text) for key in tree.findall("{*}Contents/{*}Key")], place


def ask(place: Place, access: dict[str, str], method: str, url: str, body: bytes = b"") -> tuple[bytes, Any]:
    """The answer and its headers; where S3 is busy, again after a while. Raises Refused, OSError."""
    for pause in (*PAUSES, None):
        try:
            with opened(place, access, method, url, body) as answer:
                return bytes(answer.read()), answer.headers
        except Refused as refusal:
            if refusal.args[0] < 500 or pause is None:
                raise
            time.sleep(pause)
    raise AssertionError


def opened(place: Place, access: dict[str, str], method: str, url: str, body: bytes = b"") -> Any:
    """The answer, to be read. Raises Refused, OSError."""
    headers = signed(method, url, place.region, access, now=time.gmtime(), body=body)
    if method in ("PUT", "POST"):
        headers["content-type"] = "application/octet-stream"
    request = urllib.request.Request(
        url, data=body if method in ("PUT", "POST") else None, headers=headers, method=method
    )
    try:
        return urllib.request.build_opener(_NoRedirect).open(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        code, message = (between(text, name) for name in ("Code", "Message"))
        region = error.headers.get("x-amz-bucket-region") or between(text, "Region")
        raise Refused(error.code, method, code, message, region) from None


def list_url(place: Place, prefix: str) -> str:
    """Of the question for the first key (of ListObjectsV2) that begins with `prefix`."""
    query = {"list-type": "2", "max-keys": "1", "prefix": prefix}
    return f"{object_url(place, '')}?{urlencode(query, quote_via=quote, safe='-_.~')}"


def object_url(place: Place, key: str) -> str:
    """Of an object; of the bucket, where `key` is ""."""
    scheme, host, path, *_ = urlsplit(place.url)
    if place.has_bucket_in_path:
        path += f"/{place.bucket}" + (key and "/")
    else:
        host, path = f"{place.bucket}.{host}", "/"
    return f"{scheme}://{host}{path}{quote(key, safe='/-_.~')}"


def signed(
    method: str, url: str, region: str, access: dict[str, str], *, now: time.struct_time, body: bytes = b""
) -> dict[str, str]:
    """The headers of a request whose query is in order and quoted as it must be; none without a key.

    Source: AWS, "Signature Version 4 signing process", with the payload's hash in a header as S3 asks.
    """
    if access.get("AWS_NO_SIGN_REQUEST"):
        return {}
    _, host, path, query, _ = urlsplit(url)
    moment, payload = time.strftime("%Y%m%dT%H%M%SZ", now), hashlib.sha256(body).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": payload, "x-amz-date": moment}
    if access.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = access["AWS_SESSION_TOKEN"]
    names = ";".join(sorted(headers))
    lines = [f"{name}:{headers[name]}" for name in sorted(headers)]
    canonical = "\n".join([method, path, query, *lines, "", names, payload])
    scope = [moment[:8], region, "s3", "aws4_request"]
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = ("AWS4" + access["AWS_SECRET_ACCESS_KEY"]).encode()
    for word in scope:
        key = hmac.new(key, word.encode(), hashlib.sha256).digest()
    text = "\n".join(["AWS4-HMAC-SHA256", moment, "/".join(scope), digest])
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    credential = "/".join([access["AWS_ACCESS_KEY_ID"], *scope])
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
    return headers


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A request that goes elsewhere must be signed anew."""

    def redirect_request(self, *_: Any) -> None:
        return None


def between(text: str, name: str) -> str:
    """The text of an element of an answer; "" where it has none."""
    found = re.search(f"<{name}>(.*?)</{name}>", text, re.S)
    return found[1].strip() if found else ""
