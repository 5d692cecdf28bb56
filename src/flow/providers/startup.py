"""What a rented machine is told at its first boot: one bash script that installs its guard, for good."""

from __future__ import annotations

import base64
import json
import shlex
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flow.boot import stripped
from flow.channel import Channel
from flow.errors import ProviderError
from flow.plan import Plan

ROOT = "/opt/flow"
RUN = "/run/flow"
LASTING = "/etc/systemd/system/multi-user.target.wants/flow-guard.service"  # the last that the script makes
READY = f"{RUN}/open"  # there once the machine is ready for its task; gone after a boot
_NODE = Path(__file__).parents[1] / "node"
_FOR_SETUP = "guard_setup.py"
_SCRIPT = """\
#!/bin/bash
# {mark}
command -v python3 >/dev/null || {{ apt-get update -q; apt-get install -yq python3; }}
mkdir -p {root}
groupadd -f docker
usermod -aG docker {user}
home=$(getent passwd {user} | cut -d: -f6)
install -d -o {user} -g "$(id -gn {user})" -m 700 "$home/.flow-host"
echo {ready} > "$home/.flow-host/gate"
python3 -c '
import base64, json, sys, zlib
files = json.loads(zlib.decompress(base64.b85decode(sys.argv[1])))
for name in files:
    with open("{root}/" + name, "w") as file:
        file.write(files[name])
' '{payload}'
cat > /etc/systemd/system/flow-guard.service <<'END'
[Unit]
Description=Flow: keeps this machine for its task
Wants=network-online.target
After=network-online.target
[Service]
ExecStart=/usr/bin/env python3 {root}/guard.py
Restart=always
RestartSec=5
KillMode=process
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --now flow-guard.service
"""


class Mark(NamedTuple):
    """By which machines are known to be of a task and of a home: it stands in their script. words: the cloud's own."""

    task_id: str
    attempt: int
    plan_hash: str
    home_id: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(("flow", self.task_id, str(self.attempt), self.plan_hash, self.home_id, *self.words))


def read_mark(script: str) -> Mark | None:
    """The mark of a script; None where it is none of ours."""
    words = script.partition("\n# flow ")[2].partition("\n")[0].split()
    if len(words) < 4 or not words[1].isdigit():
        return None
    return Mark(words[0], int(words[1]), words[2], words[3], tuple(words[4:]))


def startup_script(
    plan: Plan,
    *,
    machines: int = 1,
    mark: Mark,
    user: str,
    notice: str,
    scratch: str,
    volumes: Sequence[Mapping[str, Any]] = (),
    grace_seconds: float,
    deliver_seconds: float = 1800.0,
) -> str:
    """The script of a plan's machines. notice: the file in which the cloud tells a machine that it takes it back.
    scratch: the folder of a disk of the machine's own, if it has one. volumes: `path` on the machine with `device`, or
    with `share` and `options`.

    The same for every machine of the plan; nothing secret is in it.
    """
    machine = {
        "task_id": plan.task_id,
        "user": user,
        "notice": notice,
        "scratch": scratch,
        "machines": machines,
        "docker": plan.image is not None,
        "volumes": list(volumes),
        "grace_seconds": grace_seconds,
        "deliver_seconds": deliver_seconds,
    }
    programs = ("guard.py", *([_FOR_SETUP] if volumes or plan.image else []))
    files = {one: stripped((_NODE / one).read_text()) for one in programs}
    files["machine.json"] = json.dumps(machine)
    payload = base64.b85encode(zlib.compress(json.dumps(files).encode(), 9)).decode().replace("'", "'\\''")
    return _SCRIPT.format(mark=mark, root=ROOT, user=user, ready=READY, payload=payload)


def tell_guard(channel: Channel, volume: Mapping[str, Any]) -> None:
    """Have a machine's guard see to one volume more from its next boot on. Raises ProviderError."""
    program = stripped((_NODE / _FOR_SETUP).read_text())  # the first one needs it
    told = json.dumps([volume, _FOR_SETUP, program]).encode()
    done = channel.ask(shlex.join(["sudo", "-n", "python3", "-c", _ADD_VOLUME]), stdin=told)
    if done.returncode:
        raise ProviderError(f"a machine does not take a volume: {done.stderr.decode(errors='replace').strip()}")


_ADD_VOLUME = f"""
import json, os, sys
def write(name, text):
    at = "{ROOT}/" + name
    with open(at + ".new", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(at + ".new", at)
volume, name, program = json.load(sys.stdin)
write(name, program)
machine = json.load(open("{ROOT}/machine.json"))
machine["volumes"] = [one for one in machine["volumes"] if one["path"] != volume["path"]] + [volume]
write("machine.json", json.dumps(machine))
"""
