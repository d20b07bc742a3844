"""The threshold of a trained model, and how good its folds are, by cross-validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app import images
from bids_app.lesion.components import MIN_VOLUME_MM3, find_lesions
from bids_app.measures.overlap import compare
from bids_app.measures.volumes import volume_class, volume_ml
from bids_app.training.own.out_of_fold import Seen, read_probability

#: Thresholds that are tried.
GRID = tuple(round(0.05 * step, 2) for step in range(2, 19))


@dataclass(frozen=True)
class Score:
    """One case, by the fold that it was held out from.

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


@dataclass(frozen=True)
class Thresholds:
    """Thresholds chosen on held-out cases.

    Attributes
    ----------
    all : float
        By all of them: that of the model.
    by_fold : dict of int to float
        By those of the *other* folds: so the scores of a fold do not stem from a threshold that was fitted to them.
        With one fold alone there are no others.
    """

    all: float
    by_fold: dict[int, float]


def choose_thresholds(seen: Sequence[Seen], probabilities: Mapping[str, Path]) -> Thresholds:
    """Thresholds for the held-out cases, of which each is read once."""
    curves = []
    for item in seen:
        truth = images.data(images.load(item.ready.mask)) > 0
        if truth.any():
            curves.append((item.fold, dice_curve(truth, read_probability(probabilities[item.ready.label]))))
    everywhere = best_threshold([curve for _, curve in curves])
    folds = {item.fold for item in seen}
    others = {fold: [curve for number, curve in curves if number != fold] for fold in folds}
    return Thresholds(
        everywhere, {fold: best_threshold(others[fold]) if others[fold] else everywhere for fold in folds}
    )


def best_threshold(curves: Sequence[Sequence[float]]) -> float:
    """The threshold of ``GRID`` with the best mean Dice; the one nearest to a half among equals, or without curves."""
    if not curves:
        return 0.5
    mean = np.mean(curves, axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-6)
    return float(min((GRID[index] for index in best), key=lambda value: abs(value - 0.5)))


def dice_curve(truth: np.ndarray, probability: np.ndarray) -> list[float]:
    """Dice of a case with lesion at every threshold of ``GRID``; truth bool, probability of the same shape."""
    inside = probability[truth]
    total = [np.count_nonzero(probability >= np.float32(threshold)) for threshold in GRID]
    both = [np.count_nonzero(inside >= np.float32(threshold)) for threshold in GRID]
    return [2 * hit / (count + len(inside)) for hit, count in zip(both, total, strict=True)]


def score_cases(
    seen: Sequence[Seen], probabilities: Mapping[str, Path], thresholds: Mapping[int, float]
) -> tuple[Score, ...]:
    """Scores of all held-out cases, each at the threshold of its fold, small lesions left out as the App does."""
    scores = []
    for item in seen:
        truth = images.load(item.ready.mask)
        probability = images.like(truth, read_probability(probabilities[item.ready.label]))
        found = find_lesions(probability, thresholds[item.fold], MIN_VOLUME_MM3).mask
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
