"""Synthetic cases that a model never saw, what it says of them, and the threshold it should work at.

``python -m bids_app.training.evaluate MODEL ... --data DIR --cache DIR`` chooses the threshold of each model on
validation lesions in validation heads and writes it into the model's card. Scores on the test heads are the business
of ``benchmarks.lesions``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor

from bids_app.derivatives.write import write_json
from bids_app.lesion.model import LesionModel, load_model
from bids_app.measures.detection import anima_f1, any_overlap_f1
from bids_app.measures.overlap import CONNECTIVITY_26, dice
from bids_app.measures.surfaces import assd
from bids_app.training import anatomy
from bids_app.training.anatomy import LesionMask
from bids_app.training.losses import CHANNEL
from bids_app.training.synthesis.fields import SPACING_MM, pick
from bids_app.training.synthesis.recipe import Recipe
from bids_app.training.synthesis.scan import BOTH, SynthScan, synthesize_with
from bids_app.training.synthesis.tissue import Source, make_source

CLASSES_ML = {"15 mL or less": (0.0, 15.0), "15-70 mL": (15.0, 70.0), "over 70 mL": (70.0, float("inf"))}
HEALTHY = "healthy"
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MIN_VOLUME_MM3 = 10.0
"""The smallest lesion in ATLAS. A larger one would keep healthy heads cleaner and hide lacunes: the user's choice."""
FOUND_SHARE = 0.1
"""A lesion counts as found when at least this share of it is marked."""
MAX_FALSE_ML = 1.0
"""The threshold must keep the mean false-lesion volume of healthy validation heads below this."""
TEST_RECIPE = replace(Recipe(), shifted=0.0)
"""Both contrasts lie on each other, so that one truth holds for every model; the benchmark shifts them on purpose."""

_VOXEL_MM3 = SPACING_MM**3
_TRIES = 20



@dataclass(frozen=True)
class Case:
    """One synthetic scan.

    Attributes
    ----------
    head : str
        Confidence intervals are clustered by it.
    group : str
        A key of ``CLASSES_ML`` by the lesion's volume, or ``healthy``.
    image : torch.Tensor
        ``(2, z, y, x)``: T1w and FLAIR.
    truth : numpy.ndarray
        ``(z, y, x)`` booleans, 2 mm.
    """

    head: str
    group: str
    image: Tensor
    truth: np.ndarray

    @cached_property
    def elsewhere(self) -> np.ndarray:
        """Where a mark is a false lesion: more than 4 mm from the lesion, since what touches it is its margin."""
        return ~ndimage.binary_dilation(self.truth, iterations=2)


@dataclass(frozen=True)
class Operating:
    """Operating point: probability from which a voxel is lesion, and smallest lesion that is kept (mm3)."""

    threshold: float = 0.5
    min_volume_mm3: float = MIN_VOLUME_MM3


