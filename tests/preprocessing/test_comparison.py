"""How alike a scan and its target are, in place and in other poses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from bids_app.images import data, like, masked
from bids_app.preprocessing import linear
from bids_app.preprocessing.checks import POSE_LIMITS as LIMITS
from bids_app.preprocessing.checks import Measured
from bids_app.preprocessing.comparison import COMPARE_MM, COVERED, Candidate, Target, local_correlation, measure, soft
from bids_app.preprocessing.itk import pull_transform
from tests.conftest import stored_as
from tests.preprocessing import phantoms
from tests.preprocessing.phantoms import rigid

# ------------------------------------------------------------------------------------------------- poses of a scan


@pytest.fixture(scope="module")
def big():
    """A template and a patient of the size of a head."""
    return phantoms.template(1.0), phantoms.patient(1.0)


@pytest.fixture(scope="module")
def target(big) -> Target:
    template, _ = big
    grid = linear.Pyramid(template.t1w).at(COMPARE_MM)

    def inside(mask) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.Resample(soft(like(template.t1w, mask)), grid)).T > COVERED

    brain = data(template.brain_mask) > 0
    return Target(grid, inside(brain), inside(brain & (data(template.t1w) > 0.5)))


def candidate(head, mask, **options) -> Candidate:
    small = [linear.downsample(image, COMPARE_MM) for image in (soft(masked(head, mask)), soft(mask))]
    return Candidate(*small, **options)


def measured(target, patient, matrix=None, axcodes="RAS") -> Measured:
    head, mask = (stored_as(image, axcodes) for image in (patient.head, patient.mask))
    return measure(target, candidate(head, mask), pull_transform(np.eye(4) if matrix is None else matrix))


def test_a_brain_in_place_is_better_than_in_any_other_pose(target, big, orientation):
    found = measured(target, big[1], axcodes=orientation)
    assert found.status(LIMITS) == "accepted"
    assert found.overlap > 0.9
    assert found.nearby < 0.95
    assert found.elsewhere < 0.6
    straight = measured(target, big[1])
    assert found.similarity == pytest.approx(straight.similarity, rel=0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_error_of_15_mm_or_degrees_is_not_accepted(target, big, axis, sign):
    for degrees, shift in ((15 * sign * np.eye(3)[axis], (0, 0, 0)), ((0, 0, 0), 15 * sign * np.eye(3)[axis])):
        found = measured(target, big[1], rigid(tuple(degrees), tuple(shift)))
        assert found.status(LIMITS) != "accepted"
        assert found.nearby > 1.1


@pytest.mark.parametrize("degrees", [(90, 0, 0), (0, 90, 0), (0, 0, 90), (180, 0, 0), (0, 180, 0), (0, 0, 180)])
def test_a_brain_on_its_side_or_upside_down_fails(target, big, degrees):
    assert measured(target, big[1], rigid(degrees, (0, 0, 0))).status(LIMITS) == "failed"


def test_noise_fails(target, big):
    noise = like(big[1].head, np.random.default_rng(0).normal(100, 20, big[1].head.shape).astype(np.float32))
    assert measured(target, replace(big[1], head=noise)).status(LIMITS) == "failed"


@pytest.mark.parametrize("voxels", [-1, 1])
def test_a_mask_may_stop_at_the_cortex_or_at_the_skull(target, big, voxels):
    """A voxel has 4 mm."""
    mask = data(big[1].mask) > 0
    changed = ndimage.binary_dilation(mask) if voxels > 0 else ndimage.binary_erosion(mask)
    found = measured(target, replace(big[1], mask=like(big[1].mask, changed)))
    assert found.status(LIMITS) == "accepted"


def test_half_a_mask_is_told_by_its_overlap(target, big):
    half = data(big[1].mask).copy()
    half[: half.shape[0] // 2] = 0
    found = measured(target, replace(big[1], mask=like(big[1].mask, half)))
    assert found.overlap < 0.6
    assert found.status(LIMITS) == "failed"


def test_a_head_reaches_beyond_the_brain_and_a_brain_does_not(target, big):
    head = big[1].head
    everything = like(big[1].mask, np.ones(head.shape, np.uint8))
    pull = pull_transform(np.eye(4))
    of_brain = measure(target, candidate(head, everything), pull)
    of_head = measure(target, candidate(head, everything, brain_alone=False), pull)
    assert of_brain.overlap < 0.6
    assert of_head.overlap > 0.95


def test_a_lesion_is_not_looked_at(target, big):
    """A hemisphere of noise costs half of the similarity unless it is left out."""
    head, mask = big[1].head, big[1].mask
    values, healthy = data(head).copy(), np.ones(head.shape, np.uint8)
    half = np.s_[: head.shape[0] // 2]
    values[half] = np.random.default_rng(0).normal(300, 60, values[half].shape)
    healthy[half] = 0
    injured = candidate(like(head, values), mask)
    left_out = replace(injured, healthy=linear.downsample(soft(like(mask, healthy)), COMPARE_MM))
    pull = pull_transform(np.eye(4))
    one, other = (measure(target, each, pull) for each in (injured, left_out))
    assert other.similarity < one.similarity  # chance does not count as likeness
    assert other.nearby < one.nearby + 0.05


def test_what_shows_nothing_has_no_similarity(target, big):
    flat = like(big[1].head, np.full(big[1].head.shape, 7, np.float32))
    found = measured(target, replace(big[1], head=flat))
    assert np.isnan([found.similarity, found.nearby, found.elsewhere]).all() or found.status(LIMITS) == "failed"
    away = measured(target, big[1], rigid((0, 0, 0), (900, 0, 0)))
    assert (away.overlap, away.status(LIMITS)) == (0, "failed")


# ------------------------------------------------------------------------------------------------- local correlation


@pytest.fixture
def blotches(phantom):
    """An array with structure everywhere, and a mask."""
    values = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=phantom.head.shape), 1.0)
    return values / values.std(), data(phantom.mask) > 0


def mean(first, second, mask) -> float:
    return float(local_correlation(first, second, mask)[mask].mean())


def test_contrast_and_bias_field_do_not_matter(blotches):
    values, mask = blotches
    x = np.linspace(0.7, 1.3, values.shape[0])[:, None, None]
    assert mean(values, values, mask) == pytest.approx(1, abs=1e-6)
    assert mean(values, (5 - values) * x, mask) > 0.9


def test_unrelated_images_correlate_by_chance_only(blotches):
    values, mask = blotches
    noise = np.random.default_rng(1).normal(size=values.shape)
    assert mean(values, noise, mask) < 0.1


def test_an_error_of_two_voxels_is_noticed(blotches):
    values, mask = blotches
    shifted = [mean(values, np.roll(values, by, axis=1), mask) for by in (0, 1, 2)]
    assert shifted[0] > 0.99
    assert shifted[1] < 0.75
    assert shifted[2] < 0.35


def test_a_large_lesion_costs_no_more_than_its_share(blotches):
    values, mask = blotches
    injured = values.copy()
    injured[:, : values.shape[1] // 2] = 5
    assert mean(values, injured, mask) == pytest.approx(0.5, abs=0.1)


def test_what_lies_outside_the_mask_does_not_matter(blotches):
    values, mask = blotches
    noise = np.random.default_rng(1).normal(size=values.shape)
    assert mean(values, np.where(mask, values, noise), mask) == pytest.approx(1, abs=1e-6)


def test_arrays_without_contrast_or_mask_are_not_alike(blotches):
    values, mask = blotches
    assert not local_correlation(values, np.full(values.shape, 7.0), mask).any()
    assert not local_correlation(values, values, np.zeros(values.shape, bool)).any()
