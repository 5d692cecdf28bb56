"""Mithril's HTTP API: one request, its answer or what is wrong with it.

Source: the API's documentation (docs.mithril.ai) and what its servers answer; what that leaves open is read leniently.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flow.errors import (
    AuthenticationError,
    FlowError,
    ProviderError,
    QuotaExceededError,
    ResourceNotFoundError,
    ValidationError,
)

if TYPE_CHECKING:
    import urllib3

URL = "https://api.mithril.ai"
KEYS_PAGE = "https://app.mithril.ai/account/api-keys"
_PAGE = 100  # the most that one page holds
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 30.0
_TRIES = 4  # of what may be asked again
_LONGEST_WAIT = 30.0  # seconds that a server may ask us to wait, else it is the user's turn
_GATEWAYS = (502, 503, 504)  # which cannot say whether a request was carried out
_QUOTA = ("quota", "billing", "payment")
INIT = "`flow init` sets it"
_TAKEN = ("already used", "already exists", "duplicate name")


class NameTakenError(ValidationError):
    """Something live has this name already."""

    code = "name_taken"


class PriceTooLowError(ValidationError):
    """The limit price is below what is taken."""

    code = "price_too_low"


class NotKnownError(ProviderError):
    """Whether the request was carried out is not known: who asks looks for what it was to make, before asking again."""

    code = "not_known"


class Api:
    """One account, by its key; threads may share it. url: where the API is, without `/v2`; origin: of the key."""

    def __init__(self, key: str, url: str = URL, *, origin: str = "") -> None:
        self._key, self.url = key.strip(), url.rstrip("/")
        self._key_name = f"the API key of {origin}" if origin else "the API key"
        if not (self._key.isascii() and self._key.isprintable()):  # before it stands in an error of those who send it
            raise AuthenticationError(f"{self._key_name} has characters that no key has", suggestions=[INIT])
        if not self.url.startswith(("https://", "http://")):
            raise ValidationError(f"`{url}` is no address of an API", suggestions=[f"write it as `{URL}`"])
        self._pool: urllib3.PoolManager | None = None

    def get(self, path: str, **query: object) -> Any:
        """What is there; as `path`, `/v2/me`. Raises FlowError."""
        return self._asked("GET", path, query)

    def one(self, path: str, **query: object) -> dict[str, Any]:
        """The same of one thing, whose fields they are."""
        return _object(self.get(path, **query), path)

    def list(self, path: str, **query: object) -> Iterator[dict[str, Any]]:
        """Everything that a list holds, over all its pages."""
        while True:
            told = self.get(path, **query)
            yield from _entries(told)
            cursor = told.get("next_cursor") if isinstance(told, dict) else None
            if not cursor or cursor == query.get("next_cursor"):
                return
            query["next_cursor"] = cursor

    def pages(self, path: str, **query: object) -> Iterator[dict[str, Any]]:
        """The same of a list that comes in pages, as large as they may be."""
        return self.list(path, limit=_PAGE, **query)

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What was made of it. Raises NotKnownError where it may have been made; it is never asked for twice."""
        return _object(self._asked("POST", path, {}, body), path, NotKnownError)

    def update(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What it is now, {} where that is not told. The same change twice is one: it is asked for until it is done."""
        told = self._asked("PATCH", path, {}, body)
        return _object(told, path) if isinstance(told, dict) else {}

    def delete(self, path: str) -> bool:
        """Remove it; what is gone already is fine. Whether it was there."""
        try:
            self._asked("DELETE", path, {})
        except ResourceNotFoundError:
            return False
        return True

    def _asked(self, method: str, path: str, query: Mapping[str, object], body: Mapping[str, Any] | None = None) -> Any:
        for tried in range(1, _TRIES + 1):
            status, headers, text = self._sent(method, path, query, body, is_last=tried == _TRIES)
            # what was answered 429 was certainly not carried out
            may_repeat = status in (0, 429) or (status in _GATEWAYS and method != "POST")
            if not may_repeat or tried == _TRIES or not _waited(tried, headers):
                break
        if 200 <= status < 300:
            return _parsed(text, path, NotKnownError if method == "POST" else ProviderError)
        if method == "POST" and status >= 500:
            raise NotKnownError(
                f"{self.url} answered {status}, {_said(text)}: whether it did what was asked is not known"
            )
        project = str((body or query).get("project") or "")
        raise _refusal(status, headers, text, url=self.url, key_name=self._key_name, project=project)

    def _sent(
        self, method: str, path: str, query: Mapping[str, object], body: Mapping[str, Any] | None, *, is_last: bool
    ) -> tuple[int, Mapping[str, str], str]:
        """Status, headers and text; status 0 where there was no answer and it may be asked again."""
        from urllib.parse import urlencode

        import urllib3

        if self._pool is None:
            self._pool = _pool(self.url)
        words = urlencode({name: _word(value) for name, value in query.items() if value is not None})
        headers = {"Authorization": f"Bearer {self._key}", "Accept": "application/json", "User-Agent": "flow"}
        headers |= {"Content-Type": "application/json"} if body is not None else {}
        try:
            answer = self._pool.request(
                method,
                f"{self.url}{path}?{words}".rstrip("?"),
                body=None if body is None else json.dumps(body),
                headers=headers,
            )
            return answer.status, answer.headers, answer.data.decode(errors="replace")
        except (
            urllib3.exceptions.NewConnectionError,
            urllib3.exceptions.ConnectTimeoutError,
            urllib3.exceptions.ProxyError,  # of one that was not got through
        ) as error:
            if is_last:  # it never got there
                raise self._unreachable(error) from None
        except (urllib3.exceptions.LocationParseError, urllib3.exceptions.SSLError) as error:
            raise self._unreachable(error) from None
        except urllib3.exceptions.HTTPError as error:
            if method == "POST":
                said = f"{self.url} cut the connection: whether it did what was asked is not known"
                raise NotKnownError(said) from error
            if is_last:
                raise self._unreachable(error) from None
        return 0, {}, ""

    def _unreachable(self, error: Exception) -> ProviderError:
        why = str(error).rpartition(": ")[2] or type(error).__name__
        return ProviderError(
            f"{self.url} cannot be reached: {why}", suggestions=["try again in a moment", "is there a network?"]
        )


def id_of(row: Mapping[str, Any]) -> str:
    """The id of what was told. Raises ProviderError where it has none."""
    if not isinstance(row.get("fid"), str):
        raise ProviderError("something without an id was told of", suggestions=["try again in a moment"])
    return str(row["fid"])


def _pool(url: str) -> urllib3.PoolManager:
    """Connections that are kept, by way of the proxy that the environment names for such addresses."""
    from urllib.parse import unquote, urlsplit
    from urllib.request import getproxies, proxy_bypass

    import urllib3

    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS), "retries": False, "maxsize": 8,
    }  # fmt: skip
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        user = urllib3.util.parse_url(proxy).auth
        headers = urllib3.make_headers(proxy_basic_auth=unquote(user)) if user else None
        return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)
    return urllib3.PoolManager(**options)


def _waited(tried: int, headers: Mapping[str, str]) -> bool:
    """Wait before it is asked again: as the server says, else longer each time. False where that would be too long."""
    import random  # 5 ms, and hardly a request is repeated

    asked = _retry_after(headers.get("Retry-After", ""), headers.get("Date", ""))
    seconds = 0.25 * 2**tried * random.uniform(0.5, 1) if asked is None else asked
    if seconds > _LONGEST_WAIT:
        return False
    time.sleep(seconds)
    return True


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _retry_after(text: str, now: str) -> float | None:
    """The seconds of a `Retry-After`: a number, or an HTTP date (RFC 9110, 10.2.3), by the server's `Date`, `now`."""
    try:
        seconds = float(text)
    except ValueError:
        until = _moment(text)
        seconds = math.nan if until is None else until - (_moment(now) or time.time())
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _moment(text: str) -> float | None:
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


def _parsed(text: str, path: str, unread: type[ProviderError]) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError:
        raise unread(
            f"what `{path}` answered is no JSON: {text.strip()[:80]!r}", suggestions=["try again in a moment"]
        ) from None


def _object(told: Any, path: str, unread: type[ProviderError] = ProviderError) -> dict[str, Any]:
    if isinstance(told, dict) and isinstance(told.get("data"), dict):
        told = told["data"]
    if not isinstance(told, dict):
        raise unread(f"`{path}` answered something else than what was asked for")
    return told


def _entries(told: Any) -> list[dict[str, Any]]:
    """The entries of a list, bare or within an object. Raises ProviderError for what is neither."""
    if isinstance(told, dict):
        lists = [one for one in (told.get("data"), *told.values()) if isinstance(one, list)]
        told = lists[0] if lists else told
    if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
        raise ProviderError("a list was asked for, and something else came", suggestions=["try again in a moment"])
    return told


def _refusal(status: int, headers: Mapping[str, str], text: str, *, url: str, key_name: str, project: str) -> FlowError:
    """The error that an answer is, in the server's words."""
    said = _said(text) or f"error {status}"
    request = headers.get("x-request-id") or headers.get("x-correlation-id")
    said += f" (request {request})" if request else ""
    if status in (400, 402, 409, 422):
        return _refused(status, said)
    place = f" in the project `{project}`" if project else ""
    known: dict[int, tuple[type[FlowError], str, tuple[str, ...]]] = {
        401: (AuthenticationError, f"{key_name} is not accepted: ", (f"get a new one from {KEYS_PAGE}", INIT)),
        403: (
            AuthenticationError,
            f"not allowed{place}: ",
            ("`mithril projects list` has yours; `flow init` sets it",),
        ),
        404: (ResourceNotFoundError, "", ()),
        429: (ProviderError, "too many requests: ", ("try again in a minute",)),
    }
    kind, before, suggestions = known.get(
        status, (ProviderError, f"{url} answered {status}: ", ("try again in a moment",))
    )
    return kind(before + said, suggestions=suggestions)


def _refused(status: int, said: str) -> FlowError:
    """Of what was understood, and may not be."""
    low = said.lower()
    if status == 402 or any(word in low for word in _QUOTA):
        return QuotaExceededError(said, suggestions=["ask for less, or have the limit raised"])
    if any(word in low for word in _TAKEN):
        return NameTakenError(said, suggestions=["choose another name"])
    if "price" in low and "below" in low:
        return PriceTooLowError(said, suggestions=["raise `max_price_per_hour` (`flow offers` shows the prices)"])
    if "ssh key" in low:
        return ValidationError(said, suggestions=["`flow init` chooses an SSH key, or has one made"])
    return ValidationError(said)


def _said(text: str) -> str:
    """What an error's body tells, on one line: a text, a list of fields, or the beginning of a page."""
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if isinstance(told, dict):
        told = next((told[one] for one in ("detail", "message", "error") if told.get(one)), told)
    if isinstance(told, dict) and told.get("message"):
        told = told["message"]
    if isinstance(told, list):
        parts = [_field(one) if isinstance(one, dict) else str(one) for one in told]
        return "; ".join(parts)
    if isinstance(told, str):
        return told
    if text.lstrip().startswith("<"):
        return "an HTML page"
    return " ".join(text.split())[:200]


def _field(one: Mapping[str, Any]) -> str:
    """`limit_price: field required` of one field's error. Source: FastAPI."""
    loc = one.get("loc")
    place = ".".join(str(part) for part in (loc if isinstance(loc, list) else [loc]) if part not in ("body", None))
    return f"{place}: {one.get('msg', one)}" if place else str(one.get("msg", one))
