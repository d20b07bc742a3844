"""The deformation: it matches, it does not fold, it can be inverted, and it does not look where it must not."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from bids_app.preprocessing.deformable import (
    MIN_JACOBIAN,
    Level,
    _recoloured,
    as_transform,
    inverted,
    register_field,
    unfolded,
    vectors,
)

SHAPE = (30, 36, 40)  # z, y, x
SPACING = 3.0


def image(values: np.ndarray) -> sitk.Image:
    out = sitk.GetImageFromArray(values.astype(np.float32))
    out.SetSpacing([SPACING] * 3)
    out.SetOrigin([-50, 20, 7])
    return out


def distance_from(centre: tuple[float, float, float]) -> np.ndarray:
    """Voxels from a place, (z, y, x)."""
    return np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - np.array(centre), axis=-1)


def smooth_field(seed: int, largest_mm: float, scale: float = 4) -> sitk.Image:
    rng = np.random.default_rng(seed)
    values = np.stack([ndimage.gaussian_filter(rng.normal(size=SHAPE), scale) for _ in range(3)], axis=-1)
    window = np.clip((12 - distance_from((15, 18, 20))) / 4, 0, 1)[..., None]
    values *= window
    return vectors(values / np.abs(values).max() * largest_mm, image(np.zeros(SHAPE)))


def jacobian(field: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))


def size(field: sitk.Image) -> np.ndarray:
    """Length of the vectors in mm."""
    return np.linalg.norm(sitk.GetArrayFromImage(field), axis=-1)


@pytest.fixture(scope="module")
def target() -> np.ndarray:
    """A ball with folds in it."""
    blotches = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 2)
    return np.where(distance_from((15, 18, 20)) < 13, 0.5 + 0.2 * blotches / blotches.std(), 0).clip(0)


@pytest.fixture(scope="module")
def moved(target) -> np.ndarray:
    """The target after a known deformation."""
    return sitk.GetArrayFromImage(sitk.Resample(image(target), as_transform(smooth_field(3, 7.0))))


def registered(target, source, excluded=None, one_contrast=True) -> sitk.Image:
    mask = None if excluded is None else image(excluded)
    return register_field([Level(image(target), image(source), mask, 30, 1.0, one_contrast)])


# ------------------------------------------------------------------------------------------------- matching


def test_a_deformation_is_undone_in_another_contrast(target, moved):
    # as a FLAIR looks beside a T1w: dark stays dark, the darker tissue is the brighter one
    flair = np.interp(moved, [0, 0.1, 0.3, 0.5, 0.7, 1.0], [0, 10, 300, 220, 150, 100])
    truth = sitk.GetArrayFromImage(inverted(smooth_field(3, 7.0)))

    def error(one_contrast: bool) -> float:
        found = sitk.GetArrayFromImage(registered(target, flair, one_contrast=one_contrast))
        return np.linalg.norm(found - truth, axis=-1)[target > 0].mean()

    length = np.linalg.norm(truth, axis=-1)[target > 0].mean()
    assert error(one_contrast=False) < 0.6 * length < error(one_contrast=True)


def test_a_template_takes_the_grey_values_of_what_lies_on_it(target):
    flair = np.where(target > 0, 900 - 700 * target, 0)
    level = Level(image(target), image(flair), None, 1, 1.0, one_contrast=False)
    here = vectors(np.zeros((*SHAPE, 3)), level.target)
    found = sitk.GetArrayFromImage(_recoloured(level.target, level, here))
    inside = (target > 0.2) & (target < 0.8)
    assert np.abs(found - flair)[inside].max() < 40
    assert not found[target == 0].any()


@pytest.mark.parametrize("gain", [1, 250])
def test_a_deformation_is_undone_whatever_the_grey_scale(target, moved, gain):
    field = registered(target, moved * gain)
    truth = sitk.GetArrayFromImage(inverted(smooth_field(3, 7.0)))
    error = np.linalg.norm(sitk.GetArrayFromImage(field) - truth, axis=-1)[target > 0].mean()
    assert error < 0.55 * np.linalg.norm(truth, axis=-1)[target > 0].mean()
    assert jacobian(field).min() >= MIN_JACOBIAN


def test_equal_images_are_left_alone(target):
    assert size(registered(target, target)).max() < 0.05


def test_levels_hand_their_field_on(target, moved):
    """The second level does nothing here, so what it returns is the first one's field on its own grid."""
    first = Level(image(target), image(moved), None, 10, 1.0)
    grid = sitk.Resample(image(target), (50, 45, 38), sitk.Transform(), sitk.sitkLinear, (-50, 20, 7), [2.4] * 3)
    field = register_field([first, Level(grid, sitk.Resample(image(moved), grid), None, 0, 1.0)])
    assert field.GetSize() == (50, 45, 38)
    expected = sitk.Resample(register_field([first]), field)
    np.testing.assert_allclose(sitk.GetArrayFromImage(field), sitk.GetArrayFromImage(expected), atol=0.3)


