"""What `test_loop` starts twice, with torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from bids_app.training.reflect.learn import Course, Place, train_autoencoder
from bids_app.training.reflect.loop import Processes, Schedule, fit, processes
from bids_app.training.reflect.losses import Critic
from bids_app.training.reflect.tasks import Reconstruction
from tests.anomaly.models import AUTOENCODER
from tests.training.reflect.conftest import some_slices
from tests.training.reflect.test_loop import draw, learner


def main(folder: Path) -> None:
    """Train, and leave what this process has learned."""
    with processes("cpu") as group:
        schedule = Schedule(steps=5, warmup=1, cosine=0.0, ema=0.0, clip=None)
        network = fit([learner()], draw, schedule, folder / "run", group)["line"]
        torch.save(network.weight.detach(), folder / f"{group.rank}.pth")
        torch.save(judged_autoencoder(folder / "judged", group), folder / f"judged_{group.rank}.pth")
        group.wait()


def judged_autoencoder(folder: Path, group: Processes) -> dict[str, torch.Tensor]:
    """Weights of an autoencoder, in two batches a step, and of its critic, whose weight is that of their gradients."""
    losses = Reconstruction(Critic(8, 1), adversarial=0.5, adaptive=True, critic_from=1)
    course = Course(Schedule(steps=3, warmup=1, accumulation=2), batch=2)
    made = train_autoencoder(some_slices(), AUTOENCODER, course, Place(folder, group), losses)
    return {**made.state_dict(), **{f"critic.{name}": value for name, value in losses.critic.state_dict().items()}}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
