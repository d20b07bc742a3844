"""Lesion models on synthetic scans that none of them ever saw.

    python -m benchmarks.lesions MODEL ... --data DIR --cache DIR [--card] [--robustness]

makes 60 scans with one lesion (test lesions in the label maps 15-18, five of each volume class in each head) and 24
healthy ones, and prints how well each model finds the lesions: by one fold at a time, and by their mean. ``--card``
writes the scores into the models' cards; ``--robustness`` prints the second table, in which the same scans are
disturbed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_app.derivatives.write import write_json
from bids_app.lesion.model import LesionModel, load_model
from bids_app.measures.overlap import dice
from bids_app.training.cases import CLASSES, HEALTHY, Case, make_cases
from bids_app.training.evaluate import ONE_FOLD, Operating, Score, clustered_interval, fold_logits, score, segment
from bids_app.training.store import prepare_split
from bids_app.training.synthesis.fields import SPACING_MM, resize, smooth_noise
from bids_app.training.synthesis.geometry import rotation_matrix
from bids_app.training.synthesis.scanner import shifted
from bids_app.training.synthesis.tissue import FLAIR, make_source

SEED = 2
HEALTHY_SCANS = 6
ONE, MEAN = "one fold", "mean of folds"
VALUES = ("dice", "f1", "anima_f1", "assd_mm", "found", "false_ml")

#: Makes another scan, ``(2, z, y, x)``, of one.
Disturbance = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Result:
    """Scores of one model: each fold alone (one tuple a case), and the mean of the folds."""

    name: str
    folds: int
    single: tuple[tuple[Score, ...], ...]
    mean: tuple[Score, ...]


def unseen_cases(data: Path, cache: Path, per_class: int) -> list[Case]:
    """The scans of the table: test lesions in test heads."""
    heads, lesions = prepare_split(data, cache, "test")
    return list(make_cases([make_source(head) for head in heads], lesions, per_class, SEED, HEALTHY_SCANS))


def measure(folder: Path, cases: Iterable[Case]) -> Result:
    """Scores of a model on all cases, at the operating points of its card."""
    model, card, single, mean = load_model(folder), json.loads((folder / "card.json").read_text()), [], []
    point, alone = Operating(card["threshold"], card["min_volume_mm3"]), Operating(**card[ONE_FOLD])
    for case in cases:
        logits = fold_logits(model, case.image)
        mean.append(score(case, logits.mean(dim=0), point))
        single.append(tuple(score(case, fold, alone) for fold in logits))
    return Result(model.name, len(model.engines), tuple(single), tuple(mean))


# --- table 1 --------------------------------------------------------------------------------------------------------


def averaged(scores: Sequence[Score]) -> Score:
    """One case by one fold, on average over the folds; a surface distance counts where a fold found something."""
    numbers = {value: _mean(getattr(s, value) for s in scores) for value in VALUES}
    return Score(head=scores[0].head, group=scores[0].group, **numbers)


def rows(result: Result) -> Iterator[tuple[str, list[Score]]]:
    """How the folds were used, and the scores."""
    yield ONE, [averaged(scores) for scores in result.single]
    if result.folds > 1:
        yield MEAN, list(result.mean)


def cell(scores: Sequence[Score], value: str) -> str:
    """Mean and 95 % interval of one value."""
    values = [getattr(s, value) for s in scores]
    low, high = clustered_interval(values, [s.head for s in scores])
    return f"{_mean(values):.2f} ({low:.2f}-{high:.2f})"


def overlap_table(results: Sequence[Result]) -> Iterator[str]:
    """Dice by volume class, and what is marked in healthy scans."""
    classes = " | ".join(f"Dice, {words}" for words in CLASSES.values())
    yield f"| model | folds | {classes} | Dice, all | healthy: false mL |"
    yield "|---|---|" + "---|" * (len(CLASSES) + 2)
    for result in results:
        for how, scores in rows(result):
            sick = [s for s in scores if s.group != HEALTHY]
            parts = [cell([s for s in sick if s.group == name], "dice") for name in CLASSES]
            healthy = cell([s for s in scores if s.group == HEALTHY], "false_ml")
            yield f"| {result.name} | {how} | {' | '.join(parts)} | {cell(sick, 'dice')} | {healthy} |"


def detection_table(results: Sequence[Result]) -> Iterator[str]:
    """Lesion F1 by both rules, surface distance and share of lesions found.

    A surface distance exists only where something was marked: its cell says in how many scans.
    """
    yield "| model | folds | lesion F1 | lesion F1 (Anima) | ASSD, mm (n) | lesions found |"
    yield "|---|---|---|---|---|---|"
    for result in results:
        for how, scores in rows(result):
            sick = [s for s in scores if s.group != HEALTHY]
            parts = [cell(sick, value) for value in ("f1", "anima_f1", "assd_mm", "found")]
            parts[2] += f" ({sum(not math.isnan(s.assd_mm) for s in sick)})"
            yield f"| {result.name} | {how} | {' | '.join(parts)} |"


def differences(results: Sequence[Result]) -> Iterator[str]:
    """What averaging folds changes in each model, and what the last model changes against each other one."""
    for result in results:
        if result.folds > 1:
            pairs = zip(result.mean, (averaged(scores) for scores in result.single), strict=True)
            yield f"* {result.name}, mean of folds against one fold: {_changes(pairs)}"
    last = results[-1]
    for result in results[:-1]:
        pairs = list(zip(last.mean, result.mean, strict=True))
        small = [(a, b) for a, b in pairs if b.group == "small"]
        yield f"* {last.name} against {result.name}: {_changes(pairs)}; small lesions alone: {_changes(small)}"


def false_by_head(results: Sequence[Result]) -> Iterator[str]:
    """What the mean of the folds marks in each healthy scan, by head."""
    for result in results:
        healthy = [s for s in result.mean if s.group == HEALTHY]
        parts = (
            f"{head}: {', '.join(f'{s.false_ml:.1f}' for s in healthy if s.head == head)}"
            for head in sorted({s.head for s in healthy})
        )
        yield f"* {result.name}, healthy scans, mL: {'; '.join(parts)}"


def _changes(pairs: Iterable[tuple[Score, Score]]) -> str:
    """Paired differences over scans with lesion."""
    sick = [(a, b) for a, b in pairs if b.group != HEALTHY]
    parts = []
    for value in ("dice", "f1", "assd_mm"):
        change = [getattr(a, value) - getattr(b, value) for a, b in sick]
        low, high = clustered_interval(change, [b.head for _, b in sick])
        parts.append(f"{value} {_mean(change):+.3f} ({low:+.3f} to {high:+.3f})")
    return ", ".join(parts)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def card_scores(result: Result) -> dict:
    """Scores by volume class for the model's card; None where there is nothing to average."""
    table = {}
    for group, words in (CLASSES | {HEALTHY: "healthy"}).items():
        chosen = [s for s in result.mean if s.group == group]
        values = ("false_ml",) if group == HEALTHY else VALUES
        means = {value: _mean(getattr(s, value) for s in chosen) for value in values}
        known = {value: None if math.isnan(mean) else round(mean, 3) for value, mean in means.items()}
        table[words] = {"cases": len(chosen), **known}
    return table


