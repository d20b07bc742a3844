"""RAS meets LPS, push meets pull: in this one place, and back again."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from bids_app.images import on_affine
from bids_app.preprocessing.itk import from_itk, pull_transform, push_matrix, to_itk
from tests.preprocessing.phantoms import rigid


def test_a_matrix_survives_the_way_to_itk_and_back():
    matrix = rigid((10, -20, 30), (4, -5, 6)) @ np.diag([1.1, 0.9, 1.2, 1])
    np.testing.assert_allclose(push_matrix(pull_transform(matrix)), matrix, atol=1e-12)


def test_itk_pulls_against_the_push():
    """The image goes right, forward and up, so ITK looks left (+x in LPS), behind (+y) and below."""
    assert pull_transform(rigid((0, 0, 0), (10, 20, 30))).TransformPoint((0.0, 0.0, 0.0)) == (10, 20, -30)


def test_rigid_and_composed_transforms_have_matrices():
    turn = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, 0.3, (4.0, 5.0, 6.0))
    both = sitk.CompositeTransform([turn, turn.GetInverse()])
    np.testing.assert_allclose(push_matrix(both), np.eye(4), atol=1e-12)


def test_a_field_has_no_matrix():
    field = sitk.DisplacementFieldTransform(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64))
    with pytest.raises(ValueError, match="not linear"):
        push_matrix(field)


def test_oblique_headers_rounded_to_float32_are_images():
    affine = (rigid((10, 20, 30), (1, 2, 3)) @ np.diag([0.9, 1, 5, 1])).astype(np.float32)
    image = on_affine(np.zeros((4, 5, 6), np.float32), affine)
    np.testing.assert_allclose(from_itk(to_itk(image)).affine, affine, atol=1e-5)


def test_axes_are_not_exchanged():
    values = np.zeros((4, 5, 6), np.uint8)
    values[3, 0, 2] = 9
    itk = to_itk(on_affine(values, np.eye(4)), np.uint8)
    assert itk.GetSize() == (4, 5, 6)
    assert itk.GetPixelIDValue() == sitk.sitkUInt8
    assert itk[3, 0, 2] == 9
