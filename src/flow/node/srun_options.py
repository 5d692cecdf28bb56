"""The options of srun: from its command line, and from the variables that stand for them.

Standard library, Python 3.8 and up. Source: srun(1) of Slurm 22.05.
"""

from __future__ import annotations

from typing import Mapping, NoReturn

SHORT = {
    "A": "account", "b": "begin", "B": "extra-node-info", "c": "cpus-per-task", "C": "constraint", "d": "dependency",
    "D": "chdir", "e": "error", "E": "preserve-env", "G": "gpus", "h": "help", "H": "hold", "i": "input",
    "I": "immediate", "J": "job-name", "k": "no-kill", "K": "kill-on-bad-exit", "l": "label", "L": "licenses",
    "m": "distribution", "M": "clusters", "n": "ntasks", "N": "nodes", "o": "output", "O": "overcommit",
    "p": "partition", "q": "qos", "Q": "quiet", "r": "relative", "s": "oversubscribe", "S": "core-spec", "t": "time",
    "T": "threads", "u": "unbuffered", "v": "verbose", "V": "version", "w": "nodelist", "W": "wait", "x": "exclude",
    "X": "disable-status", "Z": "no-allocate",
}  # fmt: skip
FLAGS = (
    "contiguous", "debugger-test", "disable-status", "exact", "help", "hold", "interactive", "label", "multi-prog",
    "no-allocate", "overcommit", "overlap", "oversubscribe", "preserve-env", "pty", "quiet", "reboot",
    "spread-job", "test-only", "unbuffered", "usage", "use-min-nodes", "verbose", "version",
)  # fmt: skip
MAY_HAVE_VALUE = (
    "bcast", "compress", "exclusive", "get-user-env", "immediate", "kill-on-bad-exit", "no-kill", "propagate",
    "send-libs", "x11",
)  # fmt: skip
VALUED = (
    "accel-bind", "account", "acctg-freq", "bb", "bbf", "bcast-exclude", "begin", "chdir", "cluster-constraint",
    "clusters", "comment", "constraint", "container", "core-spec", "cores-per-socket", "cpu-bind", "cpu-freq",
    "cpus-per-gpu", "cpus-per-task", "deadline", "delay-boot", "dependency", "distribution", "epilog", "error",
    "exclude", "export", "extra-node-info", "gid", "gpu-bind", "gpu-freq", "gpus", "gpus-per-node",
    "gpus-per-socket", "gpus-per-task", "gres", "gres-flags", "het-group", "hint", "input", "job-name", "jobid",
    "licenses", "mail-type", "mail-user", "mcs-label", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu", "mincpus",
    "mpi", "msg-timeout", "network", "nice", "nodefile", "nodelist", "nodes", "ntasks", "ntasks-per-core",
    "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "ntasks-per-tres", "open-mode", "output", "partition",
    "power", "priority", "profile", "prolog", "qos", "relative", "reservation", "resv-ports", "signal",
    "slurmd-debug", "sockets-per-node", "switches", "task-epilog", "task-prolog", "thread-spec", "threads",
    "threads-per-core", "time", "time-min", "tmp", "tres-per-task", "uid", "wait", "wckey",
)  # fmt: skip
# The variables that count where the command line says nothing; of several for one option the first one does.
VARIABLES = {
    "SLURM_NTASKS": "ntasks", "SLURM_NPROCS": "ntasks", "SLURM_NNODES": "nodes", "SLURM_JOB_NUM_NODES": "nodes",
    "SLURM_NTASKS_PER_NODE": "ntasks-per-node", "SRUN_CPUS_PER_TASK": "cpus-per-task", "SLURM_EXACT": "exact",
    "SLURM_EXCLUSIVE": "exclusive", "SLURM_OVERLAP": "overlap", "SLURM_OVERCOMMIT": "overcommit",
    "SLURM_LABELIO": "label", "SLURM_UNBUFFEREDIO": "unbuffered", "SLURM_KILL_BAD_EXIT": "kill-on-bad-exit",
    "SLURM_WAIT": "wait", "SLURM_TIMELIMIT": "time", "SLURM_STDOUTMODE": "output", "SLURM_STDERRMODE": "error",
    "SLURM_STDINMODE": "input", "SLURM_OPEN_MODE": "open-mode", "SLURM_REMOTE_CWD": "chdir",
    "SLURM_WORKING_DIR": "chdir", "SRUN_EXPORT_ENV": "export", "SLURM_EXPORT_ENV": "export",
    "SLURM_IMMEDIATE": "immediate", "SLURM_GPU_BIND": "gpu-bind", "SLURM_DEBUG": "verbose",
}  # fmt: skip
GPUS = {
    "SLURM_GPUS": "gpus", "SLURM_GPUS_PER_NODE": "gpus-per-node", "SLURM_GPUS_PER_TASK": "gpus-per-task",
    "SLURM_STEP_GRES": "gres",
}  # fmt: skip


class UsageError(Exception):
    """What is wrong with the command line, and the exit code that srun has for it."""


def read(argv: list[str], env: Mapping[str, str]) -> tuple[dict[str, str], set[str], list[str]]:
    """The options that hold, those of them that the command line gave, and the command. A flag's value is ""."""
    given, command = _read_line(argv)
    found = dict(given)
    is_about_gpus = any(name in given for name in GPUS.values())
    for table in (VARIABLES, {} if is_about_gpus else GPUS):
        for name, option in table.items():
            value = env.get(name)
            if value is None or option in found:
                continue
            if option in VALUED:
                found[option] = value
            elif value in ("", "yes") or (value.strip("0123456789") == "" and int(value)):
                found[option] = "" if option in FLAGS else value
    if found.get("kill-on-bad-exit") == "0":
        del found["kill-on-bad-exit"]
    return found, set(given), command


def _read_line(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    found: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = _whole(name)
            if equals and name in FLAGS:
                _wrong(f"option '--{name}' doesn't allow an argument")
            if not equals and name in VALUED:
                value = _next(rest, f"option '--{name}' requires an argument")
            found[name] = value
        elif word.startswith("-") and word != "-":
            _read_letters(word[1:], rest, found)
        else:
            rest.insert(0, word)
            break
    return found, rest


def _read_letters(letters: str, rest: list[str], found: dict[str, str]) -> None:
    """`-lN2`: flags together, and a value at the end or in the next word."""
    while letters:
        name = SHORT.get(letters[0])
        if name is None:
            _wrong(f"invalid option -- '{letters[0]}'")
        letter, letters = letters[0], letters[1:]
        if name in FLAGS:
            found[name] = ""
            continue
        if name in VALUED and not letters:
            letters = _next(rest, f"option requires an argument -- '{letter}'")
        found[name] = letters
        return


def _whole(name: str) -> str:
    """A name may be cut where only one begins so."""
    names = (*FLAGS, *MAY_HAVE_VALUE, *VALUED)
    near = [one for one in names if one.startswith(name)]
    if name in names:
        return name
    if len(set(near)) != 1:
        _wrong(f"option '--{name}' is ambiguous" if near else f"unrecognized option '--{name}'")
    return near[0]


def _next(rest: list[str], complaint: str) -> str:
    if not rest:
        _wrong(complaint)
    return rest.pop(0)


def _wrong(text: str) -> NoReturn:
    raise UsageError(f'srun: {text}\nTry "srun --help" for more information', 255)
