"""Agreement with a reference mask."""

import math

import numpy as np
import pytest

from bids_app.images import on_affine
from bids_app.measures.overlap import compare, dice, found_lesions

SHAPE = (30, 12, 12)


def mask(*boxes):
    """A mask of 1 x 1 x 2 mm voxels with boxes of 10 voxels in a row: (start along x, y)."""
    values = np.zeros(SHAPE, dtype=np.uint8)
    for x, y in boxes:
        values[x : x + 10, y, 5] = 1
    return on_affine(values, np.diag([1.0, 1.0, 2.0, 1.0]))


def array(image):
    return np.asarray(image.dataobj)


def test_dice():
    assert dice(array(mask((0, 0))), array(mask((5, 0)))) == pytest.approx(0.5)
    assert dice(array(mask((0, 0))), array(mask((0, 0)))) == 1
    assert dice(array(mask((0, 0))), array(mask((0, 3)))) == 0
    with pytest.raises(ValueError):
        dice(np.zeros((2, 2)), np.zeros((2, 3)))


def test_dice_of_brains_that_were_to_be_aligned():
    first, second = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert dice(first, second, empty=0.0) == pytest.approx(2 / 3)
    assert dice(first, first, empty=0.0) == 1
    assert dice(first, ~first, empty=0.0) == 0
    assert dice(np.zeros(3, bool), np.zeros(3, bool), empty=0.0) == 0


def test_empty_masks():
    nothing, something = mask(), mask((0, 0))
    both = compare(nothing, nothing)
    assert (both.dice, both.lesion_f1, both.volume_difference_ml) == (1, 1, 0)
    assert math.isnan(both.sensitivity) and math.isnan(both.precision)
    missed = compare(something, nothing)
    assert (missed.dice, missed.lesion_f1, missed.sensitivity) == (0, 0, 0) and math.isnan(missed.precision)
    invented = compare(nothing, something)
    assert (invented.dice, invented.lesion_f1, invented.precision) == (0, 0, 0) and math.isnan(invented.sensitivity)


def test_voxels():
    result = compare(mask((0, 0), (15, 0)), mask((5, 0)))
    assert result.sensitivity == pytest.approx(5 / 20) and result.precision == pytest.approx(5 / 10)
    assert result.volume_difference_ml == pytest.approx(-0.020)


@pytest.mark.parametrize(("overlap", "found"), [(0, 0), (1, 1), (10, 1)])
def test_one_tenth_of_a_lesion_is_a_hit(overlap, found):
    assert found_lesions(array(mask((0, 0))), array(mask((10 - overlap, 0)))) == (found, 1)


def test_less_than_one_tenth_is_none():
    long = np.zeros(SHAPE)
    long[:11, 0, 0] = 1
    touch = np.zeros(SHAPE)
    touch[10:, 0, 0] = 1
    assert found_lesions(long, touch) == (0, 1)


def test_lesion_scores():
    """Three reference lesions, two found; of four predicted ones two are true."""
    result = compare(mask((0, 0), (0, 3), (0, 6)), mask((0, 0), (5, 3), (20, 8), (20, 11)))
    assert (result.reference_lesions, result.predicted_lesions) == (3, 4)
    assert result.lesion_sensitivity == pytest.approx(2 / 3) and result.lesion_precision == pytest.approx(1 / 2)
    assert result.lesion_f1 == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))


def test_one_large_prediction_over_two_lesions_finds_both():
    everything = on_affine(np.ones(SHAPE, np.uint8), mask().affine)
    result = compare(mask((0, 0), (0, 3)), everything)
    assert result.lesion_sensitivity == 1 and result.lesion_precision == 0  # 20 of 4320 voxels are true
    assert result.lesion_f1 == 0


def test_corners_connect_a_lesion():
    diagonal = np.zeros((5, 5, 5))
    diagonal[[0, 1, 2], [0, 1, 2], [0, 1, 2]] = 1
    assert found_lesions(diagonal, diagonal) == (1, 1)


def test_other_grid():
    other = on_affine(np.zeros(SHAPE, np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    with pytest.raises(ValueError, match="grids"):
        compare(mask(), other)