# --- table 4 --------------------------------------------------------------------------------------------------------


def unchanged(image: Tensor) -> Tensor:
    """The scan as it is: isotropic at the 2 mm at which the networks work."""
    return image


def thick(millimetres: float) -> Disturbance:
    """Axial slices of this thickness in both contrasts."""

    def disturb(image: Tensor) -> Tensor:
        shape = image.shape[1:]
        slices = max(2, round(shape[0] * SPACING_MM / millimetres))
        thinned = F.interpolate(image[None], (slices, *shape[1:]), mode="area")
        return resize(thinned, shape)[0] * _brain(image)

    return disturb


def noisy(spread: float) -> Disturbance:
    """White noise of this standard deviation; that of the brain's intensities is 1."""

    def disturb(image: Tensor) -> Tensor:
        noise = torch.randn(image.shape, generator=Generator().manual_seed(0))
        return (image + spread * noise) * _brain(image)

    return disturb


def biased(spread: float) -> Disturbance:
    """A smooth field of this standard deviation, in those of the brain's intensities, on top of the scan."""

    def disturb(image: Tensor) -> Tensor:
        field = smooth_noise(80.0, Generator().manual_seed(0), 2, image.shape[1:])[0]
        return (image + spread * field) * _brain(image)

    return disturb


def turned(degrees: float) -> Disturbance:
    """Turned about the left-right axis, as a head that was not aligned."""
    movement = np.eye(4)
    movement[:3, :3] = rotation_matrix((degrees, 0, 0))
    return lambda image: shifted(image[None], movement)[0]


