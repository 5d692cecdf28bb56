"""Arrays at Mithril: their elements take turns on one machine, or on as many as may run at once."""

from __future__ import annotations

import pytest

from flow.client import Flow
from flow.errors import ValidationError
from tests.support.mithril_cloud import Cloud
from tests.support.processes import no_attendant, wait_until

_SECONDS = 90.0


@pytest.fixture
def client(at_mithril: Flow) -> Flow:
    return at_mithril


def test_without_a_limit_they_take_turns_on_one_machine_and_it_is_said(client: Flow, cloud: Cloud) -> None:
    array = client.run("hostname; test -e /tmp/alone || mkdir /tmp/alone && sleep 0.2 && rmdir /tmp/alone",
                       array="1-3", gpu="a100", upload_code=False)  # fmt: skip
    assert array.plan.notes[0].startswith("its 3 elements take turns on one machine; `%N` behind the array rents N")
    assert array.wait(timeout=_SECONDS) == "completed", array.reason
    assert array.logs() == f"{array}-1\n" * 3
    assert (array.plan.price_per_hour, cloud.bid(array.task_id).quantity) == (1.25, 1)


def test_as_many_machines_as_may_run_at_once_share_the_elements(client: Flow, cloud: Cloud) -> None:
    array = client.run("hostname", array="1-5%2", gpu="a100", max_price_per_hour=4, upload_code=False)
    assert array.wait(timeout=_SECONDS) == "completed", array.reason
    assert [client.get_task(f"{array}_{n}").logs() for n in range(1, 6)] == [
        f"{array}-{machine}\n" for machine in (1, 2, 1, 2, 1)
    ]
    bid = cloud.bid(array.task_id)
    assert (bid.quantity, bid.limit_cents, array.price_per_hour) == (2, 200, 2.5)
    assert client.get_task(f"{array}_1").price_per_hour == 1.25
    assert wait_until(lambda: client.held() == [], seconds=60)
    assert cloud.billed() == []


def test_a_machine_whose_elements_have_ended_waits_for_the_others(
    client: Flow, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client is there: it would pause the bid, and all machines with it."""
    monkeypatch.setenv("FLOW_MITHRIL_GRACE_MINUTES", "0.03")
    away = Flow()
    command = "echo up; [ $FLOW_ARRAY_INDEX = 1 ] || until [ -e /tmp/go ]; do sleep 0.05; done; echo done"
    array = away.run(command, array="1-2%2", gpu="a100", upload_code=False)
    assert wait_until(lambda: sorted(array.logs().split()) == ["done", "up", "up"], seconds=60, every=0.1)
    with no_attendant(away.home):
        assert not wait_until(lambda: cloud.bid(array.task_id).status == "Paused", seconds=6)
        cloud.host(array.task_id, 1).run("touch /tmp/go")
        cloud.await_bid(array.task_id, "Paused")
    array = Flow().get_task(array.task_id)
    assert array.wait(timeout=_SECONDS) == "completed", array.reason
    assert [one.number for n in (1, 2) for one in client.get_task(f"{array}_{n}").attempts] == [1, 1]


def test_elements_of_several_machines_each_are_refused(client: Flow) -> None:
    with pytest.raises(ValidationError, match="takes no array of tasks that have several machines each"):
        client.run("true", array="1-2", num_instances=2, upload_code=False)
