"""Left is left, anterior is up, and grey values come back."""

import numpy as np
import pytest
import torch

from bids_app import images
from bids_app.anomaly.slices import SHAPE, GreyScale, box, from_slices, grey_values, to_slices
from bids_app.anomaly.tensors import as_tensor, cropped, padded
from bids_app.preprocessing.transforms import apply_linear
from tests.conftest import stored_as


@pytest.mark.parametrize("order", ["RAS", "LAS", "LIA"])
def test_a_mark_left_in_front_and_above_is_left_up_and_late(order):
    """Whatever the order of storage: columns go from left to right, rows from anterior to posterior, slices upwards."""
    grid = box()
    values = np.zeros(grid.shape, np.float32)
    x, y, z = (np.linalg.inv(grid.affine) @ [-30, 40, 50, 1])[:3].astype(int)
    values[x - 2 : x + 3, y - 2 : y + 3, z - 2 : z + 3] = 1
    stored = stored_as(images.on_affine(values, grid.affine), order)
    slices = to_slices(apply_linear(stored, np.eye(4), grid))
    assert slices.shape == SHAPE
    level, row, column = np.argwhere(slices > 0.5).mean(axis=0)
    assert column < SHAPE[2] / 2 - 20 and row < SHAPE[1] / 2 - 20 and level > SHAPE[0] / 2 + 20


def test_slices_come_back_as_the_image():
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    image = from_slices(values)
    assert images.same_grid(image, box())
    assert np.array_equal(to_slices(image), values)


def test_grey_values_keep_the_background_apart_and_come_back():
    rng = np.random.default_rng(0)
    intensities = rng.normal(500, 100, (4, 20, 20)).astype(np.float32)
    brain = np.zeros(intensities.shape, bool)
    brain[:, 5:15, 5:15] = True
    grey = grey_values(intensities, brain)
    assert (grey[~brain] == 0).all() and grey[brain].min() == 1 and grey[brain].max() == 255
    back = GreyScale.of(intensities, brain).intensities(grey.astype(np.float32))
    inside = brain & (grey > 1) & (grey < 255)
    assert np.abs(back - intensities)[inside].max() < 3
    assert not grey_values(intensities, np.zeros_like(brain)).any()
    assert as_tensor(grey).min() == -1 and as_tensor(grey).max() == 1


def test_padding_is_background_and_undone_by_cropping():
    slices = torch.rand(2, 1, 192, 160)
    larger = padded(slices, (256, 256))
    assert larger.shape == (2, 1, 256, 256) and (larger[..., :32, :] == -1).all()
    assert torch.equal(cropped(larger, (192, 160)), slices)
