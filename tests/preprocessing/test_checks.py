"""What is measured of a registration, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_app.images import data, like
from bids_app.preprocessing.checks import (
    Check,
    Limits,
    Measured,
    first_that_passes,
    local_correlation,
)
from tests.conftest import stored_as

LIMITS = Limits("A to B", overlap=0.8, similarity=0.3)
GOOD, WRONG, WORSE = Measured(0.9, 0.5), Measured(0.9, 0.2), Measured(0.95, 0.1)


def way(result, calls: list | None = None):
    def call():
        if calls is not None:
            calls.append(result)
        if isinstance(result, Exception):
            raise result
        return result

    return call


@pytest.fixture
def blotches(phantom):
    """An image with structure everywhere, and a mask."""
    values = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=phantom.head.shape), 1.5)
    return like(phantom.head, (values / values.std()).astype(np.float32)), data(phantom.mask) > 0


# ------------------------------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("overlap", "similarity", "passes"),
    [(0.8, 0.3, True), (0.79, 0.9, False), (0.9, 0.29, False), (np.nan, 0.9, False), (0.9, np.nan, False)],
)
def test_both_limits_must_be_met(overlap, similarity, passes):
    assert Measured(overlap, similarity).within(LIMITS) is passes


def test_the_first_way_that_passes_is_taken_and_no_other_is_tried():
    calls = []
    found, check = first_that_passes([way(GOOD, calls), way(GOOD, calls)], lambda found: found, LIMITS)
    assert (found, calls) == (GOOD, [GOOD])
    assert check == Check("passed", 0.9, 0.5, "A to B: passed (brain overlap 0.90, local correlation 0.50).")


@pytest.mark.parametrize("first", [WRONG, RuntimeError("no overlap")])
def test_the_second_way_is_told(first):
    found, check = first_that_passes([way(first), way(GOOD)], lambda found: found, LIMITS)
    assert found is GOOD
    assert check.status == "retried"
    assert check.usable
    assert "second try" in check.sentence
    assert "look at it" in check.sentence


@pytest.mark.parametrize("ways", [(WRONG, WORSE), (WORSE, WRONG), (Measured(0.9, np.nan), WRONG)])
def test_of_ways_that_all_fail_the_most_similar_is_told_with_what_was_wanted(ways):
    found, check = first_that_passes([way(each) for each in ways], lambda found: found, LIMITS)
    assert found is WRONG
    assert not check.usable
    expected = "brain overlap 0.90, local correlation 0.20; at least 0.80 and 0.30 are wanted"
    assert check == Check("failed", 0.9, 0.2, f"A to B: failed ({expected}).")


def test_ways_that_break_off_are_a_failed_check_in_words_that_stay_the_same():
    """ITK's errors hold addresses of memory, which change from run to run."""
    itk = RuntimeError("Exception in SimpleITK:\nITK ERROR: Metric(0x55a5941d99d0): All samples outside.")
    found, check = first_that_passes([way(itk), way(itk)], lambda found: found, LIMITS)
    assert found is None
    assert (check.status, check.usable) == ("failed", False)
    assert np.isnan([check.overlap, check.similarity]).all()
    assert check.sentence == "A to B: failed, the images could not be compared (All samples outside)."


def test_a_measure_that_breaks_off_is_a_failed_way():
    def measure(found):
        raise RuntimeError("too small")

    assert not first_that_passes([way(GOOD)], measure, LIMITS)[1].usable


def test_other_errors_are_not_hidden():
    with pytest.raises(TypeError):
        first_that_passes([way(TypeError("a mistake in the code"))], lambda found: found, LIMITS)


# ------------------------------------------------------------------------------------------------- the measures


def test_contrast_and_bias_field_do_not_matter(blotches):
    image, mask = blotches
    x = np.linspace(0.7, 1.3, image.shape[0])[:, None, None]
    other = like(image, ((5 - data(image)) * x).astype(np.float32))
    assert local_correlation(image, image, mask) == pytest.approx(1, abs=1e-6)
    assert local_correlation(image, other, mask) > 0.9


def test_unrelated_images_correlate_by_chance_only(blotches, phantom):
    image, mask = blotches
    noise = np.random.default_rng(1).normal(size=image.shape).astype(np.float32)
    assert local_correlation(image, like(image, noise), mask) < 0.05
    assert local_correlation(phantom.head, image, mask) < 0.15


def test_an_error_of_two_voxels_is_noticed(blotches):
    image, mask = blotches
    shifted = [local_correlation(image, like(image, np.roll(data(image), by, axis=1)), mask) for by in (0, 1, 2)]
    assert shifted[0] > 0.99
    assert shifted[1] < 0.75
    assert shifted[2] < 0.35


def test_a_large_lesion_costs_no_more_than_its_share(blotches):
    image, mask = blotches
    values = data(image).copy()
    values[:, : values.shape[1] // 2] = 5
    assert 0.4 < local_correlation(image, like(image, values), mask) / 0.5 < 2.2


def test_what_lies_outside_the_mask_does_not_matter(blotches):
    image, mask = blotches
    noise = np.random.default_rng(1).normal(size=image.shape)
    other = like(image, np.where(mask, data(image), noise).astype(np.float32))
    assert local_correlation(image, other, mask) == pytest.approx(1, abs=1e-6)


def test_storage_order_does_not_matter(blotches, phantom, orientation):
    image, mask = blotches
    stored = [stored_as(each, orientation) for each in (image, phantom.head, like(image, mask))]
    straight = local_correlation(image, phantom.head, mask)
    assert local_correlation(stored[0], stored[1], data(stored[2]) > 0) == pytest.approx(straight, rel=1e-6)


def test_images_without_contrast_or_mask_have_no_correlation(blotches):
    image, mask = blotches
    flat = like(image, np.full(image.shape, 7, np.float32))
    assert np.isnan(local_correlation(image, flat, mask))
    assert np.isnan(local_correlation(image, image, np.zeros(image.shape, bool)))
