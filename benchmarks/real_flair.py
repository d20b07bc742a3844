"""Does training on synthetic scans hold on real ones? Real stroke FLAIR slices as the judge.

    python -m benchmarks.real_flair --data DIR --cache DIR --out DIR [--steps 800]

trains the same 2-d network for as many steps in four ways: on slices of synthetic FLAIR; on the real slices of all
patients but those kept for testing, in five folds by patient, with nnU-Net's own augmentation; on batches that are half
of either; and on the real slices again, but from the network of the synthetic ones on. All are measured on the real
slices of the test patients (ids that end in 3), at 1 mm. Everything is at 2 mm otherwise, in slices z-scored inside the
brain. Checkpoints in OUT let a second call go on: use another OUT after any change of the code.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor

from benchmarks.intervals import interval
from benchmarks.synthesis_fit import HEIGHT_MM, SLICES, halved, synthetic, upright, zscored
from bids_app.derivatives.write import atomic
from bids_app.measures.overlap import dice
from bids_app.training.anatomy import FOLDS, split_of
from bids_app.training.losses import hardest_weight, lesion_loss
from bids_app.training.optimizer import Muon
from bids_app.training.plans import NetworkSize, unet_arguments
from bids_app.training.synthesis.fields import PATCH, SPACING_MM
from bids_app.training.synthesis.tissue import FLAIR

SHAPE = PATCH[1:]
BATCH = 12
RATE = 0.02
SIZE = NetworkSize(features=(16, 32, 64, 96), encoder_convs=(2, 2, 2, 2), decoder_convs=(1, 1, 1))
OFFSETS_MM = (-14, -8, -2, 4, 10, 16)
"""Heights of the synthetic slices about that of the real ones."""


@dataclass(frozen=True)
class Slices:
    """Slices of one origin.

    Attributes
    ----------
    image : ndarray
        ``(n, y, x)`` float32 on ``SHAPE``, 2 mm, z-scored inside the brain.
    lesion : ndarray
        ``(n, y, x)`` bool.
    patients : tuple of str
        One a slice.
    truth : ndarray or None
        ``(n, 192, 160)`` bool, the lesion at 1 mm; of real slices.
    """

    image: np.ndarray
    lesion: np.ndarray
    patients: tuple[str, ...]
    truth: np.ndarray | None = None

    def __getitem__(self, chosen: np.ndarray) -> Slices:
        truth = None if self.truth is None else self.truth[chosen]
        names = tuple(np.array(self.patients)[chosen])
        return Slices(self.image[chosen], self.lesion[chosen], names, truth)


def centered(image: np.ndarray, brain: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A slice moved so that the brain's bounding box lies in the middle of another shape."""
    out = np.zeros(shape, image.dtype)
    window_out, window_in = [], []
    for axis, goal in enumerate(shape):
        hit = np.flatnonzero(brain.any(axis=1 - axis))
        start = round((goal - 1 - hit[0] - hit[-1]) / 2)
        first, last = max(0, -start), min(image.shape[axis], goal - start)
        window_in.append(slice(first, last))
        window_out.append(slice(first + start, last + start))
    out[tuple(window_out)] = image[tuple(window_in)]
    return out


def real(data: Path) -> Slices:
    """All real slices."""
    with np.load(data / SLICES) as stored:
        ids, flair, lesion = stored["id"], stored["flair"], stored["lesion"]
    fine = tuple(2 * n for n in SHAPE)
    images, coarse, truths = [], [], []
    for image, mask in zip(map(upright, flair), map(upright, lesion), strict=True):
        brain = image > 0
        image, truth = (centered(part.astype(np.float32), brain, fine) for part in (image, mask))
        images.append(zscored(halved(image)))
        coarse.append(F.avg_pool2d(torch.from_numpy(truth)[None], 2)[0].numpy() > 0.5)
        truths.append(truth > 0.5)
    return Slices(np.array(images, np.float32), np.array(coarse), tuple(map(str, ids)), np.array(truths))