def mirrored(image: Tensor) -> Tensor:
    """Left and right exchanged."""
    return image.flip(-1)


def flair_off(millimetres: float) -> Disturbance:
    """The FLAIR alone shifted to the left."""
    movement = np.eye(4)
    movement[0, 3] = millimetres
    return lambda image: torch.cat([image[:FLAIR], shifted(image[None, FLAIR:], movement)[0]])


def _brain(image: Tensor) -> Tensor:
    return (image != 0).float()


DISTURBANCES: dict[str, Disturbance] = {
    "none (1 and 2 mm slices)": unchanged,
    **{f"slices of {mm} mm": thick(mm) for mm in (3, 4, 5, 6)},
    **{f"noise {spread}": noisy(spread) for spread in (0.1, 0.2, 0.4)},
    **{f"bias {spread}": biased(spread) for spread in (0.2, 0.4)},
    **{f"turned {degrees} degrees": turned(degrees) for degrees in (5, 10, 20, 30)},
    "left and right exchanged": mirrored,
    **{f"FLAIR {mm} mm off": flair_off(mm) for mm in (1, 2, 3, 5)},
}
_MOVES_THE_TRUTH = ("turned", "left and right")


def disturbed(case: Case, name: str) -> Case:
    """A case with its images disturbed, and its truth moved where the whole head is."""
    disturb, truth = DISTURBANCES[name], case.truth
    if name.startswith(_MOVES_THE_TRUTH):
        both = torch.from_numpy(truth).float()[None].repeat(2, 1, 1, 1)
        truth = disturb(both)[0].numpy() > 0.5
    return Case(case.head, case.group, disturb(case.image), truth)


def robustness_table(models: Sequence[LesionModel], cases: Sequence[Case]) -> Iterator[str]:
    """Mean Dice of every model under every disturbance; a FLAIR that is off is scored where the T1w lies."""
    sick = [case for case in cases if case.group != HEALTHY]
    yield f"| disturbance | {' | '.join(model.name for model in models)} |"
    yield "|---|" + "---|" * len(models)
    for name in DISTURBANCES:
        values = [_mean(_dice(model, disturbed(case, name)) for case in sick) for model in models]
        yield f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |"


def _dice(model: LesionModel, case: Case) -> float:
    """Dice of the mean of the folds, at the operating point of the card."""
    probability = torch.sigmoid(fold_logits(model, case.image).mean(dim=0)).numpy()
    point = Operating(model.terms.threshold.value, model.terms.min_volume_mm3.value)
    return dice(case.truth, segment(probability, point))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lesions", description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="model folder; the last is compared")
    parser.add_argument("--data", type=Path, required=True, help="folder with label_maps/ and lesion_masks/")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the prepared data (OUT/cache of training)")
    parser.add_argument("--per-class", type=int, default=5, help="scans a head and volume class (default: %(default)s)")
    parser.add_argument("--card", action="store_true", help="write the scores into the models' cards")
    parser.add_argument("--robustness", action="store_true", help="print the table of disturbances instead")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cases = unseen_cases(options.data, options.cache, options.per_class)
    if options.robustness:
        print("\n".join(robustness_table([load_model(path) for path in options.models], cases)))
        return
    results = [measure(folder, cases) for folder in options.models]
    for lines in (overlap_table(results), detection_table(results), differences(results), false_by_head(results)):
        print("\n".join(lines), end="\n\n", flush=True)
    if options.card:
        for path, result in zip(options.models, results, strict=True):
            card = json.loads((path / "card.json").read_text())
            write_json(path / "card.json", card | {"scores": card_scores(result)})


if __name__ == "__main__":
    main()
