"""Matrices push, ITK files pull, and left stays left however the voxels are stored."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from bids_app.errors import VisitError
from bids_app.images import Image, data, on_affine, world
from bids_app.preprocessing.itk import from_itk, to_itk
from bids_app.preprocessing.transforms import (
    apply_itk,
    apply_itk_to_points,
    apply_linear,
    apply_to_points,
    rotation_degrees,
    write_itk_linear,
)
from tests.conftest import stored_as

FMRIPREP_H5 = Path(__file__).parent / "data" / "fmriprep_float_xfm.h5"


def shift(x: float, y: float, z: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = (x, y, z)
    return matrix


@pytest.fixture
def turn() -> np.ndarray:
    """An asymmetric rigid motion: 20 degrees about z, 10 about x, and a shift."""
    matrix = shift(4, -2, 3)
    matrix[:3, :3] = Rotation.from_euler("zx", [20, 10], degrees=True).as_matrix()
    return matrix


def place(image: Image, level: float) -> np.ndarray:
    """Centre in mm of the mark of one grey value."""
    return world(image, np.argwhere(np.abs(data(image) - level) < 20)).mean(axis=0)


def wide(image: Image) -> Image:
    """A large grid of 1 mm voxels around the image."""
    affine = np.eye(4)
    affine[:3, 3] = -32
    return on_affine(np.zeros((64, 64, 64), np.float32), affine)


def test_itk_and_back_keeps_voxels_and_affine(asymmetric, orientation):
    image = stored_as(asymmetric, orientation)
    back = from_itk(to_itk(image))
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-9)
    np.testing.assert_array_equal(data(back), data(image))


def test_itk_sees_the_patients_left_at_positive_x(asymmetric, orientation):
    """LPS: the bright left mark lies at x > 0 for ITK."""
    itk = to_itk(stored_as(asymmetric, orientation))
    values = sitk.GetArrayFromImage(itk)
    index = [int(i) for i in np.argwhere(values == 200)[0][::-1]]
    assert itk.TransformIndexToPhysicalPoint(index)[0] > 0


def test_a_sheared_affine_is_no_itk_image(asymmetric):
    sheared = asymmetric.affine.copy()
    sheared[0, 1] = 0.5
    with pytest.raises(ValueError, match="sheared"):
        to_itk(nib.Nifti1Image(data(asymmetric), sheared))


@pytest.mark.parametrize("level", [200, 150, 100])
def test_the_matrix_moves_the_picture_as_it_moves_points(asymmetric, orientation, turn, level):
    image = stored_as(asymmetric, orientation)
    moved = apply_linear(image, turn, wide(image), order=0)
    expected = apply_to_points(place(asymmetric, level)[None], turn)[0]
    np.testing.assert_allclose(place(moved, level), expected, atol=0.6)


def test_a_push_to_the_right_goes_to_the_right(asymmetric, orientation):
    moved = apply_linear(stored_as(asymmetric, orientation), shift(10, 0, 0), wide(asymmetric), order=0)
    assert place(moved, 200)[0] - place(asymmetric, 200)[0] == pytest.approx(10, abs=0.6)


def test_labels_keep_their_type_and_values(asymmetric, turn):
    labels = on_affine((data(asymmetric) > 99).astype(np.uint8) * 7, asymmetric.affine)
    moved = apply_linear(labels, turn, wide(labels), order=0)
    assert moved.get_data_dtype() == np.uint8
    assert set(np.unique(data(moved, np.uint8))) == {0, 7}


def test_splines_do_not_overshoot(asymmetric, turn):
    moved = data(apply_linear(asymmetric, turn, wide(asymmetric), order=3))
    assert moved.min() >= 0
    assert moved.max() <= 200


def test_back_and_forth_is_the_same_picture(asymmetric, orientation, turn):
    image = stored_as(asymmetric, orientation)
    there = apply_linear(image, turn, wide(image), order=0)
    back = apply_linear(there, np.linalg.inv(turn), image, order=0)
    assert np.mean(data(back) == data(image)) > 0.9


def test_the_written_file_pulls_like_fmriprep(asymmetric, orientation, turn, tmp_path):
    """from-X_to-Y, applied to X on the grid of Y, gives what the pushing matrix gives."""
    image = stored_as(asymmetric, orientation)
    path = write_itk_linear(turn, tmp_path / "new" / "from-FLAIR_to-T1w_mode-image_xfm.txt")
    np.testing.assert_array_equal(
        data(apply_itk(image, path, wide(image), "nearest")), data(apply_linear(image, turn, wide(image), order=0))
    )


def test_a_file_written_by_hand_follows_the_itk_convention(asymmetric, tmp_path):
    """x_moving = x_fixed + 10 in LPS: what was at 10 (10 mm to the left) comes to 0, that is 10 mm to the right."""
    path = tmp_path / "hand.txt"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: MatrixOffsetTransformBase_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 10 0 0\nFixedParameters: 0 0 0\n"
    )
    moved = apply_itk(asymmetric, path, wide(asymmetric), "nearest")
    assert place(moved, 200)[0] - place(asymmetric, 200)[0] == pytest.approx(10, abs=0.6)


def test_points_go_the_other_way_through_a_file(turn, tmp_path):
    path = write_itk_linear(turn, tmp_path / "from-FLAIR_to-T1w.txt")
    points = np.array([[1.0, 2, 3], [-40, 20, 60]])
    np.testing.assert_allclose(apply_itk_to_points(apply_to_points(points, turn), path), points, atol=1e-9)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("degrees", [0, 29, 90, 137, 180, -180, 200])
def test_the_angle_of_a_turn(axis, degrees):
    matrix = shift(40, -3, 7)
    matrix[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix() @ np.diag([1.1, 0.9, 1.05])
    assert rotation_degrees(matrix) == pytest.approx(min(abs(degrees), 360 - abs(degrees)), abs=3)
    rigid = matrix.copy()
    rigid[:3, :3] /= (1.1, 0.9, 1.05)
    assert rotation_degrees(rigid) == pytest.approx(min(abs(degrees), 360 - abs(degrees)), abs=1e-4)


def test_no_points_are_no_error():
    assert apply_itk_to_points(np.empty((0, 3)), FMRIPREP_H5).shape == (0, 3)


def test_fmripreps_float_composite_is_read():
    """The file has the types of ``antsRegistration --float 1``: affine x + (10, 4, -6), field (2, 0, 0), LPS."""
    carried = apply_itk_to_points(np.array([[1.0, 2.0, 3.0]]), FMRIPREP_H5)
    np.testing.assert_allclose(carried, [[1 - 12, 2 - 4, 3 - 6]], atol=1e-5)


def test_fmripreps_float_composite_moves_an_image(asymmetric, orientation):
    moved = apply_itk(stored_as(asymmetric, orientation), FMRIPREP_H5, wide(asymmetric), "nearest")
    np.testing.assert_allclose(place(moved, 200) - place(asymmetric, 200), [12, 4, 6], atol=0.6)


@pytest.mark.parametrize("content", [None, "no transform\n"])
def test_missing_and_broken_files_are_told(tmp_path, content):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(VisitError, match=r"a\.txt"):
        apply_itk_to_points(np.zeros((1, 3)), path)