# ------------------------------------------------------------------------------------------------- the mask


@pytest.fixture(scope="module")
def lesion() -> np.ndarray:
    return (distance_from((15, 18, 24)) < 5).astype(np.float32)


@pytest.fixture(scope="module")
def injured(target, lesion) -> np.ndarray:
    """The target itself, with a hole as dark as fluid: but for the lesion, nothing is to be done."""
    return np.where(lesion > 0, 0.1, target)


@pytest.fixture(scope="module")
def masked(target, injured, lesion) -> sitk.Image:
    return registered(target, injured, lesion)


@pytest.fixture(scope="module")
def free(target, injured) -> sitk.Image:
    return registered(target, injured)


def test_a_masked_lesion_does_not_pull_and_an_unmasked_one_does(target, lesion, masked, free):
    around = (distance_from((15, 18, 24)) < 9) & (target > 0)
    assert size(free)[around].max() > 3
    assert size(masked)[around].max() < 0.5
    assert jacobian(masked)[lesion > 0].min() > 0.9


def test_a_masked_lesion_keeps_its_volume_where_an_unmasked_one_collapses(lesion, masked, free):
    def volume(field):
        return sitk.GetArrayFromImage(sitk.Resample(image(lesion), as_transform(field))).sum() / lesion.sum()

    assert volume(masked) == pytest.approx(1, abs=0.03)
    assert volume(free) < 0.9


def test_inside_the_mask_the_surroundings_are_followed(target, lesion):
    """All of the brain has moved by a voxel: healthy tissue says so, and the lesion goes along."""
    injured = np.where(lesion > 0, 0.1, np.roll(target, 1, axis=2))
    inside = sitk.GetArrayFromImage(registered(target, injured, lesion))[lesion > 0]
    np.testing.assert_allclose(inside.mean(axis=0), [SPACING, 0, 0], atol=0.4 * SPACING)


# ------------------------------------------------------------------------------------------------- inverse, folds


@pytest.mark.parametrize(("largest", "tolerance"), [(3.0, 0.15), (8.0, 0.5)])
def test_a_field_and_its_inverse_cancel_both_ways(largest, tolerance):
    field = smooth_field(5, largest)
    inverse = inverted(field)
    for first, second in ((field, inverse), (inverse, field)):
        both = sitk.CompositeTransform([as_transform(first), as_transform(second)])
        points = np.argwhere(distance_from((15, 18, 20)) < 12)[::200, ::-1] * SPACING + [-50, 20, 7]
        back = np.array([both.TransformPoint(point) for point in points.tolist()])
        assert np.linalg.norm(back - points, axis=1).max() < tolerance
    assert size(inverse).max() > 0.5 * largest


def test_a_guess_saves_steps():
    field = smooth_field(5, 6.0)
    inverse = inverted(field)
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(inverted(field, 1, inverse)), sitk.GetArrayFromImage(inverse), atol=0.01
    )


def test_folds_are_taken_out_and_the_rest_is_kept():
    smooth = smooth_field(5, 3.0)
    knot = distance_from((15, 18, 15)) < 2
    folded = vectors(sitk.GetArrayFromImage(smooth) + 20.0 * knot[..., None], smooth)
    assert jacobian(folded).min() < 0
    flat = unfolded(folded)
    assert jacobian(flat).min() >= MIN_JACOBIAN
    far = distance_from((15, 18, 15)) > 12
    assert size(smooth)[far].max() > 1
    np.testing.assert_allclose(sitk.GetArrayFromImage(flat)[far], sitk.GetArrayFromImage(smooth)[far], atol=0.02)


def test_a_field_without_folds_is_not_touched():
    field = smooth_field(5, 3.0)
    assert unfolded(field) is field


def test_a_transform_leaves_its_field_usable():
    """SimpleITK's own constructor empties the image that it is given."""
    field = smooth_field(5, 3.0)
    before = sitk.GetArrayFromImage(field)
    as_transform(field)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(field), before)
