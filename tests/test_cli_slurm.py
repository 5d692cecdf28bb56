"""Slurm's commands on tasks of the local provider: what they print is what the real ones print of the same jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flow.node.hostlist import names_of
from tests.support.commands import flow
from tests.support.processes import wait_until
from tests.support.slurm import Cluster

HERE = names_of({})[0]
HEADER = "             JOBID PARTITION     NAME     USER ST       TIME  NODES NODELIST(REASON)\n"
LONG = "#!/bin/bash\n#SBATCH --time=60\nwhile [ ! -e stop ]; do sleep 0.2; done\n"
SCRIPTS = {
    "ok.sh": "#!/bin/bash\necho hi\n",
    "bad.sh": "#!/bin/bash\nexit 3\n",
    "killed.sh": "#!/bin/bash\nkill -9 $$\n",
}


@pytest.fixture
def scripts(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some batch scripts, which the test is in; this machine has 16 CPUs to give out."""
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "16")
    monkeypatch.setenv("USER", "root")
    for name, text in {**SCRIPTS, "long.sh": LONG}.items():
        (project / name).write_text(text)
    return project


def out(*words: str, stdin: bytes = b"") -> str:
    """What a command prints that does all that was asked."""
    ended = flow(*words, stdin=stdin)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


def refused(*words: str, stdin: bytes = b"") -> tuple[int, str]:
    """The exit code and the message of a command that prints nothing else."""
    ended = flow(*words, stdin=stdin)
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def states(*words: str) -> dict[str, str]:
    """The state of each job."""
    lines = out("squeue", "-h", "-t", "all", "-o", "%i %T", *words).splitlines()
    return dict(line.split() for line in lines)  # type: ignore[misc]


def is_ended(number: str) -> Callable[[], bool]:
    return lambda: out("squeue", "-h", "-j", number) == ""


def without_times(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "TIME", text)


def test_a_submitted_script_is_seen_while_it_waits_runs_and_has_ended(scripts: Path) -> None:
    assert out("sbatch", "--hold", "-J", "first", "long.sh") == "Submitted batch job 1\n"
    assert out("sbatch", "--parsable", "-H", "--array=1-10%2", "long.sh") == "2\n"
    assert out("squeue") == HEADER + (
        "                 1     local    first     root PD       0:00      1 (JobHeldUser)\n"
        "        2_[1-10%2]     local  long.sh     root PD       0:00      1 (JobHeldUser)\n"
    )
    assert out("flow_status"[5:], "--format=slurm") == out("squeue")
    out("scontrol", "release", "1")
    assert wait_until(lambda: states()["1"] == "RUNNING")
    assert out("squeue", "-h", "-j", "1", "-o", "%i %t %R %l") == f"1 R {HERE} 1:00:00\n"
    (scripts / "stop").touch()
    assert wait_until(is_ended("1"))
    assert out("sacct", "-j", "1") == (
        "JobID           JobName  Partition    Account  AllocCPUS      State ExitCode \n"
        "------------ ---------- ---------- ---------- ---------- ---------- -------- \n"
        "1                 first      local                     1  COMPLETED      0:0 \n"
        "1.batch           batch                                1  COMPLETED      0:0 \n"
    )
    assert (scripts / "slurm-1.out").exists()


def test_a_job_may_be_called_anything(scripts: Path) -> None:
    out("sbatch", "-H", "-J", "my job é", "long.sh")
    assert out("squeue", "-h", "-n", "my job é,x", "-o", "%i|%j") == "1|my job é\n"
    assert "JobName=my job é\n" in out("scontrol", "show", "job", "1")
    out("scancel", "-n", "my job é")
    assert wait_until(is_ended("1"))
    assert out("sacct", "-X", "-n", "-P", "--name", "my job é", "-o", "JobName") == "my job é\n"


