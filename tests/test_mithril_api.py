"""The client of Mithril's API: what it asks, what it makes of answers, and what it never asks twice."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from flow.errors import (
    AuthenticationError,
    FlowError,
    ProviderError,
    QuotaExceededError,
    ResourceNotFoundError,
    ValidationError,
)
from flow.providers.mithril import api as module
from flow.providers.mithril.account import Account
from flow.providers.mithril.api import Api, NameTakenError, NotKnownError, PriceTooLowError
from flow.settings import Settings
from tests.support.mithril_cloud import Cloud, faults
from tests.support.mithril_cloud.records import Project
from tests.support.processes import wait_until

BIDS = "/v2/spot/bids"
KEY = {"name": "k", "expires_at": "2026-12-24T00:00:00Z"}


@pytest.fixture
def api(cloud: Cloud) -> Api:
    cloud.machines.pretended = True
    return Api(cloud.key, cloud.url)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were to be waited; nobody waits."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that gives these answers, each on a connection of its own, and keeps what it was asked."""
    taken: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for one in answers:
                connection, _ = server.accept()
                with connection:
                    taken.append(connection.recv(65536))
                    connection.sendall(one)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], taken
        thread.join(10)


def names(cloud: Cloud) -> list[str]:
    return [one.name for one in cloud.api_keys.values()]


def test_what_is_asked_for_is_answered(api: Api, cloud: Cloud) -> None:
    assert api.one("/v2/me")["email"] == "ada@example.com"
    made = api.create("/v2/api-keys", KEY)
    assert made["secret"].startswith("fkey_")
    assert (api.delete(f"/v2/api-keys/{made['fid']}"), api.delete(f"/v2/api-keys/{made['fid']}")) == (True, False)
    key = api.create("/v2/ssh-keys", {"name": "k", "project": cloud.project})
    cloud.is_admin = True
    assert api.update(f"/v2/ssh-keys/{key['fid']}", {"required": True})["required"] is True
    cloud.faults.play(faults.garbled(b""), "PATCH")
    assert api.update(f"/v2/ssh-keys/{key['fid']}", {"required": False}) == {}
    assert {one.headers["User-Agent"] for one in cloud.requests} == {"flow"}


def test_a_list_goes_on_over_all_its_pages(api: Api, cloud: Cloud) -> None:
    key = api.create("/v2/ssh-keys", {"name": "k", "project": cloud.project})["fid"]
    cloud.quotas["it_MsIRhxj3ccyVWGfP"] = 1000
    launch = {"volumes": [], "ssh_keys": [key]}
    asked = {
        "project": cloud.project, "region": "us-central1-b", "instance_type": "it_MsIRhxj3ccyVWGfP",
        "limit_price": "$0.30", "instance_quantity": 1, "launch_specification": launch,
    }  # fmt: skip
    made = [api.create(BIDS, {**asked, "name": f"b{at}"})["fid"] for at in range(201)]
    listed = [one["fid"] for one in api.pages(BIDS, project=cloud.project, sort_by="created_at")]
    assert sorted(listed) == sorted(made)
    assert cloud.count(f"GET {BIDS}") == 3
    assert [one["name"] for one in api.list(BIDS, project=cloud.project, name="b7", status=None)] == ["b7"]
    assert len(list(api.list("/v2/instance-types"))) == 8


