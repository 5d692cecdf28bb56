"""The `mithril` command, against a cloud that speaks the API."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from flow.mithril_cli import COMMANDS, SYNONYMS, main
from flow.mithril_cli import mithril as program
from flow.mithril_cli.values import price
from tests.support.commands import Ended, mithril
from tests.support.mithril_cloud import Cloud, faults
from tests.support.terminal import Terminal
from tests.test_cli import error

A100, REGION = "a100-80gb.sxm.1x", "us-central1-b"


@pytest.fixture
def cloud(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Its machines only say that they are there."""
    cloud.machines.pretended = True
    monkeypatch.setenv("MITHRIL_API_KEY", cloud.key)
    monkeypatch.setenv("FLOW_MITHRIL_API_URL", cloud.url)
    return cloud


def run(line: str, *, stdin: str = "", code: int = 0) -> Ended:
    ended = mithril(*shlex.split(line), stdin=stdin.encode())
    assert ended.returncode == code, ended
    return ended


def told(line: str, *, stdin: str = "") -> list[str]:
    return run(line, stdin=stdin).stdout.splitlines()


def bid(name: str, *, limit: str = "6", region: str = REGION, more: str = "") -> str:
    made = f"--name {name} --instance-type {A100} --region {region} --limit-price {limit} --ssh-keys laptop"
    return told(f"bids create -q {made} {more}")[0]


@pytest.fixture
def key(cloud: Cloud, tmp_path: Path) -> str:
    file = tmp_path / "id.pub"
    file.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGjq ada@here\n")
    return told(f"ssh-keys create --name laptop --public-key {file}")[0].split()[1]


def test_a_bid_is_made_looked_at_changed_and_removed(cloud: Cloud, key: str, tmp_path: Path) -> None:
    volume = told(f"volumes create --name data --size-gb 10 --region {REGION} -q")[0]
    script = tmp_path / "start.sh"
    script.write_text("#!/bin/bash\necho hello\n")
    made = f"--name train --instance-type {A100} --region {REGION} --limit-price 6 --ssh-keys laptop"
    (line,) = told(f"bids create {made} --volumes data --startup-script {script} --json")
    found = json.loads(line)
    assert (found["limit_price"], found["instance_quantity"], found["region"]) == ("$6.00", 1, REGION)
    launch = {"volumes": [volume], "ssh_keys": [key], "startup_script": script.read_text()}
    assert {name: found["launch_specification"][name] for name in launch} == launch
    cloud.await_bid("train", "Allocated")
    assert json.loads(told("bids get train --json")[0]) == cloud.bid("train").json()
    facts = dict(one.split(maxsplit=1) for one in told("bids get train"))
    assert facts["launch_specification.startup_script"] == "#!/bin/bash … (2 lines)"
    assert run("bids update train --limit-price 7.5 -q").stdout == f"{found['fid']}\n"
    assert cloud.bid("train").limit_cents == 750
    assert run("bids delete train --yes").stdout == f"{found['fid']}  deleted\n"
    assert cloud.bid("train").status == "Terminated"


