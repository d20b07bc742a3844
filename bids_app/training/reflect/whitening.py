"""Latents that are, inside of brains, as the noise that corruption puts there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.corruption import shrunk
from bids_app.anomaly.tensors import as_tensor
from bids_app.training.reflect.slices import Slices

MEASURED = 256
"""Slices from which the distribution of latents is measured."""
_BATCH = 8


@torch.no_grad()
def with_white_latents(autoencoder: Autoencoder, slices: Slices) -> Autoencoder:
    """The same autoencoder, its latents' channels uncorrelated, with a mean of zero and a standard deviation of one.

    Else a patch of noise gives itself away by values that no brain has, and a flow learns to look for these. The linear
    map that does it is folded into the layers of 1 x 1 on either side of the latent: pictures stay what they were.
    Deviations of the posterior follow to first order.

    Parameters
    ----------
    autoencoder : Autoencoder
        Changed in place.
    slices : Slices
        Whose brains are measured.
    """
    chosen = slices.images[np.unique(np.linspace(0, len(slices) - 1, MEASURED).astype(int))]
    mean, variance = _cells(autoencoder, chosen)
    # of latents as they are sampled: a channel that says nothing is noise already, and is not blown up
    values, axes = torch.linalg.eigh(torch.cov(mean.T) + torch.diag(variance.mean(dim=0)))
    white, back = (axes @ torch.diag(values**power) @ axes.T for power in (-0.5, 0.5))
    _fold_encoder(autoencoder, white, mean.mean(dim=0), variance.log().mean(dim=0))
    _fold_decoder(autoencoder, back, mean.mean(dim=0))
    autoencoder.size = replace(autoencoder.size, scale=1.0)
    return autoencoder


def _cells(autoencoder: Autoencoder, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and variance of the latents of all cells in brains, each ``(n, c)``, float64."""
    device = next(autoencoder.parameters()).device
    found = [autoencoder.posterior(part.to(device)) for part in as_tensor(images).split(_BATCH)]
    means, deviations = (torch.cat([getattr(part, name) for part in found]) for name in ("mean", "deviation"))
    brain = torch.from_numpy(shrunk(torch.from_numpy(images), means.shape[2:]))
    mean, deviation = (each.cpu().double().movedim(1, -1)[brain] for each in (means, deviations))
    return mean, deviation**2


def _fold_encoder(autoencoder: Autoencoder, white: Tensor, centre: Tensor, log_variance: Tensor) -> None:
    """Let the encoder say ``white (z - centre)`` of a latent whose variance is about so much."""
    layer, scale = autoencoder.core.quant_conv, autoencoder.size.scale
    weight, bias = layer.weight[..., 0, 0].cpu().double(), layer.bias.cpu().double()
    (of_mean, of_log), (at_mean, at_log) = weight.chunk(2), bias.chunk(2)
    # log of a sum of variances, linear around the usual ones; the layer's own are of latents before the scale
    parts = white**2 * log_variance.exp()
    shares = parts / parts.sum(dim=1, keepdim=True)
    usual = parts.sum(dim=1).log() - shares @ log_variance + 2 * np.log(scale)
    weights = torch.cat([scale * white @ of_mean, shares @ of_log])
    biases = torch.cat([white @ (scale * at_mean - centre), shares @ at_log + usual])
    layer.weight.copy_(weights[..., None, None])
    layer.bias.copy_(biases)


def _fold_decoder(autoencoder: Autoencoder, back: Tensor, centre: Tensor) -> None:
    """Let the decoder begin with ``back z + centre``."""
    layer, scale = autoencoder.core.post_quant_conv, autoencoder.size.scale
    weight = layer.weight[..., 0, 0].cpu().double() / scale
    layer.bias.add_((weight @ centre).to(layer.bias))
    layer.weight.copy_((weight @ back)[..., None, None])