def from_synthesis(data: Path, cache: Path, scans: int, kept: Path) -> Slices:
    """Slices of synthetic FLAIR about the height of the real ones; made once and kept in a file."""
    if not kept.exists():
        images, lesions = [], []
        for scan, source in synthetic(data, cache, scans):
            for offset in OFFSETS_MM:
                z = round((PATCH[0] - 1) / 2 + (HEIGHT_MM + offset - source.head.center[2]) / SPACING_MM)
                image = zscored(scan.image[FLAIR, z].numpy())
                brain = image != 0
                images.append(centered(image, brain, SHAPE).astype(np.float16))
                lesions.append(centered(scan.target[FLAIR, z].numpy(), brain, SHAPE))
        with atomic(kept) as whole:
            np.savez_compressed(whole, image=np.array(images), lesion=np.array(lesions))
    with np.load(kept) as stored:
        image, lesion = stored["image"].astype(np.float32), stored["lesion"] > 0
    return Slices(image, lesion, ("synthetic",) * len(image))


def build() -> torch.nn.Module:
    """A plain 2-d U-Net of nnU-Net."""
    arguments = unet_arguments(SIZE) | {
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * len(SIZE.features),
        "strides": [[1, 1]] + [[2, 2]] * (len(SIZE.features) - 1),
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    }
    name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    network = get_network_from_plans(name, arguments, imported, 1, 2, deep_supervision=True)
    for outputs in network.decoder.seg_layers:
        torch.nn.init.zeros_(outputs.weight)
    return network.to(memory_format=torch.channels_last)


def augmentation() -> Callable[..., dict]:
    """nnU-Net's own augmentation of 2-d training, with all its defaults and left-right mirroring alone."""
    return nnUNetTrainer.get_training_transforms(
        SHAPE, (-np.pi, np.pi), deep_supervision_scales=None, mirror_axes=(1,), do_dummy_2d_data_aug=False
    )