def test_tables_show_what_a_person_wants_and_json_what_the_api_says(cloud: Cloud, key: str) -> None:
    first, second = bid("train"), bid("low", limit="0.30")
    cloud.await_bid("train", "Allocated")
    header, low, train = told("bids list")
    assert header.split() == ["ID", "NAME", "STATUS", "TYPE", "N", "LIMIT", "REGION", "AGE"]
    assert low.split()[:-1] == [second, "low", "Open", A100, "1", "$0.30", REGION]
    assert train.split()[:-1] == [first, "train", "Allocated", A100, "1", "$6.00", REGION]
    assert [json.loads(line) for line in told("bids list --json")] == [
        cloud.bid(name).json() for name in ("low", "train")
    ]
    assert told("bids list -q") == [second, first]
    assert told("bids list -q -n 1") == [second]
    (instance,) = told("instances list --json")
    assert json.loads(instance) == cloud.instance("train").json()
    assert told("instances list --bid train -q") == [cloud.instance("train").fid]
    assert told("instances get train-1 -q") == [cloud.instance("train").fid]
    empty = run("volumes list")
    assert (empty.stdout, empty.stderr) == ("", "no volumes\n")


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ("--status open", "low"),
        ("--status Open,Allocated", "low train"),
        ("--status=Allocated --region us-central1-b", "train"),
        ("--name train", "train"),
        ("--name 'tr*,lo?'", "low train"),
        ("--limit-price 6", "train"),
        ("--limit_price '$6.00'", "train"),
        ("--instances none", "low"),
        (f"--instance-type {A100}", "low train"),
        ("--instance-type h100-80gb.sxm.8x", ""),
        ("--instance-type 'a100*'", "low train"),
        ("--deactivated-at none", "low train"),
        ("--instance-quantity 1", "low train"),
        ("--launch-specification.ssh-keys none", ""),
        ("--sort-dir asc", "train low"),
    ],
)
def test_lists_are_filtered_by_any_field(cloud: Cloud, key: str, filters: str, names: str) -> None:
    bid("train")
    bid("low", limit="0.30")
    cloud.await_bid("train", "Allocated")
    assert [json.loads(line)["name"] for line in told(f"bids list --json {filters}")] == names.split()


def test_the_server_filters_where_it_can_and_its_answer_is_looked_at_again(cloud: Cloud, key: str) -> None:
    bid("train")
    run("bids list --status Open --name x --created-by me")
    asked = cloud.requests[-1].query
    assert (asked["status"], asked["name"], asked["limit"], asked["project"]) == ("Open", "x", "100", cloud.project)
    assert "created_by" not in asked
    fake = faults.rewritten('"region": "us-central1-b"', '"region": "elsewhere"')
    cloud.faults.play(fake, "GET /v2/spot/availability")
    assert told("availability list --region us-central1-b -q") == []
    kinds = told(f"pricing list --instance-type {A100},h100-80gb.sxm.8x --num-samples 1 --json")
    assert len({json.loads(line)["instance_type"] for line in kinds}) == 3  # two are called h100-80gb.sxm.8x


def test_more_than_a_page_is_listed_whole_and_removed_through_a_pipe(cloud: Cloud, key: str) -> None:
    ids = [bid(f"b{at}", limit="0.30") for at in range(3)]
    cloud.quotas["it_MsIRhxj3ccyVWGfP"] = 1000
    body = cloud.requests[-1].json()
    from flow.providers.mithril.api import Api

    api = Api(cloud.key, cloud.url)
    ids += [api.create("/v2/spot/bids", {**body, "name": f"c{at}"})["fid"] for at in range(230)]
    assert sorted(told("bids list -q --status Open")) == sorted(ids)
    before = cloud.count("DELETE")
    piped = run("bids delete -", stdin="\n".join(ids))
    assert piped.stdout == "".join(f"{fid}  deleted\n" for fid in ids)
    assert (cloud.count("DELETE") - before, piped.stderr) == (len(ids), "")
    assert told("bids list -q --status Open") == []


def test_delete_asks_unless_it_was_told(cloud: Cloud, key: str) -> None:
    first, second = bid("train"), bid("eval")
    refused = run("bids delete train eval", code=3)
    assert refused.stderr == error(
        "Delete 2 bids: train, eval? There is nobody to ask", "say so with `--yes`"
    )  # fmt: skip
    assert not cloud.count("DELETE")
    run("bids delete train nosuch --yes", code=4)
    assert not cloud.count("DELETE"), "one that is not there: none is removed"
    assert told("bids delete -", stdin="") == []
    assert told(f"bids delete train {second} train --yes -q") == [first, second]
    gone = told("bids delete - --json", stdin=f"{first} bid_nosuch")
    assert [json.loads(line) for line in gone] == [
        {"fid": first, "deleted": False}, {"fid": "bid_nosuch", "deleted": False},
    ]  # fmt: skip


