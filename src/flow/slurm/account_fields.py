"""sacct's fields, each with its width. Source: sacct(1) of Slurm 22.05."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from flow.slurm.jobs import Job, group_name
from flow.slurm.times import stamp, whole_span

DEFAULT = "jobid,jobname,partition,account,alloccpus,state,exitcode"
BRIEF = "jobid,state,exitcode"
LONG = (
    "jobid,jobidraw,jobname,partition,maxvmsize,maxvmsizenode,maxvmsizetask,avevmsize,maxrss,maxrssnode,maxrsstask,"
    "averss,maxpages,maxpagesnode,maxpagestask,avepages,mincpu,mincpunode,mincputask,avecpu,ntasks,alloccpus,elapsed,"
    "state,exitcode,avecpufreq,reqcpufreqmin,reqcpufreqmax,reqcpufreqgov,reqmem,consumedenergy,maxdiskread,"
    "maxdiskreadnode,maxdiskreadtask,avediskread,maxdiskwrite,maxdiskwritenode,maxdiskwritetask,avediskwrite,reqtres,"
    "alloctres,tresusageinave,tresusageinmax,tresusageinmaxn,tresusageinmaxt,tresusageinmin,tresusageinminn,"
    "tresusageinmint,tresusageintot,tresusageoutmax,tresusageoutmaxn,tresusageoutmaxt,tresusageoutave,tresusageouttot"
)
WIDTHS = {
    "Account": 10, "AdminComment": 15, "AllocCPUS": 10, "AllocNodes": 10, "AllocTRES": 10, "AssocID": 7,
    "AveCPU": 10, "AveCPUFreq": 10, "AveDiskRead": 14, "AveDiskWrite": 14, "AvePages": 10, "AveRSS": 10,
    "AveVMSize": 10, "BlockID": 16, "Cluster": 10, "Comment": 14, "Constraints": 19, "ConsumedEnergy": 14,
    "ConsumedEnergyRaw": 17, "Container": 19, "CPUTime": 10, "CPUTimeRAW": 10, "DBIndex": 10, "DerivedExitCode": 15,
    "Elapsed": 10, "ElapsedRaw": 10, "Eligible": 19, "End": 19, "ExitCode": 8, "Flags": 19, "GID": 6, "Group": 9,
    "JobID": 12, "JobIDRaw": 12, "JobName": 10, "Layout": 9, "MaxDiskRead": 12, "MaxDiskReadNode": 15,
    "MaxDiskReadTask": 15, "MaxDiskWrite": 12, "MaxDiskWriteNode": 16, "MaxDiskWriteTask": 16, "MaxPages": 8,
    "MaxPagesNode": 12, "MaxPagesTask": 14, "MaxRSS": 10, "MaxRSSNode": 10, "MaxRSSTask": 10, "MaxVMSize": 10,
    "MaxVMSizeNode": 14, "MaxVMSizeTask": 14, "McsLabel": 12, "MinCPU": 10, "MinCPUNode": 10, "MinCPUTask": 10,
    "NCPUS": 10, "NNodes": 8, "NodeList": 15, "NTasks": 8, "Partition": 10, "Priority": 10, "QOS": 10, "QOSRAW": 6,
    "Reason": 22, "ReqCPUFreq": 10, "ReqCPUFreqGov": 13, "ReqCPUFreqMax": 13, "ReqCPUFreqMin": 13, "ReqCPUS": 8,
    "ReqMem": 10, "ReqNodes": 8, "ReqTRES": 10, "Reservation": 20, "ReservationId": 8, "Reserved": 10, "ResvCPU": 10,
    "ResvCPURAW": 10, "Start": 19, "State": 10, "Submit": 19, "SubmitLine": 20, "Suspended": 10, "SystemComment": 15,
    "SystemCPU": 10, "Timelimit": 10, "TimelimitRaw": 10, "TotalCPU": 10, "TRESUsageInAve": 14, "TRESUsageInMax": 14,
    "TRESUsageInMaxNode": 18, "TRESUsageInMaxTask": 18, "TRESUsageInMin": 14, "TRESUsageInMinNode": 18,
    "TRESUsageInMinTask": 18, "TRESUsageInTot": 14, "TRESUsageOutAve": 15, "TRESUsageOutMax": 15,
    "TRESUsageOutMaxNode": 19, "TRESUsageOutMaxTask": 19, "TRESUsageOutMin": 15, "TRESUsageOutMinNode": 19,
    "TRESUsageOutMinTask": 19, "TRESUsageOutTot": 15, "UID": 6, "User": 9, "UserCPU": 10, "WCKey": 10, "WCKeyID": 10,
    "WorkDir": 20,
}  # fmt: skip
_LEFT = ("JobID", "JobIDRaw", "DBIndex")


class Entry(NamedTuple):
    """A line of sacct: a job as a whole, or its batch step."""

    job: Job
    step: str = ""


def entries(jobs: Iterable[Job], *, steps: bool) -> Iterator[Entry]:
    """Each job and, with `steps`, the batch step of those that started."""
    for job in jobs:
        yield Entry(job)
        if steps and job.started is not None:
            yield Entry(job, "batch")


class Column(NamedTuple):
    """A field in its width; negative: to the left."""

    title: str
    width: int
    show: Callable[[Entry], str]

    @property
    def heading(self) -> str:
        """The title in its place, cut without a sign of it."""
        width = abs(self.width)
        return self.title[:width].ljust(width) if self.width < 0 else self.title[:width].rjust(width)

    def cell(self, text: str) -> str:
        """The text in its place; `+` stands for what was cut off."""
        width = abs(self.width)
        if len(text) > width:
            text = text[: width - 1] + "+" if width > 0 else ""
        return text.ljust(width) if self.width < 0 else text.rjust(width)


def columns(text: str) -> tuple[list[Column], str | None]:
    """Those that `-o` names, as `JobID,JobName%20,State%-5`; and the first name that no field begins with."""
    found = []
    for part in filter(None, text.split(",")):
        name, percent, width = part.partition("%")
        if name.lower() == "all":
            found += [_column(one) for one in WIDTHS]
            continue
        full = next((one for one in WIDTHS if one.lower().startswith(name.lower())), None)
        if full is None:
            return [], name
        column = _column(full)
        found.append(column._replace(width=int(width)) if percent and re.fullmatch(r"-?\d+", width) else column)
    return found, None


def table(
    chosen: Sequence[Column], shown: Iterable[Entry], *, header: bool, delimiter: str | None, ends: bool
) -> list[str]:
    """The lines of sacct; with a `delimiter` whole values between it, and one at the end where `ends`."""
    if delimiter is not None:
        rows = [[column.title for column in chosen]] * header
        rows += [[column.show(one) for column in chosen] for one in shown]
        return [delimiter.join(row) + delimiter * ends for row in rows]
    lines = []
    if header:
        lines.append("".join(column.heading + " " for column in chosen))
        lines.append("".join("-" * abs(column.width) + " " for column in chosen))
    lines += ["".join([column.cell(column.show(one)) + " " for column in chosen]) for one in shown]
    return lines


def help_text() -> str:
    """What `--helpformat` prints: four names a line."""
    names = list(WIDTHS)
    lines = [names[at : at + 4] for at in range(0, len(names), 4)]
    return "\n".join("".join(name.ljust(19) + " " for name in line)[:-1] for line in lines)


def _column(name: str) -> Column:
    width = WIDTHS[name]
    return Column(name, -width if name in _LEFT else width, _SHOWN.get(name, _nothing))


def _nothing(entry: Entry) -> str:
    return ""


def _of_job(show: Callable[[Job], str], of_step: str = "") -> Callable[[Entry], str]:
    """What only the job has; its step has `of_step`."""
    return lambda entry: of_step if entry.step else show(entry.job)


def _of_step(text: str) -> Callable[[Entry], str]:
    """What only a step has."""
    return lambda entry: text if entry.step else ""


def _always(text: str) -> Callable[[Entry], str]:
    return lambda entry: text


def _id(entry: Entry) -> str:
    return entry.job.id + f".{entry.step}" * bool(entry.step)


def _raw_id(entry: Entry) -> str:
    return str(entry.job.number) + f".{entry.step}" * bool(entry.step)


def _state(entry: Entry) -> str:
    job = entry.job
    if job.state == "CANCELLED":
        return job.state if entry.step else f"{job.state} by {os.getuid()}"
    return "CANCELLED" if entry.step and (job.state == "TIMEOUT" or _killed(job)) else job.state


def _killed(job: Job) -> bool:
    return job.state == "FAILED" and job.signal > 0


def _exit(entry: Entry) -> str:
    stopped = entry.step and entry.job.state in ("CANCELLED", "TIMEOUT")
    return f"0:{entry.job.signal or _SIGTERM}" if stopped else entry.job.exit_text


def _limit(job: Job) -> str:
    limit = job.details.limit_seconds
    return "UNLIMITED" if limit is None else whole_span(limit)


def _raw_limit(job: Job) -> str:
    limit = job.details.limit_seconds
    return "UNLIMITED" if limit is None else str(int(limit // 60))


def _cpu_seconds(entry: Entry) -> int:
    return int(entry.job.ran_seconds) * entry.job.details.cpus


def _waited(job: Job) -> int:
    return int((job.now if job.started is None else job.started) - job.submitted)


def _allocated(entry: Entry) -> str:
    if entry.job.started is None:
        return ""
    return entry.job.details.tres(order=("cpu", "mem", "node") if entry.step else _ORDER)


def _option(name: str, nothing: str = "") -> Callable[[Entry], str]:
    return _of_job(lambda job: job.details.option(name, nothing))


_SIGTERM = 15
_ORDER = ("billing", "cpu", "gres", "mem", "node")
_SHOWN: Mapping[str, Callable[[Entry], str]] = {
    "Account": lambda entry: entry.job.details.option("account", ""),
    "AllocCPUS": lambda entry: str(entry.job.details.cpus),
    "AllocNodes": lambda entry: "0" if entry.job.started is None else str(entry.job.nodes),
    "AllocTRES": _allocated,
    "AssocID": _always("0"),
    "Cluster": _always("flow"),
    "Comment": _option("comment"),
    "Constraints": _option("constraint"),
    "CPUTime": lambda entry: whole_span(_cpu_seconds(entry)),
    "CPUTimeRAW": lambda entry: str(_cpu_seconds(entry)),
    "DBIndex": lambda entry: str(entry.job.number),
    "DerivedExitCode": _of_job(lambda job: "0:0"),
    "Elapsed": lambda entry: whole_span(entry.job.ran_seconds),
    "ElapsedRaw": lambda entry: str(int(entry.job.ran_seconds)),
    "Eligible": lambda entry: stamp(entry.job.submitted),
    "End": lambda entry: stamp(entry.job.ended, "Unknown"),
    "ExitCode": _exit,
    "GID": _of_job(lambda job: str(os.getgid())),
    "Group": _of_job(lambda job: group_name()),
    "JobID": _id,
    "JobIDRaw": _raw_id,
    "JobName": lambda entry: entry.step or entry.job.name,
    "Layout": _of_step("Unknown"),
    "NCPUS": lambda entry: str(entry.job.details.cpus),
    "NNodes": lambda entry: str(entry.job.nodes),
    "NodeList": lambda entry: entry.job.node_list or "None assigned",
    "NTasks": _of_step("1"),
    "Partition": _of_job(lambda job: job.partition),
    "Priority": _of_job(lambda job: str(job.priority)),
    "QOS": _option("qos", "normal"),
    "QOSRAW": _of_job(lambda job: "1"),
    "Reason": _of_job(lambda job: "None" if job.is_finished else job.reason),
    "ReqCPUFreq": _of_job(lambda job: "Unknown", "0"),
    "ReqCPUFreqGov": _of_job(lambda job: "Unknown", "0"),
    "ReqCPUFreqMax": _of_job(lambda job: "Unknown", "0"),
    "ReqCPUFreqMin": _of_job(lambda job: "Unknown", "0"),
    "ReqCPUS": lambda entry: str(entry.job.details.cpus),
    "ReqMem": _of_job(lambda job: job.details.total_memory),
    "ReqNodes": lambda entry: str(entry.job.nodes),
    "ReqTRES": _of_job(lambda job: job.details.tres(order=_ORDER)),
    "Reservation": _option("reservation"),
    "Reserved": _of_job(lambda job: whole_span(_waited(job))),
    "ResvCPU": _of_job(lambda job: whole_span(_waited(job) * job.details.cpus)),
    "ResvCPURAW": _of_job(lambda job: str(_waited(job) * job.details.cpus)),
    "Start": lambda entry: stamp(entry.job.started, "Unknown"),
    "State": _state,
    "Submit": lambda entry: stamp(entry.job.started if entry.step else entry.job.submitted),
    "Suspended": _always("00:00:00"),
    "SystemCPU": _always("00:00:00"),
    "Timelimit": _of_job(_limit),
    "TimelimitRaw": _of_job(_raw_limit),
    "TotalCPU": _always("00:00:00"),
    "UID": _of_job(lambda job: str(os.getuid())),
    "User": _of_job(lambda job: job.user),
    "UserCPU": _always("00:00:00"),
    "WCKey": _option("wckey"),
    "WCKeyID": _of_job(lambda job: "0"),
    "WorkDir": _of_job(lambda job: job.details.work_dir),
}
