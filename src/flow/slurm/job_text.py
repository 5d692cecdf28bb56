"""What `scontrol show job` prints. Source: scontrol of Slurm 22.05."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flow.slurm.job_fields import FIELDS
from flow.slurm.jobs import Job, group_name
from flow.slurm.times import stamp, whole_span


def job_lines(job: Job) -> list[list[str]]:
    """`Name=value` words by line."""
    asked = job.details
    user, group = f"{job.user}({os.getuid()})", f"{group_name()}({os.getgid()})"
    array = []
    if job.array is not None:
        array = [f"ArrayJobId={job.array}", f"ArrayTaskId={job.element.strip('[]')}"]
        array += [f"ArrayTaskThrottle={asked.throttle}"] * bool(asked.throttle)
    waits = FIELDS["dependency"].show(job)
    limit = "UNLIMITED" if asked.limit_seconds is None else whole_span(asked.limit_seconds)
    begins = job.started if job.started is not None or not job.is_pending else asked.begin
    words = [
        [f"JobId={job.number or job.task_id}", *array, f"JobName={job.name}"],
        [f"UserId={user}", f"GroupId={group}", "MCS_label=N/A"],
        [
            f"Priority={job.priority}", f"Nice={asked.option('nice', '0')}", f"Account={asked.option('account')}",
            f"QOS={asked.option('qos', 'normal')}",
        ],
        [f"JobState={job.state}", f"Reason={job.reason}", f"Dependency={waits}"],
        [
            f"Requeue={int('no-requeue' not in asked.options)}", f"Restarts={max(job.attempt - 1, 0)}", "BatchFlag=1",
            "Reboot=0", f"ExitCode={job.exit_text}",
        ],
        [f"RunTime={whole_span(job.ran_seconds)}", f"TimeLimit={limit}", "TimeMin=N/A"],
        [f"SubmitTime={stamp(job.submitted)}", f"EligibleTime={_eligible(job)}"],
        [f"AccrueTime={_eligible(job)}"],
        [f"StartTime={stamp(begins, 'Unknown')}", f"EndTime={stamp(job.ends, 'Unknown')}", "Deadline=N/A"],
        [
            "SuspendTime=None", "SecsPreSuspend=0", f"LastSchedEval={stamp(job.started or job.submitted)}",
            "Scheduler=Main",
        ],
        [f"Partition={job.partition}", "AllocNode:Sid=localhost:0"],
        [f"ReqNodeList={asked.option('nodelist')}", f"ExcNodeList={asked.option('exclude')}"],
        [f"NodeList={job.node_list}"],
        [f"BatchHost={job.batch_host}"] if job.node_list else [],
        [
            f"NumNodes={job.nodes}", f"NumCPUs={asked.cpus}", f"NumTasks={asked.tasks}",
            f"CPUs/Task={asked.cpus_per_task}", "ReqB:S:C:T=0:0:*:*",
        ],
        [f"TRES={asked.tres()}"],
        ["Socks/Node=*", f"NtasksPerN:B:S:C={asked.option('ntasks-per-node', '0')}:0:*:*", "CoreSpec=*"],
        [f"MinCPUsNode={asked.min_cpus}", f"MinMemoryNode={asked.memory}", "MinTmpDiskNode=0"],
        [f"Features={asked.option('constraint')}", "DelayBoot=00:00:00"],
        [
            f"OverSubscribe={'NO' if 'exclusive' in asked.options else 'OK'}", "Contiguous=0",
            f"Licenses={asked.option('licenses')}", "Network=(null)",
        ],
        [f"Command={asked.command}"],
        [f"WorkDir={asked.work_dir}"],
        [f"Comment={asked.options['comment']}"] if "comment" in asked.options else [],
        [f"StdErr={asked.stderr}"],
        [f"StdIn={asked.option('input', '/dev/null')}"],
        [f"StdOut={asked.stdout}"],
        ["Power="],
    ]  # fmt: skip
    return [line for line in words if line]


def text_of(lines: Sequence[Sequence[str]], *, one_line: bool) -> str:
    """The lines as scontrol shows them, or all in one."""
    if one_line:
        return " ".join(" ".join(line) for line in lines)
    return "\n   ".join(" ".join(line) for line in lines) + "\n"


def _eligible(job: Job) -> str:
    return "Unknown" if job.reason in ("JobHeldUser", "Dependency") and job.is_pending else stamp(job.submitted)
