"""The words of sbatch 22.05 -> its options: of a command line, of a script's #SBATCH lines, of SBATCH_* variables.

Each was tried on Slurm 22.05.8. What differs on purpose: of a script's unknown options the user is told, and they are
left out; sbatch refuses the script.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flow.errors import did_you_mean
from flow.mistakes import Mistake, MistakesError

# Each option's short letter, if it has one, then its name.
_FLAGS = """
    contiguous h:help H:hold ignore-pbs no-requeue O:overcommit s:oversubscribe parsable Q:quiet reboot requeue
    spread-job test-only usage use-min-nodes v:verbose V:version W:wait
"""
_MAY_HAVE_A_VALUE = "exclusive get-user-env nice k:no-kill propagate"  # joined to it: `--exclusive=user`, `-koff`
_WITH_VALUE = """
    A:account acctg-freq a:array batch bb bbf b:begin D:chdir cluster-constraint M:clusters comment C:constraint
    container S:core-spec cores-per-socket cpu-freq cpus-per-gpu c:cpus-per-task deadline delay-boot d:dependency
    m:distribution e:error x:exclude export export-file B:extra-node-info gid gpu-bind gpu-freq G:gpus gpus-per-node
    gpus-per-socket gpus-per-task gres gres-flags hint i:input J:job-name kill-on-invalid-dep L:licenses mail-type
    mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network F:nodefile w:nodelist N:nodes n:ntasks
    ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode o:output p:partition power prefer
    priority profile q:qos reservation signal sockets-per-node switches tasks-per-node thread-spec threads-per-core
    t:time time-min tmp uid wait-all-nodes wckey wrap
"""
_OTHER_NAMES = {"tasks-per-node": "ntasks-per-node"}
# What only a command line says: in a script it is passed over without a word.
_NOT_OF_A_SCRIPT = ("help", "usage", "version", "wrap")
# How to submit, not what.
OF_SUBMITTING = frozenset((*_NOT_OF_A_SCRIPT, "parsable", "quiet", "test-only", "verbose", "wait"))
# The SBATCH_* variables whose names are not the option's. Source: sbatch(1), INPUT ENVIRONMENT VARIABLES.
_VARIABLES = {
    "SLURM_CLUSTERS": "clusters", "SLURM_HINT": "hint", "SBATCH_ARRAY_INX": "array", "SBATCH_DEBUG": "verbose",
    "SBATCH_MEM_PER_NODE": "mem", "SBATCH_REQ_SWITCH": "switches", "SBATCH_TIMELIMIT": "time",
}  # fmt: skip
_NAMED_BY_VARIABLES = """
    account acctg-freq batch clusters constraint container core-spec cpus-per-gpu delay-boot distribution error
    exclusive export get-user-env gpu-bind gpu-freq gpus gpus-per-node gpus-per-task gres gres-flags hint ignore-pbs
    input job-name mem-bind mem-per-cpu mem-per-gpu network no-kill no-requeue open-mode output overcommit partition
    power profile qos requeue reservation signal spread-job thread-spec threads-per-core use-min-nodes wait
    wait-all-nodes wckey
