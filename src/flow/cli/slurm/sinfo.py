"""`flow sinfo`: the machines of the default provider, as Slurm lists its partitions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import click

from flow.cli import output
from flow.cli.slurm.command import SlurmCommand
from flow.cli.slurm.machines import Machines, ask_cluster, machines
from flow.node import hostlist
from flow.slurm.formats import Cut, Field, short_layout

_DEFAULT = "%#P %.5a %.10l %.6D %.6t %N"
_LONG = "%#P %.5a %.10l %.10s %.4r %.8h %.10g %.6D %.11T %N"
_SUMMARY = "%#P %.5a %.10l %.16F %N"
_NODES = "%#N %.6D %#P %6t"
_LEAST = 9
_LONG_NODES = "%#N %.6D %#P %.11T %.4c %.8z %.6m %.8d %.6w %.8f %20E"


def _always(text: str) -> Field[Machines]:
    title, _, value = text.partition("=")
    return Field(title, lambda one: value)


FIELDS: Mapping[str, Field[Machines]] = {
    "a": _always("AVAIL=up"),
    "A": Field("NODES(A/I)", lambda one: f"0/{one.shown}"),
    "B": _always("MAX_CPUS_PER_NODE=UNLIMITED"),
    "c": Field("CPUS", lambda one: f"{one.cpus:g}"),
    "C": Field("CPUS(A/I/O/T)", lambda one: "0/{0:g}/0/{0:g}".format(one.cpus * (one.available or 0))),
    "d": _always("TMP_DISK=0"),
    "D": Field("NODES", lambda one: one.shown),
    "e": Field("FREE_MEM", lambda one: str(one.memory_mb)),
    "E": _always("REASON=none"),
    "f": _always("AVAIL_FEATURES=(null)"),
    "F": Field("NODES(A/I/O/T)", lambda one: f"0/{one.shown}/0/{one.shown}"),
    "g": _always("GROUPS=all"),
    "G": Field("GRES", lambda one: one.gpu or "(null)"),
    "h": _always("OVERSUBSCRIBE=NO"),
    "H": _always("TIMESTAMP=Unknown"),
    "I": _always("PRIO_JOB_FACTOR=1"),
    "l": _always("TIMELIMIT=infinite"),
    "L": _always("DEFAULTTIME=n/a"),
    "m": Field("MEMORY", lambda one: str(one.memory_mb)),
    "M": _always("PREEMPT_MODE=OFF"),
    "n": Field("HOSTNAMES", lambda one: one.names),
    "N": Field("NODELIST", lambda one: one.names, Cut.NOTHING),
    "o": Field("NODE_ADDR", lambda one: one.names),
    "O": _always("CPU_LOAD=N/A"),
    "p": _always("PRIO_TIER=1"),
    "P": Field("PARTITION", lambda one: f"{one.partition}*"),
    "r": _always("ROOT=no"),
    "R": Field("PARTITION", lambda one: one.partition),
    "s": _always("JOB_SIZE=1-infinite"),
    "S": _always("ALLOCNODES=all"),
    "t": Field("STATE", lambda one: one.state),
    "T": Field("STATE", lambda one: one.state),
    "u": _always("USER=Unknown"),
    "U": _always("USER=Unknown"),
    "v": _always("VERSION=flow"),
    "V": _always("CLUSTER=N/A"),
    "w": _always("WEIGHT=1"),
    "X": _always("SOCKETS=1"),
    "Y": Field("CORES", lambda one: f"{one.cpus:g}"),
    "z": Field("S:C:T", lambda one: f"1:{one.cpus:g}:1"),
    "Z": _always("THREADS=1"),
}


class _Sinfo(SlurmCommand):
    """On a cluster it is the cluster's own, with all of its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from flow.client import Flow

        code = None if "--help" in args else ask_cluster(Flow(), ["sinfo", *args])
        if code is not None:
            raise click.exceptions.Exit(code)
        return super().parse_args(ctx, args)


@click.command(cls=_Sinfo, context_settings={"help_option_names": ["--help"]})
@click.option("-a", "--all", "everything", is_flag=True, help="Hidden ones too, of which there are none.")
@click.option("-h", "--noheader", is_flag=True, help="No line of titles.")
@click.option("-l", "--long", "is_long", is_flag=True, help="More of each.")
@click.option("-N", "--Node", "by_node", is_flag=True, help="One line for each kind of node.")
@click.option("-n", "--nodes", metavar="LIST", help="Only these nodes.")
@click.option("-o", "--format", "short", metavar="FORMAT", envvar="SINFO_FORMAT", help="What to show: `%P %D %N`.")
@click.option("-p", "--partition", metavar="LIST", envvar="SINFO_PARTITION", help="Only these partitions.")
@click.option("-t", "--states", metavar="LIST", help="Only in these states: `idle`.")
@click.option("-s", "--summarize", is_flag=True, help="One line for each partition.")
def sinfo(
    *,
    everything: bool,
    noheader: bool,
    is_long: bool,
    by_node: bool,
    nodes: str | None,
    states: str | None,
    short: str | None,
    partition: str | None,
    summarize: bool,
) -> int:
    """List the machines to be had, with the options and the output of Slurm's `sinfo`; `flow offers` tells prices.

    Example:
      flow sinfo -o '%P %D %G %N'
    """
    from flow.client import Flow

    client = Flow()
    lines = machines(client)
    if nodes is not None:
        wanted = set(hostlist.expand(nodes))
        lines = [one for one in lines if wanted & set(hostlist.expand(one.names))]
    for field, some in {"partition": partition, "state": states and states.lower()}.items():
        if some is not None:
            lines = [one for one in lines if getattr(one, field) in some.split(",")]
    output.notes(client.notes)
    default = _SUMMARY if summarize else _DEFAULT
    if by_node:
        default = _LONG_NODES if is_long else _NODES
    elif is_long:
        default = _LONG
    layout = short_layout(_fitted(short or default, lines), FIELDS)
    for name in layout.unknown:
        click.echo(f"Invalid node format specification: {name}", err=True)
    if is_long and not noheader:
        click.echo(time.strftime("%a %b %d %H:%M:%S %Y"))
    for line in [layout.header] * (not noheader) + layout.lines(lines):
        click.echo(line)
    return 0


def _fitted(text: str, lines: Sequence[Machines]) -> str:
    """`%#P` as wide as what is shown there, and never narrower than Slurm shows it."""
    for letter in "PN":
        width = max([_LEAST, *(len(FIELDS[letter].show(one)) for one in lines)])
        text = text.replace(f"%#{letter}", f"%{width}{letter}")
    return text
