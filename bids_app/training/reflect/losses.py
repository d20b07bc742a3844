"""What an autoencoder is trained to minimise: differences, structure, and what a critic of patches tells apart."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bids_app.anomaly.autoencoder import Posterior

_WINDOW = 7
_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # values span two


def structural_loss(first: Tensor, second: Tensor) -> Tensor:
    """One minus structural similarity (Wang et al. 2004) in windows of 7 x 7, mean over ``(n, 1, H, W)`` in [-1, 1]."""
    first, second = first.float(), second.float()
    mean_1, mean_2 = (F.avg_pool2d(image, _WINDOW, 1) for image in (first, second))
    var_1 = F.avg_pool2d(first**2, _WINDOW, 1) - mean_1**2
    var_2 = F.avg_pool2d(second**2, _WINDOW, 1) - mean_2**2
    both = F.avg_pool2d(first * second, _WINDOW, 1) - mean_1 * mean_2
    top = (2 * mean_1 * mean_2 + _C1) * (2 * both + _C2)
    return 1 - (top / ((mean_1**2 + mean_2**2 + _C1) * (var_1 + var_2 + _C2))).mean()


def kl_loss(posterior: Posterior, scale: float) -> Tensor:
    """Kullback-Leibler divergence from a standard normal, sum over the latent, mean over the batch.

    Of the latents as the encoder gives them, without the `scale` that they are multiplied by afterwards.
    """
    mean, variance = posterior.mean.float() / scale, (posterior.deviation.float() / scale) ** 2
    return 0.5 * (mean**2 + variance - 1 - variance.clamp_min(1e-12).log()).flatten(1).sum(dim=1).mean()


class Critic(nn.Sequential):
    """Tells patches of real slices from those of an autoencoder (PatchGAN, Isola et al., CVPR 2017).

    Parameters
    ----------
    width : int
        Channels of the first layer.
    layers : int
        Further ones, each with twice the channels.
    dense : bool
        Whether the last of these judges at every pixel instead of every second one, as latent diffusion's does.
    """

    def __init__(self, width: int = 32, layers: int = 2, dense: bool = False):
        parts: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in range(layers):
            before, after = width * 2**level, width * 2 ** (level + 1)
            stride = 1 if dense and level == layers - 1 else 2
            parts += [nn.Conv2d(before, after, 4, stride, 1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        super().__init__(*parts, nn.Conv2d(width * 2**layers, 1, 4, 1, 1))


def critic_loss(critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """Hinge loss of the critic."""
    return 0.5 * (F.relu(1 - critic(real)).mean() + F.relu(1 + critic(made.detach())).mean())
