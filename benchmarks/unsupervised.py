"""Other ways to find anomalies without labels, to set beside REFLECT: reconstruction and denoising of healthy slices.

Built of the same layers and trained by the same loop as REFLECT, so that a row of a table differs by its method alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_app.anomaly.autoencoder import Autoencoder, AutoencoderSize
from bids_app.anomaly.usual import moments_by_place
from bids_app.anomaly.velocity import SIZES
from bids_app.training.reflect.losses import kl_loss

BOTTLENECK = AutoencoderSize((64, 96, 128, 128), latent_channels=16, patch=4, blocks=1, attention=False, scale=1.0)
"""A slice of 192 x 160 becomes 6 x 5 cells of 16 values: too few to draw what was never seen."""
DENOISER = replace(SIZES["tiny"], patch=4)
"""That of REFLECT's small velocity network, on pixels."""
KL_WEIGHT = 0.1
"""Of an evidence lower bound whose pixels have a Laplace distribution of this scale."""


def reconstruction_loss(network: Autoencoder, batch: tuple[Tensor, ...], step: int) -> Tensor:
    """Absolute difference of a plain autoencoder (Baur et al., Medical Image Analysis 2021)."""
    (image,) = batch
    return F.l1_loss(network.decode(network.encode(image)).float(), image)


def variational_loss(network: Autoencoder, batch: tuple[Tensor, ...], step: int) -> Tensor:
    """That of a variational autoencoder."""
    (image,) = batch
    made, posterior = network(image)
    return F.l1_loss(made.float(), image) + KL_WEIGHT * kl_loss(posterior, 1.0) / image[0].numel()


@torch.inference_mode()
def reconstruction_map(network: Autoencoder, image: Tensor) -> Tensor:
    """Absolute difference, ``(n, H, W)``."""
    return (network.decode(network.encode(image)) - image)[:, 0].abs()


@dataclass(frozen=True)
class Denoising:
    """Diffusion with structured noise, to a part of the way and back (AnoDDPM, Wyatt et al., CVPR Workshops 2022).

    Attributes
    ----------
    until : int
        Of 1000 steps of noise, how many are taken.
    back : int
        Steps of the way back (deterministic, Song et al. 2021); AnoDDPM takes all 250.
    octaves, persistence : int, float
        Of the noise: sizes that double, each weaker by this factor, as AnoDDPM has them of simplex noise.
    """

    until: int = 250
    back: int = 25
    octaves: int = 6
    persistence: float = 0.8

    def scheduler(self):
        """The noise schedule, linear as in AnoDDPM."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        scheduler = DDIMScheduler(1000, beta_schedule="linear", clip_sample=True)
        scheduler.set_timesteps(1000 * self.back // self.until)
        return scheduler

    def noise(self, image: Tensor, seed: int | None = None) -> Tensor:
        """Smooth noise of unit deviation, ``(n, 1, H, W)`` as the image."""
        shape, device = tuple(image.shape), image.device
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        total = torch.zeros(shape, device=device)
        for octave in range(self.octaves):
            cells = (-(-size // 2**octave) + 1 for size in shape[2:])
            coarse = torch.randn((*shape[:2], *cells), generator=generator, device=device)
            fine = F.interpolate(coarse, scale_factor=2**octave, mode="bicubic", align_corners=False)
            fine = fine[..., : shape[2], : shape[3]]
            # the coarsest is the strongest: persistence counts from there
            total += self.persistence ** (self.octaves - 1 - octave) * fine / fine.std()
        return total / total.std(dim=(1, 2, 3), keepdim=True)

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...], step: int) -> Tensor:
        """Mean squared error of the noise that the network sees in a slice."""
        (image,) = batch
        times = torch.randint(1000, (len(image),), device=image.device)
        noise = self.noise(image)
        noisy = self.scheduler().add_noise(image, noise, times)
        return F.mse_loss(network(noisy, times / 1000).float(), noise)

    @torch.inference_mode()
    def map(self, network: nn.Module, image: Tensor) -> Tensor:
        """Absolute difference between slices and what they are denoised to, ``(n, H, W)``."""
        scheduler = self.scheduler()
        way = [int(time) for time in scheduler.timesteps if time < self.until]
        current = scheduler.add_noise(image, self.noise(image, seed=0), torch.tensor(way[:1], device=image.device))
        for time in way:
            current = scheduler.step(network(current, time / 1000), time, current).prev_sample
        return (current - image)[:, 0].abs()


def equalized(grey: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Grey values replaced by the share of `levels` (sorted) below them: histogram equalisation."""
    return np.searchsorted(levels, grey, side="right") / len(levels)


def moments(images: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of grey values at every place, over the images that have brain there; smooth where few have.

    Parameters
    ----------
    images : iterable of ndarray
        Slices or volumes of one shape; 0 outside of the brain.
    """
    mean, variance = moments_by_place(((grey, grey > 0) for grey in images), blur=2.0, least_share=1e-3)
    return mean, np.sqrt(np.maximum(variance, 25.0))
