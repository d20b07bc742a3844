"""Along the flow: from the latent of a brain to that of its healthy twin (Beizaee et al., MICCAI 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from bids_app.anomaly.velocity import Velocity, with_context


def step(velocity: Velocity, latents: Tensor, time: float, batch: int = 16) -> Tensor:
    """Velocity of all slices of a brain at one time, ``(slices, c, h, w)``, computed in batches."""
    inputs = with_context(latents, velocity.size.context)
    return torch.cat([velocity(part, time) for part in inputs.split(batch)])


def transport(velocity: Velocity, latents: Tensor, steps: int, batch: int = 16) -> Tensor:
    """Euler's method from t = 0 to t = 1.

    Parameters
    ----------
    velocity : Velocity
    latents : torch.Tensor
        ``(slices, c, h, w)``; with context, all slices of one brain from the lowest to the highest.
    steps : int
        Steps of equal length, at least one. Counted as integers: adding up 1 / steps makes one step too many for 49,
        98, 103 and others.

    Returns
    -------
    torch.Tensor
        ``(slices, c, h, w)``.
    """
    for k in range(steps):
        latents = latents + step(velocity, latents, k / steps, batch) / steps
    return latents
