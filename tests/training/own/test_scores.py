"""Threshold and scores of held-out cases."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.training.own.scores import GRID, Score, choose_threshold, render, summary


def case(lesion: float, best: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth, and a probability that agrees with it perfectly at one threshold."""
    rng = np.random.default_rng(seed)
    truth = rng.random(5000) < lesion
    return truth, np.where(truth, best + 0.02, best - 0.03).astype(np.float32)


@pytest.mark.parametrize("best", [0.2, 0.5, 0.85])
def test_the_best_threshold_is_found(best: float):
    assert choose_threshold([case(0.1, best, seed) for seed in range(3)]) == pytest.approx(best)


def test_among_equals_the_one_nearest_to_a_half_is_taken():
    truth = np.array([True, False] * 50)
    assert choose_threshold([(truth, truth.astype(np.float32))]) == 0.5


def test_healthy_cases_alone_leave_a_half():
    assert choose_threshold([(np.zeros(9, bool), np.ones(9, np.float32))]) == 0.5


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
