"""Lesion F1 under the rules of the ATLAS challenge and of Anima, on masks small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.measures.detection import anima_f1, any_overlap_f1


def line(*spans: tuple[int, int], length: int = 60) -> np.ndarray:
    """A (length, 3, 3) mask with full cross-sections from start to stop."""
    mask = np.zeros((length, 5, 5), dtype=np.uint8)
    for start, stop in spans:
        mask[start:stop, 1:4, 1:4] = 1
    return mask


def test_one_voxel_in_common_is_a_hit_for_the_challenge_but_not_for_anima():
    true, found = line((0, 20)), line((19, 40))
    assert any_overlap_f1(true, found) == 1
    assert anima_f1(true, found) == 0


def test_counts_in_both_directions():
    true, found = line((0, 10), (20, 30)), line((0, 10), (40, 45), (50, 55))
    # half of the true lesions found, a third of the predicted ones true
    assert any_overlap_f1(true, found) == pytest.approx(2 * 0.5 / 3 / (0.5 + 1 / 3))
    assert anima_f1(true, found) == pytest.approx(2 * 0.5 / 3 / (0.5 + 1 / 3))


def test_anima_refuses_a_lesion_covered_by_one_that_lies_mostly_outside():
    true, found = line((20, 30)), line((20, 58))  # 28 of 38 slices outside: 0.74
    assert any_overlap_f1(true, found) == 1
    assert anima_f1(true, found) == 0
    assert anima_f1(true, line((20, 52))) == 1  # 22 of 32: 0.69


def test_anima_forgives_what_comes_after_most_of_the_overlap():
    true = line((0, 20))
    mostly_outside = line((0, 15), (18, 40))  # covers 15 slices well, and 2 by a lesion 20/22 outside
    sensitivity, precision = 1.0, 0.5
    assert anima_f1(true, mostly_outside) == pytest.approx(2 * sensitivity * precision / (sensitivity + precision))


def test_touching_corners_are_one_lesion_for_the_challenge_and_two_for_anima():
    true = np.zeros((8, 8, 8), dtype=np.uint8)
    true[0:3, 0:3, 0:3] = true[3:6, 3:6, 3:6] = 1
    found = np.zeros_like(true)
    found[0:3, 0:3, 0:3] = 1
    assert any_overlap_f1(true, found) == 1
    assert anima_f1(true, found) == pytest.approx(2 * 0.5 / 1.5)


def test_specks_do_not_count_for_anima():
    true, found = line((0, 10)), line((0, 10))
    found[50, 2, 2] = 1
    assert any_overlap_f1(true, found) == pytest.approx(2 / 3)
    assert anima_f1(true, found) == 1
    assert anima_f1(true, found, voxel_mm3=8.0) == pytest.approx(2 / 3)


def test_empty_masks():
    empty, full = line(), line((0, 5))
    assert any_overlap_f1(empty, empty) == 1 and any_overlap_f1(empty, full) == any_overlap_f1(full, empty) == 0
    assert anima_f1(empty, empty) == anima_f1(empty, full) == anima_f1(full, empty) == 0
