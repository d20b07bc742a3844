"""What finds a stroke lesion that nobody has shown it? REFLECT and its rivals on real FLAIR slices.

    python -m benchmarks.reflect_flair --data DIR --out DIR [--rows ROW ...] [--seeds 0 1 2] [--table]

trains on slices without lesion, 20 minutes a row and seed (REFLECT-2 has the few minutes of its second training beyond
that; `--minutes` sets another budget, the same for every row), and judges on slices of other patients:
those whose id ends in 3. Thresholds are from slices without lesion of the patients whose id ends in 1. What is trained
and measured already is not done again: use another OUT after any change of the code.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from benchmarks.synthesis_fit import HEIGHT_MM, SLICES, upright
from benchmarks.unsupervised import (
    BOTTLENECK,
    DENOISER,
    Denoising,
    equalized,
    moments,
    reconstruction_loss,
    reconstruction_map,
    variational_loss,
)
from bids_app.anomaly import autoencoder as autoencoders
from bids_app.anomaly import velocity as velocities
from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.folder import BOTH, BRIGHT, Card
from bids_app.anomaly.model import AnomalyModel, made_ready
from bids_app.anomaly.residual import PIXEL_SIGMA, blurred
from bids_app.anomaly.slices import SHAPE, grey_values
from bids_app.anomaly.tensors import as_tensor
from bids_app.anomaly.usual import Usual
from bids_app.anomaly.velocity import Velocity
from bids_app.derivatives.write import write_json
from bids_app.measures.froc import FALSE_POSITIVES, detect, froc, joined
from bids_app.measures.overlap import dice
from bids_app.networks.device import choose_device
from bids_app.training.anatomy import split_of
from bids_app.training.record import check_record
from bids_app.training.reflect.embedded import CORRUPTIONS
from bids_app.training.reflect.learn import (
    Corruption,
    Course,
    Place,
    muon,
    straighten,
    train_autoencoder,
    train_reflect,
)
from bids_app.training.reflect.loop import Learner, Processes, Schedule, fit
from bids_app.training.reflect.presets import PRESETS
from bids_app.training.reflect.slices import Slices
from bids_app.training.reflect.tasks import SliceBatches

SHARES = {"autoencoder": 0.25, "reflect": 0.75, "straight": 0.2}
"""Of a row's time, for the trainings of REFLECT; that of REFLECT-2 comes on top. A rival has all of it."""
BATCHES = {"cpu": 8, "cuda": 64}
"""Slices of a step, of every row."""
PART = 24
"""Slices that are judged together."""
SMALL = PRESETS["small"]
CLEAN_SHARE = 0.01
"""Of the brain pixels of slices without lesion that lie above the threshold for Dice."""
CANDIDATE_SHARE = 0.02
"""The same for candidates of the FROC."""
LEAST_PIXELS = 30
"""Lesions and false alarms of less are left out."""

Map = Callable[[np.ndarray], np.ndarray]
"""From grey values ``(n, 192, 160)`` to anomaly, the same shape."""


@dataclass(frozen=True)
class Split:
    """Slices by what they are for; `lesions` are those of the test slices, ``(n, 192, 160)`` bool."""

    train: Slices
    validation: Slices
    test: Slices
    lesions: np.ndarray


def load(data: Path) -> Split:
    """Real FLAIR slices in the box that networks see."""
    with np.load(data / SLICES) as stored:
        ids, flair, lesion = (stored[name] for name in ("id", "flair", "lesion"))
    images = np.array([placed(grey_values(image.astype(np.float32), image > 0)) for image in flair])
    lesions = np.array([placed(mask) > 0 for mask in lesion])
    slices = Slices(images, tuple(map(str, ids)), np.full(len(ids), HEIGHT_MM))
    use = np.array([split_of(f"sub-{patient}") for patient in slices.subjects])
    area = lesions.sum(axis=(1, 2))
    clean, judged = area == 0, (area == 0) | (area >= LEAST_PIXELS)
    chosen = (use == "train") & clean, (use == "validation") & clean, (use == "test") & judged
    return Split(*(slices[np.flatnonzero(each)] for each in chosen), lesions[chosen[2]])


def placed(stored: np.ndarray) -> np.ndarray:
    """A stored slice at its place in MNI space, rows from anterior to posterior."""
    out = np.zeros(SHAPE[1:], stored.dtype)
    rows, columns = stored.shape[::-1]
    out[2 : 2 + rows, 1 : 1 + columns] = upright(stored)[::-1]
    return out


