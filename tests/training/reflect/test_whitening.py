"""Latents as white as the noise of corruption, and pictures as they were."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.corruption import shrunk
from bids_app.anomaly.tensors import as_tensor
from bids_app.training.reflect.learn import with_narrow_posterior
from bids_app.training.reflect.slices import Slices
from bids_app.training.reflect.whitening import with_white_latents
from tests.anomaly.models import AUTOENCODER


@pytest.fixture
def slices():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 255, (12, 48, 40)).astype(np.uint8)
    images[:, :8] = 0
    return Slices(images, ("one",) * 12, np.arange(12.0))


@pytest.fixture
def lopsided():
    """An autoencoder whose channels are far from white, and depend on each other."""
    torch.manual_seed(0)
    network = Autoencoder(replace(AUTOENCODER, scale=0.5)).eval().requires_grad_(False)
    layer, channels = network.core.quant_conv, AUTOENCODER.latent_channels
    mixing = torch.eye(channels) + 0.8 * torch.rand(channels, channels)
    layer.weight[:channels, :, 0, 0] = (
        torch.diag(torch.linspace(0.2, 6, channels)) @ mixing @ layer.weight[:channels, :, 0, 0]
    )
    layer.bias[:channels] += 3
    layer.bias[channels:] -= 2
    return network


def brain_cells(network, slices):
    posterior = network.posterior(as_tensor(slices.images))
    brain = torch.from_numpy(shrunk(torch.from_numpy(slices.images), posterior.mean.shape[2:]))
    return tuple(each.movedim(1, -1)[brain] for each in (posterior.mean, posterior.deviation))


def test_sampled_latents_of_brains_are_white(lopsided, slices):
    before, _ = brain_cells(lopsided, slices)
    assert not torch.allclose(torch.cov(before.T), torch.eye(before.shape[1]), atol=0.3)
    mean, deviation = brain_cells(with_white_latents(lopsided, slices), slices)
    channels = mean.shape[1]
    torch.testing.assert_close(mean.mean(dim=0), torch.zeros(channels), atol=1e-4, rtol=0)
    sampled = torch.cov(mean.T) + torch.diag((deviation**2).mean(dim=0))
    torch.testing.assert_close(torch.diagonal(sampled), torch.ones(channels), atol=0.1, rtol=0)
    torch.testing.assert_close(torch.corrcoef(mean.T), torch.eye(channels), atol=0.15, rtol=0)


def test_pictures_stay(lopsided, slices):
    image = as_tensor(slices.images)
    before = copy.deepcopy(lopsided)
    after = with_white_latents(lopsided, slices)
    torch.testing.assert_close(
        after.decode(after.encode(image)), before.decode(before.encode(image)), atol=1e-3, rtol=0
    )


def test_deviations_follow_the_map(lopsided, slices):
    """Of what is decoded from samples, the spread is what it was."""
    image = as_tensor(slices.images[:1]).expand(400, -1, -1, -1)
    spreads = []
    for network in (copy.deepcopy(lopsided), with_white_latents(lopsided, slices)):
        torch.manual_seed(0)
        spreads.append(network.decode(network.posterior(image).sample()).std(dim=0).mean())
    assert float(spreads[1] / spreads[0]) == pytest.approx(1, abs=0.15)


def test_latents_of_a_new_autoencoder_are_hardly_noisy(slices):
    torch.manual_seed(0)
    network = Autoencoder(AUTOENCODER)
    usual = network.posterior(as_tensor(slices.images)).deviation.mean().item()
    _, deviation = brain_cells(with_narrow_posterior(network), slices)
    assert deviation.max().item() < 0.06 < 0.5 * usual and network.core.quant_conv.weight.requires_grad
