"""Interpolation, blurring and sampling against libraries, and random fields that do not touch the global generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Generator

from bids_app.training.synthesis import fields


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fields.smooth_noise(10.0, seeded(0))
    assert torch.equal(torch.rand(1), expected)


def test_smooth_noise_has_unit_spread_and_changes_slowly():
    noise = fields.smooth_noise(20.0, seeded(1), channels=2, shape=(24, 28, 20))
    assert noise.shape == (1, 2, 24, 28, 20) and float(noise.std()) == pytest.approx(1, abs=1e-3)
    assert float(noise.diff(dim=-1).abs().mean()) < 0.3


def test_resize_equals_interpolate():
    volume = torch.rand(1, 2, 7, 9, 8, generator=seeded(0))
    for corners in (True, False):
        expected = F.interpolate(volume, (20, 18, 16), mode="trilinear", align_corners=corners)
        assert torch.allclose(fields.resize(volume, (20, 18, 16), corners), expected, atol=1e-5)


def test_blur_equals_scipy():
    volume = torch.rand(1, 1, 14, 15, 16, generator=seeded(0))
    expected = gaussian_filter(volume[0, 0].numpy(), 1.2, mode="constant", radius=3)
    assert np.allclose(fields.blur(volume, 1.2)[0, 0].numpy(), expected, atol=1e-5)
    assert torch.equal(fields.blur(volume, 0.0), volume)


def test_sample_reads_voxel_centres_and_zero_outside():
    volume = torch.arange(24.0).view(1, 1, 2, 3, 4)
    points = torch.tensor([[1.0, 2.0, 1.0], [3.0, 0.0, 0.0], [9.0, 9.0, 9.0]]).view(1, 1, 1, 3, 3)
    assert fields.sample(volume, points).flatten().tolist() == pytest.approx([21.0, 3.0, 0.0])
    half = np.diag([0.5, 0.5, 0.5, 1])
    assert fields.sample(volume, 2 * points, half).flatten().tolist() == pytest.approx([21.0, 3.0, 0.0])