"""
# Of these only one can hold: the last that was given.
_RIVALS = (("requeue", "no-requeue"), ("exclusive", "oversubscribe"))
_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
_SPACES = " \t\v\f\r\n"


@dataclass(frozen=True, slots=True)
class Given:
    """An option as it was given: its value ("" for a flag), and where, as `job.sh:3`, "" for the command line."""

    name: str
    value: str = ""
    place: str = ""

    def __str__(self) -> str:
        """As sbatch takes it."""
        return f"--{self.name}={self.value}" if self.value or self.name in _table().with_value else f"--{self.name}"

    @property
    def told(self) -> str:
        """The option with its place, for a message."""
        return f"`{self}` ({self.place})" if self.place else f"`{self}`"

    def mistake(self, message: str, *advice: str) -> Mistake:
        """What is wrong with it, with its place."""
        return Mistake(f"{self.place}: {message}" if self.place else message, advice)


@dataclass(frozen=True, slots=True)
class Words:
    """What words say: the options, what is no option, and what the user should know of it."""

    given: list[Given] = field(default_factory=list)
    rest: list[tuple[str, str]] = field(default_factory=list)  # each with its place
    notes: list[str] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Table:
    letters: Mapping[str, str]
    flags: frozenset[str]
    with_value: frozenset[str]
    names: tuple[str, ...]  # sorted


def parse_command_line(words: Sequence[str]) -> tuple[list[Given], str | None, list[str]]:
    """The options, the script, and its arguments; as sbatch has it, the first word that is no option is the script.

    Raises ValidationError (with all mistakes) for unknown options and missing values.
    """
    read = _read([(word, "") for word in words], is_script=False)
    if read.mistakes:
        raise MistakesError.of(read.mistakes, "the command line")
    rest = [word for word, _ in read.rest]
    if rest[:1] == [":"]:
        raise MistakesError("jobs of several parts (`:`) are not taken", suggestions=["submit each part on its own"])
    return read.given, rest[0] if rest else None, rest[1:]


def read_directives(text: str, name: str) -> Words:
    """What the #SBATCH lines of a script say before its first command; `name` is what messages call it."""
    words, mistakes = [], []
    notes: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        place = f"{name}:{number}"
        if line.startswith("#SBATCH"):
            try:
                found = list(_split(line[len("#SBATCH") :]))
            except ValueError as error:
                mistakes.append(Mistake(f"{place}: {error}"))
                continue
            if "hetjob" in found or "packjob" in found:
                told = "jobs of several parts (`hetjob`) are not taken"
                mistakes.append(Mistake(f"{place}: {told}", ("submit each part on its own",)))
                continue
            words += [(word, place) for word in found]
        elif line.strip(_SPACES) and not line.lstrip(_SPACES).startswith("#"):
            break
        elif re.match(r"#(PBS|BSUB|SLURM)\s", line):
            notes.append(f"{place}: `{line.split()[0]}` lines are not read: write `#SBATCH`")
    read = _read(words, is_script=True)
    mistakes += [Mistake(f"{place}: `{word}` is no option of sbatch") for word, place in read.rest]
    given = [one for one in read.given if one.name not in _NOT_OF_A_SCRIPT]
    return Words(given, [], [*notes, *read.notes], [*mistakes, *read.mistakes])


def read_variables(environ: Mapping[str, str]) -> list[Given]:
    """What SBATCH_* variables say. A flag's is set by nothing, `yes`, or a number but 0; else it says nothing."""
    found = []
    for variable, name in _variables().items():
        value = environ.get(variable)
        if value is None:
            continue
        if name in _table().flags:
            if value and value != "yes" and not re.fullmatch(r"-?0*[1-9]\d*", value):
                continue
            value = ""
        found.append(Given(name, value, variable))
    return found


def merged(*sources: Iterable[Given]) -> dict[str, Given]:
    """The options that hold, by name; later sources win, and in each the later of two.

    The memory that a variable asks for gives way to any memory that is asked for otherwise.
    """
    held: dict[str, Given] = {}
    for one in (one for source in sources for one in source):
        for rivals in _RIVALS:
            if one.name in rivals:
                for name in rivals:
                    held.pop(name, None)
        held.pop(one.name, None)  # so that it comes last
        held[one.name] = one
    memory = [held[name] for name in _MEMORY if name in held]
    if any(not _is_variable(one) for one in memory):
        for one in filter(_is_variable, memory):
            del held[one.name]
    return held


def _is_variable(one: Given) -> bool:
    return one.place.startswith("SBATCH_")


def _split(text: str) -> Iterator[str]:
    r"""The words of an #SBATCH line, as sbatch splits it. Raises ValueError for a quotation mark without its second.

    Quotes join, a backslash takes what follows it as it is (but a blank still ends the word, outside of quotes), `#`
    begins a comment, also within a word. An empty word ends the line.
    """
    at = 0
    while True:
        while at < len(text) and text[at] in _SPACES:
            at += 1
        if at == len(text) or text[at] == "#":
            return
        if text[at] == ":":
            raise ValueError("a `:` cannot begin a word")
        word, at = _word(text, at)
        if not word:
            return
        yield word


def _word(text: str, at: int) -> tuple[str, int]:
    word, quote, is_escaped = [], "", False
    while at < len(text):
        one = text[at]
        if one in _SPACES and not quote:
            break
        if is_escaped:
            word.append(one)
            is_escaped = False
        elif one == "\\":
            is_escaped = True
        elif quote:
            if one == quote:
                quote = ""
            else:
                word.append(one)
        elif one in "\"'":
            quote = one
        elif one == "#":
            at = len(text)
            break
        else:
            word.append(one)
        at += 1
    if quote:
        raise ValueError(f"the `{quote}` has no second one")
    return "".join(word), at