def test_what_programs_that_submit_to_a_cluster_ask_is_answered(scripts: Path) -> None:
    out("sbatch", "-W", "ok.sh")
    since = ("-X", "--parsable2", "--clusters", "all", "--noheader", "--format=JobIdRaw,State", "--endtime", "now")
    assert out("sacct", *since, "--starttime", "2026-01-01T00:00") == "1|COMPLETED\n"
    assert out("sacct", *since, "-N", "elsewhere") == out("scancel", "-w", HERE, "--clusters=all") == ""
    commands = ("sbatch", "squeue", "scancel", "sacct", "sinfo", "scontrol", "srun")
    assert {out(command, "--version") for command in commands} == {out("--version")}


def test_elements_are_shown_folded_and_one_by_one(scripts: Path) -> None:
    out("sbatch", "--parsable", "-H", "-a", "0-8:4", "-J", "arr", "ok.sh")
    assert out("squeue", "-h", "-o", "%i|%A|%F|%K") == "1_[0-8:4]|1|1|0-8:4\n"
    assert out("squeue", "-hr", "-o", "%i|%A|%F|%K") == "1_0|2|1|0\n1_4|3|1|4\n1_8|1|1|8\n"
    assert out("squeue", "-hr", "-j", "1_4", "-o", "%i") == "1_4\n"
    assert out("squeue", "-h", "-j", "1_[0,8]", "-o", "%i") == "1_[0,8]\n"
    assert out("squeue", "-h", "-j", "3", "-o", "%i") == "1_4\n"  # the element's own number
    out("scancel", "1_4")
    assert wait_until(lambda: states("-r")["1_4"] == "CANCELLED")
    assert out("squeue", "-h", "-o", "%i") == "1_[0,8]\n"
    out("scancel", "1")
    assert wait_until(lambda: out("squeue", "-h") == "")
    assert out("sacct", "-n", "-S", "now+1hour", "-E", "now+2hours") == ""


def test_sbatch_waits_and_exits_with_the_scripts_code(scripts: Path) -> None:
    assert out("sbatch", "--wait", "ok.sh") == "Submitted batch job 1\n"
    ended = flow("sbatch", "-W", "--parsable", "bad.sh")
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "2\n", "")
    assert flow("sbatch", "-WQ", "killed.sh").returncode == 1


def test_sbatch_takes_a_script_from_standard_input_and_a_command(scripts: Path) -> None:
    out("sbatch", "--wait", "-o", "%x.txt", stdin=b"#!/bin/sh\necho from stdin\n")
    out("sbatch", "--wait", "-o", "%x.txt", "--wrap", "echo $SLURM_JOB_ID")
    assert (scripts / "sbatch.txt").read_text() == "from stdin\n"
    assert (scripts / "wrap.txt").read_text() == "2\n"


def test_what_sbatch_refuses_it_says_in_slurms_way(scripts: Path) -> None:
    assert refused("sbatch", "none.sh") == (1, "sbatch: error: Unable to open file none.sh\n")
    assert refused("sbatch", "--bogus", "ok.sh")[0] == 255
    assert refused("sbatch", "--time=soon", "ok.sh")[0] == 255
    wrapped = refused("sbatch", "--wrap", "hostname", "ok.sh")
    assert wrapped == (1, "sbatch: error: Script arguments not permitted with --wrap option\n")
    assert refused("sbatch")[0] == 1
    assert refused("sbatch", "-Q", "-H", "ok.sh") == (0, "")


