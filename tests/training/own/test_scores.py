"""Threshold and scores of held-out cases."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.study.models import Visit
from bids_app.training.own.cases import Case
from bids_app.training.own.out_of_fold import Seen
from bids_app.training.own.prepare import Ready
from bids_app.training.own.scores import (
    GRID,
    Score,
    best_threshold,
    choose_thresholds,
    dice_curve,
    render,
    score_cases,
    summary,
)


def curve(best: float, seed: int = 0) -> list[float]:
    """Of a probability that agrees with the truth perfectly at one threshold."""
    truth = np.random.default_rng(seed).random(5000) < 0.1
    return dice_curve(truth, np.where(truth, best + 0.02, best - 0.03).astype(np.float32))


@pytest.mark.parametrize("best", [0.2, 0.5, 0.85])
def test_the_best_threshold_is_found(best: float):
    assert best_threshold([curve(best, seed) for seed in range(3)]) == pytest.approx(best)


def test_among_equals_the_one_nearest_to_a_half_is_taken():
    truth = np.array([True, False] * 50)
    assert best_threshold([dice_curve(truth, truth.astype(np.float32))]) == 0.5


def test_healthy_cases_alone_leave_a_half():
    assert best_threshold([]) == 0.5


def held_out(folder: Path, fold: int, best: float) -> tuple[Seen, Path]:
    """A case of a fold whose prediction is perfect at one threshold, on disk."""
    truth = np.zeros((6, 6, 6), bool)
    truth[2:4, 2:4, 2:4] = True
    thousandths = np.where(truth, 1000 * best + 20, 1000 * best - 30).astype(np.uint16)
    mask, said = folder / f"{fold}_mask.nii.gz", folder / f"{fold}.nii.gz"
    images.save(nib.Nifti1Image(truth.astype(np.uint8), np.eye(4) * [3, 3, 3, 1]), mask)
    images.save(nib.Nifti1Image(thousandths, np.eye(4) * [3, 3, 3, 1]), said)
    case = Case(Visit(f"0{fold}", None, None, None), mask, mask, 0.216)
    return Seen(Ready(case, (), mask, ""), fold), said


def test_the_scores_of_a_fold_are_taken_at_the_threshold_of_the_others(tmp_path: Path):
    pairs = [held_out(tmp_path, fold, best) for fold, best in ((0, 0.3), (1, 0.7))]
    seen, said = [item for item, _ in pairs], {item.ready.label: path for item, path in pairs}
    thresholds = choose_thresholds(seen, said)
    assert thresholds.by_fold == {0: pytest.approx(0.7), 1: pytest.approx(0.3)}
    first, second = score_cases(seen, said, thresholds.by_fold)
    assert first.predicted_ml == 0 and second.predicted_ml > 5
    assert [score.dice for score in score_cases(seen, said, {0: 0.3, 1: 0.7})] == [1, 1]
    alone = choose_thresholds(seen[:1], said)
    assert alone.by_fold == {0: alone.all}


def test_the_grid_goes_from_a_tenth_to_nine():
    assert (GRID[0], GRID[-1], 0.5 in GRID) == (0.1, 0.9, True)


SCORES = (
    Score("a", 0, 5.0, 4.0, 0.5, 1.0),
    Score("b", 0, 10.0, 4.0, 0.7, 0.5),
    Score("c", 1, 100.0, 90.0, 0.9, 0.5),
    Score("d", 1, 0.0, 0.4, 0.0, 0.0),
)


def test_the_summary_goes_by_volume_and_keeps_healthy_cases_apart():
    table = summary(SCORES)
    assert table["all"] == {"n": 3, "dice": 0.7, "lesion_f1": 0.6667}
    assert table["small"] == {"n": 2, "dice": 0.6, "lesion_f1": 0.75}
    assert table["large"] == {"n": 1, "dice": 0.9, "lesion_f1": 0.5}
    assert table["healthy"] == {"n": 1, "false_ml": 0.4}
    assert "medium" not in table


def test_the_table_reads_well():
    lines = render(summary(SCORES)).splitlines()
    assert lines[0].split() == ["cases", "n", "Dice", "lesion", "F1", "false", "mL"]
    assert lines[1].split() == ["all", "3", "0.700", "0.667"]
    assert lines[-1].split() == ["healthy", "1", "0.40"]
