"""N4 takes the bias field out of the brain, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.errors import VisitError
from bids_app.images import data, like, same_grid
from bids_app.preprocessing.bias import correct_bias
from tests.conftest import stored_as


@pytest.fixture(scope="module")
def field(phantom):
    """Four times as bright at the left edge as at the right one."""
    return np.linspace(2.0, 0.5, phantom.head.shape[0])[:, None, None]


@pytest.fixture(scope="module")
def uneven(phantom, field):
    return like(phantom.head, (data(phantom.head) * field).astype(np.float32))


@pytest.fixture(scope="module")
def corrected(uneven, phantom):
    return correct_bias(uneven, phantom.mask)


def tilt(image, phantom) -> float:
    """How much brighter white matter is on the left than on the right, as a share."""
    values, inside = data(image), data(phantom.mask) > 0
    middle = values.shape[0] // 2
    left, right = (np.percentile(values[half][inside[half]], 75) for half in (np.s_[:middle], np.s_[middle:]))
    return left / right - 1


def test_the_field_is_gone(uneven, corrected, phantom):
    assert abs(tilt(phantom.head, phantom)) < 0.04
    assert tilt(uneven, phantom) > 0.12
    assert abs(tilt(corrected, phantom)) < 0.06


def test_the_result_is_an_image_of_the_same_kind(uneven, corrected, phantom):
    values, inside = data(corrected), data(phantom.mask) > 0
    assert corrected.get_data_dtype() == np.float32
    assert same_grid(corrected, uneven)
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert np.median(values[inside]) == pytest.approx(np.median(data(uneven)[inside]), rel=1e-4)


def test_the_contrast_of_tissues_is_kept(uneven, corrected, phantom):
    inside = data(phantom.mask) > 0
    truth = data(phantom.head)[inside]
    assert np.corrcoef(data(corrected)[inside], truth)[0, 1] > np.corrcoef(data(uneven)[inside], truth)[0, 1] + 0.02


def test_only_the_brain_is_looked_at(uneven, corrected, phantom):
    """A scalp as bright as fat, or none at all, changes nothing inside."""
    inside = data(phantom.mask) > 0
    for outside in (0, 9000):
        other = correct_bias(like(uneven, np.where(inside, data(uneven), outside).astype(np.float32)), phantom.mask)
        np.testing.assert_allclose(data(other)[inside], data(corrected)[inside], rtol=0.02)


def test_there_is_no_step_at_the_border_of_the_mask(uneven, corrected, phantom):
    """The field goes on outside of the brain: the quotient of neighbours stays near 1."""
    positive = data(uneven) > 50
    ratio = np.where(positive, data(corrected) / np.maximum(data(uneven), 1), np.nan)
    assert np.nanmax(np.abs(np.diff(ratio, axis=1))) < 0.1


def test_air_of_zero_inside_the_mask_gives_no_nan(uneven, phantom):
    values = data(uneven).copy()
    values[25:30, 30:40, 25:30] = 0
    values[33:35, 30:40, 25:30] = -20  # what interpolation does
    corrected = data(correct_bias(like(uneven, values), phantom.mask))
    assert np.isfinite(corrected).all()
    assert (corrected[25:30, 30:40, 25:30] == 0).all()


def test_storage_order_does_not_matter(uneven, corrected, phantom, orientation):
    found = correct_bias(stored_as(uneven, orientation), stored_as(phantom.mask, orientation))
    inside = data(phantom.mask) > 0
    np.testing.assert_allclose(data(stored_as(found, "RAS"))[inside], data(corrected)[inside], rtol=0.05)


@pytest.mark.parametrize("value", [0, -5])
def test_a_scan_without_signal_is_told(phantom, value):
    with pytest.raises(VisitError, match="no voxel above 0"):
        correct_bias(like(phantom.head, np.full(phantom.head.shape, value, np.float32)), phantom.mask)


def test_an_empty_mask_is_told(uneven, phantom):
    with pytest.raises(VisitError, match="no voxel above 0"):
        correct_bias(uneven, like(phantom.mask, np.zeros(phantom.mask.shape, np.uint8)))


def test_a_constant_brain_is_told(phantom):
    """N4 would make up a field of a factor of two."""
    with pytest.raises(VisitError, match="one grey value"):
        correct_bias(like(phantom.head, np.full(phantom.head.shape, 7, np.float32)), phantom.mask)


@pytest.mark.parametrize("first", [30, 31])
def test_a_mask_of_next_to_nothing_is_no_traceback(uneven, first):
    """N4 sees every second voxel: one of these masks is empty for it."""
    mask = np.zeros(uneven.shape, np.uint8)
    mask[first, 35, 31:33] = 1
    assert np.isfinite(data(correct_bias(uneven, like(uneven, mask)))).all()
