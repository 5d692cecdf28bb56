"""Functions that run elsewhere: one call, one that is not waited for, many: `python examples/06_functions.py`."""

import random

from flow import FlowApp
from flow.errors import RemoteError

app = FlowApp()


@app.function(cpus=1)
def hits(samples: int, seed: int) -> int:
    """How many of so many random points of a square lie in the circle within."""
    if samples < 0:
        raise ValueError(f"{samples} samples")
    point = random.Random(seed).random
    return sum(point() ** 2 + point() ** 2 <= 1 for _ in range(samples))


def main() -> None:
    print("here:", hits(1000, 1))
    print("as a task:", hits.remote(1000, seed=1))
    task = hits.spawn(1000, 2)  # goes on while this program does something else

    with app.run():  # a process that stays, for each function: the second call of one takes less than a millisecond
        calls = [(10_000, seed) for seed in range(100)]
        print(f"pi is about {4 * sum(hits.starmap(calls)) / 1_000_000:.2f}")
        for value in hits.starmap([(10, 1), (-1, 1), (20, 1)], on_error="return"):
            print(value.message if isinstance(value, RemoteError) else value)

    print("the spawned one:", task.result())


if __name__ == "__main__":
    main()