@dataclass(frozen=True)
class Score:
    """Scores of one case.

    Attributes
    ----------
    head, group : str
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


def group_of(volume_ml: float) -> str:
    """Volume class of a lesion; ``healthy`` at zero."""
    for name, (low, high) in CLASSES_ML.items():
        if low < volume_ml <= high:
            return name
    return HEALTHY


def make_cases(
    sources: Sequence[Source],
    lesions: Sequence[LesionMask],
    per_group: int,
    seed: int,
    healthy: int | None = None,
    recipe: Recipe = TEST_RECIPE,
) -> Iterator[Case]:
    """Scans of every head in every volume class, each with one lesion that shows in both contrasts, and healthy ones.

    Parameters
    ----------
    sources : sequence of Source
    lesions : sequence of LesionMask
    per_group : int
        Scans for each head and volume class. A lesion that ends up in another class, clipped to the brain, is drawn
        again; after 20 tries the last one is taken.
    seed : int
        The same seed makes the same cases.
    healthy : int, optional
        Healthy scans for each head; as many as for a class if not given.
    """
    pools = {group: [m for m in lesions if group_of(m.volume_ml) == group] for group in CLASSES_ML}
    number = seed * 10**6
    for source in sources:
        for group, pool in pools.items():
            for _ in range(per_group if pool else 0):
                number += _TRIES
                scan = _scan_in_group(source, pool, group, number, recipe)
                yield Case(source.head.name, group_of(scan.lesion_ml), scan.image, scan.target[BOTH].numpy() > 0)
        for _ in range(per_group if healthy is None else healthy):
            number += _TRIES
            scan = synthesize_with(source, [], recipe, Generator().manual_seed(number))
            yield Case(source.head.name, HEALTHY, scan.image, np.zeros(scan.image.shape[1:], bool))


def _scan_in_group(
    source: Source, pool: Sequence[LesionMask], group: str, number: int, recipe: Recipe
) -> SynthScan:
    """A scan whose lesion has a volume of this class and shows in both contrasts."""
    for attempt in range(_TRIES):
        rng = Generator().manual_seed(number + attempt)
        scan = synthesize_with(source, [pick(pool, rng)], recipe, rng)
        in_both = all(channel.any() for channel in scan.target)
        if in_both and group_of(scan.lesion_ml) == group:
            return scan
    return scan


def fold_logits(model: LesionModel, image: Tensor) -> Tensor:
    """Lesion logit (that of the lesion minus that of the background) of every fold, ``(folds, z, y, x)``."""
    batch = image[[CHANNEL[name] for name in model.channels]][None]
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
        false_ml=float(np.sum(mask & case.elsewhere)) * _VOXEL_MM3 / 1000,
    )


def choose_operating_point(cases: Sequence[tuple[Case, Tensor]]) -> Operating:
    """Best mean Dice over lesion cases among the points that leave healthy heads clean.

    Clean means a mean false-lesion volume of at most ``MAX_FALSE_ML``; if no point achieves it, the cleanest is taken.
    """
    scored = {}
    for point in map(Operating, THRESHOLDS):
        scores = [score(case, logits, point) for case, logits in cases]
        overlap = float(np.mean([s.dice for s in scores if s.group != HEALTHY]))
        scored[point] = overlap, float(np.mean([s.false_ml for s in scores if s.group == HEALTHY]))
    clean = {point: values for point, values in scored.items() if values[1] <= MAX_FALSE_ML}
    if clean:
        return max(clean, key=lambda point: clean[point][0])
    return min(scored, key=lambda point: scored[point][1])


def clustered_interval(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """95 % bootstrap interval of a mean, drawing whole clusters (heads) with replacement; nan are left out.

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


def calibrate(folder: Path, cases: Sequence[Case]) -> Operating:
    """Choose the operating point of one model on validation cases and write it into the model's card."""
    model = load_model(folder)
    point = choose_operating_point([(case, fold_logits(model, case.image).mean(dim=0)) for case in cases])
    card = json.loads((folder / "card.json").read_text())
    write_json(folder / "card.json", card | asdict(point))
    return point


def validation_cases(data: Path, cache: Path, per_group: int) -> list[Case]:
    """Cases of the validation split: heads and lesions that no fold of any model trains on."""
    heads, lesions = anatomy.prepare(data, cache)
    sources = [make_source(head) for head in anatomy.in_split(heads, "validation")]
    return list(make_cases(sources, anatomy.in_split(lesions, "validation"), per_group, seed=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.evaluate", description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="model folder with card.json")
    parser.add_argument("--data", type=Path, required=True, help="folder with label_maps/ and lesion_masks/")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the prepared data (OUT/cache of training)")
    parser.add_argument("--per-group", type=int, default=8, help="scans for each head and group (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cases = validation_cases(options.data, options.cache, options.per_group)
    for model in options.models:
        point = calibrate(model, cases)
        print(f"{model.name}: threshold {point.threshold}, lesions from {point.min_volume_mm3:.0f} mm3")


if __name__ == "__main__":
    main()
