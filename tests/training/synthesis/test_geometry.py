"""Deformations that keep left on the left and do not fold."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Generator

from bids_app.training.synthesis import geometry
from bids_app.training.synthesis.fields import PATCH, patch_points
from bids_app.training.synthesis.recipe import Recipe


def test_warp_does_not_fold():
    warp = geometry.random_warp(4.0, Generator().manual_seed(0))[0]
    assert warp.shape == (*PATCH, 3) and 0.5 < float(warp.norm(dim=-1).mean()) < 12
    moved = warp + patch_points()[0]
    for axis, component in ((2, 0), (1, 1), (0, 2)):  # x grows along the last axis
        assert (moved[..., component].diff(dim=axis) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_an_affine_keeps_handedness_and_stays_near_the_identity(seed: int):
    matrix = geometry.random_affine(Recipe(), Generator().manual_seed(seed))
    assert 0.5 < np.linalg.det(matrix) < 2 and np.abs(matrix - np.eye(3)).max() < 0.4


def test_rotation_turns_x_to_y_about_z():
    assert np.allclose(geometry.rotation_matrix((0, 0, 90)) @ [1, 0, 0], [0, 1, 0])