@pytest.mark.parametrize("wrapped", ['{"data": %s}', '{"projects": %s}', '{"items": %s, "next_cursor": null}', "%s"])
def test_a_list_is_found_within_whatever_it_comes_in(api: Api, cloud: Cloud, wrapped: str) -> None:
    cloud.faults.play(faults.garbled((wrapped % '[{"fid": "proj_1"}]').encode()), "GET")
    assert list(api.list("/v2/projects")) == [{"fid": "proj_1"}]


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (faults.UNKNOWN_KEY, AuthenticationError, "the API key is not accepted: Invalid API key"),
        (faults.NO_MEMBER, AuthenticationError, "not allowed: Not a member of project"),
        (faults.NOT_FOUND, ResourceNotFoundError, "Bid not found"),
        (faults.NAME_USED, NameTakenError, "Name already used"),
        (faults.refusal(409, "Name already exists"), NameTakenError, "Name already exists"),
        (faults.TOO_LOW, PriceTooLowError, "Limit price below minimum of $1.25"),
        (faults.QUOTA, QuotaExceededError, "Quota exceeded for h100-80gb.sxm.8x"),
        (faults.refusal(402, "Payment required"), QuotaExceededError, "Payment required"),
        (faults.INVALID, ValidationError, "limit_price: field required"),
        (faults.refusal(422, [{"loc": None, "msg": "no"}, {"loc": "x", "msg": 3}]), ValidationError, "no; x: 3"),
        (faults.refusal(400, "No SSH keys"), ValidationError, "No SSH keys"),
        (faults.refusal(418, {"message": "teapot"}), ProviderError, "{url} answered 418: teapot"),
    ],
)
def test_what_a_server_says_becomes_an_error_that_says_it(
    api: Api, cloud: Cloud, fault: faults.Fault, kind: type[FlowError], message: str
) -> None:
    cloud.faults.play(fault, times=2)
    with pytest.raises(FlowError) as told:
        api.create("/v2/api-keys", KEY)
    with pytest.raises(kind):
        api.get("/v2/me")
    assert type(told.value) is kind
    said, request = told.value.message.split(" (request ")
    assert (said, request[:4]) == (message.format(url=cloud.url), "req_")
    assert len(cloud.requests) == 2


@pytest.mark.parametrize(
    "body", [b'{"message": "no"}', b'{"error": {"message": "no"}}', b'{"detail": ["no"]}', b"no\n"]
)
def test_errors_are_read_in_whatever_shape_they_come(api: Api, cloud: Cloud, body: bytes) -> None:
    cloud.faults.play(faults.Fault(lambda _: faults.Answer(400, body)))
    with pytest.raises(ValidationError, match=r"^no \(request req_\w+\)$"):
        api.get("/v2/me")


@pytest.mark.parametrize("as_date", [False, True])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_busy_server_is_given_the_time_that_it_asks_for(
    api: Api, cloud: Cloud, waits: list[float], method: str, as_date: bool
) -> None:
    cloud.faults.play(faults.busy(20, as_date=as_date), times=2)
    api.get("/v2/me") if method == "GET" else api.create("/v2/api-keys", KEY)
    assert len(waits) == 2
    assert all(10 < seconds <= 20 for seconds in waits)
    assert len(cloud.requests) == 3


def test_a_date_is_measured_by_the_clock_of_whoever_wrote_it(waits: list[float]) -> None:
    told = "Retry-After: Fri, 01 Jan 2100 00:00:05 GMT\r\nDate: Fri, 01 Jan 2100 00:00:00 GMT\r\nConnection: close"
    busy = f"HTTP/1.1 429 Busy\r\nContent-Length: 0\r\n{told}\r\n\r\n".encode()
    with answering(busy, b"HTTP/1.1 204 OK\r\n\r\n") as (port, _):
        assert Api("k", f"http://127.0.0.1:{port}").get("/v2/me") is None
    assert waits == [5]


@pytest.mark.parametrize("word", ["", "soon", "nan", "inf", "-3", "Fri, 99 Foo 2100"])
def test_a_time_to_wait_that_says_nothing_is_our_own(api: Api, cloud: Cloud, waits: list[float], word: str) -> None:
    cloud.faults.play(faults.Fault(lambda _: faults.Answer(503, faults.HTML, {"Retry-After": word})))
    api.get("/v2/me")
    assert len(waits) == 1
    assert 0 <= waits[0] < 1


def test_a_server_that_asks_for_more_than_half_a_minute_is_left_to_the_user(
    api: Api, cloud: Cloud, waits: list[float]
) -> None:
    cloud.faults.play(faults.busy(120))
    with pytest.raises(ProviderError, match=r"^too many requests: Too many requests"):
        api.get("/v2/me")
    assert (waits, len(cloud.requests)) == ([], 1)