def _read(words: Sequence[tuple[str, str]], *, is_script: bool) -> Words:
    """As getopt_long reads (word, place): of a command line up to the first word that is no option, of a script all."""
    read = Words()
    waiting = list(reversed(words))
    while waiting:
        word, place = waiting.pop()
        if word == "--":
            read.rest.extend(reversed(waiting))
            break
        if not word.startswith("-") or word == "-":
            read.rest.append((word, place))
            if is_script:
                continue
            read.rest.extend(reversed(waiting))
            break
        take = _long if word.startswith("--") else _letters
        take(word, place, waiting, read, is_script=is_script)
    return read


def _long(word: str, place: str, waiting: list[tuple[str, str]], read: Words, *, is_script: bool) -> None:
    table = _table()
    asked, equals, value = word[2:].partition("=")
    name = _whole_name(asked)
    if isinstance(name, list):
        told = f"`--{asked}` may be {', '.join(f'`--{one}`' for one in name)}"
        read.mistakes.append(Given(asked, place=place).mistake(told, "write the whole name"))
    elif name is None:
        _unknown(
            f"--{asked}",
            did_you_mean(f"--{asked}", [f"--{one}" for one in table.names]),
            place,
            read,
            is_script=is_script,
        )
        if is_script and not equals and waiting and not waiting[-1][0].startswith("-") and waiting[-1][1] == place:
            waiting.pop()  # what must be its value
    elif name in table.flags and equals:
        read.mistakes.append(
            Given(name, place=place).mistake(f"`--{name}` takes no value", "leave out what follows it")
        )
    elif name in table.with_value and not equals:
        _with_next(name, f"--{name}", place, waiting, read)
    else:
        read.given.append(Given(name, value, place))


def _letters(word: str, place: str, waiting: list[tuple[str, str]], read: Words, *, is_script: bool) -> None:
    """`-N2`, `-N 2`, and several flags in one word."""
    table = _table()
    for at, letter in enumerate(word[1:], 2):
        name = table.letters.get(letter)
        if name is None:
            _unknown(f"-{letter}", [], place, read, is_script=is_script)
            return
        if name in table.flags:
            read.given.append(Given(name, "", place))
            continue
        if word[at:] or name not in table.with_value:
            read.given.append(Given(name, word[at:], place))
        else:
            _with_next(name, f"-{letter}", place, waiting, read)
        return


def _with_next(name: str, asked: str, place: str, waiting: list[tuple[str, str]], read: Words) -> None:
    if waiting:
        read.given.append(Given(name, waiting.pop()[0], place))
    else:
        read.mistakes.append(Given(name, place=place).mistake(f"`{asked}` has no value"))


def _unknown(asked: str, advice: list[str], place: str, read: Words, *, is_script: bool) -> None:
    if is_script:
        read.notes.append("; ".join((f"{place}: unknown option `{asked}`, left out", *advice)))
    else:
        read.mistakes.append(Mistake(f"unknown option `{asked}`", tuple(advice)))


def _whole_name(asked: str) -> str | list[str] | None:
    """The option that `asked` names or begins; those that it may begin where they are several; None: nobody's."""
    names = _table().names
    if asked in names:
        return _OTHER_NAMES.get(asked, asked)
    begun = [name for name in names if asked and name.startswith(asked)]
    return begun[0] if len(begun) == 1 else begun or None


@functools.cache
def _table() -> _Table:
    letters: dict[str, str] = {}
    kinds = []
    for text in (_FLAGS, _MAY_HAVE_A_VALUE, _WITH_VALUE):
        names = []
        for word in text.split():
            letter, colon, name = word.partition(":")
            names.append(name if colon else letter)
            if colon:
                letters[letter] = name
        kinds.append(names)
    flags, optional, with_value = kinds
    return _Table(letters, frozenset(flags), frozenset(with_value), tuple(sorted([*flags, *optional, *with_value])))


@functools.cache
def _variables() -> dict[str, str]:
    named = {f"SBATCH_{name.upper().replace('-', '_')}": name for name in _NAMED_BY_VARIABLES.split()}
    return {**named, **_VARIABLES}
