"""Volumes, classes and sides."""

import numpy as np
import pytest

from bids_app.images import on_affine
from bids_app.measures.volumes import left_of_midplane, side_volumes, volume_class, volume_ml
from tests.conftest import stored_as


def half_and_half(left: int, right: int):
    """A mask of 2 mm voxels with so many voxels left and right of x = 0."""
    values = np.zeros((20, 3, 3), dtype=np.uint8)
    values[10 - left : 10 + right, 1, 1] = 3
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[0, 3] = -19
    return on_affine(values, affine)


def test_volume_counts_voxels_whatever_their_value():
    assert volume_ml(half_and_half(4, 1)) == pytest.approx(0.04)


def test_volume_of_a_sheared_grid_is_the_determinant():
    affine = np.array([[1.0, 0.2, 0, 0], [0, 2.0, 0.1, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    assert volume_ml(on_affine(np.ones((10, 10, 10), np.uint8), affine)) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("ml", "name"), [(0, "none"), (0.01, "small"), (15, "small"), (15.001, "medium"), (70, "medium"), (71, "large")]
)
def test_classes(ml, name):
    assert volume_class(ml) == name


@pytest.mark.parametrize("ml", [-1, float("nan")])
def test_what_is_no_volume(ml):
    with pytest.raises(ValueError):
        volume_class(ml)


def test_sides_in_every_storage_order(orientation):
    sides = side_volumes(stored_as(half_and_half(7, 2), orientation))
    assert (sides.left_ml, sides.right_ml) == pytest.approx((0.056, 0.016))


def test_sides_follow_the_pose():
    moved = np.eye(4)
    moved[0, 3] = 4.0  # two voxels to the right
    sides = side_volumes(half_and_half(7, 2), moved)
    assert (sides.left_ml, sides.right_ml) == pytest.approx((0.040, 0.032))


def test_the_midplane_counts_half_on_each_side():
    image = on_affine(
        np.ones((3, 1, 1), np.uint8), np.array([[1.0, 0, 0, -1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    assert left_of_midplane(image, np.argwhere(np.ones((3, 1, 1)))).tolist() == [1, 0.5, 0]
    sides = side_volumes(image)
    assert sides.left_ml == sides.right_ml == pytest.approx(0.0015)


def test_empty_mask():
    sides = side_volumes(half_and_half(0, 0))
    assert (sides.left_ml, sides.right_ml, volume_ml(half_and_half(0, 0))) == (0, 0, 0)
