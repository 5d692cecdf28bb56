"""The machines that other tests ssh to: they are real, stand what is done to them, and go when the tests go."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flow.node.inventory import Card, parse_nvidia_smi
from tests.support.components import require
from tests.support.containers import IMAGE
from tests.support.fleet import Fleet, Host
from tests.support.processes import wait_until


def ssh(host: Host, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    argv = ["ssh", "-q", "-F", str(host.fleet.config), *options, host.name, command]
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_four_machines_answer_each_with_a_name_processes_and_gpus_of_its_own(fleet: Fleet) -> None:
    query = "nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader,nounits"
    ours = f"ls -d {__file__} {sys.executable} | wc -l"
    for name in ("gpu1", "gpu2", "gpu3", "gpu4"):
        empty = "echo $(ls -A ~ /home /tmp)"
        done = ssh(fleet.hosts[name], f"hostname; id -u; pwd; {empty}; {ours}; ps -e | wc -l; {query}")
        lines = done.stdout.splitlines()
        assert lines[:5] == [name, "0", "/root", "/home: /root: /tmp:", "0"] and int(lines[5]) < 10, done
        assert parse_nvidia_smi("\n".join(lines[6:])) == tuple(Card(index, "a100", 80.0) for index in range(4))


def test_what_a_machine_does_to_its_copy_of_a_folder_stays_there(empty_fleet: Fleet, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("ours")
    host = empty_fleet.boot("gpu1", copies=(str(folder),))
    assert ssh(host, f"cat {folder}/deep/file").stdout == "ours"
    host.run('echo theirs >"$1/deep/file"; touch "$1/new"', folder)
    assert ssh(host, f"cat {folder}/deep/file").stdout == "theirs\n"
    host.clean()  # which deletes all that is below /tmp
    host.run('rm -rf "$1"/*', folder)
    assert [path.name for path in sorted(folder.rglob("*"))] == ["deep", "file"]
    assert (folder / "deep" / "file").read_text() == "ours"


def test_machines_reach_each_other(fleet: Fleet) -> None:
    one, other = fleet.hosts["gpu1"], fleet.hosts["gpu2"]
    assert ssh(one, f"exec 3<>/dev/tcp/{other.address}/22; head -c4 <&3").stdout == "SSH-"


def test_a_cut_is_silent_and_heals(fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    argv = ["ssh", "-q", "-F", str(fleet.config), host.name, "cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as open_one:
        assert open_one.stdin and open_one.stdout
        open_one.stdin.write("before\n")
        assert open_one.stdout.readline() == "before\n"
        host.cut()
        assert ssh(host, "true", "-oConnectTimeout=1").returncode == 255
        assert host.run("echo still there").stdout == "still there\n"
        open_one.stdin.write("meanwhile\n")
        host.heal()
        assert open_one.stdout.readline() == "meanwhile\n"
        open_one.stdin.close()
    assert ssh(host, "echo back").stdout == "back\n"


def test_a_reboot_ends_processes_and_keeps_the_disk_and_who_it_is(fleet: Fleet) -> None:
    host, boot_id = fleet.hosts["gpu1"], "cat /proc/sys/kernel/random/boot_id"
    ssh(host, "echo kept >~/file; touch /tmp/file; nohup sleep 1000 >/dev/null 2>&1 &")
    assert wait_until(lambda: ssh(host, "pgrep -c sleep").stdout == "1\n")
    before = ssh(host, boot_id).stdout.strip()
    host.reboot()
    after = ssh(host, f"pgrep -c sleep; {boot_id}; cat ~/file; ls -A /tmp", "-oStrictHostKeyChecking=yes").stdout
    assert before not in after
    assert after.splitlines()[::2] == ["0", "kept"]


def test_a_machine_that_is_off_does_not_answer_and_one_reaped_comes_back_as_another(empty_fleet: Fleet) -> None:
    host = empty_fleet.boot("gpu1")
    ssh(host, "touch ~/file")
    host.slow(1)
    host.power_off()
    assert ssh(host, "true", "-oConnectTimeout=1").returncode == 255
    host.start()
    assert ssh(host, "ls ~").stdout == "file\n"
    host.reap()
    host.start()
    assert ssh(host, "true", "-oStrictHostKeyChecking=yes").returncode == 255  # its key is new
    (empty_fleet.folder / "known_hosts").unlink()
    assert ssh(host, "ls ~").stdout == ""


def test_what_is_mounted_in_a_home_is_not_cleaned_with_it(empty_fleet: Fleet) -> None:
    host = empty_fleet.boot("gpu1")
    host.run("mkdir -p /srv/kept ~/a/seen; touch /srv/kept/file ~/file; mount --bind /srv/kept ~/a/seen")
    host.run("mkdir /srv/kept/tmp; mount -t tmpfs tmpfs ~/a/seen/tmp")
    host.clean()
    assert host.run("ls -A ~; find /srv -type f").stdout == "/srv/kept/file\n"


def test_a_slow_link_delays_and_loses_and_keeps_connections(fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]

    def connect() -> float:
        begin = time.monotonic()
        socket.create_connection((host.address, 22)).close()
        return time.monotonic() - begin

    argv = ["ssh", "-q", "-F", str(fleet.config), host.name, "cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as open_one:
        assert open_one.stdin and open_one.stdout
        open_one.stdin.write(b"before\n")
        open_one.stdin.flush()
        assert open_one.stdout.readline() == b"before\n"
        host.slow(200)
        assert connect() >= 0.2
        host.slow(10, 5)
        sent = bytes(range(256)) * 1000 + b"\n"
        open_one.stdin.write(sent)
        open_one.stdin.close()
        assert open_one.stdout.read() == sent
    host.slow(200)
    host.reboot()
    assert connect() >= 0.2
    host.slow(0)
    assert wait_until(lambda: connect() < 0.2)


def test_a_machine_is_as_it_is_asked_for(empty_fleet: Fleet) -> None:
    host = empty_fleet.boot(
        "lab", user="ubuntu", without=("python3",), disk_mb=10, memory_mb=64, sshd={"MaxSessions": 1}
    )
    assert ssh(host, "id -un; pwd; command -v python3 || echo none").stdout == "ubuntu\n/home/ubuntu\nnone\n"
    full = ssh(host, "dd if=/dev/zero of=file bs=1M count=20")
    assert "No space left on device" in full.stderr
    assert ssh(host, "bash -c 'all=$(yes | head -c 200M)'; echo $?").stdout == "137\n"
    host.cut()
    host.reboot()
    assert ssh(host, "true", "-oConnectTimeout=1").returncode == 255  # as before
    host.heal()
    assert ssh(host, "ls").stdout == "file\nlost+found\n"
    shared = ("-oControlMaster=auto", f"-oControlPath={empty_fleet.folder}/c")
    argv = ["ssh", "-q", "-F", str(empty_fleet.config), *shared, host.name, "echo; cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout and first.stdin and first.stdout.readline() == b"\n"
        assert "refused" in subprocess.run([*argv[:1], *argv[2:-1], "true"], capture_output=True, text=True).stderr
        first.stdin.close()


@pytest.mark.parametrize("user", ["root", "ubuntu"])
def test_a_clock_is_wrong_and_right_again(user: str, empty_fleet: Fleet) -> None:
    host = empty_fleet.boot("gpu1", user=user)
    told = "python3 -c 'import time; print(time.time())'; date +%s"

    def ahead() -> list[float]:
        now = time.time()
        return [round(float(one) - now, -1) for one in ssh(host, told).stdout.split()]

    host.set_clock(600)
    assert ahead() == [600, 600]
    host.set_clock(-600)
    assert ahead() == [-600, -600]
    waits = (
        "import threading, time; t = time.monotonic(); threading.Event().wait(0.1); print(time.monotonic() - t < 60)"
    )
    assert ssh(host, f"python3 -c '{waits}'").stdout == "True\n"
    host.clean()
    assert ahead() == [0, 0]


def test_a_machine_has_a_docker_of_its_own(empty_fleet: Fleet) -> None:
    require("dockerd", "it is what is tried")
    host = empty_fleet.boot("gpu1", user="ubuntu")
    assert ssh(host, "docker version").returncode != 0
    host.start_docker()
    begin = "docker run --rm --network=host -v ~:/workspace {} sh -c 'id -u; echo done >/workspace/file'; cat ~/file"
    assert ssh(host, begin.format(IMAGE)).stdout == "0\ndone\n"
    ssh(host, f"docker run -d {IMAGE} sleep 1000")
    host.reboot()
    assert ssh(host, "pgrep -c 'docker|sleep'").stdout == "0\n"
    host.start_docker()
    host.clean()
    host.start_docker()
    assert ssh(host, f"docker run --rm {IMAGE} echo again").stdout == "again\n"


def test_what_a_test_leaves_is_cleaned_away(empty_fleet: Fleet) -> None:
    host = empty_fleet.boot("gpu1")
    ssh(host, "touch ~/.hidden ~/file /tmp/.hidden; nohup sleep 1000 >/dev/null 2>&1 &")
    host.cut()
    host.clean()
    assert ssh(host, "ls -A ~ /tmp; pgrep -c sleep").stdout == "/root:\n\n/tmp:\n0\n"


def test_orphans_do_not_stay_as_zombies(fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    ssh(host, "(sleep 0.1 &) ; exit")
    assert wait_until(lambda: host.run("ps -eo stat,comm | grep -E '^Z|sleep'", check=False).stdout == "")


def test_fleets_do_not_clash_and_nothing_stays_of_one_whose_process_is_killed(
    empty_fleet: Fleet, tmp_path: Path
) -> None:
    host = empty_fleet.boot("gpu1")
    program = (
        "import sys; from pathlib import Path; from tests.support.fleet import Fleet\n"
        "host = Fleet(Path(sys.argv[1])).__enter__().boot('gpu1')\n"
        "host.slow(1)\n"
        "print(host.fleet.bridge, host.address, host.fleet.config, host._init(), flush=True); sys.stdin.read()"
    )
    argv, project = [sys.executable, "-c", program, tmp_path / "other"], Path(__file__).parents[1]
    with subprocess.Popen(argv, cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as its:
        assert its.stdout
        bridge, address, config, pid = its.stdout.readline().split()
        assert address != host.address
        answer = subprocess.run(["ssh", "-q", "-F", config, "gpu1", "hostname"], capture_output=True, text=True)
        assert answer.stdout == ssh(host, "hostname").stdout == "gpu1\n"
        its.kill()
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())
    with Fleet(tmp_path / "next"):
        links = [link for _, link in socket.if_nameindex()]
        assert not any(link.startswith((f"{bridge}h", f"{bridge}s")) for link in links), links
    assert bridge not in [link for _, link in socket.if_nameindex()]