def test_test_only_submits_nothing(scripts: Path) -> None:
    code, told = refused("sbatch", "--test-only", "-n", "4", "ok.sh")
    assert code == 0
    assert without_times(told) == "sbatch: Job to start at TIME using 4 processors on local\n"
    assert out("squeue", "-h", "-t", "all") == ""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (
            ["squeue", "--bogus"],
            1,
            "squeue: unrecognized option '--bogus'\nTry \"squeue --help\" for more information\n",
        ),
        (["squeue", "-y"], 1, "squeue: invalid option -- 'y'\nTry \"squeue --help\" for more information\n"),
        (["squeue", "extra"], 1, "squeue: error: Unrecognized option: extra\n"),
        (["squeue", "-j", "99"], 1, "slurm_load_jobs error: Invalid job id specified\n"),
        (["squeue", "-j", "abc"], 1, "squeue: error: Invalid job id: abc\n"),
        (["squeue", "-u", "nobody-here"], 1, "squeue: error: Invalid user: nobody-here\n"),
        (["sacct", "-o", "foo"], 1, 'sacct: error: Invalid field requested: "foo"\n'),
        (["sacct", "-j", "abc"], 1, "sacct: fatal: Bad job/step specified: abc\n"),
        (["sacct", "-s", "foo"], 1, "sacct: fatal: unrecognized job state value 'foo'\n"),
        (["scancel"], 1, "scancel: error: No job identification provided\n"),
        (["scancel", "abc"], 1, "scancel: error: Invalid job id abc\n"),
        (["scancel", "-s", "FOO", "1"], 1, "Unknown job signal: FOO\n"),
        (
            ["scancel", "-t", "F"],
            1,
            "Invalid job state specified: F\nValid job states are PENDING, RUNNING, and SUSPENDED\n",
        ),
        (["scancel", "99"], 0, ""),
        (["scontrol", "foo"], 1, "invalid keyword: foo\n"),
        (["scontrol", "show"], 1, "too few arguments for keyword:show\n"),
        (["scontrol", "show", "job", "99"], 1, "slurm_load_jobs error: Invalid job id specified\n"),
        (["scontrol", "hold", "99"], 1, "Invalid job id specified for job 99\n"),
        (["scontrol", "show", "node", "nope"], 1, "Node nope not found\n"),
        (["srun"], 1, "srun: fatal: No command given to execute.\n"),
        (
            ["srun", "--bogus", "x"],
            255,
            "srun: unrecognized option '--bogus'\nTry \"srun --help\" for more information\n",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_slurms_words(scripts: Path, words: list[str], code: int, told: str) -> None:
    assert refused(*words) == (code, told)


def test_long_options_may_be_cut_short(scripts: Path) -> None:
    out("sbatch", "--hold", "ok.sh")
    assert out("squeue", "--nohead", "--form=%i") == "1\n"


def test_scancel_ends_what_its_options_choose(scripts: Path) -> None:
    out("sbatch", "-J", "one", "long.sh")
    out("sbatch", "-H", "-J", "one", "long.sh")
    out("sbatch", "-H", "-J", "other", "long.sh")
    assert wait_until(lambda: states()["1"] == "RUNNING")
    ended = flow("scancel", "-v", "-n", "one", "-t", "PD")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "scancel: Terminating job 2\n")
    assert wait_until(lambda: states() == {"1": "RUNNING", "2": "CANCELLED", "3": "PENDING"})
    out("scancel", "--me")
    assert wait_until(lambda: set(states().values()) == {"CANCELLED"})
    again = "scancel: error: Kill job error on job id 1: Job/step already completing or completed"
    assert refused("scancel", "-v", "1") == (0, f"scancel: Terminating job 1\n{again}\n")


def test_scancel_sends_a_signal_to_the_batch_script(scripts: Path) -> None:
    trap = "trap 'echo told; exit 5' USR1; touch ready; while :; do sleep 0.1; done"
    out("sbatch", "--wrap", trap)
    assert wait_until((scripts / "ready").exists)
    out("scancel", "--signal=USR1", "--batch", "1")
    assert wait_until(is_ended("1"))
    assert out("sacct", "-nPX", "-j", "1", "-o", "State,ExitCode") == "FAILED|5:0\n"
    assert (scripts / "slurm-1.out").read_text() == "told\n"


