"""What a model says of cases that it never saw, and the threshold it should work at.

``python -m bids_app.training.evaluate MODEL ... --data DIR --cache DIR`` chooses the threshold of each model on
validation lesions in validation heads and writes it into the model's card. Scores on the test heads are the business
of ``benchmarks.lesions``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bids_app.derivatives.write import write_json
from bids_app.lesion.components import MIN_VOLUME_MM3
from bids_app.lesion.model import LesionModel, load_model
from bids_app.measures.detection import anima_f1, any_overlap_f1
from bids_app.measures.overlap import CONNECTIVITY_26, dice
from bids_app.measures.surfaces import assd
from bids_app.training.cases import HEALTHY, Case, make_cases
from bids_app.training.losses import CHANNEL
from bids_app.training.store import prepare_split
from bids_app.training.synthesis.fields import SPACING_MM
from bids_app.training.synthesis.tissue import make_source

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97)
MIN_VOLUMES_MM3 = (MIN_VOLUME_MM3, 30.0, 100.0)
"""From the smallest lesion in ATLAS to a lacune of 6 mm: larger ones must not be hidden from the user."""
FOUND_SHARE = 0.1
"""A lesion counts as found when at least this share of it is marked."""
MAX_FALSE_ML = 1.0
"""The threshold must keep the mean false-lesion volume of healthy validation heads below this."""
ONE_FOLD = "one_fold"
"""Entry of a card: the operating point of a fold that runs alone."""
_VOXEL_MM3 = SPACING_MM**3


@dataclass(frozen=True)
class Operating:
    """Operating point: probability from which a voxel is lesion, and smallest lesion that is kept (mm3)."""

    threshold: float = 0.5
    min_volume_mm3: float = MIN_VOLUMES_MM3[0]


@dataclass(frozen=True)
class Score:
    """Scores of one case.

    Attributes
    ----------
    head, group : str
        Of the case.
    dice, f1, anima_f1 : float
        0-1; lesion F1 by any overlap and by the rule of Anima.
    assd_mm : float
        Average symmetric surface distance; nan if nothing was found.
    found : float
        1 if the lesion was found, else 0.
    false_ml : float
        Volume marked more than 4 mm from the lesion.
    """

    head: str
    group: str
    dice: float
    f1: float
    anima_f1: float
    assd_mm: float
    found: float
    false_ml: float


def batch_of(image: Tensor, contrasts: Sequence[str]) -> Tensor:
    """A batch of one scan, ``(1, contrasts, z, y, x)``, of the contrasts that a model takes."""
    return image[[CHANNEL[name] for name in contrasts]][None]


def fold_logits(model: LesionModel, image: Tensor) -> Tensor:
    """Lesion logit (that of the lesion minus that of the background) of every fold, ``(folds, z, y, x)``."""
    batch = batch_of(image, model.channels)
    return torch.cat([model.output.reduce(engine(batch))[:, 0] for engine in model.engines])


def segment(probability: np.ndarray, point: Operating) -> np.ndarray:
    """Lesion mask of a probability map: threshold, then drop connected components that are too small."""
    mask = probability >= point.threshold
    labels, count = ndimage.label(mask, CONNECTIVITY_26)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * _VOXEL_MM3
    keep = sizes >= point.min_volume_mm3
    keep[0] = False
    return keep[labels]


def score(case: Case, logits: Tensor, point: Operating) -> Score:
    """Scores of one case at an operating point, from the logits of one fold or their mean."""
    mask = segment(torch.sigmoid(logits).numpy(), point)
    both = np.sum(mask & case.truth)
    return Score(
        head=case.head,
        group=case.group,
        dice=dice(case.truth, mask),
        f1=any_overlap_f1(case.truth, mask),
        anima_f1=anima_f1(case.truth, mask, _VOXEL_MM3),
        assd_mm=assd(case.truth, mask, [SPACING_MM] * 3),
        found=float(case.truth.any() and both >= FOUND_SHARE * case.truth.sum()),
        false_ml=false_ml(case, mask),
    )


def false_ml(case: Case, mask: np.ndarray) -> float:
    """Volume marked more than 4 mm from the lesion."""
    return float(np.sum(mask & case.elsewhere)) * _VOXEL_MM3 / 1000


def choose_operating_point(cases: Sequence[tuple[Case, Tensor]], points: Iterable[Operating]) -> Operating:
    """The best of some operating points that leave healthy heads clean; if none does, the cleanest.

    The best has the highest sum of mean Dice and mean lesion F1 over lesion cases: the Dice alone hardly feels small
    lesions, found or false. Clean means a mean false-lesion volume of at most ``MAX_FALSE_ML``.

    Parameters
    ----------
    cases : sequence of (Case, torch.Tensor)
        Each with the logits ``(z, y, x)`` of a fold or of the mean of folds.
    points : iterable of Operating
    """
    probabilities = [(case, torch.sigmoid(logits).numpy()) for case, logits in cases]
    quality, dirt = {}, {}
    for point in points:
        masks = [(case, segment(probability, point)) for case, probability in probabilities]
        sick = [dice(case.truth, mask) + any_overlap_f1(case.truth, mask) for case, mask in masks if case.truth.any()]
        healthy = [false_ml(case, mask) for case, mask in masks if case.group == HEALTHY]
        quality[point], dirt[point] = float(np.mean(sick)), float(np.mean(healthy))
    clean = [point for point in quality if dirt[point] <= MAX_FALSE_ML]
    return max(clean, key=quality.__getitem__) if clean else min(dirt, key=dirt.__getitem__)


def clustered_interval(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """95 % bootstrap interval of a mean: clusters (heads) are drawn, and cases within each; nan are left out.

    Returns
    -------
    tuple of float
        Lower and upper bound; nan if there is no value.
    """
    random = np.random.default_rng(seed)
    pairs = [(v, c) for v, c in zip(values, clusters, strict=True) if not np.isnan(v)]
    groups = [np.array([v for v, c in pairs if c == name]) for name in sorted({c for _, c in pairs})]
    if not groups:
        return float("nan"), float("nan")
    means = []
    for _ in range(draws):
        drawn = [groups[i] for i in random.integers(len(groups), size=len(groups))]
        # within a head the cases are drawn again as well: four heads alone would understate the spread
        means.append(np.mean(np.concatenate([random.choice(g, len(g)) for g in drawn])))
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def calibrate(folder: Path, cases: Sequence[Case]) -> tuple[Operating, Operating]:
    """Choose the operating points of one model on validation cases and write them into the model's card.

    Returns
    -------
    tuple of Operating
        That of the mean of the folds, with which the App works; and that of single folds, whose threshold is chosen for
        them, so that a comparison of the two is fair.
    """
    model = load_model(folder)
    folds = [(case, fold_logits(model, case.image)) for case in cases]
    grid = [Operating(threshold, volume) for threshold in THRESHOLDS for volume in MIN_VOLUMES_MM3]
    point = choose_operating_point([(case, logits.mean(dim=0)) for case, logits in folds], grid)
    singles = [(case, fold) for case, logits in folds for fold in logits]
    single = choose_operating_point(singles, [Operating(threshold, point.min_volume_mm3) for threshold in THRESHOLDS])
    card = json.loads((folder / "card.json").read_text())
    write_json(folder / "card.json", card | asdict(point) | {ONE_FOLD: asdict(single)})
    return point, single


def validation_cases(data: Path, cache: Path, per_class: int) -> list[Case]:
    """Cases of the validation split: heads and lesions that no fold of any model trains on."""
    heads, lesions = prepare_split(data, cache, "validation")
    return list(make_cases([make_source(head) for head in heads], lesions, per_class, seed=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.evaluate", description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="model folder with card.json")
    parser.add_argument("--data", type=Path, required=True, help="folder with label_maps/ and lesion_masks/")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the prepared data (OUT/cache of training)")
    parser.add_argument("--per-class", type=int, default=8, help="scans a head and volume class (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cases = validation_cases(options.data, options.cache, options.per_class)
    for model in options.models:
        point, single = calibrate(model, cases)
        print(f"{model.name}: threshold {point.threshold} (one fold alone: {single.threshold}), "
              f"lesions from {point.min_volume_mm3:.0f} mm3")  # fmt: skip


if __name__ == "__main__":
    main()