@dataclass(frozen=True)
class Bench:
    """What the rows are made from."""

    split: Split
    out: Path
    seed: int
    minutes: float = 20.0
    device: str = "cpu"
    workers: int = 0
    latents: str = "f8"

    def course(self, share: float, rate: float, at_start: float = 0.0) -> Course:
        """A share of the time."""
        schedule = Schedule(minutes=share * self.minutes, ema=0.995, save_minutes=2)
        return Course(schedule, BATCHES[self.device], rate, muon, self.seed, self.workers, at_start)

    def place(self, name: str) -> Place:
        group = Processes(0, 1, torch.device(self.device))
        return Place(self.out / name, group, lambda step, progress, values: print(name, step, values, flush=True))

    def fitted(self, name: str, network: nn.Module, loss: Callable) -> nn.Module:
        """A rival, trained."""
        torch.manual_seed(1000 * self.seed)
        place, course = self.place(name), self.course(1.0, SMALL.stages["autoencoder"].rate)
        learner = Learner(name, network, course.optimizer(network.parameters(), course.rate), loss)
        batches = SliceBatches(self.split.train, course.batch, self.seed)
        return fit([learner], batches, course.schedule, place.folder, place.group, self.workers, place.say)[name]

    @cached_property
    def with_finer_latents(self) -> Bench:
        """The same, for networks whose latents have four times as many cells."""
        return replace(self, out=self.out / "f4", latents="f4")

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """That of all REFLECT rows of a seed with these latents."""
        size, rate = autoencoders.SIZES[SMALL.latents[self.latents]], SMALL.stages["autoencoder"].rate
        course = self.course(SHARES["autoencoder"], rate)
        return train_autoencoder(self.split.train, size, course, self.place("autoencoder"))

    def reflect(self, corruption: str = "plain") -> Velocity:
        """REFLECT-1."""
        size, stage = velocities.SIZES[SMALL.velocity], SMALL.stages["reflect"]
        course = self.course(SHARES["reflect"], stage.rate, stage.at_start)
        place, changes = self.place(f"reflect_{corruption}"), CORRUPTIONS[corruption]
        return train_reflect(self.split.train, self.autoencoder, size, course, place, Corruption(changes=changes))

    def straight(self, corruption: str = "plain") -> Velocity:
        """REFLECT-2."""
        course = self.course(SHARES["straight"], SMALL.stages["reflect2"].rate)
        place = self.place(f"straight_{corruption}")
        changes = Corruption(changes=CORRUPTIONS[corruption])
        return straighten(self.split.train, self.autoencoder, self.reflect(corruption), course, place, changes)

    def model(self, row: str) -> AnomalyModel:
        """The networks of a row, as the App runs them."""
        corruption = next((kind for kind in CORRUPTIONS if kind in row), "plain")
        of_latents = self.with_finer_latents if "f4" in row else self
        velocity = (of_latents.straight if "-2" in row else of_latents.reflect)(corruption)
        steps, side = 1 if "1 step" in row else 5, BRIGHT if BRIGHT in row else BOTH
        card = Card(row, contrast="FLAIR", steps=steps, masked="masked" in row, side=side)
        return made_ready(card, "", of_latents.autoencoder, velocity, choose_device(self.device))