def test_on_a_terminal_delete_asks_and_states_have_colors(
    cloud: Cloud, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bid("train")
    terminal = Terminal("bids", "delete", "train", package="flow.mithril_cli")
    assert terminal.shows("Delete the bid `train`? [y/N]: ")
    terminal.types("n\n")
    assert (terminal.end(), cloud.count("DELETE")) == (1, 0)
    terminal = Terminal("bids", "delete", "train", package="flow.mithril_cli")
    assert terminal.shows("[y/N]: ")
    terminal.types("y\n")
    assert terminal.end() == 0
    assert terminal.screen.endswith("  deleted\n")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal("bids", "list", package="flow.mithril_cli")
    assert terminal.end() == 0
    assert "\x1b[35mTerminated\x1b[0m" in terminal.screen


def test_what_cannot_be_removed_does_not_keep_the_others(cloud: Cloud, key: str) -> None:
    made = [told(f"volumes create --name {name} --size-gb 1 --region {REGION} -q")[0] for name in ("one", "two")]
    bid("train", limit="0.30", more="--volumes one")
    ended = run("volumes delete - ", stdin="one two", code=2)
    assert ended.stdout == f"{made[1]}  deleted\n"
    assert re.fullmatch(rf"error: `{made[0]}`: Volume is in use \(request req_\w+\)\n", ended.stderr)
    ended = run("volumes delete one --yes --json", code=2)
    assert json.loads(ended.stdout)["error"]["code"] == "validation"


def test_a_secret_is_shown_when_it_is_made_and_never_again(cloud: Cloud) -> None:
    made = run("api-keys create --name ci --expires-at 30d")
    secret = made.stdout.splitlines()[-1]
    assert [secret] == [one.secret for one in cloud.api_keys.values() if one.name == "ci"]
    assert made.stderr == "note: the secret is shown this once\n"
    assert secret not in run("api-keys list").stdout + run("api-keys get ci").stdout
    made = run("ssh-keys create --name made")
    assert made.stdout.splitlines()[-1] == "-----END RSA PRIVATE KEY-----"
    (line,) = told("api-keys create --name other --expires-at 2026-12-24T00:00:00Z --json")
    assert json.loads(line)["secret"].startswith("fkey_")
    assert json.loads(line)["expires_at"] == "2026-12-24T00:00:00Z"
    assert not cloud.leaks(cloud.key)


def test_a_name_of_several_instance_types_means_the_one_of_the_region(cloud: Cloud, key: str) -> None:
    asked = "bids create --name {} --instance-type h100-80gb.sxm.8x --region {} --limit-price 50 --ssh-keys laptop"
    run(asked.format("here", REGION))
    run(asked.format("there", "eu-central1-a"))
    assert cloud.bid("here").instance_type != cloud.bid("there").instance_type
    (line,) = told("pricing get h100-80gb.sxm.8x eu-central1-a --json")
    assert json.loads(line)["spot_price_cents"] >= 1720
    ended = run("instance-types get h100-80gb.sxm.8x", code=2)
    assert "`h100-80gb.sxm.8x` is the name of 2 instance types" in ended.stderr
    assert len(told("instance-types list --name h100-80gb.sxm.8x -q")) == 2


def test_a_name_means_the_live_one(cloud: Cloud, key: str) -> None:
    old = bid("train")
    run("bids delete train --yes")
    new = bid("train")
    assert told("bids get train -q") == [new]
    assert sorted(told("bids list --name train -q")) == sorted([old, new])


def test_projects_are_named_and_the_only_one_need_not_be(
    cloud: Cloud, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.mithril_cloud.records import Project

    cloud.projects.append(Project("other", cloud.clock.now()))
    ended = run("bids list", code=2)
    assert ended.stderr == error(
        "no project is chosen, and there are 2",
        "the projects are my-project, other",
        "choose one: `flow init`, or MITHRIL_PROJECT",
    )
    assert run("bids list --project Other").returncode == 0
    assert told(f"ssh-keys list -q --project {cloud.project}") == [key]
    monkeypatch.setenv("FCP_PROJECT", "othr")
    assert run("bids list", code=2).stderr == error(
        "no project `othr` (FCP_PROJECT)", "did you mean `other`?", "the projects are my-project, other"
    )


@pytest.mark.parametrize(
    ("line", "code", "expected"),
    [
        ("bids list --statsu Open", 2, ("bids have no field `--statsu`", "did you mean `--status`?")),
        ("bids list Open", 2, ("`Open` is no filter", "write it as `--name Open`", "see `mithril bids list --help`")),
        ("bids list --status", 2, ("`--status` has no value", "write it as `--status VALUE`",
                                   "see `mithril bids list --help`")),
        ("projects list --project x", 2, ("projects have no field `--project`",
                                          "the fields are --created-at, --fid, --name")),
        ("pricing list", 2, ("missing `--instance-type`", "name one or several: `--instance-type NAME,NAME`")),
        ("bids get trian", 4, ("no bid `trian`", "list them with `mithril bids list`")),
        ("availability get x", 4, ("no offer `x`", "list them with `mithril availability list`")),
        ("regions get us-central5-b", 4, ("no region `us-central5-b`", "did you mean `us-central5-a`?",
                                          "the regions are us-central1-b, us-central5-a, eu-central1-a")),
        ("bids update x", 2, ("there is nothing to change",
                              "give one of --limit-price, --paused, --volumes, --memory-gb")),
        ("bids create --name x", 2, ("missing `--instance-type`", "see `mithril bids create --help`")),
        ("volumes create --name x --region r --size-gb 1.5", 2, ("`--size-gb`: `1.5` is no whole number",
                                                                  "write a whole number")),
        ("ssh-keys create --name x --public-key nosuch.pub", 4, ("`--public-key`: no file `nosuch.pub`",
                                                                "give the path of a file, or `-`")),
        ("bids get", 2, ("missing `BID`", "see `mithril bids get --help`")),
        ("bids lst", 2, ("no command `lst`", "did you mean `mithril bids list`?", "see `mithril bids --help`")),
        ("bid list", 2, ("no command `bid`", "did you mean `mithril bids`?", "see `mithril --help`")),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_message_with_what_was_meant(
    cloud: Cloud, project: Path, line: str, code: int, expected: tuple[str, ...]
) -> None:
    ended = run(line, code=code)
    assert (ended.stdout, ended.stderr) == ("", error(*expected))
    assert not cloud.count("POST|PATCH|DELETE")


def test_a_private_key_is_not_sent(cloud: Cloud, project: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key"], check=True)
    refused = run("ssh-keys create --name laptop --public-key key", code=2)
    assert refused.stderr == error("`--public-key`: `key` is a private key, and stays here", "give `key.pub`")
    assert not cloud.count("POST")
    run("ssh-keys create --name laptop --public-key key.pub")


def test_what_the_server_refuses_is_told_in_its_words_with_what_to_do(cloud: Cloud, key: str) -> None:
    made = f"--instance-type {A100} --region {REGION} --ssh-keys laptop"
    low = run(f"bids create --name low --limit-price 0.1 {made}", code=2)
    assert re.sub(r" \(request \w+\)", "", low.stderr) == error(
        "Limit price below minimum of $0.25",
        f"raise `--limit-price`; `mithril pricing get {A100} {REGION}` tells the prices",
    )
    cloud.faults.play(faults.taken_then(504), "POST")
    lost = run(f"bids create --name train --limit-price 6 {made}", code=6)
    assert lost.stderr.splitlines()[-1] == (
        "hint: see whether it is there before you ask again: `mithril bids list --name train`"
    )
    assert (cloud.count("POST /v2/spot/bids"), len(told("bids list --name train -q"))) == (2, 1)
    name = run(f"bids create --name train --limit-price 6 {made}", code=2)
    assert name.stderr.startswith("error: Name already used")
    cloud.faults.play(faults.UNKNOWN_KEY)
    assert run("me", code=5).stderr.startswith("error: the API key of MITHRIL_API_KEY is not accepted: Invalid API key")
    cloud.faults.play(faults.NO_MEMBER, "GET /v2/volumes")
    assert json.loads(run("volumes list --json", code=5).stdout)["error"]["code"] == "authentication"


def test_without_a_key_it_says_where_one_is_had(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MITHRIL_API_KEY")
    assert run("me", code=5).stderr == error(
        "no API key for Mithril",
        "`flow init` sets it, or MITHRIL_API_KEY",
        "it is at https://app.mithril.ai/account/api-keys",
    )
    monkeypatch.setenv("FCP_API_KEY", cloud.key)
    assert json.loads(run("me --json").stdout)["email"] == "ada@example.com"
    assert run("me --api-url api.example.com", code=2).stderr == error(
        "`api.example.com` is no address of an API", "write it as `https://api.mithril.ai`"
    )


def test_states_that_nobody_knows_are_shown_and_can_be_asked_for(cloud: Cloud, key: str) -> None:
    bid("train", limit="0.30")
    cloud.faults.play(faults.rewritten('"status": "Open"', '"status": "Suspended", "shape": "round"'), times=9)
    assert told("bids list")[1].split()[2] == "Suspended"
    asked = run("bids list --status Suspended --shape round -q")
    assert len(asked.stdout.splitlines()) == 1
    assert (
        asked.stderr
        == "note: no status `Suspended` is known: there are Open, Allocated, Preempting, Terminated, Paused\n"
    )
    assert "status" not in cloud.requests[-1].query


@pytest.mark.parametrize(
    "strange",
    [
        *(faults.garbled(body) for body in (b"", b"[]", b"{}", b"null", b'"x"', b"[{}]", b'{"data":[{"name":null}]}')),
        *(faults.refusal(400, detail) for detail in (None, {"a": [1]}, [], "")),
        *(faults.refusal(422, [one]) for one in ({"loc": None, "msg": 3}, {"loc": "x"}, "x", 3)),
        *(faults.broken(status) for status in (300, 405, 500, 599)),
        faults.rewritten('"fid"', '"id"'),
        faults.rewritten('"name": "[^"]*"', '"name": 7'),
        faults.rewritten('"status": "[^"]*"', '"status": null'),
        faults.rewritten('"created_at": "[^"]*"', '"created_at": "yesterday"'),
        faults.rewritten('"instances": ', '"instances": {"a": 1}, "x": '),
        faults.rewritten(r'"limit_price": "\$', '"limit_price": "€'),
    ],
)
def test_no_answer_is_too_strange_to_be_told(
    cloud: Cloud, key: str, strange: faults.Fault, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bid("train")
    monkeypatch.setattr("time.sleep", lambda _: None)
    cloud.faults.play(strange, times=math.inf)
    lines = (
        "me", "bids list", "bids list --json --instances none --limit-price 6", "bids get train", "projects list",
        "bids update train --limit-price 9", "instances list --bid train", "regions list", "ssh-keys list -q",
        f"pricing get {A100} {REGION}", f"pricing list --instance-type {A100}", "quotas list",
        "api-keys create --name k --expires-at 1d",
        f"volumes create --name data --size-gb 1 --region {REGION}", "bids delete train --yes",
    )  # fmt: skip
    for line in lines:
        code = main(shlex.split(line))
        told = capfd.readouterr()
        assert code in (0, 2, 4, 5, 6), line
        assert "internal error" not in told.err + told.out, (line, told)
        assert cloud.key not in told.err + told.out


def test_names_cannot_move_the_cursor(cloud: Cloud, key: str) -> None:
    cloud.faults.play(faults.rewritten('"name": "laptop"', r'"name": "\\u001b[2Jx"'), "GET /v2/ssh-keys", times=9)
    assert "\x1b" not in run("ssh-keys list").stdout + run("ssh-keys list --name '*x' --json").stdout


def test_other_things_of_an_account_are_listed(cloud: Cloud, key: str) -> None:
    assert told("projects list -q") == [cloud.project]
    assert told("quotas list -n 1")[1].split() == ["quota_0", "spot", A100, A100, "0", "64", "instances"]
    assert told("regions list --fileshare-storage-enabled false")[1].split() == [REGION, "true", "false", "false"]
    made = f"--name course --instance-type {A100} --region {REGION} --ssh-keys laptop"
    run(f"reservations create {made} --start-time 1h --end-time 5h")
    assert told("reservations list --status pending -q") == told("reservations get course -q")
    bid("train")
    cloud.await_bid("train", "Allocated")
    refused = run("instances update train-1 --status status_paused", code=2)
    assert refused.stderr.startswith("error: Only reserved instances can be paused")
    assert cloud.requests[-1].json() == {"instances": [cloud.instance("train").fid], "status": "STATUS_PAUSED"}
    run("reservations update course --paused")
    assert [one.paused for one in cloud.reservations.values()] == [True]
    cloud.is_admin = True
    assert told("ssh-keys update laptop --required")[1].split()[1:3] == ["laptop", "true"]
    header, *rows = told(f"availability list --instance-type {A100}")
    assert header.split() == ["ID", "TYPE", "REGION", "CAPACITY", "PRICE", "LOWEST"]
    assert [row.split()[1:] for row in rows] == [
        [A100, REGION, "11", "$1.25", "$1.30"], [A100, "us-central5-a", "8", "$1.30", "$1.35"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "expected"),
    [("6", "$6.00"), ("6.5", "$6.50"), ("$25.60", "$25.60"), ("1,000", "$1000.00"), ("0", "$0.00")],
)
def test_a_price_is_written_as_the_api_has_it(word: str, expected: str) -> None:
    assert price(word) == expected


@pytest.mark.parametrize("word", ["", "six", "-1", "1.005", "1e3", "$", "nan"])
def test_what_is_no_price_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is no price"):
        price(word)


def every_command() -> list[str]:
    context = click.Context(program)
    found = []
    for name in COMMANDS:
        command = program.get_command(context, name)
        assert command is not None
        assert command.name == name
        actions = command.list_commands(context) if isinstance(command, click.Group) else []
        found += [name, *(f"{name} {action}" for action in actions)]
    return found


@pytest.mark.parametrize("command", every_command())
def test_the_help_of_each_command_ends_with_an_example_of_it(command: str) -> None:
    lines = told(f"{command} --help")
    example = lines[lines.index("Example:") + 1]
    assert f"mithril {command}" in example
    assert max(map(len, lines)) <= 80
    assert told(f"{command} -h") == lines


def test_help_version_and_synonyms_are_as_those_of_flow() -> None:
    lines = told("--help")
    shown = [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] in COMMANDS]
    assert shown == list(COMMANDS)
    assert re.fullmatch(r"mithril \d+\.\d+\.\d+\S*", told("--version")[0])
    assert set(SYNONYMS.values()) <= set(COMMANDS)
    assert not set(SYNONYMS) & set(COMMANDS)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mithril avail", "availability"),
        ("mithril bids up", "update"),
        ("mithril bids list --limit-p", "--limit-price"),
        ("mithril bids list --status Al", "Allocated"),
        ("mithril bids create --start", "--startup-script"),
    ],
)
def test_commands_options_fields_and_states_are_completed(line: str, expected: str) -> None:
    words = line.split()
    given = {"_MITHRIL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    script = Path(sys.executable).with_name("mithril")
    ended = subprocess.run([script], env=os.environ | given, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == (f"plain,{expected}\n", "")
    assert "_MITHRIL_COMPLETE=bash_complete" in run("completion bash").stdout
