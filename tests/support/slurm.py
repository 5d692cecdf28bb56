"""A real Slurm on this machine: a controller, nodes with pretend GPUs, accounting; all of it in one folder."""

from __future__ import annotations

import os
import pwd
import random
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

from tests.support.components import require
from tests.support.processes import wait_until

_WHY = "Slurm's words and a Slurm cluster are tried on the real one"
DEFAULT_MEMORY_MB = 500  # of each CPU
# A node has processes and a name of its own: when its first process is killed, all end, as when a machine loses power.
_NODE = ("unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--propagation", "slave", "--uts")
_BOOT = """
hostname "$1" && mount --bind "$2/hosts" /etc/hosts && mount --bind "$2/passwd" /etc/passwd && { slurmd -D & wait; }
"""
_SLURM = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
DefMemPerCPU={memory}
MailProg=/bin/true
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
PriorityType=priority/basic
KillWait=5
SlurmdTimeout=10
InactiveLimit=0
MinJobAge=300
MaxJobCount=30000
MaxArraySize={elements}
FirstJobId={first_job}
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=2
PartitionName=low Nodes=ALL PriorityTier=1
NodeName=DEFAULT CPUs={cpus} Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=64000 Gres=gpu:a100:{gpus}
"""
_WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={folder}/munge.sock
AccountingStorageTRES=gres/gpu,gres/gpu:a100
"""
_SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
StorageLoc=slurm
"""


def require_slurm(*, accounting: bool = False) -> None:
    """Go on only if a cluster can be started here: else the test is left out."""
    for program in ("slurmctld", "slurmd", "munged", *(("slurmdbd", "mariadbd") if accounting else ())):
        require(program, _WHY)
    separate = subprocess.run([*_NODE, "true"], capture_output=True).returncode == 0 and os.geteuid() == 0
    require("root with namespaces", _WHY, found=separate)


@dataclass
class Cluster:
    """`with Cluster(folder) as slurm`: `node1` to `node3`, each with 16 CPUs, 64 GB and 4 A100, or so it is told.

    A job in the partition `gpu` (the default) preempts those in `low`. What is queued again begins six seconds later
    (elsewhere two minutes, see `cred_expire`). All processes end with the one that made them. The path of `folder` must
    have less than 70 characters, for there are sockets in it.
    """

    folder: Path
    nodes: int = 3
    cpus: int = 16
    gpus: int = 4
    accounting: bool = False
    elements: int = 1001  # of one array: the largest index there may be is one less
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Cluster:
        require_slurm(accounting=self.accounting)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        """The variables with which Slurm's commands find this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(
        self, *argv: str | Path, cwd: Path | None = None, stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """What came of a command, such as `sbatch`; asserts that it succeeded unless told not to `check`."""
        environment = os.environ | self.environment()
        done = subprocess.run(argv, cwd=cwd, input=stdin, capture_output=True, text=True, env=environment)
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start_node(self, number: int) -> None:
        """Boot it; returns when it takes work."""
        self._boot(f"node{number}")

    def kill_node(self, number: int) -> None:
        """The machine loses power: `slurmd`, the jobs there and all that they started end at once."""
        self._kill_node(f"node{number}")

    def drain(self, number: int) -> None:
        """No more jobs there; those that run go on."""
        self.run("scontrol", "update", f"nodename=node{number}", "state=drain", "reason=test")

    def resume(self, number: int) -> None:
        self.run("scontrol", "update", f"nodename=node{number}", "state=resume")

    def restart_controller(self) -> None:
        """Stopped and started again; the jobs go on meanwhile."""
        self.stop_controller()
        self.start_controller()

    def stop_controller(self) -> None:
        """From now on nobody answers; the jobs go on."""
        self._end("slurmctld")

    def start_controller(self) -> None:
        """Start it again; returns when it has heard of all nodes."""
        self._start_controller()
        assert wait_until(lambda: "unk" not in self.run("sinfo", "-h", "-o", "%t").stdout, seconds=60)

    def clear(self) -> None:
        """End all jobs; returns when their nodes are free again."""
        self.run("scancel", "--user=root")
        assert wait_until(lambda: self.run("squeue", "-h").stdout == "", seconds=60), self.run("squeue").stdout

    def stop(self) -> None:
        """End what was started, and the jobs with it."""
        for name in [name for name in self._running if name.startswith("node")]:
            self._kill_node(name)
        for name in reversed(list(self._running)):
            self._end(name)

    def _start(self) -> None:
        self._configure()
        munge = self.folder / "munge"
        options = [f"--{one}-file={munge}.{one}" for one in ("key", "pid", "log", "seed")]
        self._launch("munged", "munged", "--foreground", "--force", f"--socket={munge}.sock", *options)
        self._wait_for("munged", lambda: self._succeeds("munge", "-n", f"--socket={munge}.sock"))
        if self.accounting:
            self._launch("mariadbd", "mariadbd", "--defaults-file=" + str(self.folder / "mariadb.conf"))
            self._wait_for("mariadbd", (self.folder / "mariadb.sock").exists)
            self._launch("slurmdbd", "slurmdbd", "-D")
            self._wait_for("slurmdbd", lambda: self._succeeds("sacctmgr", "-n", "show", "cluster"))
        self._start_controller()
        self._boot(*(f"node{number}" for number in range(1, self.nodes + 1)))

    def _configure(self) -> None:
        folder = self.folder
        for name in ("state", "database", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        controller, accounting, database, *nodes = _free_ports(3 + self.nodes)
        # far from those of any other cluster on this machine, as tests look for processes by them
        first_job = 1_000_001 + os.getpid() % 600 * 100_000
        places = {
            "first_job": first_job,
            "folder": folder,
            "controller": controller,
            "accounting": accounting,
            "database": database,
        }
        host = socket.gethostname().partition(".")[0]
        lines = _SLURM.format(
            host=host, memory=DEFAULT_MEMORY_MB, cpus=self.cpus, gpus=self.gpus, elements=self.elements, **places
        )
        lines += _WITH_ACCOUNTING.format(**places) if self.accounting else ""
        hosts = Path("/etc/hosts").read_text()
        for number, port in enumerate(nodes, 1):
            lines += f"NodeName=node{number} NodeAddr=127.0.0.1 Port={port}\n"
            hosts += f"127.0.0.1{number} node{number}\n"
        (folder / "hosts").write_text(hosts)
        (folder / "home").mkdir(exist_ok=True)  # where --export=NONE reads what a login sets up
        home = pwd.getpwuid(0).pw_dir
        (folder / "passwd").write_text(Path("/etc/passwd").read_text().replace(f":{home}:", f":{folder}/home:"))
        (folder / "slurm.conf").write_text(lines)
        (folder / "gres.conf").write_text(f"Name=gpu Type=a100 File={folder}/nvidia[0-{self.gpus - 1}]\n")
        for number in range(self.gpus):  # the digit is what CUDA_VISIBLE_DEVICES gets
            (folder / f"nvidia{number}").symlink_to("/dev/null")
        (folder / "slurmdbd.conf").write_text(_SLURMDBD.format(**places))
        (folder / "slurmdbd.conf").chmod(0o600)
        (folder / "mariadb.conf").write_text(
            f"[mariadbd]\nuser=root\ndatadir={folder}/database\nsocket={folder}/mariadb.sock\nport={database}\n"
            "bind-address=127.0.0.1\nskip-grant-tables\ninnodb-flush-log-at-trx-commit=0\n"
        )

    def _start_controller(self) -> None:
        self._launch("slurmctld", "slurmctld", "-D")
        self._wait_for("slurmctld", lambda: self._succeeds("scontrol", "ping"))

    def _boot(self, *names: str) -> None:
        for name in names:
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / "log" / name).unlink(missing_ok=True)
            self._launch(name, *_NODE, "sh", "-c", _BOOT, "sh", name, self.folder)
        for name in names:
            self._wait_for(name, partial(self._is_up, name))

    def _is_up(self, name: str) -> bool:
        """Asked of both: what the controller says is old where it did not notice that the node was gone."""
        state = self.run("sinfo", "-h", "-p", "gpu", "-n", name, "-o", "%t").stdout.strip()
        ready = ("idle", "mix", "alloc", "comp", "drain", "drng")
        return b"slurmd started" in (self.folder / "log" / name).read_bytes() and state in ready

    def _launch(self, name: str, *argv: str | Path) -> None:
        """A daemon that is killed when this process ends, however it does."""
        with (self.folder / "log" / name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environment(),
                start_new_session=True,
            )

    def _kill_node(self, name: str) -> None:
        pid = self._running[name].pid
        for first in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(first), signal.SIGKILL)
        self._running.pop(name).wait(10)  # when all processes of the node have ended

    def _end(self, name: str) -> None:
        daemon = self._running.pop(name)
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(10)

    def _wait_for(self, name: str, claim: Callable[[], bool]) -> None:
        log = self.folder / "log" / name
        assert wait_until(claim, seconds=60), f"{name} does not work here:\n{log.read_text()}"

    def _succeeds(self, *argv: str) -> bool:
        return self.run(*argv, check=False).returncode == 0


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the system gives to whoever connects to somewhere."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one:
            port = random.randrange(10_000, 32_000)
            if port not in found and one.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found
