"""Lesions one by one: connectivity, sizes, order, places."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.images import on_affine
from bids_app.lesion.components import find_lesions, lesions_of_mask
from tests.conftest import stored_as


def grid(values, spacing=(1.0, 1.0, 1.0), origin=(-10.0, 0.0, 0.0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return on_affine(np.asarray(values, dtype=np.float32), affine)


@pytest.fixture
def probability():
    """Voxels of 2 x 1 x 1.5 mm (3 mm3): a large left, a smaller right and a tiny lesion."""
    values = np.zeros((20, 16, 12))
    values[1:5, 2:6, 3:7] = 0.9  # 64 voxels, x from -18 to -12
    values[14:16, 3:6, 2:5] = 0.6  # 18 voxels, x from 8 to 10
    values[10, 12, 8] = 0.7  # 1 voxel
    return grid(values, spacing=(2.0, 1.0, 1.5), origin=(-20.0, -8.0, -9.0))


def test_sizes_places_and_order(probability):
    found = find_lesions(probability, 0.5, 10.0)
    first, second = found.lesions
    assert (first.index, first.voxels, second.index, second.voxels) == (1, 64, 2, 18)
    assert first.volume_ml == pytest.approx(0.192) and second.volume_ml == pytest.approx(0.054)
    assert first.centroid_mm == pytest.approx((-15.0, -4.5, -2.25))
    assert second.centroid_mm == pytest.approx((9.0, -4.0, -4.5))
    assert (first.hemisphere, second.hemisphere) == ("L", "R")
    assert (first.mean_probability, second.mean_probability) == pytest.approx((0.9, 0.6))
    assert first.mni_mm is None


def test_images(probability):
    found = find_lesions(probability, 0.5, 10.0)
    mask, labels = np.asarray(found.mask.dataobj), np.asarray(found.labels.dataobj)
    assert found.mask.get_data_dtype() == np.uint8 and found.labels.get_data_dtype() == np.int32
    assert images.same_grid(found.mask, probability) and images.same_grid(found.labels, probability)
    assert np.bincount(labels.ravel())[1:].tolist() == [64, 18]
    assert np.array_equal(mask, labels > 0) and mask[10, 12, 8] == 0


def test_storage_order_changes_nothing_in_world_space(probability, orientation):
    stored = find_lesions(stored_as(probability, orientation), 0.5, 0.0)
    straight = find_lesions(probability, 0.5, 0.0)
    for here, there in zip(stored.lesions, straight.lesions, strict=True):
        assert here.centroid_mm == pytest.approx(there.centroid_mm)
        assert (here.index, here.voxels, here.hemisphere) == (there.index, there.voxels, there.hemisphere)
    back = images.to_ras(stored.labels)
    assert np.array_equal(np.asarray(back.dataobj), np.asarray(straight.labels.dataobj))


def test_lesions_of_one_size_are_numbered_alike_in_every_storage_order(orientation):
    values = np.zeros((12, 12, 12))
    for corner in ((1, 1, 1), (9, 1, 1), (1, 9, 1), (9, 9, 9)):
        values[tuple(slice(c, c + 2) for c in corner)] = 1
    centroids = [
        [lesion.centroid_mm for lesion in find_lesions(image, 0.5, 0).lesions]
        for image in (grid(values), stored_as(grid(values), orientation))
    ]
    assert np.allclose(*centroids)


def test_a_pose_that_turns_the_head_round_swaps_the_sides(probability):
    pose = np.diag([-1.0, -1.0, 1.0, 1.0])
    assert [lesion.hemisphere for lesion in find_lesions(probability, 0.5, 10, pose).lesions] == ["R", "L"]
    shifted = np.eye(4)
    shifted[0, 3] = 30  # everything lies right of the midplane of this pose
    assert [lesion.hemisphere for lesion in find_lesions(probability, 0.5, 10, shifted).lesions] == ["R", "R"]


@pytest.mark.parametrize(("left", "side"), [(9, "L"), (8, "B"), (5, "B"), (1, "R"), (2, "B")])
def test_nine_tenths_on_a_side_make_it_that_side(left, side):
    values = np.zeros((30, 3, 3))
    values[10 - left : 20 - left, 1, 1] = 1
    image = grid(values, origin=(-9.5, 0.0, 0.0))  # voxel 10 is the first right of the midplane
    (lesion,) = find_lesions(image, 0.5, 0).lesions
    assert lesion.hemisphere == side


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, np.float64(0.3)])
def test_a_voxel_exactly_at_the_threshold_is_lesion(threshold):
    values = np.full((3, 3, 3), threshold, dtype=np.float32)
    values[0] = np.nextafter(np.float32(threshold), np.float32(0))
    assert [lesion.voxels for lesion in find_lesions(grid(values), threshold, 0).lesions] == [18]


@pytest.mark.parametrize(
    ("spacing", "voxels", "least"),
    [((1, 1, 1), 10, 10), ((1.25, 1.25, 1.6), 4, 10), ((0.1, 1, 1), 100, 10), ((0.9, 0.9, 0.9), 10, 7.29)],
)
def test_a_lesion_of_exactly_the_minimum_volume_stays(spacing, voxels, least):
    spacing = [float(np.float32(side)) for side in spacing]  # as it is read from a file
    values = np.zeros((120, 4, 4))
    values[2 : 2 + voxels, 1, 1] = 1
    assert len(find_lesions(grid(values, spacing), 0.5, least).lesions) == 1
    values[2, 1, 1] = 0
    assert len(find_lesions(grid(values, spacing), 0.5, least).lesions) == 0


def test_corners_connect():
    values = np.zeros((6, 6, 6))
    values[1, 1, 1] = values[2, 2, 2] = values[3, 3, 3] = 1
    values[5, 5, 5] = 1
    assert [lesion.voxels for lesion in find_lesions(grid(values), 0.5, 0).lesions] == [3, 1]


def test_nothing_found():
    found = find_lesions(grid(np.full((4, 4, 4), 0.2)), 0.5)
    assert found.lesions == () and not np.asarray(found.mask.dataobj).any()
    assert found.mask.shape == found.labels.shape == (4, 4, 4)


def test_nan_is_no_lesion():
    values = np.full((4, 4, 4), np.nan)
    values[1:3, 1:3, 1:3] = 1
    (lesion,) = find_lesions(grid(values), 0.5, 0).lesions
    assert lesion.voxels == 8


def test_drawn_mask_keeps_every_voxel_and_may_have_no_probability(probability):
    mask = images.like(probability, (images.data(probability) > 0.5).astype(np.uint8) * 7)
    found = lesions_of_mask(mask)
    assert [lesion.voxels for lesion in found.lesions] == [64, 18, 1]
    assert {lesion.mean_probability for lesion in found.lesions} == {None}
    with_values = lesions_of_mask(mask, probability)
    assert [lesion.mean_probability for lesion in with_values.lesions] == pytest.approx([0.9, 0.6, 0.7])


def test_real_strokes_of_the_left_hemisphere_are_on_the_left(test_data):
    """The LESYMAP masks are chronic strokes of the left hemisphere, in MNI space."""
    masks = sorted((test_data / "lesion_masks" / "lesymap").glob("*.nii.gz"))[:5]
    if not masks:
        pytest.skip("no LESYMAP masks in the test data")
    largest = [lesions_of_mask(nib.load(path)).lesions[0] for path in masks]
    assert [lesion.hemisphere for lesion in largest] == ["L"] * len(masks)
    assert all(lesion.centroid_mm[0] < -15 for lesion in largest)
