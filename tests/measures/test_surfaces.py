"""Surface distance of masks whose distance is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bids_app.measures.surfaces import assd


def plate(at: int, thickness: int = 1) -> np.ndarray:
    mask = np.zeros((30, 12, 12), dtype=np.uint8)
    mask[at : at + thickness] = 1
    return mask


def test_parallel_plates_are_as_far_apart_as_they_are():
    assert assd(plate(5), plate(12), (1, 1, 1)) == pytest.approx(7)
    assert assd(plate(5), plate(12), (2.5, 1, 1)) == pytest.approx(17.5)


def test_same_masks_have_distance_zero():
    assert assd(plate(5, 4), plate(5, 4), (1, 1, 1)) == 0


def test_only_surfaces_count():
    # 10 slices against the middle 6 of them: both outer plates are 2 mm off, but so are the rims' nearest voxels
    outer, inner = np.zeros((20, 20, 20)), np.zeros((20, 20, 20))
    outer[5:15, 5:15, 5:15], inner[7:13, 7:13, 7:13] = 1, 1
    value = assd(outer, inner, (1, 1, 1))
    assert 2 <= value < 2.5
    assert assd(inner, outer, (1, 1, 1)) == pytest.approx(value)


def test_agrees_with_a_direct_computation():
    rng = np.random.default_rng(0)
    first, second = (rng.random((9, 10, 11)) > 0.97 for _ in range(2))
    spacing = np.array([1.0, 2.0, 3.0])
    a, b = (np.argwhere(mask) * spacing for mask in (first, second))  # isolated voxels: all surface
    away = np.linalg.norm(a[:, None] - b[None], axis=-1)
    expected = np.concatenate([away.min(axis=1), away.min(axis=0)]).mean()
    assert assd(first, second, spacing) == pytest.approx(expected)


def test_an_empty_mask_has_no_distance():
    assert math.isnan(assd(plate(5), plate(5) * 0, (1, 1, 1)))