def test_scontrol_holds_releases_and_runs_again(scripts: Path) -> None:
    out("sbatch", "-b", "now+1hour", "long.sh")
    out("scontrol", "hold", "1")
    assert out("squeue", "-h", "-o", "%r") == "JobHeldUser\n"
    out("scontrol", "release", "1")
    assert wait_until(lambda: out("squeue", "-h", "-o", "%r") == "BeginTime\n")
    out("sbatch", "long.sh")
    assert wait_until(lambda: states()["2"] == "RUNNING")
    out("scontrol", "requeue", "2")
    assert wait_until(lambda: "Restarts=1" in out("scontrol", "show", "job", "2"))
    out("sbatch", "-H", "-d", "after:1+5", "long.sh")
    assert out("squeue", "-h", "-j", "3", "-o", "%E") == "after:1+5(unfulfilled)\n"
    (scripts / "stop").touch()


def test_scontrol_knows_lists_of_nodes(project: Path) -> None:
    assert out("scontrol", "show", "hostnames", "n[1-2],x") == "n1\nn2\nx\n"
    assert out("scontrol", "show", "hostlist", "n1,n2,n3") == "n[1-3]\n"
    assert out("scontrol", "ping") == "Slurmctld(primary) at localhost is UP\n"


def test_scontrol_shows_a_job_line_by_line_and_on_one_line(scripts: Path) -> None:
    out("sbatch", "-H", "--comment=a word", "-n", "2", "--mem=1G", "-t", "30", "-J", "first", "ok.sh")
    text = out("scontrol", "show", "job", "1")
    assert without_times(text).replace(str(scripts), "DIR") == SHOWN.format(uid=os.getuid(), gid=os.getgid())
    assert (
        out("scontrol", "-o", "show", "job", "1") == " ".join(line.strip() for line in text.splitlines()).strip() + "\n"
    )
    assert text == out("scontrol", "show", "jobid", "1") == out("scontrol", "show", "Job=1")


SHOWN = """\
JobId=1 JobName=first
   UserId=root({uid}) GroupId=root({gid}) MCS_label=N/A
   Priority=0 Nice=0 Account=(null) QOS=normal
   JobState=PENDING Reason=JobHeldUser Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:00 TimeLimit=00:30:00 TimeMin=N/A
   SubmitTime=TIME EligibleTime=Unknown
   AccrueTime=Unknown
   StartTime=Unknown EndTime=Unknown Deadline=N/A
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=TIME Scheduler=Main
   Partition=local AllocNode:Sid=localhost:0
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=
   NumNodes=1 NumCPUs=2 NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   TRES=cpu=2,mem=1G,node=1,billing=2
   Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=*
   MinCPUsNode=1 MinMemoryNode=1G MinTmpDiskNode=0
   Features=(null) DelayBoot=00:00:00
   OverSubscribe=OK Contiguous=0 Licenses=(null) Network=(null)
   Command=DIR/ok.sh
   WorkDir=DIR
   Comment=a word
   StdErr=DIR/slurm-1.out
   StdIn=/dev/null
   StdOut=DIR/slurm-1.out
   Power=

"""


def test_sinfo_lists_this_machine(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "16")
    monkeypatch.setenv("FLOW_LOCAL_GPUS", "0")
    assert out("sinfo") == (
        "PARTITION AVAIL  TIMELIMIT  NODES  STATE NODELIST\n"
        f"local*       up   infinite      1   idle {HERE}\n"
    )  # fmt: skip
    assert out("sinfo", "-h", "-o", "%P|%a|%D|%c|%N") == f"local*|up|1|16|{HERE}\n"
    assert out("sinfo", "-h", "-t", "IDLE,mix", "-n", HERE, "-o", "%D") == "1\n"
    assert out("sinfo", "-h", "-t", "down") == out("sinfo", "-h", "-n", "elsewhere") == ""
    assert out("sinfo", "-N") == (
        "NODELIST   NODES PARTITION STATE \n"
        f"{HERE:9}      1    local* idle  \n"
    ).replace("   local*", "local*   ")  # fmt: skip


