"""What is unusual where it is."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_app import images
from bids_app.anomaly.folder import LEAST_DEVIATION
from bids_app.anomaly.slices import SHAPE, from_slices
from bids_app.anomaly.usual import Usual
from bids_app.errors import ConfigError
from tests.conftest import stored_as


def healthy(count: int = 60):
    """Maps that are high and uneven on the left, low and even on the right; some brains end early."""
    rng = np.random.default_rng(0)
    for number in range(count):
        anomaly = np.full((40, 40), 0.1)
        anomaly[:, :20] = rng.normal(0.4, 0.1)
        brain = np.ones((40, 40), bool)
        brain[:8] = number % 2
        yield anomaly, brain


def test_the_same_anomaly_is_unusual_only_where_brains_do_not_have_it():
    usual = Usual.of(healthy())
    scores = usual.scores(np.full((40, 40), 0.5))
    assert abs(scores[30, 4] - 0.1 / (0.1 + LEAST_DEVIATION)) < 0.3
    assert abs(scores[30, 36] - 0.4 / LEAST_DEVIATION) < 1


def test_a_place_that_half_of_the_brains_lack_has_the_moments_of_the_others():
    usual = Usual.of(healthy())
    np.testing.assert_allclose(usual.mean[1], usual.mean[30], atol=0.03)
    np.testing.assert_allclose(usual.deviation[1], usual.deviation[30], atol=0.03)


def test_where_no_brain_was_nothing_is_divided_by_zero():
    usual = Usual.of((anomaly, np.zeros_like(brain)) for anomaly, brain in healthy(3))
    assert np.isfinite(usual.scores(np.ones((2, 40, 40)))).all()


def test_it_is_stored_as_an_image_in_mni_space_and_comes_back(orientation, tmp_path):
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random(SHAPE, np.float32), 12) * 10
    mean = np.zeros(SHAPE, np.float32)
    mean[120:140, 10:40, 20:50] = 1  # above, in front, on the left
    usual = Usual(mean, smooth)
    stored = nib.load(usual.save(tmp_path / "usual.nii.gz"))
    assert stored.shape == (40, 48, 40, 2) and (tmp_path / "usual.nii.gz").stat().st_size < 700_000
    bright = np.argwhere(np.asarray(stored.dataobj)[..., 0] > 0.5)
    x, y, z = images.world(images.on_affine(np.zeros(stored.shape[:3]), stored.affine), bright).mean(axis=0)
    expected = images.world(from_slices(mean), np.argwhere(images.data(from_slices(mean)) > 0)).mean(axis=0)
    np.testing.assert_allclose((x, y, z), expected, atol=2.0)
    assert x < -20 and y > 20 and z > 20
    nib.save(stored_as(stored, orientation), tmp_path / "reordered.nii.gz")
    back = Usual.load(tmp_path / "reordered.nii.gz")
    np.testing.assert_allclose(back.deviation, smooth, atol=0.02)
    assert np.abs(back.mean - mean).mean() < 0.01 and back.mean[130, 25, 35] == 1


def test_what_is_no_such_image_is_told(tmp_path):
    path = tmp_path / "usual.nii.gz"
    path.write_bytes(b"no image")
    with pytest.raises(ConfigError, match="cannot be read"):
        Usual.load(path)
    affine = nib.load(Usual(*np.zeros((2, *SHAPE), np.float32)).save(path)).affine
    for shape, other in (((40, 48, 20, 2), affine), ((40, 48, 40, 2), np.eye(4))):
        nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), other), path)
        with pytest.raises(ConfigError, match="another grid"):
            Usual.load(path)