FAULTS = {
    "reset": faults.reset(),
    "reset after it was done": faults.taken_then_reset(),
    "502": faults.broken(502),
    "503": faults.broken(503),
    "504 after it was done": faults.taken_then(504),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_changes_nothing_twice_is_asked_again(api: Api, cloud: Cloud, fault: str) -> None:
    made = api.create("/v2/api-keys", KEY)["fid"]
    cloud.faults.play(FAULTS[fault], "GET", times=3)
    assert api.one("/v2/me")["name"] == "Ada"
    cloud.faults.play(FAULTS[fault], "DELETE")
    api.delete(f"/v2/api-keys/{made}")
    assert (cloud.count("GET"), cloud.count("DELETE")) == (4, 2)


def test_after_four_tries_it_is_told_what_was_wrong(api: Api, cloud: Cloud, waits: list[float]) -> None:
    cloud.faults.play(faults.broken(), times=9)
    with pytest.raises(ProviderError) as told:
        api.get("/v2/me")
    assert told.value.message.startswith(f"{cloud.url} answered 503: an HTML page (request")
    assert (len(cloud.requests), len(waits)) == (4, 3)
    assert waits == sorted(waits)
    cloud.faults.clear()
    cloud.faults.play(faults.reset(), times=9)
    with pytest.raises(ProviderError, match="cannot be reached: "):
        api.get("/v2/me")
    assert len(cloud.requests) == 8


@pytest.mark.parametrize(
    ("fault", "made"),
    [
        (faults.reset(), 0),
        (faults.taken_then_reset(), 1),
        (faults.taken_then(504), 1),
        (faults.taken_then(500), 1),
        (faults.broken(503), 0),
        (faults.garbled(), 1),
        (faults.garbled(b""), 1),
        (faults.garbled(b"[]"), 1),
    ],
)
def test_what_makes_something_is_never_asked_for_twice(api: Api, cloud: Cloud, fault: faults.Fault, made: int) -> None:
    cloud.faults.play(fault, "POST")
    with pytest.raises(NotKnownError):
        api.create("/v2/api-keys", KEY)
    assert (cloud.count("POST"), names(cloud)) == (1, ["laptop", *["k"] * made])


def test_a_connection_that_was_given_up_by_the_server_is_not_used_for_what_makes_something(
    api: Api, cloud: Cloud
) -> None:
    api.get("/v2/me")
    for one in list(cloud.server.open_ones):
        cloud.server.shutdown_request(one)
    assert api.create("/v2/api-keys", KEY)["name"] == "k"


def test_a_slow_answer_that_makes_something_is_not_known(
    api: Api, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_READ_SECONDS", 0.05)
    done = threading.Event()

    def late(right: faults.Answer | None) -> faults.Answer:
        done.wait(10)
        assert right
        return right

    cloud.faults.play(faults.Fault(late, done_before=True), "POST")
    with pytest.raises(NotKnownError):
        api.create("/v2/api-keys", KEY)
    done.set()
    assert wait_until(lambda: names(cloud) == ["laptop", "k"])


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"data": [{"fid": "bid_'])
def test_what_is_no_json_is_told(api: Api, cloud: Cloud, body: bytes) -> None:
    cloud.faults.play(faults.garbled(body), times=2)
    with pytest.raises(ProviderError, match="what `/v2/me` answered is no JSON: '"):
        api.get("/v2/me")
    with pytest.raises(ProviderError, match="is no JSON"):
        list(api.list("/v2/projects"))


@pytest.mark.parametrize("body", [b'"text"', b"[1, 2]", b'{"fid": "x"}', b"null"])
def test_what_is_no_list_is_told(api: Api, cloud: Cloud, body: bytes) -> None:
    cloud.faults.play(faults.garbled(body))
    with pytest.raises(ProviderError, match="a list was asked for, and something else came"):
        list(api.list("/v2/projects"))


def test_who_does_not_answer_at_all_is_named(waits: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ProviderError, match=rf"^{url} cannot be reached: .*refused"):
        Api("k", url).create("/v2/api-keys", KEY)  # it never got there, so it is asked again and known
    assert len(waits) == 3
    with pytest.raises(ProviderError, match="cannot be reached"):
        Api("k", "http://nosuch.invalid").get("/v2/me")


@pytest.mark.parametrize("key", ["fkey_1\nx", "schlüssel", "a\x00b"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(AuthenticationError) as told:
        Api(key)
    assert key not in str(told.value)
    assert Api("fkey_1\n").url == "https://api.mithril.ai"


@pytest.mark.parametrize("url", ["api.mithril.ai", "ftp://api.mithril.ai", "/v2"])
def test_no_key_is_sent_to_what_is_no_address(url: str) -> None:
    with pytest.raises(ValidationError, match=f"`{url}` is no address of an API"):
        Api("k", url)


def test_the_proxy_of_the_environment_is_used_with_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"name": "Proxy"}') as (port, taken):
        monkeypatch.setenv("http_proxy", f"http://ada:s%3Acret@127.0.0.1:{port}")
        assert Api("k", "http://api.example.com").get("/v2/me") == {"name": "Proxy"}
    head, *lines = taken[0].decode().splitlines()
    assert head == "GET http://api.example.com/v2/me HTTP/1.1"
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert headers["proxy-authorization"] == f"Basic {base64.b64encode(b'ada:s:cret').decode()}"


def test_a_proxy_that_is_not_there_took_nothing_and_some_hosts_need_none(
    api: Api, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(ProviderError, match="cannot be reached") as told:
        api.create("/v2/api-keys", KEY)
    assert type(told.value) is ProviderError
    monkeypatch.setenv("no_proxy", str(urlsplit(cloud.url).hostname))
    assert Api(cloud.key, cloud.url).one("/v2/me")["name"] == "Ada"


def test_threads_share_one(api: Api, cloud: Cloud) -> None:
    told: list[str] = []
    threads = [threading.Thread(target=lambda: told.append(api.one("/v2/me")["name"])) for _ in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert told == ["Ada"] * 16


def test_the_project_is_found_by_its_name_once(api: Api, cloud: Cloud) -> None:
    account = Account(api)
    assert (account.project, account.project, cloud.count("GET")) == (cloud.project, cloud.project, 1)
    cloud.faults.play(faults.rewritten('"fid"', '"id"'), "GET")
    with pytest.raises(ProviderError, match="something without an id was told of"):
        Account(api).project  # noqa: B018
    cloud.projects.append(Project("Other", 0))
    assert Account(api, "other").project == cloud.projects[1].fid
    assert Account(api, "proj_x").project == "proj_x"
    with pytest.raises(ValidationError, match="no project is chosen, and there are 2"):
        Account(api).project  # noqa: B018
    with pytest.raises(ValidationError, match=r"no project `othe` \(FCP_PROJECT\)") as told:
        Account(api, "othe", origin="FCP_PROJECT").project  # noqa: B018
    assert told.value.suggestions == ("did you mean `Other`?", "the projects are my-project, Other")
    cloud.projects.append(Project("Other", 0))
    with pytest.raises(ValidationError, match="`Other` is the name of 2 projects"):
        Account(api, "Other").project  # noqa: B018
    cloud.projects.clear()
    with pytest.raises(ValidationError, match="this account has no project"):
        Account(api).project  # noqa: B018


def test_the_account_is_that_of_the_settings(cloud: Cloud) -> None:
    with pytest.raises(AuthenticationError, match="no API key for Mithril"):
        Account.of(Settings.load(env={}))
    env = {"FCP_API_KEY": cloud.key, "FLOW_MITHRIL_API_URL": cloud.url, "FCP_PROJECT": "nosuch"}
    with pytest.raises(ValidationError, match=r"no project `nosuch` \(FCP_PROJECT\)"):
        Account.of(Settings.load(env=env)).project  # noqa: B018
    assert Account.of(Settings.load(env=env), project="my-project").project == cloud.project
