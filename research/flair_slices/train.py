"""Train one network on the real slices of the training patients, for hours, resumably.

    python -m research.flair_slices.train --data DATA --out OUT [--steps 40000] [--seed 0] [--fold K]

The rate is constant and falls to nothing over the last quarter of the steps, so that a training may be made longer: the
checkpoint before the fall is kept. Scores of the validation patients go to ``OUT/history.tsv``.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bids_app.derivatives.write import atomic
from bids_app.training.optimizer import Muon
from research.flair_slices.augmentation import Batch, augmented
from research.flair_slices.evaluate import headline, predict
from research.flair_slices.losses import slice_loss
from research.flair_slices.network import SliceUNet
from research.flair_slices.slices import SHAPES, VISIBLE, Slices, load_slices

BATCH = 8
RATE = 0.02
WARMUP = 100
FALL = 0.25
EMA = 0.999
CHECKPOINT_SECONDS = 300
VALIDATE_STEPS = 2000
#: How much a lesion counts that cannot be seen.
INVISIBLE_WEIGHT = 0.3
FOLDS = 5


@dataclass(frozen=True)
class Pool:
    """Slices of one plane to draw from."""

    slices: Slices
    sick: np.ndarray
    clean: np.ndarray
    donors: np.ndarray

    @classmethod
    def of(cls, slices: Slices) -> Pool:
        visible = np.nan_to_num(slices.contrast, nan=-1) >= VISIBLE
        return cls(
            slices,
            np.flatnonzero(slices.lesion.any(axis=(1, 2))),
            np.flatnonzero(slices.is_clean),
            np.flatnonzero(slices.has_lesion & visible),
        )

    def draw(self, rng: np.random.Generator) -> tuple[Batch, Batch, Tensor]:
        """A batch, donors of lesions, and how much each lesion counts."""
        half = BATCH // 2
        chosen = np.concatenate([rng.choice(self.sick, BATCH - half), rng.choice(self.clean, half)])
        contrast = np.nan_to_num(self.slices.contrast[chosen], nan=VISIBLE)
        weight = np.where(contrast >= VISIBLE, 1.0, INVISIBLE_WEIGHT)
        return self._batch(chosen), self._batch(rng.choice(self.donors, BATCH)), torch.tensor(weight).float()

    def _batch(self, chosen: np.ndarray) -> Batch:
        parts = (self.slices.image[chosen], self.slices.lesion[chosen], self.slices.ignored[chosen])
        return Batch(*(torch.from_numpy(part.astype(np.float32))[:, None] for part in parts))


@dataclass
class Training:
    """A network on its way, and how far it is."""

    network: SliceUNet
    average: SliceUNet
    optimizer: Muon
    step: int = 0

    @classmethod
    def begin(cls, seed: int) -> Training:
        torch.manual_seed(seed)
        network = SliceUNet().to(memory_format=torch.channels_last)
        return cls(network, copy.deepcopy(network).eval(), Muon(network.parameters(), RATE))

    def save(self, path: Path) -> None:
        parts = ("network", "average", "optimizer")
        content = {name: getattr(self, name).state_dict() for name in parts} | {"step": self.step}
        with atomic(path) as whole:
            torch.save(content, whole)

    def load(self, path: Path) -> None:
        content = torch.load(path, weights_only=True)
        self.step = content.pop("step")
        for name, state in content.items():
            getattr(self, name).load_state_dict(state)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the network; early on faster."""
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        mine, theirs = list(self.average.parameters()), list(self.network.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate at a step."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (FALL * steps))


def train_step(training: Training, pool: Pool, seed: int, steps: int) -> float:
    """One step; what it draws depends on seed and step alone."""
    rng = np.random.default_rng((seed, training.step))
    batch, donors, weight = pool.draw(rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    image, batch = augmented(batch, donors, pool.slices.plane != "sagittal", generator)
    training.optimizer.param_groups[0]["lr"] = RATE * rate_at(training.step, steps)
    training.optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        levels = training.network(image.contiguous(memory_format=torch.channels_last))
    loss = slice_loss(levels, batch.lesion, 1 - batch.ignored, weight)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(training.network.parameters(), 10.0)
    training.optimizer.step()
    training.step += 1
    training.follow()
    return float(loss.detach())


def patients_of_fold(slices: Slices, fold: int | None) -> Slices:
    """The slices without those of a fold's patients, who are known by their number."""
    if fold is None:
        return slices
    return slices[np.array([patient // 10 % FOLDS != fold for patient in slices.patients])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, from the last checkpoint on if there is one."""
    parser = argparse.ArgumentParser(prog="python -m research.flair_slices.train", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the real data")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and scores")
    parser.add_argument("--steps", type=int, default=40_000, help="steps of 8 slices (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", type=int, help="leave out the patients of this fold of five")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    everyone = [load_slices(options.data, plane) for plane in SHAPES]
    pools = [Pool.of(patients_of_fold(slices.of_split("train"), options.fold)) for slices in everyone]
    held_out = [slices.of_split("validation") for slices in everyone]
    training, latest = Training.begin(options.seed), options.out / "latest.pth"
    if latest.exists():
        training.load(latest)
    saved, losses = time.monotonic(), []
    while training.step < options.steps:
        losses.append(train_step(training, pools[training.step % len(pools)], options.seed, options.steps))
        if training.step == round(options.steps * (1 - FALL)):
            training.save(options.out / f"plateau_{training.step}.pth")
        if training.step % VALIDATE_STEPS == 0 or training.step == options.steps:
            scores = "\t".join(headline(predict(training.average, part), part) for part in held_out)
            with (options.out / "history.tsv").open("a") as history:
                history.write(f"{training.step}\t{np.mean(losses):.4f}\t{scores}\n")
            losses = []
        if time.monotonic() - saved > CHECKPOINT_SECONDS or training.step == options.steps:
            training.save(latest)
            saved = time.monotonic()
    with atomic(options.out / "network.pth") as whole:
        torch.save(training.average.state_dict(), whole)


if __name__ == "__main__":
    main()
