"""The login node: the program `node/slurm_login.py` is asked there, called as it stands where that is this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flow.channel import Channel
from flow.errors import FlowError, ProviderError, QuotaExceededError, ValidationError
from flow.node import slurm_login
from flow.remote import Remote

# What slurmctld says that passes; sources: slurm_errno.c of Slurm 22.05.
_LATER = (
    "Unable to contact slurm controller", "Socket timed out", "Connection refused", "Zero Bytes were transmitted",
    "temporarily", "I/O error writing script", "Slurm backup controller", "Transport endpoint", "authentication",
)  # fmt: skip
_QUOTA = ("QOS", "Assoc", "accounting/", "MaxSubmit", "limit")


class Cluster(Remote):
    """`channel` leads to the login node, `folder` is the shared one as seen from there (`~` is its own)."""

    def __init__(self, channel: Channel, folder: str) -> None:
        super().__init__(channel, folder, slurm_login, (), "slurm.folder")

    def sinfo(self) -> str:
        """See `slurm_login.sinfo`; needs no folder."""
        return str(self.ask_of("", "sinfo"))

    def call(self, words: Sequence[str]) -> tuple[int, str, str]:
        """See `slurm_login.call`; needs no folder."""
        code, out, err = self.ask_of("", "call", list(words))
        return code, out, err

    def refusal(self, program: str, said: str) -> FlowError:
        """What a command of Slurm said."""
        return refusal(program, said)


def refusal(program: str, said: str) -> FlowError:
    """What a command of Slurm said, as the error that fits: one that passes is a ProviderError, others are not."""
    told = [line for line in said.strip().splitlines() if not line.startswith("Try ")]  # `sbatch --help`
    lines = [line.partition("error: ")[2] or line for line in told]
    text = lines[-1] if lines else "failed"
    if len(lines) > 1 and "submission failed" in text:
        text = f"{lines[0]} ({text})"
    if program == "flow":
        return ProviderError(said, suggestions=["a task that it waits for must have been given to the same cluster"])
    if "command not found" in said:
        return ProviderError(
            f"there is no `{program}` on this machine: it is no login node of a Slurm cluster",
            suggestions=["name the login node by `slurm.login`, as ssh knows it", "or have Slurm's commands on PATH"],
        )
    if program not in ("sbatch", "scontrol") or any(word in said for word in _LATER):
        return ProviderError(f"{program}: {text}", suggestions=["is the cluster up? try `sinfo` there"])
    if program == "scontrol":
        return ValidationError(f"scontrol: {text}")
    kind: Callable[..., FlowError] = ValidationError
    if any(word in said for word in _QUOTA):
        kind = QuotaExceededError
    return kind(f"sbatch: {text}", suggestions=["see the partitions and their limits with `flow offers` or `sinfo`"])
