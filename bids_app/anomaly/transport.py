"""Along the flow: from the latent of a brain to that of its healthy twin (Beizaee et al., MICCAI 2025)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bids_app.anomaly.velocity import with_context


def transport(velocity: Callable[[Tensor, float], Tensor], latents: Tensor, steps: int, context: int = 0) -> Tensor:
    """Euler's method from t = 0 to t = 1.

    Parameters
    ----------
    velocity : callable
        A `Velocity`, or anything that is called like one.
    latents : torch.Tensor
        ``(slices, c, h, w)``; with context, all slices of one brain from the lowest to the highest.
    steps : int
        Steps of equal length, at least one. Counted as integers: adding up 1 / steps makes one step too many for 49,
        98, 103 and others.
    context : int
        Of the velocity network: see `with_context`.

    Returns
    -------
    torch.Tensor
        ``(slices, c, h, w)``.
    """
    for k in range(steps):
        latents = latents + velocity(with_context(latents, context), k / steps) / steps
    return latents