def test_srun_passes_its_input_on_to_each_task(scripts: Path) -> None:
    assert sorted(out("srun", "-ln2", "cat", stdin=b"a\nb\n").splitlines()) == ["0: a", "0: b", "1: a", "1: b"]
    assert out("srun", "--input=none", "cat", stdin=b"a\n") == ""


def test_srun_reads_its_options_as_in_a_job(scripts: Path) -> None:
    assert sorted(out("srun", "-ln2", "--lab", "-I5", "-K1", "--no-k", "echo", "x").splitlines()) == ["0: x", "1: x"]
    assert out("srun", "-n2", "-o", "%x-%t.txt", "-J", "two", "sh", "-c", "echo $SLURM_PROCID") == ""
    assert [(scripts / f"two-{rank}.txt").read_text() for rank in (0, 1)] == ["0\n", "1\n"]


def test_srun_shows_the_output_and_has_the_exit_code(scripts: Path) -> None:
    ended = flow("srun", "-n", "2", "sh", "-c", 'echo "$SLURM_PROCID of $SLURM_NTASKS"; exit $SLURM_PROCID')
    assert sorted(ended.stdout.splitlines()) == ["0 of 2", "1 of 2"]
    assert ended.returncode == 1
    assert f"srun: error: {HERE}: task 1: Exited with exit code 1\n" in ended.stderr
    assert not list(scripts.glob("slurm-*"))


def test_a_shell_at_the_terminal_is_in_a_job_with_its_variables_and_commands(scripts: Path) -> None:
    command = (
        'echo "$SLURM_JOB_ID $SLURM_NTASKS $PWD"; srun -l sh -c "echo \\$SLURM_PROCID" | sort; squeue -h -o "%i %j"'
    )
    ended = flow("srun", "-n", "2", "-J", "looking", "--pty", "sh", "-c", f"{command}; exit 3")
    assert (ended.returncode, ended.stdout) == (3, f"1 2 {scripts}\n0: 0\n1: 1\n1 looking\n"), ended.stderr
    assert states() == {"1": "CANCELLED"}
    assert not list(scripts.glob("slurm-*"))


