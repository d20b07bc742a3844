"""What the scanner and the preparation do to an image, each effect by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator

from bids_app.training.synthesis import scanner
from bids_app.training.synthesis.recipe import FLAIR_SCANNER, T1W_SCANNER, Recipe


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def step_image() -> torch.Tensor:
    image = torch.zeros(1, 1, 24, 28, 20)
    image[..., 6:18, 8:20, 5:15] = 1
    return image


def test_zscore_fades_to_zero_outside():
    image = torch.rand(1, 1, 8, 8, 8, generator=seeded(0)) + 5
    mask = torch.zeros_like(image)
    mask[..., 2:6] = 1
    scaled = scanner.zscore(image, mask)
    assert scaled[mask == 0].abs().sum() == 0
    assert float(scaled[mask > 0].mean()) == pytest.approx(0, abs=1e-4)


def test_recenter_moves_the_box_to_the_middle():
    mask = torch.zeros(1, 1, 10, 10, 10)
    mask[..., 0:4, 1:3, 5:9] = 1
    moved = scanner.recenter(mask, mask, (0, 0, 0))
    assert moved[0, 0, 3:7, 4:6, 3:7].all() and moved.sum() == mask.sum()


def test_what_recenter_moves_out_does_not_come_back_on_the_other_side():
    head = torch.zeros(1, 1, 10, 10, 10)
    head[0, 0, :, 2:8, 2:8] = torch.arange(1.0, 11.0)[:, None, None]
    for jitter, expected in ((2, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]), (-2, [3, 4, 5, 6, 7, 8, 9, 10, 0, 0])):
        assert scanner.recenter(head, head, (jitter, 0, 0))[0, 0, :, 5, 5].tolist() == expected


def test_a_shift_moves_by_so_many_millimetres_to_the_right_side():
    movement = np.eye(4)
    movement[0, 3] = 4.0  # what is shown lay 4 mm, two voxels, to the right
    moved = scanner.shifted(step_image(), movement)
    assert torch.allclose(moved[..., 3:13], step_image()[..., 5:15], atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_a_random_shift_stays_within_the_recipe(seed: int):
    movement = scanner.random_shift(Recipe(), seeded(seed))
    assert np.linalg.norm(movement[:3, 3]) <= Recipe.shift_mm
    angle = np.degrees(np.arccos(np.clip((np.trace(movement[:3, :3]) - 1) / 2, -1, 1)))
    assert angle <= Recipe.shift_deg and np.linalg.det(movement[:3, :3]) == pytest.approx(1)


def test_thick_slices_blur_one_axis_alone():
    axial = scanner.thick_slices(step_image(), FLAIR_SCANNER, seeded(0))
    along = [float(axial.diff(dim=dim).abs().amax()) for dim in (2, 3, 4)]
    assert sorted(along)[0] < 0.9 and sorted(along)[1] == pytest.approx(1)


def test_ringing_overshoots_beside_an_edge():
    assert scanner.ringing(step_image(), seeded(1)).max() > 1.03


def test_motion_leaves_a_ghost_where_nothing_was():
    moved = scanner.motion(step_image(), seeded(0))
    assert moved[step_image() == 0].max() > 0.005


@pytest.mark.parametrize("settings", [T1W_SCANNER, FLAIR_SCANNER])
@pytest.mark.parametrize("seed", range(4))
def test_an_acquisition_is_finite_positive_and_still_the_same_head(settings, seed: int):
    smooth = torch.nn.functional.avg_pool3d(step_image(), 5, 1, 2) + 0.1
    acquired = scanner.acquire(smooth, settings, seeded(seed))
    assert torch.isfinite(acquired).all() and (acquired > 0).all()
    pair = torch.stack([smooth.flatten(), acquired.flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.8
