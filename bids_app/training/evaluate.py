"""Choose the threshold on validation lesions, then measure on test heads with test lesions.

``python -m bids_app.training.evaluate --data DIR --cache DIR MODEL`` writes both into the model's card and prints
the table of ``docs/models.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from scipy import ndimage
from torch import Generator

from bids_app.training import anatomy, synthesis
from bids_app.training.anatomy import Head, LesionMask
from bids_app.training.embed import write_json
from bids_app.training.synthesis import Recipe, Source

CLASSES_ML = {"<=15 mL": (0.0, 15.0), "15-70 mL": (15.0, 70.0), ">70 mL": (70.0, float("inf"))}
HEALTHY = "healthy"
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MIN_VOLUME_MM3 = 10.0
"""The smallest lesion in ATLAS. A larger one would keep healthy heads cleaner and hide lacunes: the user's choice."""
FOUND_SHARE = 0.1
"""A lesion counts as found when at least this share of it is marked."""
MAX_FALSE_ML = 1.0
"""The threshold must keep the mean false-lesion volume of healthy validation heads below this."""


@dataclass(frozen=True)
class Case:
    """One synthetic scan with what the model makes of it.

    Attributes
    ----------
    head : str
        Confidence intervals are clustered by it.
    group : str
        A key of ``CLASSES_ML`` by the lesion's volume, or ``healthy``.
    truth : numpy.ndarray
        ``(z, y, x)`` booleans, 2 mm.
    probability : numpy.ndarray
        ``(z, y, x)`` float16, 0-1.
    """

    head: str
    group: str
    truth: np.ndarray
    probability: np.ndarray

    @cached_property
    def elsewhere(self) -> np.ndarray:
        """Where a mark is a false lesion: more than 4 mm from the lesion, since what touches it is its margin."""
        return ~ndimage.binary_dilation(self.truth, iterations=2)


@dataclass(frozen=True)
class Operating:
    """Operating point: probability from which a voxel is lesion, and smallest lesion that is kept (mm3)."""

    threshold: float
    min_volume_mm3: float


@dataclass(frozen=True)
class Score:
    """Scores of one case: Dice (0-1), whether the lesion was found, and volume marked elsewhere (mL)."""

    head: str
    group: str
    dice: float
    found: bool
    false_ml: float


def group_of(volume_ml: float) -> str:
    """Volume class of a lesion; ``healthy`` at zero."""
    for name, (low, high) in CLASSES_ML.items():
        if low < volume_ml <= high:
            return name
    return HEALTHY


