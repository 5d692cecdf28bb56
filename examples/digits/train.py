"""Teach a small neural network to read handwritten digits; the standard library is all it needs.

A checkpoint is written after each epoch, and a run that finds one goes on from there: being stopped costs one epoch.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import random
import sys
import time
from operator import mul
from pathlib import Path
from typing import Any, List, NamedTuple

HIDDEN = 48
DIGITS = 10
RATE = 0.05  # of the first epoch; falls to a tenth by the last

Vector = List[float]
Matrix = List[Vector]


class Example(NamedTuple):
    """An 8x8 image as 64 values from 0 to 1, and the digit that it shows."""

    image: Vector
    digit: int


class Network(NamedTuple):
    """image -> HIDDEN rectified units -> a score for each digit. The last weight of each row is its bias."""

    hidden: Matrix
    output: Matrix


def main() -> None:
    """Train to the last epoch, then write what the network is worth to `result.json`."""
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    note(f"device: cpu, Python {sys.version.split()[0]}; output in {options.out}")
    train, test = read_examples(Path(__file__).with_name("digits.csv.gz"))
    checkpoint = options.out / "checkpoint.json"
    done, network = start(checkpoint, options.seed)
    resumed_from = done
    began = time.monotonic()
    for epoch in range(done + 1, options.epochs + 1):
        loss = train_epoch(network, train, epoch=epoch, options=options)
        say(f"epoch {epoch:2d}/{options.epochs}  loss {loss:.4f}")
        write_whole(checkpoint, {"epoch": epoch, "hidden": network.hidden, "output": network.output})
        if epoch == options.fail_at_epoch and not resumed_from:
            sys.exit(f"failing at epoch {epoch}, as asked; the next attempt goes on from here")
    accuracy = sum(read_digit(network, one.image) == one.digit for one in test) / len(test)
    say(f"test accuracy {accuracy:.4f} on {len(test)} images")
    result = {"accuracy": round(accuracy, 4), "test_images": len(test), "epochs": options.epochs}
    result.update(seed=options.seed, resumed_from_epoch=resumed_from, seconds=round(time.monotonic() - began, 1))
    write_whole(options.out / "result.json", result)


def parse_options() -> argparse.Namespace:
    """The command line; the output folder is Flow's when there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("FLOW_OUTPUT", "output")))
    parser.add_argument(
        "--fail-at-epoch", type=int, metavar="N", help="end with exit code 1 after epoch N, unless resumed"
    )
    return parser.parse_args()


def read_examples(path: Path) -> tuple[list[Example], list[Example]]:
    """The examples to learn from, and those to be tested on: every fifth of the file."""
    with gzip.open(path, "rt", newline="") as lines:
        # A one behind the pixels, so that a bias is a weight like the others.
        every = [Example([int(value) / 16 for value in line[:-1]] + [1.0], int(line[-1])) for line in csv.reader(lines)]
    return [one for at, one in enumerate(every) if at % 5], every[::5]


def start(checkpoint: Path, seed: int) -> tuple[int, Network]:
    """How many epochs are done, and the network as they left it."""
    if checkpoint.exists():
        saved = json.loads(checkpoint.read_text())
        note(f"resuming after epoch {saved['epoch']} from {checkpoint}")
        return saved["epoch"], Network(saved["hidden"], saved["output"])
    dice = random.Random(seed)
    return 0, Network(random_matrix(dice, HIDDEN, 64), random_matrix(dice, DIGITS, HIDDEN))


def random_matrix(dice: random.Random, rows: int, columns: int) -> Matrix:
    """Weights for rectified units (He et al., 2015), with biases of 0."""
    return [[dice.gauss(0, math.sqrt(2 / columns)) for _ in range(columns)] + [0.0] for _ in range(rows)]


def train_epoch(network: Network, examples: list[Example], *, epoch: int, options: argparse.Namespace) -> float:
    """Learn from every example once; the mean loss. Depends on seed and epoch only, so resuming changes nothing."""
    order = list(examples)
    random.Random(f"{options.seed}/{epoch}").shuffle(order)
    rate = RATE * 0.1 ** ((epoch - 1) / max(1, options.epochs - 1))
    return sum(learn(network, one, rate) for one in order) / len(order)


def learn(network: Network, example: Example, rate: float) -> float:
    """One step of stochastic gradient descent, in place; the cross-entropy before it."""
    units, chances = forward(network, example.image)
    errors = [chance - (digit == example.digit) for digit, chance in enumerate(chances)]
    # Before the output weights change: they say how much each hidden unit is to blame.
    blames = [sum(map(mul, errors, weights)) for weights in zip(*network.output)]
    for row, error in zip(network.output, errors):
        descend(row, units, rate * error)
    for row, unit, blame in zip(network.hidden, units, blames):
        if unit > 0:
            descend(row, example.image, rate * blame)
    return -math.log(max(chances[example.digit], 1e-12))


def forward(network: Network, image: Vector) -> tuple[Vector, Vector]:
    """The hidden units (and the one behind them), and the chance of each digit."""
    units = [max(0.0, sum(map(mul, row, image))) for row in network.hidden] + [1.0]
    scores = [sum(map(mul, row, units)) for row in network.output]
    highest = max(scores)
    powers = [math.exp(score - highest) for score in scores]
    total = sum(powers)
    return units, [power / total for power in powers]


def descend(row: Vector, inputs: Vector, step: float) -> None:
    """Move the weights of one unit against its gradient."""
    row[:] = [weight - step * value for weight, value in zip(row, inputs)]


def read_digit(network: Network, image: Vector) -> int:
    """The likeliest digit."""
    _, chances = forward(network, image)
    return chances.index(max(chances))


def write_whole(path: Path, values: dict[str, Any]) -> None:
    """Replace the file in one step, so that whoever reads it, now or after a crash, finds all of it."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def say(text: str) -> None:
    """A line of the result, at once."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line about the run itself."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
