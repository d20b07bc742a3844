"""Findings: what counts, on which side, and what they have to do with the lesion."""

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.anomaly.findings import Atlas, find
from tests.conftest import stored_as

AFFINE = np.array([[1, 0, 0, -30], [0, 1, 0, -30], [0, 0, 1, -20], [0, 0, 0, 1.0]])


def image(*boxes, dtype=np.float32):
    """Boxes of (x, y, z, side, value), in millimetres."""
    values = np.zeros((60, 60, 40), dtype)
    for x, y, z, side, value in boxes:
        i, j, k = x + 30, y + 30, z + 20
        values[i : i + side, j : j + side, k : k + side] = value
    return images.on_affine(values, AFFINE)


@pytest.mark.parametrize("order", ["RAS", "LAS", "LIA"])
def test_sides_places_and_kinds_do_not_depend_on_storage(order):
    anomaly = image((-25, 10, 0, 6, 0.5), (15, -10, 5, 5, 0.4), (5, 20, 10, 4, 0.6), (-10, -20, -10, 3, 0.9))
    lesion = image((-23, 10, 0, 6, 1), (12, -10, 5, 2, 1), dtype=np.uint8)
    names = {1: "left thing", 2: "right thing"}
    atlas = Atlas(stored_as(image((-30, -30, -20, 30, 1), (0, -30, -20, 30, 2), dtype=np.uint8), order), names)
    found = find(stored_as(anomaly, order), 0.3, stored_as(lesion, order), atlas).findings
    assert [finding.voxels for finding in found] == [216, 125, 64]  # 27 mm3 are too small
    assert [finding.hemisphere for finding in found] == ["L", "R", "R"]
    assert [finding.kind for finding in found] == ["lesional", "perilesional", "nonlesional"]
    assert found[0].lesion_share == pytest.approx(4 / 6)
    assert np.allclose(found[0].peak_mm, (-22.5, 12.5, 2.5), atol=1e-4)
    assert (found[0].peak, found[2].peak) == pytest.approx((0.5, 0.6))
    assert [finding.region for finding in found] == [None, "right thing", None]


def test_the_threshold_itself_counts_and_diagonals_join():
    anomaly = image((0, 0, 0, 4, 0.25), (4, 4, 4, 4, 0.25))
    found = find(anomaly, 0.25)
    assert [finding.voxels for finding in found.findings] == [128]
    assert images.data(found.labels).max() == 1 and images.data(found.mask).sum() == 128
    assert find(anomaly, 0.26).findings == ()


def test_without_a_lesion_everything_is_nonlesional():
    empty = image(dtype=np.uint8)
    for lesion in (None, empty):
        (finding,) = find(image((0, 0, 0, 5, 1.0)), 0.5, lesion).findings
        assert (finding.kind, finding.lesion_share, finding.region) == ("nonlesional", 0.0, None)


def test_a_threshold_may_be_another_at_each_place_and_nothing_is_found_without():
    values = np.zeros((20, 20, 20), np.float32)
    values[2:6, 2:6, 2:6] = values[12:16, 2:6, 2:6] = values[2:6, 12:16, 2:6] = 0.5
    limits = np.full(values.shape, 0.4, np.float32)
    limits[10:], limits[:, 10:] = 0.6, 0
    image = nib.Nifti1Image(values, np.eye(4))
    found = find(image, nib.Nifti1Image(limits, np.eye(4)))
    assert len(found.findings) == 1 and images.data(found.mask)[3, 3, 3] == 1
    assert len(find(image, 0.4).findings) == 3
    assert not find(image, 1).findings  # as TOML writes it
