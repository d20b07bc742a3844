"""Resolutions, starts, and the search for a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from bids_app.images import Image, data, like, on_affine
from bids_app.preprocessing import linear
from bids_app.preprocessing.itk import from_itk, to_itk
from bids_app.preprocessing.transforms import apply_to_points
from tests.conftest import stored_as
from tests.preprocessing.phantoms import blob, brain_points, distance, elsewhere, rigid

pytestmark = pytest.mark.usefixtures("frugal")


def ball(spacing: tuple[float, float, float], centre=(11.0, -7.0, 5.0)) -> Image:
    """A ball of 15 mm in a box of 80 mm."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -40
    shape = tuple(round(80 / size) for size in spacing)
    return on_affine(blob(shape, affine, np.array(centre), 15).astype(np.float32), affine)


# ------------------------------------------------------------------------------------------------- resolutions


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 2, 2), (1, 1, 6.5), (3, 1, 2)])
@pytest.mark.parametrize("wanted", [2.0, 4.0])
def test_nothing_moves_when_the_resolution_changes(orientation, spacing, wanted):
    small = linear.downsample(to_itk(stored_as(ball(spacing), orientation)), wanted)
    assert small.GetSpacing() == (wanted,) * 3
    np.testing.assert_allclose(linear.centre_of_mass(from_itk(small)), (11, -7, 5), atol=0.2)


def test_coarser_voxels_hold_means_and_not_samples():
    noise = on_affine(np.random.default_rng(0).normal(10, 1, (40, 40, 40)).astype(np.float32), np.eye(4))
    small = sitk.GetArrayFromImage(linear.downsample(to_itk(noise), 4.0))[2:-2, 2:-2, 2:-2]
    assert small.mean() == pytest.approx(10, abs=0.1)
    assert small.std() < 0.3


def test_a_pyramid_makes_each_level_once(phantom):
    pyramid = linear.Pyramid(phantom.head)
    assert pyramid.at(4.0) is pyramid.at(4.0)
    assert pyramid.at(8.0).GetSpacing() == (8.0,) * 3


def test_the_centre_is_the_same_however_it_is_stored(orientation):
    np.testing.assert_allclose(linear.centre_of_mass(stored_as(ball((1, 1, 3)), orientation)), (11, -7, 5), atol=0.01)


def test_an_empty_image_has_its_middle_as_centre():
    empty = on_affine(np.zeros((10, 20, 30), np.float32), rigid((0, 0, 0), (1, 2, 3)))
    np.testing.assert_allclose(linear.centre_of_mass(empty), (6, 12, 18))


def test_negative_voxels_have_no_weight():
    image = ball((2, 2, 2))
    np.testing.assert_allclose(
        linear.centre_of_mass(like(image, data(image) - 1e3 * (data(image) == 0))), (11, -7, 5), atol=0.1
    )


# ------------------------------------------------------------------------------------------------- starts


def test_rotations_keep_the_centre_and_come_in_all_combinations():
    centre = np.array([3.0, 4.0, 5.0])
    start = linear.translation(np.array([1.0, 0, 0]))
    turned = linear.rotations_about(start, centre, (-10, 0, 10))
    assert len({matrix.round(6).tobytes() for matrix in turned}) == 27
    for matrix in turned:
        np.testing.assert_allclose(apply_to_points((centre - [1, 0, 0])[None], matrix), [centre], atol=1e-9)
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)


# ------------------------------------------------------------------------------------------------- the search


MOVED = rigid((6, -9, 12), (5, -8, 6))


def test_a_known_motion_is_found_however_the_scan_is_stored(phantom, orientation):
    """The phantom is no mirror image of itself: a flip would leave centimetres. ITK's own relaxation leaves 3 mm."""
    moving = stored_as(elsewhere(phantom.head, MOVED), orientation)
    found = linear.register(linear.Pyramid(phantom.head), linear.Pyramid(moving), [np.eye(4)])
    assert distance(found @ MOVED, np.eye(4), brain_points(phantom)) < 0.7
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-6)  # rigid


def test_correlation_and_an_affine_find_the_size_too(phantom):
    """The patient is 10 % larger than the scan of before, which knows nothing of it."""
    grown = rigid((6, -9, 12), (5, -8, 6)) @ np.diag([1.1, 1.1, 1.1, 1])
    pyramids = linear.Pyramid(phantom.brain), linear.Pyramid(elsewhere(phantom.brain, grown))
    found = linear.register(*pyramids, [np.linalg.inv(MOVED)], "affine", "correlation")
    assert distance(found @ grown, np.eye(4), brain_points(phantom)) < 0.5


def test_the_best_start_wins_wherever_it_stands(phantom):
    far = rigid((0, 0, 150), (0, 0, 0))
    pyramids = linear.Pyramid(phantom.head), linear.Pyramid(elsewhere(phantom.head, far))
    others = [rigid((0, 0, degrees), (0, 0, 0)) for degrees in (0, 40, 80, 120)]
    found = linear.register(*pyramids, [*others, rigid((0, 0, -145), (0, 0, 0))])
    assert distance(found @ far, np.eye(4), brain_points(phantom)) < 0.3


def with_intruder(phantom) -> Image:
    """The head in its place, but with a second one, which lies elsewhere, in front and brighter."""
    half = np.arange(phantom.head.shape[1])[None, :, None] < phantom.head.shape[1] // 2
    return like(phantom.head, np.where(half, data(phantom.head), 5 * np.roll(data(phantom.head), 4, axis=0)))


@pytest.mark.parametrize("masked", ["fixed_mask", "moving_mask"])
def test_voxels_outside_the_mask_do_not_pull(phantom, masked):
    image = with_intruder(phantom)
    trusted = np.zeros(image.shape, np.uint8)
    trusted[:, : image.shape[1] // 2 - 3] = 1
    pair = (image, phantom.head) if masked == "fixed_mask" else (phantom.head, image)
    pyramids = [linear.Pyramid(each) for each in pair]
    points = brain_points(phantom)
    free = linear.register(*pyramids, [np.eye(4)])
    found = linear.register(*pyramids, [np.eye(4)], **{masked: like(image, trusted)})
    assert distance(found, np.eye(4), points) < 1
    assert distance(free, np.eye(4), points) > 2


def test_the_same_images_give_the_same_matrix_whatever_the_threads(phantom):
    """And the number of threads that others use is left alone."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    pyramids = linear.Pyramid(phantom.head), linear.Pyramid(elsewhere(phantom.head, MOVED))
    first = linear.register(*pyramids, [np.eye(4)])
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(2)
    try:
        second = linear.register(*pyramids, [np.eye(4)])
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 2
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(first, second)


def test_images_far_apart_are_a_runtime_error_and_threads_are_restored(phantom):
    """`checks.first_that_passes` turns it into a failed check."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    pyramids = linear.Pyramid(phantom.head), linear.Pyramid(elsewhere(phantom.head, rigid((0, 0, 0), (500, 0, 0))))
    with pytest.raises(RuntimeError):
        linear.register(*pyramids, [np.eye(4)])
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before
