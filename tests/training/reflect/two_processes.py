"""What `test_loop` starts twice, with torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from bids_app.training.reflect.loop import Schedule, fit, processes
from tests.training.reflect.test_loop import draw, learner


def main(folder: Path) -> None:
    """Train, and leave what this process has learned."""
    with processes("cpu") as group:
        schedule = Schedule(steps=5, warmup=1, cosine=0.0, ema=0.0, clip=None)
        network = fit([learner()], draw, schedule, folder / "run", group)["line"]
        torch.save(network.weight.detach(), folder / f"{group.rank}.pth")
        group.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