def network_map(function: Callable[[Tensor], Tensor], device: str, grey: np.ndarray) -> np.ndarray:
    """Map of a network, blurred as the authors blur theirs."""
    parts = [as_tensor(part).to(device) for part in np.array_split(grey, -(-len(grey) // PART))]
    differences = torch.cat([function(part) * (part[:, 0] > -1) for part in parts])
    return blurred(differences, PIXEL_SIGMA).cpu().numpy()


def yardstick(values: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """A map without any network, blurred in the same way."""
    return blurred(torch.from_numpy(np.where(brain, values, 0).astype(np.float32)), PIXEL_SIGMA).numpy()


def row_maps(row: str, bench: Bench) -> Map:
    """The map of a row, trained if it has anything to train."""
    train = bench.split.train.images
    if row == "intensity":
        return lambda grey: yardstick(grey / 255, grey > 0)
    if row == "equalised intensity":
        return lambda grey: np.stack([yardstick(_equalized(g)[None], g[None] > 0)[0] for g in grey])
    if row in ("z-score", "absolute z-score"):
        (mean, deviation), side = moments(train), np.abs if row.startswith("absolute") else lambda score: score
        return lambda grey: yardstick(side((grey - mean) / deviation), grey > 0)
    if row in ("AE", "VAE"):
        name, loss = row.lower(), reconstruction_loss if row == "AE" else variational_loss
        network = bench.fitted(name, Autoencoder(BOTTLENECK), loss)
        return partial(network_map, partial(reconstruction_map, network), bench.device)
    if row == "AnoDDPM-like":
        way = Denoising()
        network = bench.fitted("diffusion", Velocity(DENOISER, 1), way.loss)
        return partial(network_map, partial(way.map, network), bench.device)
    model = bench.model(row)
    if "by place" not in row:
        return lambda grey: model.explain(grey).anomaly
    usual = Usual.of(zip(model.explain(train).anomaly, train > 0, strict=True))
    return lambda grey: usual.scores(model.explain(grey).anomaly)


def _equalized(grey: np.ndarray) -> np.ndarray:
    return equalized(grey, np.sort(grey[grey > 0]))


NETWORKS = (
    "AE",
    "VAE",
    "AnoDDPM-like",
    "REFLECT-1, 1 step",
    "REFLECT-1, 5 steps",
    "REFLECT-1 f4, 1 step",
    "REFLECT-1 f4, 5 steps",
    "REFLECT-1 masked, 1 step",
    "REFLECT-1 bright, 1 step",
    "REFLECT-1 by place, 1 step",
    "REFLECT-1 bright by place, 1 step",
    "REFLECT-2, 1 step",
    "REFLECT-2, 5 steps",
    "REFLECT-2 bright by place, 1 step",
    "REFLECT-1 focal, 1 step",
    "REFLECT-1 focal, 5 steps",
    "REFLECT-1 focal bright by place, 1 step",
    "REFLECT-1 morphological, 1 step",
    "REFLECT-1 morphological, 5 steps",
)
YARDSTICKS = ("intensity", "equalised intensity", "z-score", "absolute z-score")


def scores(function: Map, split: Split) -> dict[str, float]:
    """All measures of a row."""
    clean, brain = split.validation.images > 0, split.test.images > 0
    normal = function(split.validation.images)[clean]
    dice_threshold, candidate_threshold = np.quantile(normal, [1 - CLEAN_SHARE, 1 - CANDIDATE_SHARE])
    anomaly, truth = np.where(brain, function(split.test.images), 0), split.lesions
    sick = truth.any(axis=(1, 2))
    found = anomaly >= dice_threshold
    each = [dice(t, f) for t, f in zip(truth[sick], found[sick], strict=True)]
    alarms = [_largest(mask) >= LEAST_PIXELS for mask in found[~sick]]
    curve = froc(joined(detect(a, t, candidate_threshold) for a, t in zip(anomaly, _lesions(truth), strict=True)))
    best = max(dice(truth, anomaly >= level) for level in np.quantile(anomaly[brain], np.linspace(0.8, 0.999, 60)))
    return {
        "auprc": float(average_precision_score(truth[brain], anomaly[brain])),
        "dice": dice(truth, found),
        "slice_dice": float(np.mean(each)),
        "best_dice": best,
        "alarmed": float(np.mean(alarms)),
        "alarm_pixels": float(found[~sick].sum() / brain[~sick].sum()),
        **{f"froc_{rate}": float(value) for rate, value in zip(FALSE_POSITIVES, curve, strict=True)},
        "froc": float(curve.mean()),
    }


def _largest(mask: np.ndarray) -> int:
    labels, _ = ndimage.label(mask)
    return int(np.bincount(labels.ravel())[1:].max(initial=0))


def _lesions(truth: np.ndarray) -> Iterator[np.ndarray]:
    """Lesions of each slice by number; those of less than `LEAST_PIXELS` are none to be found."""
    for mask in truth:
        labels, count = ndimage.label(mask)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        yield np.where(sizes[labels] >= LEAST_PIXELS, labels, 0)


COLUMNS = {
    "auprc": "AUPRC",
    "dice": "Dice",
    "slice_dice": "Dice, mean of slices",
    "best_dice": "best Dice",
    "alarmed": "clean slices alarmed",
    "alarm_pixels": "clean brain alarmed",
    **{f"froc_{rate}": f"found at {rate}" for rate in FALSE_POSITIVES},
    "froc": "FROC",
}


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[str]:
    """Mean and standard deviation over seeds."""
    yield f"| | {' | '.join(COLUMNS.values())} |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for row, seeds in found.items():
        values = {name: np.array([seed[name] for seed in seeds]) for name in COLUMNS}
        spread = {name: f" ± {v.std(ddof=1):.3f}" if len(v) > 1 else "" for name, v in values.items()}
        yield f"| {row} | " + " | ".join(f"{values[name].mean():.3f}{spread[name]}" for name in COLUMNS) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reflect_flair", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the real data")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and scores")
    parser.add_argument("--rows", nargs="+", default=[*YARDSTICKS, *NETWORKS], choices=[*YARDSTICKS, *NETWORKS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=Bench.minutes, help="a row (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=list(BATCHES), help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw batches (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print what is measured, measure nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not options.table:
        check_record(options.out, options.out.name, {"minutes": options.minutes, "device": options.device})
    split = load(options.data)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        bench = Bench(split, options.out / f"seed_{seed}", seed, options.minutes, options.device, options.workers)
        for row in options.rows:
            path = options.out / f"seed_{seed}" / "scores" / f"{row}.json"
            if not path.exists() and not options.table and (row in NETWORKS or seed == options.seeds[0]):
                write_json(path, scores(row_maps(row, bench), split))
            if path.exists():
                found.setdefault(row, []).append(json.loads(path.read_text()))
    sick = int(split.lesions.any(axis=(1, 2)).sum())
    counts = (len(split.train), len(split.validation), sick, len(split.test) - sick)
    print("{} slices to train, {} to validate, to test {} with lesion and {} without\n".format(*counts))
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