def test_a_second_ctrl_c_ends_what_srun_started(scripts: Path) -> None:
    first = ["srun: interrupt (one more within 1 sec to abort)\n", "srun: StepId=1.0 tasks 0-1: running\n"]
    command = [sys.executable, "-m", "flow", "srun", "-n2", "sh", "-c", "echo up; sleep 100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert [process.stderr.readline(), process.stderr.readline()] == first
        process.send_signal(signal.SIGINT)
        while (line := process.stderr.readline()) == first[0]:  # it came too late, on a busy machine
            assert process.stderr.readline() == first[1]
            process.send_signal(signal.SIGINT)
        assert line == "srun: sending Ctrl-C to StepId=1.0\n"
        _, told = process.communicate(timeout=60)
        assert (process.returncode, states()) == (143, {"1": "CANCELLED"}), told
    finally:
        process.kill()
        process.wait()


def test_a_script_that_calls_slurms_commands_runs_unchanged(scripts: Path, tmp_path: Path) -> None:
    ended = flow("slurm", "install-commands", "bin")
    assert ended.returncode == 0
    assert ended.stderr == f'hint: put them first on your PATH: `export PATH={scripts}/bin:"$PATH"`\n'
    assert ended.stdout.split() == [f"bin/{name}" for name in COMMANDS]
    driver = """
        id=$(sbatch --parsable --array=1-2 bad.sh arg)
        while [ -n "$(squeue -h -j $id)" ]; do sleep 0.2; done
        sacct -n -P -X -o JobID,State,ExitCode -j $id
        srun -n 1 echo from srun
        scontrol show hostnames 'n[1-2]'
        sinfo -h -o %P
        scancel $id
        exported() { echo from a function; }; export -f exported
        sbatch -Q -W -o function.out <<< $'#!/bin/bash\nexported'; cat function.out
    """
    path = f"{scripts}/bin:{os.environ['PATH']}"
    ran = subprocess.run(["bash", "-euc", driver], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "1_1|FAILED|3:0\n1_2|FAILED|3:0\nfrom srun\nn1\nn2\nlocal*\nfrom a function\n"


COMMANDS = ("sbatch", "squeue", "scancel", "sacct", "sinfo", "srun", "scontrol")


def test_install_commands_spares_what_it_did_not_make(project: Path) -> None:
    (project / "bin").mkdir()
    (project / "bin" / "squeue").write_text("#!/bin/sh\necho mine\n")
    code, told = refused("slurm", "install-commands", "bin")
    assert (code, told.splitlines()[0]) == (2, "error: `bin/squeue` is there already, and not made by this command")
    assert os.listdir("bin") == ["squeue"]  # noqa: PTH208
    (project / "bin" / "squeue").unlink()
    assert (
        flow("slurm", "install-commands", "bin").returncode == flow("slurm", "install-commands", "bin").returncode == 0
    )


def test_elements_that_wait_for_a_place_are_one_line(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "1")
    out("sbatch", "-a", "0-9", "-J", "arr", "long.sh")
    assert wait_until(lambda: out("squeue", "-h", "-o", "%i %T %r") == "1_[1-9] PENDING Resources\n1_0 RUNNING None\n")
    out("scancel", "-t", "PD", "1")
    assert wait_until(lambda: out("squeue", "-h", "-o", "%i") == "1_0\n")
    (scripts / "stop").touch()


def test_a_task_without_a_script_is_listed_too(scripts: Path) -> None:
    assert flow("run", "sleep 100", "--name", "plain").returncode == 0
    assert wait_until(lambda: out("squeue", "-h", "-o", "%i|%j|%P|%t|%o") == "1|plain|local|R|bash -c sleep 100\n")
    out("scancel", "1")


def test_a_damaged_record_hides_no_other(scripts: Path) -> None:
    out("sbatch", "-H", "-a", "1-3", "ok.sh")
    out("sbatch", "-H", "ok.sh")
    task_id = next(one["task_id"] for one in json.loads(out("status", "--json"))["tasks"] if one["number"] == 1)
    (Path(os.environ["FLOW_HOME"]) / "record" / task_id / "record.json").write_text("{")
    ended = flow("squeue", "-h", "-o", "%i %j %C %k")
    assert ended.returncode == 0
    assert "4 ok.sh 1 (null)\n" in ended.stdout
    assert f"record/{task_id}/record.json` is damaged" in ended.stderr


# -- the same jobs, shown by the real Slurm and by us

SUBMITTED = (
    ("ok.sh",),
    ("bad.sh",),
    ("killed.sh",),
    ("-H", "-J", "held", "ok.sh"),
    ("-J", "a-long-name-here", "-n", "2", "-c", "2", "--comment=a comment", "long.sh"),
    ("-d", "afterok:{2}", "-J", "never", "ok.sh"),
    ("-d", "afterok:{5}", "-J", "waits", "ok.sh"),
    ("-b", "now+1hour", "-J", "later", "-t", "1-2:3:4", "ok.sh"),
    ("-a", "1-10%2", "-J", "arr", "long.sh"),
    ("-H", "-a", "0-20:4", "-J", "harr", "ok.sh"),
    ("-J", "ends", "long.sh"),
)
LETTERS = "cCdDfgGhHIjJkKlmnoOPqrstTuUvwWxXyYzZb"
LONG_NAMES = (
    "admin_comment,arraytaskid,batchflag,boardspernode,burstbuffer,burstbufferstate,clusterfeature,command,"
    "comment,container,contiguous,cores,corespec,cpus-per-task,cpus-per-tres,deadline,delayboot,feature,"
    "groupid,groupname,hetjobid,hetjobidset,hetjoboffset,licenses,maxnodes,mcslabel,mem-per-tres,mincpus,minmemory,"
    "mintime,mintmpdisk,name,network,nice,ntperboard,ntpercore,ntpernode,ntpersocket,numcpus,numnodes,numtasks,origin,"
    "originraw,oversubscribe,partition,preempttime,prefer,profile,qos,reason,reboot,reqnodes,reqswitch,requeue,"
    "reservation,resizetime,restartcnt,schednodes,sct,siblingsactive,siblingsviable,sockets,sperboard,state,"
    "statecompact,stdin,system_comment,threads,timelimit,tres-alloc,tres-bind,tres-freq,tres-per-job,tres-per-node,"
    "tres-per-socket,tres-per-task,userid,username,wait4switch,wckey,workdir"
)
ACCOUNTED = (
    "jobname,partition,state,exitcode,alloccpus,allocnodes,alloctres,constraints,derivedexitcode,gid,group,ncpus,nnodes,"
    "qos,reqcpus,reqmem,reqnodes,reqtres,reservation,suspended,timelimit,timelimitraw,uid,user,wckey,workdir"
)


@pytest.fixture
def both(scripts: Path, slurm: Cluster) -> Iterator[tuple[Callable[..., str], Callable[..., str]]]:
    """The same jobs on the real Slurm and here; what asks the one and the other, their numbers made the same."""
    real = _submit(lambda *words: slurm.run(*words, cwd=scripts).stdout)
    ours = _submit(lambda *words: flow(*words).stdout)  # a note says that the partition is none of ours
    assert wait_until(lambda: "R" in slurm.run("squeue", "-h", "-o", "%t", "-j", real[-1]).stdout, seconds=60)
    slurm.run("scancel", real[-1])
    out("scancel", ours[-1])

    def ask_slurm(*words: str) -> str:
        wanted = [word.format(",".join(real)) for word in words]
        return _renumbered(slurm.run(*wanted, cwd=scripts).stdout, real)

    def ask_us(*words: str) -> str:
        return _renumbered(out(*(word.format(",".join(ours)) for word in words)), ours)

    try:
        for ask in (ask_slurm, ask_us):
            assert wait_until(lambda ask=ask: _is_settled(ask), seconds=30), _told(ask)
        yield ask_slurm, ask_us
    finally:
        (scripts / "stop").touch()
        slurm.run("scancel", *real)
        out("scancel", "--me")
        assert wait_until(lambda: out("squeue", "-h") == "")


def _submit(run: Callable[..., str]) -> list[str]:
    numbers: list[str] = []
    for words in SUBMITTED:
        filled = [word.format("", *numbers) if "{" in word else word for word in words]
        numbers.append(run("sbatch", "--parsable", "-p", "gpu", "--mem=1G", "-t", "60", *filled).strip())
        if len(numbers) == 3:
            assert wait_until(lambda: run("squeue", "-h", "-t", "PD,R,CG", "-j", ",".join(numbers)) == "", seconds=60)
    return numbers


def _renumbered(text: str, numbers: list[str]) -> str:
    """The jobs' numbers as their places, `job5` and `job9_1`."""
    places = {number: f"job{place}" for place, number in enumerate(numbers, 1)}
    own = re.compile(r"(^ *|after\w+:)(\d+)(?=[_|. (]|$)", flags=re.MULTILINE)
    return own.sub(lambda found: found[1] + places.get(found[2], found[2]), text)


def _told(ask: Callable[..., str]) -> str:
    return ask("squeue", "-t", "all", "-j", "{}", "-o", "%i %T %r") + ask(
        "sacct", "-nPX", "-j", "{}", "-o", "jobid,jobname,state"
    )


def _is_settled(ask: Callable[..., str]) -> bool:
    lines = ask("squeue", "-h", "-t", "all", "-j", "{}", "-o", "%i %T %r").splitlines()
    accounted = ask("sacct", "-nPX", "-j", "{}", "-o", "jobname,state").splitlines()  # a moment later
    known = len(accounted) == 13 and "ok.sh|COMPLETED" in accounted
    running = sum(" RUNNING " in line for line in lines)
    ended = any(line.startswith("job11 CANCELLED") for line in lines) and any(
        line.startswith("ends|CANCELLED") for line in accounted
    )
    return running == 3 and "job7 PENDING Dependency" in lines and known and ended


def _by_job(text: str) -> dict[str, str]:
    """What stands after the first `|` of each line, by what stands before it."""
    parts = (line.partition("|") for line in text.splitlines())
    return {job.strip(): shown for job, _, shown in parts}


def test_squeue_and_sacct_show_what_the_real_ones_show_of_the_same_jobs(
    both: tuple[Callable[..., str], Callable[..., str]],
) -> None:
    ask_slurm, ask_us = both
    differing = {}
    for letter in LETTERS:
        asked = ("squeue", "-t", "all", "-j", "{}", "-o", f"%i|%{letter}|%.3{letter}|%12{letter}|")
        theirs, mine = _by_job(ask_slurm(*asked)), _by_job(ask_us(*asked))
        _note_differences(differing, f"%{letter}", theirs, mine)
    for name in LONG_NAMES.split(","):
        asked = ("squeue", "-t", "all", "-j", "{}", "-O", f"jobarrayid:24|,{name},{name}:.7,{name}:30")
        theirs, mine = _by_job(ask_slurm(*asked)), _by_job(ask_us(*asked))
        _note_differences(differing, name, theirs, mine)
    asked = ("squeue", "-t", "all", "-j", "{}", "-o", "%i|%E")  # the numbers in it are not as wide
    _note_differences(differing, "%E", _by_job(ask_slurm(*asked)), _by_job(ask_us(*asked)))
    for name in ACCOUNTED.split(","):
        asked = ("sacct", "-X", "-j", "{}", "-P", "-o", f"jobid,{name}")
        theirs, mine = _by_job(ask_slurm(*asked)), _by_job(ask_us(*asked))
        _note_differences(differing, f"sacct {name}", theirs, mine)
    assert differing == {}


def _note_differences(differing: dict[str, object], field: str, theirs: dict[str, str], mine: dict[str, str]) -> None:
    assert theirs.keys() == mine.keys(), field
    kept = ("job11",) if field in ("%r", "reason") else ()  # Slurm keeps what it waited for when it was cancelled
    wrong = {job: (theirs[job], mine[job]) for job in theirs if theirs[job] != mine[job] and job not in kept}
    if wrong:
        differing[field] = wrong


def test_default_outputs_are_the_real_ones_but_for_what_must_differ(
    both: tuple[Callable[..., str], Callable[..., str]],
) -> None:
    ask_slurm, ask_us = both
    for words in (
        ("squeue", "-j", "{}"),
        ("squeue", "-j", "{}", "-r", "-t", "all", "-n", "arr,held,ok.sh"),  # Slurm forgets one of 0-20:4
        ("squeue", "-j", "{}", "-t", "F,CD,CA", "-S", "i"),
        ("sacct", "-j", "{}", "-n", "-X", "-o", "jobid%20,jobname%5,state%4,exitcode"),
        ("sacct", "-j", "{}", "-p", "-X", "-o", "jobid,jobname,state"),
        ("sacct", "-j", "{}", "-b", "-X", "-p"),
        ("sacct", "--helpformat"),
    ):
        assert _same(ask_us(*words)) == _same(ask_slurm(*words)), words


def _same(text: str) -> list[str]:
    """Without nodes and times of their own, numbers' widths made equal, in one order: of equals Slurm has none."""
    text = re.sub(rf"node\S+|\b{HERE}\b", "NODE", text)
    text = re.sub(r" \d+:\d\d ", " TIME ", text)
    return sorted(re.sub(r" +", " ", line) for line in text.splitlines())