@dataclass(frozen=True)
class Diet:
    """What a network is trained on.

    Attributes
    ----------
    slices : Slices
    augment : callable or None
        What makes another slice of one, for slices that are not endless.
    """

    slices: Slices
    augment: Callable[..., dict] | None = None

    def draw(self, count: int, rng: np.random.Generator) -> list[tuple[Tensor, Tensor]]:
        """Image and lesion of slices, with and without lesion as they come."""
        return [self._one(i, rng) for i in rng.integers(len(self.slices.image), size=count)]

    def _one(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image = torch.from_numpy(self.slices.image[index])[None]
        lesion = torch.from_numpy(self.slices.lesion[index].astype(np.int16))[None]
        if self.augment is not None:
            done = self.augment(image=image, segmentation=lesion)
            return done["image"], done["segmentation"].clamp_min(0)
        flip = [-1] if rng.integers(2) else []
        return image.flip(flip), lesion.flip(flip)


def batches(diets: Sequence[Diet], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches, as much of one as of the other."""
    rng = np.random.default_rng(seed)
    while True:
        pairs = [pair for diet in diets for pair in diet.draw(BATCH // len(diets), rng)]
        yield torch.stack([image for image, _ in pairs]), torch.stack([lesion for _, lesion in pairs])


def train(diets: Sequence[Diet], steps: int, path: Path, seed: int, start: Path | None = None) -> torch.nn.Module:
    """A network trained for some steps, from another one on if given; loaded if it was trained before."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # nnU-Net's augmentation draws from it
    network = build()
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    if start is not None:
        network.load_state_dict(torch.load(start, weights_only=True))
    optimizer = Muon(network.parameters(), RATE)
    for step, (image, lesion) in enumerate(islice(batches(diets, seed), steps)):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 50) * (1.02 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        levels = network(image.contiguous(memory_format=torch.channels_last))
        targets = [F.max_pool2d(lesion.float(), 2**level) if level else lesion for level in range(len(levels))]
        lesion_loss(levels, targets, hardest_weight(step)).backward()
        optimizer.step()
    with atomic(path) as whole:
        torch.save(network.state_dict(), whole)
    print(f"{path.stem}: trained", flush=True)
    return network.eval()


@torch.no_grad()
def logits(network: torch.nn.Module, slices: Slices) -> np.ndarray:
    """Lesion logits at 1 mm, ``(n, 192, 160)``."""
    network.decoder.deep_supervision = False
    parts = [network(torch.from_numpy(slices.image[i : i + 32])[:, None]) for i in range(0, len(slices.image), 32)]
    difference = torch.cat([part[:, 1:] - part[:, :1] for part in parts])
    return F.interpolate(difference, scale_factor=2, mode="bilinear", align_corners=False)[:, 0].numpy()


@dataclass(frozen=True)
class Scores:
    """Scores on the test slices.

    Attributes
    ----------
    dice : ndarray
        Dice of every slice with lesion (20 mm2 and more).
    pooled : float
        Dice of all slices taken together.
    false_mm2 : float
        Mean area marked in slices without lesion.
    """

    dice: np.ndarray
    pooled: float
    false_mm2: float


def score(values: np.ndarray, slices: Slices) -> Scores:
    """Scores of lesion logits at 1 mm."""
    found = values > 0
    area = slices.truth.sum(axis=(1, 2))
    sick, healthy = area >= 20, area == 0
    each = [dice(truth, mask) for truth, mask in zip(slices.truth[sick], found[sick], strict=True)]
    return Scores(np.array(each), dice(slices.truth, found), float(found[healthy].sum(axis=(1, 2)).mean()))


def mean_of(parts: Sequence[Scores]) -> Scores:
    """Scores on average over folds."""
    pooled, false_mm2 = (float(np.mean([getattr(part, name) for part in parts])) for name in ("pooled", "false_mm2"))
    return Scores(np.mean([part.dice for part in parts], axis=0), pooled, false_mm2)


def table(rows: dict[str, Scores]) -> Iterator[str]:
    """Scores (intervals by bootstrap over patients), and the gain over one network trained on real slices."""
    yield "| trained on | Dice, slices with lesion | against real, one fold | Dice, pooled | false mm2 without lesion |"
    yield "|---|---|---|---|---|"
    reference = rows["real, one fold"].dice
    for name, found in rows.items():
        cells = (name, interval(found.dice), interval(found.dice - reference), f"{found.pooled:.3f}")
        yield f"| {' | '.join(cells)} | {found.false_mm2:.0f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_flair", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the real data")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the prepared data (OUT/cache of training)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and slices")
    parser.add_argument("--steps", type=int, default=800, help="steps of each training (default: %(default)s)")
    parser.add_argument("--scans", type=int, default=600, help="synthetic scans to draw (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    everyone = real(options.data)
    kept = np.array([split_of(f"sub-{patient}") == "test" for patient in everyone.patients])
    test, others = everyone[kept], everyone[~kept]
    made = Diet(from_synthesis(options.data, options.cache, options.scans, options.out / f"{options.scans}_scans.npz"))

    def path_of(name: str, seed: int) -> Path:
        return options.out / f"{name}_{seed}_{options.steps}_steps_{options.scans}_scans.pth"

    def say(name: str, diets: Sequence[Diet], seed: int, start: Path | None = None) -> np.ndarray:
        return logits(train(diets, options.steps, path_of(name, seed), seed, start), test)

    said = {"synthetic": [say("synthetic", [made], 0)], "real": [], "both": [], "synthetic, then real": []}
    fold_of = np.arange(len(others.patients)) % FOLDS
    for fold in range(FOLDS):
        seen = Diet(others[fold_of != fold], augmentation())
        said["real"].append(say("real", [seen], fold))
        said["both"].append(say("both", [seen, made], fold))
        said["synthetic, then real"].append(say("then", [seen], fold, path_of("synthetic", 0)))
    rows = {"synthetic": score(said["synthetic"][0], test)}
    for name in list(said)[1:]:
        rows[f"{name}, one fold"] = mean_of([score(values, test) for values in said[name]])
        rows[f"{name}, mean of {FOLDS} folds"] = score(np.mean(said[name], axis=0), test)
    with_synthetic = (said["synthetic"][0] + np.mean(said["real"], axis=0)) / 2
    rows["synthetic, averaged with real of 5 folds"] = score(with_synthetic, test)
    print(f"{len(test.patients)} test patients, {len(rows['synthetic'].dice)} with lesion\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
