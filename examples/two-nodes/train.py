"""Teach one model on several machines: each reads its share of the digits, and gloo averages the gradients.

Started by torchrun, which sets rank and address for torch; the images are those of the digits example.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

EPOCHS = 100
RATE = 1.0
DATA = Path(__file__).parents[1] / "digits" / "digits.csv.gz"


def main() -> None:
    """Train, agree on the accuracy, and let rank 0 write it to `result.json`."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)  # the same weights on every rank; the same gradients keep them so
    model = torch.nn.Linear(64, 10)
    images, digits = read_share(rank, world, test=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for epoch in range(1, EPOCHS + 1):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), digits)
        loss.backward()
        average_gradients(model, world)
        optimizer.step()
        if epoch % 20 == 0:
            print(f"rank {rank} of {world}  epoch {epoch}/{EPOCHS}  loss {loss.item():.4f}", flush=True)
    accuracy = measure(model, rank, world)
    if rank == 0:
        result = {"accuracy": round(accuracy, 4), "world_size": world}
        Path(os.environ.get("FLOW_OUTPUT", "."), "result.json").write_text(json.dumps(result))
    dist.barrier()  # a rank that leaves while another still talks to it would end that one with an error
    dist.destroy_process_group()


def average_gradients(model: torch.nn.Module, world: int) -> None:
    """Replace every gradient by its mean over the ranks."""
    for parameter in model.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= world


def read_share(rank: int, world: int, *, test: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's part of the images, values 0 to 1, and of the digits; every fifth image is for the test."""
    with gzip.open(DATA, "rt", newline="") as lines:
        rows = [[int(value) for value in line] for line in csv.reader(lines)]
    share = torch.tensor([row for at, row in enumerate(rows) if (at % 5 == 0) == test][rank::world])
    return share[:, :-1] / 16, share[:, -1]


@torch.no_grad()
def measure(model: torch.nn.Module, rank: int, world: int) -> float:
    """The part of all test images that is read right; every rank counts its own."""
    images, digits = read_share(rank, world, test=True)
    counts = torch.tensor([(model(images).argmax(1) == digits).sum(), len(digits)], dtype=torch.float64)
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


if __name__ == "__main__":
    main()
