"""The anomaly map of REFLECT: how far a brain is from its healthy twin, in pixels and in latents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from bids_app.anomaly.folder import BOTH, BRIGHT

GAIN, CEILING = 2.5, 0.4
"""A difference of `CEILING` or more counts as 1."""
PIXEL_SIGMA, LATENT_SIGMA = 3.0, 1.0
"""Standard deviations of the blur, in pixels and in latent cells."""


def anomaly_map(
    twin: Tensor,
    seen: Tensor,
    twin_latent: Tensor,
    seen_latent: Tensor,
    brain: Tensor | None = None,
    side: str = BOTH,
) -> Tensor:
    """The authors' anomaly map, in [0, 1].

    ``0.5 G3(2.5 clip(|twin - seen|, 0, 0.4)) + 0.5 up(G1(2.5 clip(mean_c |twin_latent - seen_latent|, 0, 0.4)))``
    (``evaluate_REFLECT.py`` of Beizaee et al., MICCAI 2025), where nothing is masked.

    Parameters
    ----------
    twin, seen : torch.Tensor
        ``(n, 1, H, W)``, about -1 to 1: decoded healthy latent, and decoded latent of the brain itself. Not the brain:
        what the autoencoder cannot draw is no anomaly.
    twin_latent, seen_latent : torch.Tensor
        ``(n, c, h, w)``.
    brain : torch.Tensor, optional
        ``(n, 1, H, W)`` booleans: differences elsewhere count as none, before anything is blurred. The authors have no
        such mask.
    side : str
        Which differences of pixels count: `BOTH`, as the authors', or those where the brain is `BRIGHT` or `DARK`
        beside its twin. A difference of latents has no sign, and always counts.

    Returns
    -------
    torch.Tensor
        ``(n, H, W)`` float32.
    """
    pixels, cells = scaled(one_sided((seen - twin)[:, 0], side)), scaled_mean(twin_latent - seen_latent)
    if brain is not None:
        inside = brain.to(pixels)
        pixels, cells = pixels * inside[:, 0], cells * F.adaptive_avg_pool2d(inside, cells.shape[1:])[:, 0]
    pixels, cells = blurred(pixels, PIXEL_SIGMA), blurred(cells, LATENT_SIGMA)
    return 0.5 * pixels + 0.5 * enlarged(cells, pixels.shape[1:])


def one_sided(difference: Tensor, side: str) -> Tensor:
    """Differences of a side alone, others as zero."""
    if side == BOTH:
        return difference
    return difference.clamp(min=0) if side == BRIGHT else difference.clamp(max=0)


def scaled(difference: Tensor) -> Tensor:
    """Absolute differences from 0 to `CEILING` as 0 to 1."""
    return GAIN * difference.abs().clamp(0, CEILING)


def scaled_mean(difference: Tensor) -> Tensor:
    """The same for latents, averaged over their channels first; ``(n, c, h, w)`` to ``(n, h, w)``."""
    return GAIN * difference.abs().mean(dim=1).clamp(0, CEILING)


def enlarged(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """``(n, h, w)`` interpolated linearly to ``(n, H, W)``, edges mirrored as scikit-image's ``resize`` does it."""
    factors = (1, *(goal / size for goal, size in zip(shape, maps.shape[1:], strict=True)))
    values = ndimage.zoom(maps.float().cpu().numpy(), factors, order=1, mode="mirror", grid_mode=True)
    return torch.from_numpy(values).to(maps.device)


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of each map of ``(n, h, w)``, edges reflected, cut off at four standard deviations."""
    values = ndimage.gaussian_filter(maps.float().cpu().numpy(), (0, sigma, sigma))
    return torch.from_numpy(np.ascontiguousarray(values)).to(maps.device)
