"""How long a command line takes to say anything, and an import to return."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.figures import Figure, in_turns, median
from bench.floors import bare_python, run_quietly
from bench.place import own_home


def flow_words() -> list[str]:
    """How this interpreter's `flow` is called."""
    script = Path(sys.executable).with_name("flow")
    return [str(script)] if script.exists() else [sys.executable, "-m", "flow"]


def measure(*, quick: bool) -> list[Figure]:
    """`flow --version`, `flow --help`, `mithril --help`, `import flow`."""
    with own_home():
        run_quietly([*flow_words(), "--help"])()  # compiles what is not yet
        spent = in_turns(
            10 if quick else 40,
            bare=bare_python,
            version=run_quietly([*flow_words(), "--version"]),
            help=run_quietly([*flow_words(), "--help"]),
            mithril=run_quietly([sys.executable, "-c", "from flow.mithril_cli import main; main(['--help'])"]),
            module=run_quietly([sys.executable, "-c", "import flow"]),
            client=run_quietly([sys.executable, "-c", "import flow; flow.run"]),
        )
    bare = median(spent["bare"])
    floor = (bare, "bare Python")
    return [
        Figure("flow --version", median(spent["version"]), "ms", *floor, aim=60),
        Figure("flow --help", median(spent["help"]), "ms", *floor, aim=80),
        Figure("mithril --help", median(spent["mithril"]), "ms", *floor, aim=80),
        Figure("import flow, over bare Python", median(spent["module"]) - bare, "ms", *floor, aim=15),
        Figure("import flow; flow.run, over bare Python", median(spent["client"]) - bare, "ms", *floor, key="import"),
    ]