def load_networks(model: Path) -> list[torch.nn.Module]:
    """Networks of all folds of a model folder, loaded by nnU-Net itself."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), None)
    networks = []
    for parameters in predictor.list_of_parameters:
        predictor.network.load_state_dict(parameters)
        networks.append(deepcopy(predictor.network).eval())
    return networks


def predict(networks: Sequence[torch.nn.Module], image: torch.Tensor) -> np.ndarray:
    """Lesion probability of ``(1, z, y, x)``, as float16; the logits of the folds are averaged, as the App does it."""
    with torch.no_grad():
        logits = torch.stack([network(image[None])[0] for network in networks]).mean(dim=0)
    return torch.softmax(logits, dim=0)[1].numpy().astype(np.float16)


def synthetic_scan(source: Source, lesion: LesionMask | None, seed: int) -> synthesis.SynthScan:
    """The scan of this head with this lesion (None: healthy) and this seed."""
    rng = Generator().manual_seed(seed)
    return synthesis.synthesize_with(source, [] if lesion is None else [lesion], Recipe(), rng)


def make_cases(
    networks: Sequence[torch.nn.Module], heads: Sequence[Head], lesions: Sequence[LesionMask], per_group: int, seed: int
) -> list[Case]:
    """Scans of every head in every group, and what the networks say of them.

    Parameters
    ----------
    networks : sequence of torch.nn.Module
    heads : sequence of Head
    lesions : sequence of LesionMask
        One lesion a scan; a scan whose lesion ends up in another class, clipped to the brain, counts there.
    per_group : int
        Scans for each head and volume class, and healthy ones for each head.
    seed : int

    Returns
    -------
    list of Case
    """
    cases, number = [], seed * 10**6
    pools = [[m for m in lesions if group_of(m.volume_ml) == group] for group in CLASSES_ML]
    for head in heads:
        source = synthesis.make_source(head)
        for pool, _ in product([*filter(None, pools), [None]], range(per_group)):
            number += 1
            lesion = synthesis.pick(pool, Generator().manual_seed(number))
            scan = synthetic_scan(source, lesion, number)
            truth = scan.target[0].numpy() > 0
            group = group_of(scan.lesion_ml)
            if lesion is None or truth.any():
                cases.append(Case(head.name, group, truth, predict(networks, scan.image)))
    return cases


def segment(probability: np.ndarray, point: Operating) -> np.ndarray:
    """Lesion mask of a probability map: threshold, then drop connected components that are too small."""
    mask = probability >= point.threshold
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * synthesis.SPACING_MM**3
    keep = sizes >= point.min_volume_mm3
    keep[0] = False
    return keep[labels]


def score(case: Case, point: Operating) -> Score:
    """Scores of one case at an operating point."""
    mask = segment(case.probability, point)
    both, total = np.sum(mask & case.truth), mask.sum() + case.truth.sum()
    dice = 2 * both / total if total else 1.0
    found = bool(case.truth.any() and both >= FOUND_SHARE * case.truth.sum())
    false_ml = float(np.sum(mask & case.elsewhere)) * synthesis.SPACING_MM**3 / 1000
    return Score(case.head, case.group, float(dice), found, false_ml)


def choose_operating_point(cases: Sequence[Case]) -> Operating:
    """Best mean Dice over lesion cases among the points that leave healthy heads clean.

    Clean means a mean false-lesion volume of at most ``MAX_FALSE_ML``; if no point achieves it, the cleanest is taken.
    """
    scored = {}
    for point in (Operating(threshold, MIN_VOLUME_MM3) for threshold in THRESHOLDS):
        scores = [score(case, point) for case in cases]
        dice = float(np.mean([s.dice for s in scores if s.group != HEALTHY]))
        scored[point] = dice, float(np.mean([s.false_ml for s in scores if s.group == HEALTHY]))
    clean = {point: values for point, values in scored.items() if values[1] <= MAX_FALSE_ML}
    if clean:
        return max(clean, key=lambda point: clean[point][0])
    return min(scored, key=lambda point: scored[point][1])


def clustered_interval(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, draws: int = 2000
) -> list[float]:
    """95 % bootstrap interval of a mean, drawing whole clusters (heads) with replacement.

    Returns
    -------
    list of float
        Lower and upper bound.
    """
    random = np.random.default_rng(seed)
    pairs = list(zip(values, clusters, strict=True))
    groups = [np.array([v for v, c in pairs if c == name]) for name in sorted(set(clusters))]
    means = []
    for _ in range(draws):
        drawn = [groups[i] for i in random.integers(len(groups), size=len(groups))]
        # within a head the cases are drawn again as well: four heads alone would understate the spread
        means.append(np.mean(np.concatenate([random.choice(g, len(g)) for g in drawn])))
    return [round(float(np.percentile(means, q)), 3) for q in (2.5, 97.5)]


def _summary(values: Sequence[float], clusters: Sequence[str]) -> dict:
    """Mean and clustered interval."""
    return {"mean": round(float(np.mean(values)), 3), "ci95": clustered_interval(values, clusters)}


def summarize(scores: Sequence[Score]) -> dict:
    """Scores by group: for lesions Dice and share found, and everywhere the false-lesion volume."""
    table = {}
    for group in (*CLASSES_ML, HEALTHY):
        chosen = [s for s in scores if s.group == group]
        if not chosen:
            continue
        heads = [s.head for s in chosen]
        row = {"cases": len(chosen), "heads": len(set(heads))}
        if group != HEALTHY:
            row["dice"] = _summary([s.dice for s in chosen], heads)
            row["found"] = _summary([float(s.found) for s in chosen], heads)
        row["false_ml"] = _summary([s.false_ml for s in chosen], heads)
        table[group] = row
    return table


def _cell(row: dict, key: str) -> str:
    """One cell of the table, with its interval."""
    if key not in row:
        return ""
    low, high = row[key]["ci95"]
    return f"{row[key]['mean']:.2f} ({low:.2f}-{high:.2f})"


def as_markdown(table: dict) -> str:
    """The table of ``docs/models.md``."""
    lines = ["| scans | n | Dice | lesion found | false lesion, mL |", "|---|---|---|---|---|"]
    for group, row in table.items():
        cells = " | ".join(_cell(row, key) for key in ("dice", "found", "false_ml"))
        lines.append(f"| {group} | {row['cases']} | {cells} |")
    return "\n".join(lines)


def evaluate(model: Path, heads: Sequence[Head], lesions: Sequence[LesionMask], per_group: int = 6) -> dict:
    """Choose the operating point, measure, and write both into the model's card.

    The point is chosen on validation lesions, in heads that none of the model's folds trains on where there are any;
    the scores are of test lesions in test heads.

    Parameters
    ----------
    model : Path
        Model folder.
    heads, lesions : sequences
        All heads and lesions; the splits are made here.
    per_group : int
        Scans for each head and group.

    Returns
    -------
    dict
        Scores by group.
    """
    networks = load_networks(model)
    drawn = [head for head in anatomy.in_split(heads, "train") if head.image is None]
    folds = [int(path.name.removeprefix("fold_")) for path in model.glob("fold_*")]
    trained = {head.name for fold in folds for head in anatomy.training_subset(drawn, fold)}
    unseen = [head for head in drawn if head.name not in trained] or drawn
    chosen_on = make_cases(networks, unseen, anatomy.in_split(lesions, "validation"), per_group, seed=1)
    point = choose_operating_point(chosen_on)
    tested = make_cases(
        networks, anatomy.in_split(heads, "test"), anatomy.in_split(lesions, "test"), per_group, seed=2
    )
    table = summarize([score(case, point) for case in tested])
    validation = summarize([score(case, point) for case in chosen_on])
    card = json.loads((model / "card.json").read_text())
    card |= asdict(point) | {"scores": {"test": table, "validation": validation}}
    write_json(model / "card.json", card)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="model folder with card.json")
    parser.add_argument("--data", type=Path, required=True, help="folder with label_maps/ and lesion_masks/")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the prepared data (OUT/cache of training)")
    parser.add_argument("--per-group", type=int, default=6, help="scans for each head and group (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    heads, lesions = anatomy.prepare(options.data, options.cache)
    print(as_markdown(evaluate(options.model, heads, lesions, options.per_group)))


if __name__ == "__main__":
    main()
