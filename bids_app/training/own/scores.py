"""The threshold of a trained model, and how good it is at it, both on cases that no fold had seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app import images
from bids_app.lesion.components import find_lesions
from bids_app.measures.overlap import compare
from bids_app.measures.volumes import volume_class, volume_ml
from bids_app.training.own.out_of_fold import Seen, read_probability

#: Thresholds that are tried.
GRID = tuple(round(0.05 * step, 2) for step in range(2, 19))
MIN_VOLUME_MM3 = 10.0


@dataclass(frozen=True)
class Score:
    """One held-out case at the chosen threshold.

    Attributes
    ----------
    label : str
    fold : int
    volume_ml, predicted_ml : float
    dice, lesion_f1 : float
        As `measures.overlap` defines them.
    """

    label: str
    fold: int
    volume_ml: float
    predicted_ml: float
    dice: float
    lesion_f1: float


def choose_threshold(cases: Iterable[tuple[np.ndarray, np.ndarray]], grid: Sequence[float] = GRID) -> float:
    """The threshold of the best mean Dice over the cases with a lesion; the one nearest to a half among equals.

    Parameters
    ----------
    cases : iterable of (numpy.ndarray, numpy.ndarray)
        Truth (bool) and probability of each case.
    grid : sequence of float
        In (0, 1).

    Returns
    -------
    float
        0.5 if no case has a lesion.
    """
    curves = [_dice_curve(truth, probability, grid) for truth, probability in cases if truth.any()]
    if not curves:
        return 0.5
    mean = np.mean(curves, axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-6)
    return float(min((grid[index] for index in best), key=lambda value: abs(value - 0.5)))


def _dice_curve(truth: np.ndarray, probability: np.ndarray, grid: Sequence[float]) -> list[float]:
    """Dice at every threshold."""
    inside = probability[truth]
    total = [np.count_nonzero(probability >= np.float32(threshold)) for threshold in grid]
    both = [np.count_nonzero(inside >= np.float32(threshold)) for threshold in grid]
    return [2 * hit / (count + len(inside)) for hit, count in zip(both, total, strict=True)]


def truth_and_probability(seen: Sequence[Seen], probabilities: Mapping[str, Path]):
    """Truth and probability of each case, read one after the other."""
    for item in seen:
        mask = images.data(images.load(item.ready.mask)) > 0
        yield mask, read_probability(probabilities[item.ready.label])


def score_cases(seen: Sequence[Seen], probabilities: Mapping[str, Path], threshold: float) -> tuple[Score, ...]:
    """Scores of all held-out cases, small lesions left out as the App does."""
    scores = []
    for item in seen:
        truth = images.load(item.ready.mask)
        probability = images.like(truth, read_probability(probabilities[item.ready.label]))
        found = find_lesions(probability, threshold, MIN_VOLUME_MM3).mask
        agreement = compare(truth, found)
        volumes = volume_ml(truth), volume_ml(found)
        scores.append(Score(item.ready.label, item.fold, *volumes, agreement.dice, agreement.lesion_f1))
    return tuple(scores)


def summary(scores: Sequence[Score]) -> dict:
    """Mean scores for the card: of all cases with lesion, by volume class, and of healthy ones.

    Returns
    -------
    dict
        ``n``, ``dice`` and ``lesion_f1`` of ``all``, ``small`` (to 15 mL), ``medium`` (to 70 mL) and ``large``;
        ``n`` and ``false_ml`` of ``healthy``. Classes without a case are left out.
    """
    with_lesion = [score for score in scores if score.volume_ml > 0]
    healthy = [score for score in scores if score.volume_ml == 0]
    groups = {"all": with_lesion}
    for score in with_lesion:
        groups.setdefault(volume_class(score.volume_ml), []).append(score)
    table = {
        name: {
            "n": len(groups[name]),
            "dice": _mean(score.dice for score in groups[name]),
            "lesion_f1": _mean(score.lesion_f1 for score in groups[name]),
        }
        for name in ("all", "small", "medium", "large")
        if groups.get(name)
    }
    if healthy:
        table["healthy"] = {"n": len(healthy), "false_ml": _mean(score.predicted_ml for score in healthy)}
    return table


def render(table: Mapping[str, Mapping[str, float]]) -> str:
    """The summary as a plain table."""
    lines = ["cases      n   Dice  lesion F1  false mL"]
    for name, row in table.items():
        cells = [f"{row[key]:.3f}" if key in row else "" for key in ("dice", "lesion_f1")]
        false = f"{row['false_ml']:.2f}" if "false_ml" in row else ""
        lines.append(f"{name:<8} {row['n']:>3}  {cells[0]:>5}  {cells[1]:>9}  {false:>8}".rstrip())
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 4)
