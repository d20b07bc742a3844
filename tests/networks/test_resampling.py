"""The fast resizing has the numbers of nnU-Net's."""

import numpy as np
import pytest
import torch

from bids_app.networks.resampling import resize, spline_matrix


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(11, 12, 13), (30, 17, 40), (22, 17, 9), (1, 5, 60)])
def test_same_numbers_as_nnunet(order, shape):
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg

    volume = np.random.default_rng(0).normal(size=(2, 22, 17, 19)).astype(np.float32)
    expected = resample_data_or_seg(volume, shape, order=order)
    np.testing.assert_allclose(resize(torch.from_numpy(volume), shape, order).numpy(), expected, atol=1e-5)


def test_same_shape_is_left_alone():
    volume = torch.rand(1, 4, 5, 6)
    assert resize(volume, (4, 5, 6), 3) is volume


def test_overshoot_is_clipped_a_channel_at_a_time():
    volume = torch.zeros(2, 8, 8, 8)
    volume[0, 4:] = 1
    volume[1, 4:] = 100
    out = resize(volume, (20, 8, 8), 3)
    assert (out[0].min(), out[0].max()) == (0, 1)
    assert (out[1].min(), out[1].max()) == (0, 100)


@pytest.mark.parametrize(("old", "new"), [(7, 13), (13, 7), (160, 80), (3, 2)])
def test_matrix_keeps_constants(old, new):
    np.testing.assert_allclose(spline_matrix(old, new, 3).sum(axis=1), 1, atol=1e-6)
