"""The stand-in cloud that other tests bid at: it keeps to the API, its machines are real, and it lies only to order."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.support.containers import IMAGE
from tests.support.mithril_cloud import Cloud, faults
from tests.support.mithril_cloud.bill import Bill
from tests.support.mithril_cloud.clock import stamp
from tests.support.mithril_cloud.market import settle
from tests.support.processes import wait_until

A100, H100, REGION, SHARES = "it_MsIRhxj3ccyVWGfP", "it_5ECSoHQjLBzrp5YM", "us-central1-b", "us-central5-a"
SERVICE = """\
cat >/etc/systemd/system/job.service <<'END'
[Unit]
After=network.target
[Service]
Environment="GREETING=hello there"
ExecStart=/bin/bash -c 'echo "$GREETING" >>/root/starts; exec sleep 1000'
Restart=always
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --now job
"""


class Client:
    """One user of it, who has an SSH key of his own."""

    def __init__(self, cloud: Cloud, folder: Path) -> None:
        self.cloud, self.key, self.identity = cloud, cloud.key, folder / "id"
        self.http = urllib3.PoolManager(retries=False, timeout=20)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.identity], check=True)
        self.public_key = self.identity.with_suffix(".pub").read_text()

    def send(self, method: str, path: str, body: Any = None) -> urllib3.BaseHTTPResponse:
        headers = {"Authorization": f"Bearer {self.key}"}
        return self.http.request(method, self.cloud.url + path, json=body, headers=headers)

    def ask(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        got = self.send(method, path, body)
        assert got.status == status, got.data
        return got.json() if got.data else None

    def refused(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        got = self.send(method, path, body)
        return got.status, got.json()["detail"]

    def ssh_key(self) -> str:
        body = {"project": self.cloud.project, "name": "laptop", "public_key": self.public_key}
        return str(self.ask("POST", "/v2/ssh-keys", body, status=201)["fid"])

    def volume(self, name: str, interface: str = "Block", region: str = REGION) -> str:
        body = {"name": name, "project": self.cloud.project, "disk_interface": interface, "region": region}
        return str(self.ask("POST", "/v2/volumes", {**body, "size_gb": 50}, status=201)["fid"])

    def request(self, name: str = "train", script: str = "", **changed: Any) -> dict[str, Any]:
        """What a bid is asked for with; what is changed inside of its launch specification is so by its name."""
        keys = [one.fid for one in self.cloud.spot.ssh_keys.values()][:1] or [self.ssh_key()]
        launch = {"volumes": [], "ssh_keys": keys, "startup_script": f"#!/bin/bash\n{script}"}
        launch.update((key, changed.pop(key)) for key in list(changed) if key in launch)
        return {
            "project": self.cloud.project,
            "region": REGION,
            "instance_type": A100,
            "limit_price": "$2.00",
            "instance_quantity": 1,
            "name": name,
            "launch_specification": launch,
            **changed,
        }

    def bid(self, name: str = "train", script: str = "", **changed: Any) -> str:
        return str(self.ask("POST", "/v2/spot/bids", self.request(name, script, **changed), status=201)["fid"])

    def machine(self, name: str = "train", script: str = "", **changed: Any) -> str:
        """As `bid`, when its machines run."""
        fid = self.bid(name, script, **changed)
        self.cloud.await_bid(name, "Allocated")
        return fid

    def change(self, fid: str, **changed: Any) -> Any:
        return self.ask("PATCH", f"/v2/spot/bids/{fid}", changed)

    def instances(self) -> list[Any]:
        """By rank: those of one bid come in any order."""
        found = self.ask("GET", f"/v2/instances?project={self.cloud.project}")["data"]
        return sorted(found, key=lambda one: str(one["name"]))

    def ssh(
        self, command: str, rank: int = 0, user: str = "ubuntu", patience: int = 30
    ) -> subprocess.CompletedProcess[str]:
        host, _, port = self.instances()[rank]["ssh_destination"].partition(":")
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        options.append(f"ConnectTimeout={patience}")
        words = ["ssh", "-i", self.identity, *(f"-o{one}" for one in options), "-p", port or "22", f"{user}@{host}"]
        return subprocess.run([*words, command], capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def log(self, name: str = "train") -> str:
        return self.cloud.host(name).run("cat /var/log/foundry/startup_script.log", check=False).stdout


@pytest.fixture
def client(cloud: Cloud, tmp_path: Path) -> Client:
    return Client(cloud, tmp_path)


@pytest.fixture
def pretended(client: Client) -> Iterator[Client]:
    """For what needs no machine."""
    client.cloud.machines.pretended = True
    yield client
    client.cloud.machines.close()


# Who asks.


def test_a_key_says_who_one_is_and_what_one_has(client: Client) -> None:
    me = client.ask("GET", "/v2/me")
    assert (me["username"], me["organization"]) == ("ada", "org_Zx1")
    assert client.ask("GET", f"/v2/users/{me['fid']}")["email"] == "ada@example.com"
    (project,) = client.ask("GET", "/v2/projects")
    assert project["name"] == "my-project" and project["fid"].startswith("proj_")
    quotas = client.ask("GET", f"/v2/quotas?project={project['fid']}")
    assert {"instance_type_name": "a100-80gb.sxm.1x", "used_quantity": 0, "total_quantity": 64}.items() <= quotas[
        0
    ].items()
    assert client.refused("GET", "/v2/quotas?project=proj_other") == (403, "Not a member of project")
    assert client.refused("GET", "/v2/nothing") == (404, "Not Found")
    assert client.refused("POST", "/v2/me") == (405, "Method Not Allowed")
    client.key = "fkey_other"
    assert client.refused("GET", "/v2/me") == (401, "Invalid API key")


def test_an_api_key_is_shown_once_works_until_it_expires_and_ends(client: Client) -> None:
    cloud = client.cloud
    soon = stamp(cloud.clock.now() + 3600)
    made = client.ask("POST", "/v2/api-keys", {"name": "flow-task", "expires_at": soon}, status=201)
    listed = client.ask("GET", "/v2/api-keys")
    assert [one["name"] for one in listed] == ["laptop", "flow-task"]
    assert "secret" not in listed[1] and made["secret"].startswith(listed[1]["snippet"].rstrip("."))
    first, client.key = client.key, made["secret"]
    client.ask("GET", "/v2/me")
    cloud.advance(3601)
    assert client.refused("GET", "/v2/me") == (401, "Invalid API key")
    client.key = first
    for name, at in (
        ("x" * 60, soon),
        ("late", stamp(cloud.clock.now() + 400 * 86400)),
        ("past", "2020-01-01T00:00:00Z"),
    ):
        assert client.refused("POST", "/v2/api-keys", {"name": name, "expires_at": at})[0] == 400
    client.ask("DELETE", f"/v2/api-keys/{made['fid']}", status=204)
    assert client.ask("GET", "/v2/api-keys")[1]["deactivated_at"]
    assert client.refused("DELETE", f"/v2/api-keys/{made['fid']}") == (404, "API key not found")


def test_ssh_keys_are_taken_or_made_and_stay_while_a_bid_has_them(pretended: Client) -> None:
    client, project = pretended, pretended.cloud.project
    made = client.ask("POST", "/v2/ssh-keys", {"project": project, "name": "made"}, status=201)
    assert made["private_key"].startswith("-----BEGIN RSA") and made["public_key"].startswith("ssh-rsa ")
    assert "private_key" not in client.ask("GET", f"/v2/ssh-keys?project={project}")[0]
    wrong = {"project": project, "name": "wrong", "public_key": "no key"}
    assert client.refused("POST", "/v2/ssh-keys", wrong) == (400, "Invalid public key")
    bid = client.bid()
    assert client.refused("DELETE", f"/v2/ssh-keys/{made['fid']}")[0] == 400
    client.ask("DELETE", f"/v2/spot/bids/{bid}", status=204)
    client.ask("DELETE", f"/v2/ssh-keys/{made['fid']}", status=204)
    assert client.ask("GET", f"/v2/ssh-keys?project={project}") == []


def test_a_required_key_belongs_to_every_bid_and_only_an_administrator_makes_it_so(pretended: Client) -> None:
    client, cloud = pretended, pretended.cloud
    audit, own = client.ssh_key(), client.ssh_key()
    assert client.refused("PATCH", f"/v2/ssh-keys/{audit}", {"required": True})[0] == 403
    cloud.is_admin = True
    assert client.ask("PATCH", f"/v2/ssh-keys/{audit}", {"required": True})["required"]
    refused = client.refused("POST", "/v2/spot/bids", client.request(ssh_keys=[own]))
    assert refused == (400, "Required SSH keys are missing: laptop")
    client.bid(ssh_keys=[own, audit])


# What is to be had.


def test_goods_are_listed_with_prices_by_region(client: Client) -> None:
    types = client.ask("GET", "/v2/instance-types")
    assert [one["fid"] for one in types if one["name"] == "h100-80gb.sxm.8x"] == [H100, "it_XqgKWbhZ5gznAYsG"]
    regions = {one["name"]: one["fileshare_storage_enabled"] for one in client.ask("GET", "/marketplace/v1/regions")}
    assert regions == {REGION: False, SHARES: True, "eu-central1-a": True}
    (row,) = client.ask("GET", f"/v2/spot/availability?instance_type={A100}&region={REGION}")
    assert (row["capacity"], row["last_instance_price"]) == (12, "$1.25") and row["fid"].startswith("auc_")
    now = client.ask("GET", f"/v2/pricing/current?instance_type={A100}&region={REGION}")
    assert now == {
        "spot_price_cents": 125,
        "reserved_price_cents": 290,
        "minimum_price_cents": 25,
        "lowest_allocated_bid_cents": 130,
        "dynamic_win_price_cents": 131,
        "available_capacity": 12,
        "total_capacity": 12,
    }
    status, mistakes = client.refused("GET", "/v2/pricing/current?region=x")
    assert (status, mistakes[0]["loc"]) == (422, ["query", "instance_type"])


def test_prices_of_the_past_are_sampled(client: Client) -> None:
    now = client.cloud.clock.now()
    lane = client.cloud.lane(A100, REGION)
    lane.past[:] = [(0, 125), (now - 2000, 1_234_50)]
    path = (
        f"/v2/pricing/history?instance_types={A100},{H100}&region={REGION}&num_samples=3&start_time={stamp(now - 3600)}"
    )
    prices = client.ask("GET", path)["prices"]
    found = [one["spot_instance_price"] for one in prices if one["instance_type"] == A100]
    assert len(prices) == 6 and found == ["$1.25", "$1,234.50", "$1,234.50"]
    assert client.refused("GET", path.replace("samples=3", "samples=1001"))[0] == 422


# Bids.


def test_every_mistake_in_a_body_is_told_at_once(pretended: Client) -> None:
    wrong = pretended.request(limit_price=2, instance_quantity=True, name="Train 1", auction_id="harmless")
    del wrong["region"]
    wrong["launch_specification"] = {"volumes": "vol_1", "startup_script": "#!/bin/bash"}
    status, mistakes = pretended.refused("POST", "/v2/spot/bids", wrong)
    assert status == 422
    assert {".".join(one["loc"]): one["type"] for one in mistakes} == {
        "body.region": "value_error.missing",
        "body.limit_price": "type_error.str",
        "body.instance_quantity": "type_error.integer",
        "body.name": "value_error.str.regex",
        "body.launch_specification.volumes": "type_error.list",
        "body.launch_specification.ssh_keys": "value_error.missing",
    }
    headers = {"Authorization": f"Bearer {pretended.key}"}
    assert (
        pretended.http.request("POST", pretended.cloud.url + "/v2/spot/bids", body=b"{", headers=headers).status == 422
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"name": "taken"}, "Name already used"),
        ({"limit_price": "$0.24"}, "Limit price below minimum of $0.25"),
        ({"ssh_keys": []}, "At least one SSH key required"),
        ({"region": "eu-central1-a"}, "Instance type is not available in this region"),
        ({"instance_quantity": 65}, "Quota exceeded for a100-80gb.sxm.1x"),
        ({"startup_script": "#!/bin/bash\n" + "#" * 10_000}, "Startup script must be at most 10000 characters"),
        ({"startup_script": "#!/bin/sh\n"}, "Startup script must begin with #!/bin/bash"),
    ],
)
def test_a_bid_against_the_rules_is_refused(pretended: Client, changed: dict[str, Any], told: str) -> None:
    pretended.bid("taken")
    assert pretended.refused("POST", "/v2/spot/bids", pretended.request(**changed)) == (400, told)


def test_a_name_is_free_again_when_its_bid_has_ended(pretended: Client) -> None:
    bid = pretended.bid()
    pretended.ask("DELETE", f"/v2/spot/bids/{bid}", status=204)
    assert pretended.refused("DELETE", f"/v2/spot/bids/{bid}") == (404, "Bid not found")
    ended = pretended.ask("GET", f"/v2/spot/bids/{bid}")
    assert ended["status"] == "Terminated" and ended["deactivated_at"]
    assert pretended.bid() != bid
    assert pretended.ask("GET", "/v2/spot/bids?name=train")["data"][0]["status"] == "Terminated"


def test_lists_are_filtered_sorted_and_read_page_by_page(pretended: Client) -> None:
    names = [f"bid-{at}" for at in range(7)]
    for name in names:
        pretended.bid(name)
    query = f"/v2/spot/bids?project={pretended.cloud.project}&limit=3&sort_by=created_at&sort_dir=desc"
    found, cursor = [], ""
    while cursor is not None:
        page = pretended.ask("GET", query + (f"&next_cursor={cursor}" if cursor else ""))
        found.append([one["name"] for one in page["data"]])
        cursor = page["next_cursor"]
        if len(found) == 1:  # what a cursor names may be gone
            pretended.ask("DELETE", f"/v2/spot/bids/{page['data'][-1]['fid']}", status=204)
    assert found == [["bid-6", "bid-5", "bid-4"], ["bid-3", "bid-2", "bid-1"], ["bid-0"]]
    assert pretended.ask("GET", query + "&cursor=x")["data"][0]["name"] == "bid-6"
    assert pretended.refused("GET", query + "&next_cursor=x") == (400, "Invalid cursor")
    assert pretended.refused("GET", "/v2/spot/bids?limit=101")[0] == 422
    assert pretended.refused("GET", "/v2/spot/bids?status=Running")[0] == 422
    assert len(pretended.ask("GET", "/v2/spot/bids?status=Terminated")["data"]) == 1
    assert pretended.refused("GET", "/v2/instances")[0] == 422
    wanted = ",".join(pretended.cloud.await_bid(name, "Allocated").fid for name in names[:2])
    query = f"/v2/instances?project={pretended.cloud.project}&bid_fid_in={wanted}"
    instances = pretended.ask("GET", query)["data"]
    assert sorted(one["name"] for one in instances) == ["bid-0-1", "bid-1-1"]
    assert pretended.ask("GET", f"/v2/instances/{instances[0]['fid']}/status") == {"status": "STATUS_RUNNING"}


# The market.


def test_the_highest_get_machines_and_pay_what_the_first_without_would_have() -> None:
    class Wanted:
        def __init__(self, limit_cents: int, quantity: int, created: float) -> None:
            self.limit_cents, self.quantity, self.created = limit_cents, quantity, created

    low, high, first, late = Wanted(100, 1, 0), Wanted(300, 2, 3), Wanted(200, 1, 1), Wanted(200, 1, 2)
    assert settle([low, late, high, first], 50, 4) == ([high, first, late], 100)
    assert settle([low, late, high, first], 50, 3) == ([high, first], 200)
    assert settle([low, late, high, first], 150, 9) == ([high, first, late], 150)
    assert settle([high, low], 50, 1) == ([], 300)


def test_a_bill_is_by_the_second_at_the_price_of_that_second() -> None:
    bill = Bill()
    assert bill.cents(5) == 0
    for moment, rate in ((10, 3600), (20, 3600), (30, 7200), (40, 0)):
        bill.charge(moment, rate)
    assert (bill.cents(40), bill.cents(1000)) == (20 + 20, 40)


def test_a_bid_waits_below_the_price_and_pays_the_price_not_its_limit(pretended: Client) -> None:
    cloud, lane = pretended.cloud, pretended.cloud.lane(A100, REGION)
    lane.price_cents = 500
    bid = pretended.bid(limit_price="$4.00")
    cloud.advance(3600)
    assert (pretended.ask("GET", f"/v2/spot/bids/{bid}")["status"], cloud.cost("train"), cloud.billed()) == (
        "Open",
        0,
        [],
    )
    pretended.change(bid, limit_price="$6.00")
    cloud.await_bid("train", "Allocated")
    assert pretended.ask("GET", f"/v2/spot/availability?instance_type={A100}&region={REGION}")[0]["capacity"] == 11
    cloud.advance(1800)
    assert cloud.billed() == ["train"] and cloud.cost("train") == pytest.approx(2.5, abs=0.1)
    pretended.ask("DELETE", f"/v2/spot/bids/{bid}", status=204)
    cost = cloud.cost("train")
    cloud.advance(3600)
    assert (cloud.billed(), cloud.cost("train")) == ([], cost)


def test_who_bids_more_takes_the_last_machine(pretended: Client) -> None:
    cloud, lane = pretended.cloud, pretended.cloud.lane(A100, REGION)
    lane.capacity = 1
    pretended.machine("low", limit_price="$2.00")
    pretended.bid("high", limit_price="$3.00")
    cloud.await_bid("low", "Preempting")
    assert cloud.bid("high").status == "Open", "the machine is not free yet"
    cloud.advance(301)
    cloud.await_bid("low", "Open")
    cloud.await_bid("high", "Allocated")
    assert lane.clearing_cents == 200


# Machines.


def test_a_bid_boots_machines_that_run_its_script_as_root_and_know_each_other(client: Client) -> None:
    client.bid("train", "id -u; pwd; echo ${HOME-no home}; sleep 0.2; echo done", instance_quantity=2)
    cloud = client.cloud
    cloud.await_bid("train", "Allocated")
    (bid,) = client.ask("GET", "/v2/spot/bids")["data"]
    assert sorted(bid["instances"]) == sorted(one["fid"] for one in client.instances())
    assert wait_until(lambda: client.log() == "0\n/\nno home\ndone\n"), client.log()
    one, other = client.instances()
    assert one["ssh_destination"].endswith(":22") and ":" not in other["ssh_destination"]
    assert one["private_ip"] not in one["ssh_destination"]
    done = client.ssh("id -un; hostname; sudo -n id -un; cat /etc/hosts; ls -d /mnt/local; nvidia-smi -L | wc -l")
    names = f"127.0.0.1 localhost\n{one['private_ip']} train-1\n{other['private_ip']} train-2\n"
    assert done.stdout == f"ubuntu\ntrain-1\nroot\n{names}/mnt/local\n1\n", done
    assert client.ssh("exec 3<>/dev/tcp/train-2/22; head -c4 <&3").stdout == "SSH-"
    assert client.ssh("sudo cat /var/lib/foundry/startup_script.sh", rank=1).stdout.startswith("#!/bin/bash\nid -u;")
    assert client.ssh("true", user="root").returncode == 255


def test_a_machine_ends_its_own_bid(client: Client) -> None:
    cloud = client.cloud
    made = {"name": "flow-task", "expires_at": stamp(cloud.clock.now() + 3600)}
    key = client.ask("POST", "/v2/api-keys", made, status=201)["secret"]
    bid = client.machine()
    cloud.host("train").run("echo $1 >/root/key", key)
    cloud.host("train").run(
        f'nohup curl -s -X DELETE -H "Authorization: Bearer $(cat /root/key)" {cloud.url}/v2/spot/bids/{bid} &'
    )
    cloud.await_bid("train", "Terminated")
    assert wait_until(lambda: cloud.machines[cloud.instance("train").fid].actual == "gone")
    assert cloud.billed() == [] and cloud.leaks(key) == []


def test_a_preempted_machine_is_told_and_comes_back_elsewhere_with_its_disk(client: Client) -> None:
    cloud = client.cloud
    cloud.spot.notice_seconds = 60
    bid = client.machine("train", f"echo once >>/root/script; touch /mnt/local/cache\n{SERVICE}")
    host = cloud.host("train")
    assert wait_until(lambda: host.run("cat /root/starts", check=False).stdout == "hello there\n")
    cloud.preempt("train")
    signal_file = "/opt/mithril/MITHRIL_SIGNAL.yml"
    assert wait_until(lambda: host.run(f"test -e {signal_file}", check=False).returncode == 0)
    told = host.run(f"cat {signal_file}").stdout
    assert re.fullmatch(r"instance_status: STATUS_PREEMPTING\nbid_status: Preempting\nend_time: 2\S+Z\n", told)
    (seen,) = client.instances()
    assert seen["status"] == "STATUS_PREEMPTING" and cloud.billed() == ["train"]
    cloud.advance(61)
    cloud.await_bid("train", "Open")
    (gone,) = client.instances()
    assert (gone["status"], gone["ssh_destination"], cloud.billed()) == ("STATUS_PREEMPTED", None, [])
    lane = cloud.lane(A100, REGION)
    lane.price_cents = 125
    cloud.await_bid("train", "Allocated")
    (back,) = client.instances()
    assert back["fid"] == seen["fid"] and back["ssh_destination"] != seen["ssh_destination"]
    host = cloud.host("train")
    starts = "cat /root/starts; systemctl is-active job"
    assert wait_until(lambda: host.run(starts, check=False).stdout == "hello there\nhello there\nactive\n")
    left = host.run(f"cat /root/script; ls -A /mnt/local; ls {signal_file} 2>&1 | wc -l").stdout
    assert left == "once\n1\n", "the script ran again, or there is more than the disk"
    assert client.ask("GET", f"/v2/spot/bids/{bid}")["status"] == "Allocated"


def test_a_paused_bid_costs_nothing_and_goes_on_with_its_disk_and_new_volumes(client: Client) -> None:
    cloud = client.cloud
    volume = client.volume("data")
    bid = client.machine("train", SERVICE)
    assert wait_until(lambda: cloud.host("train").run("wc -l </root/starts", check=False).stdout == "1\n")
    assert client.refused("PATCH", f"/v2/spot/bids/{bid}", {"volumes": [volume]})[0] == 400
    client.change(bid, paused=True)
    cloud.await_bid("train", "Paused")
    assert client.instances()[0]["status"] == "STATUS_PAUSED"
    assert cloud.billed() == []
    assert client.change(bid, volumes=[volume])["launch_specification"]["volumes"] == [volume]
    client.change(bid, paused=False)
    cloud.await_bid("train", "Allocated")
    assert wait_until(lambda: cloud.host("train").run("wc -l </root/starts").stdout == "2\n")
    assert cloud.host("train").run(f"readlink -f /dev/disk/by-id/virtio-{volume}").stdout == "/dev/vdb\n"


def test_what_ends_within_a_machine_is_seen_and_paid_for(client: Client) -> None:
    cloud = client.cloud
    bid = client.machine("train", SERVICE)
    assert wait_until(lambda: cloud.host("train").run("wc -l </root/starts", check=False).stdout == "1\n")
    client.ssh("sudo reboot")
    assert wait_until(lambda: cloud.instance("train").status != "STATUS_RUNNING")
    cloud.await_bid("train", "Allocated")
    assert wait_until(lambda: cloud.host("train").run("wc -l </root/starts").stdout == "2\n")
    client.ssh("sudo shutdown -h now")
    assert wait_until(lambda: cloud.instance("train").status == "STATUS_STOPPED")
    assert (cloud.bid("train").status, cloud.billed()) == ("Allocated", ["train"])
    client.change(bid, paused=True)
    cloud.await_bid("train", "Paused")
    client.change(bid, paused=False)
    cloud.await_bid("train", "Allocated")
    assert client.ssh("true").returncode == 0


def test_services_are_stopped_restarted_and_say_how_they_are(client: Client) -> None:
    client.machine("train", SERVICE)
    host = client.cloud.host("train")
    assert wait_until(lambda: host.run("systemctl is-active job", check=False).stdout == "active\n")
    host.run("pkill -9 sleep")
    assert wait_until(lambda: host.run("wc -l </root/starts").stdout == "2\n"), "Restart=always"
    assert host.run(
        "systemctl disable --now job; systemctl is-active job; systemctl is-enabled job", check=False
    ).stdout == ("inactive\ndisabled\n")
    assert host.run("pgrep -c sleep", check=False).stdout == "0\n"
    missing = host.run("systemctl start nothing", check=False)
    assert (missing.returncode, missing.stderr) == (
        5,
        "Failed to start nothing.service: Unit nothing.service not found.\n",
    )
    unit = "[Service]\\nType=oneshot\\nUser=ubuntu\\nExecStart=/bin/sh -c 'id -un; pwd; exit 3'\\n"
    host.run(f"printf {unit!r} >/etc/systemd/system/once.service")
    assert host.run("systemctl start once", check=False).returncode == 1
    assert host.run("cat /var/log/units/once.service.log").stdout == "ubuntu\n/\n"


def test_a_block_volume_is_one_machines_disk_at_a_time(client: Client) -> None:
    volume = client.volume("data")
    format_it = f"mkfs.ext4 -q /dev/disk/by-id/virtio-{volume}; mkdir /mnt/data"
    mount = "mount UUID=$(blkid -s UUID -o value /dev/vdb) /mnt/data"
    first = client.machine(
        "first", f"{format_it}\n{mount}\necho kept >/mnt/data/file; sync; echo done", volumes=[volume]
    )
    assert wait_until(lambda: client.log("first") == "done\n"), client.log("first")
    again = client.request("second", volumes=[volume])
    assert client.refused("POST", "/v2/spot/bids", again) == (400, "Volume data is already attached")
    assert client.refused("DELETE", f"/v2/volumes/{volume}") == (409, "Volume is in use")
    (listed,) = client.ask("GET", f"/v2/volumes?project={client.cloud.project}&region={REGION}")
    assert (listed["bids"], listed["interface"], listed["capacity_gb"]) == ([first], "Block", 50)
    client.ask("DELETE", f"/v2/spot/bids/{first}", status=204)
    client.machine("second", f"mkdir /mnt/data; {mount}; cat /mnt/data/file", volumes=[volume])
    assert wait_until(lambda: client.log("second") == "kept\n"), client.log("second")


def test_a_share_is_seen_by_all_machines(client: Client) -> None:
    share = client.volume("datasets", "File", SHARES)
    mount = "mkdir /mnt/data; mount -t nfs4 fileshare-datasets.mithril.internal:/ /mnt/data"
    where = {"region": SHARES, "volumes": [share], "instance_quantity": 2}
    client.machine("train", f"{mount}\nhostname >/mnt/data/$(hostname)\necho done", **where)
    assert wait_until(
        lambda: client.cloud.host("train", 1).run("ls /mnt/data", check=False).stdout == "train-1\ntrain-2\n"
    )
    failed = client.cloud.host("train").run("mount -t nfs4 fileshare-other.mithril.internal:/ /srv", check=False)
    told = "mount.nfs4: Failed to resolve server fileshare-other.mithril.internal: Name or service not known\n"
    assert (failed.returncode, failed.stderr) == (32, told)


def test_a_machine_may_have_a_docker_at_every_boot(client: Client) -> None:
    client.cloud.give_docker()
    client.machine("train", f"docker run --rm --network none {IMAGE} echo from a container")
    assert wait_until(lambda: client.log() == "from a container\n", seconds=90), client.log()
    client.ssh("sudo reboot")
    assert wait_until(lambda: client.cloud.instance("train").status != "STATUS_RUNNING")
    client.cloud.await_bid("train", "Allocated")
    again = f"docker run --rm --network none {IMAGE} echo again"
    assert wait_until(lambda: client.ssh(again).stdout == "again\n", seconds=90, every=0.1)


def test_volumes_have_limits_and_go_a_while_after_they_are_deleted(pretended: Client) -> None:
    project = pretended.cloud.project
    body = {"name": "data", "project": project, "disk_interface": "Block", "region": REGION, "size_gb": 7_168}
    volume = pretended.ask("POST", "/v2/volumes", body, status=201)
    assert (volume["interface"], volume["capacity_gb"], volume["attachments"]) == ("Block", 7_168, {})
    assert pretended.refused("POST", "/v2/volumes", body) == (409, "Name already exists")
    for changed, status in (
        ({"size_gb": 7_169}, 400),
        ({"size_gb": 32_001}, 422),
        ({"disk_interface": "File"}, 400),
        ({"region": "nowhere1-a"}, 400),
        ({"name": "9data"}, 422),
        ({"name": "d" * 65}, 422),
        ({"interface": "Block", "disk_interface": None}, 422),
    ):
        assert pretended.refused("POST", "/v2/volumes", {**body, "name": "other", **changed})[0] == status, changed
    fid = volume["fid"]
    several = pretended.request(volumes=[fid], instance_quantity=2)
    told = "Block volume data can only be attached to one instance"
    assert pretended.refused("POST", "/v2/spot/bids", several) == (400, told)
    elsewhere = pretended.request(volumes=[fid], region=SHARES)
    assert pretended.refused("POST", "/v2/spot/bids", elsewhere) == (400, "Volume data is not available in this region")
    pretended.ask("DELETE", f"/v2/volumes/{fid}", status=204)
    listed = f"/v2/volumes?project={project}"
    assert pretended.ask("GET", listed)[0]["deleted_at"]
    pretended.cloud.advance(31)
    assert pretended.ask("GET", listed) == []
    assert [one["fid"] for one in pretended.ask("GET", listed + "&include_deleted=true")] == [fid]


def test_a_reservation_is_noted(client: Client) -> None:
    now = client.cloud.clock.now()
    body = {
        "project": client.cloud.project,
        "instance_type": A100,
        "region": REGION,
        "instance_quantity": 2,
        "name": "week",
    }
    times = {"start_time": stamp(now + 3600), "end_time": stamp(now + 3 * 3600)}
    assert client.refused("POST", "/v2/reservation", {**body, **times})[0] == 400
    made = client.ask("POST", "/v2/reservation", {**body, **times, "end_time": stamp(now + 11 * 3600)}, status=201)
    assert (made["status"], made["quoted_price"]) == ("Pending", "$58.00")
    client.ask("POST", f"/v2/reservation/{made['fid']}/extend", {"end_time": stamp(now + 13 * 3600)})
    client.cloud.advance(3601)
    assert client.ask("GET", f"/v2/reservation?project={client.cloud.project}")[0]["status"] == "Active"
    assert client.ask("PATCH", f"/v2/reservation/{made['fid']}", {"paused": True})["status"] == "Paused"


# What goes wrong.


@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        (faults.UNKNOWN_KEY, 401, "Invalid API key"),
        (faults.NO_MEMBER, 403, "Not a member of project"),
        (faults.NOT_FOUND, 404, "Bid not found"),
        (faults.NAME_USED, 400, "Name already used"),
        (faults.refusal(402, "Payment required"), 402, "Payment required"),
    ],
)
def test_a_refusal_is_played_as_often_as_told(client: Client, fault: faults.Fault, status: int, told: str) -> None:
    client.cloud.faults.play(fault, "GET /v2/me", times=2, skip=1)
    client.ask("GET", "/v2/me")
    assert [client.refused("GET", "/v2/me") for _ in range(2)] == [(status, told)] * 2
    client.ask("GET", "/v2/me")
    assert client.cloud.faults.played == ["GET /v2/me"] * 2


def test_answers_are_late_broken_or_no_json(client: Client) -> None:
    play = client.cloud.faults.play
    play(faults.INVALID)
    assert client.refused("GET", "/v2/me")[1][0]["loc"] == ["body", "limit_price"]
    play(faults.busy(2))
    assert client.send("GET", "/v2/me").headers["Retry-After"] == "2"
    play(faults.busy(2, as_date=True))
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", client.send("GET", "/v2/me").headers["Retry-After"])
    play(faults.broken(502))
    got = client.send("GET", "/v2/me")
    assert (got.status, got.headers["Content-Type"]) == (502, "text/html")
    play(faults.garbled())
    with pytest.raises(json.JSONDecodeError):
        client.send("GET", "/v2/me").json()
    play(faults.slow(0.2))
    begin = time.monotonic()
    client.ask("GET", "/v2/me")
    assert time.monotonic() - begin >= 0.2
    play(faults.reset())
    with pytest.raises(urllib3.exceptions.HTTPError):
        client.send("GET", "/v2/me")
    client.ask("GET", "/v2/me")


def test_a_connection_is_not_kept_open_by_a_fork(client: Client) -> None:
    client.ask("GET", "/v2/me")  # over a connection that stays
    if (child := os.fork()) == 0:
        signal.pause()
        os._exit(0)
    try:
        client.cloud.faults.play(faults.reset())
        with pytest.raises(urllib3.exceptions.ProtocolError):
            client.send("GET", "/v2/me")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("fault", [faults.taken_then(504), faults.taken_then_reset()])
def test_a_bid_is_taken_though_nobody_says_so(pretended: Client, fault: faults.Fault) -> None:
    body = pretended.request()
    pretended.cloud.faults.play(fault, "POST /v2/spot/bids")
    try:
        assert pretended.send("POST", "/v2/spot/bids", body).status == 504
    except urllib3.exceptions.HTTPError:
        pass
    assert [one["name"] for one in pretended.ask("GET", "/v2/spot/bids?name=train")["data"]] == ["train"]
    assert pretended.refused("POST", "/v2/spot/bids", body) == (400, "Name already used")


def test_unknown_states_are_told(pretended: Client) -> None:
    bid = pretended.machine()
    pretended.cloud.faults.play(faults.rewritten('"Allocated"', '"Relocating"'), f"GET /v2/spot/bids/{bid}", times=1)
    assert [pretended.ask("GET", f"/v2/spot/bids/{bid}")["status"] for _ in range(2)] == ["Relocating", "Allocated"]


def test_likely_faults_are_the_same_for_a_seed(client: Client) -> None:
    def story(seed: int) -> list[int]:
        client.cloud.faults.clear()
        client.cloud.faults.random.seed(seed)
        client.cloud.faults.play(faults.broken(), times=math.inf, probability=0.5)
        return [client.send("GET", "/v2/me").status for _ in range(20)]

    assert story(1) == story(1) != story(2)
    assert set(story(1)) == {200, 503}


def test_a_machine_boots_late_or_never(client: Client) -> None:
    cloud = client.cloud
    cloud.spot.boot_seconds = 1200
    client.bid("late")
    assert wait_until(lambda: cloud.bid("late").status == "Allocated")
    cloud.spot.boot_seconds = math.inf
    client.bid("never")
    assert wait_until(lambda: cloud.bid("never").status == "Allocated")
    cloud.advance(1199)
    found = client.instances()
    assert [(one["status"], one["ssh_destination"]) for one in found] == [("STATUS_NEW", None)] * 2
    cloud.advance(2)
    cloud.await_bid("late", "Allocated")
    assert (cloud.instance("never").status, cloud.billed()) == ("STATUS_NEW", ["late", "never"])


def test_a_machine_may_say_that_it_runs_before_it_answers(client: Client) -> None:
    cloud = client.cloud
    cloud.spot.boot_seconds, cloud.spot.runs_before_it_answers = 600, True
    client.bid()
    cloud.await_bid("train", "Allocated")
    host = str(cloud.instance("train").ssh_destination).partition(":")[0]

    def answers() -> bool:
        with socket.socket() as one:
            one.settimeout(0.2)
            return one.connect_ex((host, 22)) == 0

    assert not answers()
    cloud.advance(601)
    assert wait_until(answers)


def test_a_machine_dies_or_is_cut_off_and_its_bid_is_paid_for(client: Client) -> None:
    cloud = client.cloud
    client.machine()
    cloud.host("train").cut()
    assert client.ssh("true", patience=2).returncode == 255
    cloud.host("train").heal()
    assert client.ssh("true").returncode == 0
    cloud.crash("train")
    found = client.instances()[0]
    assert (found["status"], found["ssh_destination"]) == ("STATUS_ERROR", None)
    assert (cloud.bid("train").status, cloud.billed()) == ("Allocated", ["train"])


def test_the_clocks_of_cloud_and_client_may_differ(client: Client) -> None:
    client.cloud.clock.ahead_seconds = -86400
    body = {"name": "flow-task", "expires_at": stamp(time.time() + 364.5 * 86400)}
    made = client.send("POST", "/v2/api-keys", body)
    assert made.status == 201 and made.json()["created_at"] == stamp(client.cloud.clock.now())
    assert urllib3.util.retry.Retry().parse_retry_after(made.headers["Date"]) == 0  # it is past


# What tests ask.


def test_requests_are_counted_and_searched_for_secrets(client: Client) -> None:
    cloud = client.cloud
    client.ask("GET", "/v2/me")
    client.machine("train", "echo $((1234500 + 67))")
    assert (cloud.count("GET /v2/me"), cloud.count("POST /v2/spot/bids"), cloud.count()) == (1, 1, 3)
    bid = next(one for one in cloud.requests if one.line == "POST /v2/spot/bids")
    assert bid.status == 201 and len(bid.body) > 100 and bid.answer_bytes > 100
    assert cloud.leaks(client.key) == []
    assert wait_until(lambda: cloud.leaks("1234567") == ["log of train-1"])
    assert cloud.leaks("1234500") == ["POST /v2/spot/bids", "startup script of train"]


def test_a_person_can_try_it_by_hand() -> None:
    words = [sys.executable, "-m", "tests.support.mithril_cloud"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"export FCP_API_KEY=(\S+) FLOW_MITHRIL_API_URL=(\S+) FCP_PROJECT=my-project\n", line)
        assert found, line
        got = urllib3.request("GET", f"{found[2]}/v2/me", headers={"Authorization": f"Bearer {found[1]}"})
        assert got.json()["username"] == "ada"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
