"""What each network of REFLECT learns: batches to draw, and the loss on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_app.anomaly.autoencoder import SCALE, Autoencoder
from bids_app.anomaly.corruption import draw_patches, mixed, shrunk
from bids_app.anomaly.slices import as_tensor
from bids_app.anomaly.transport import transport
from bids_app.anomaly.velocity import Velocity
from bids_app.training.reflect.losses import Critic, critic_loss, kl_loss, structural_loss
from bids_app.training.reflect.slices import Slices, augmented

REFLOW_STEPS = 5
"""Euler steps of the teacher of REFLECT-2."""


@dataclass(frozen=True)
class SliceBatches:
    """Batches of varied slices, ``(image,)`` with image ``(n, 1, H, W)`` in [-1, 1]."""

    slices: Slices
    size: int
    seed: int

    def __call__(self, number: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng((self.seed, number))
        return (as_tensor(self.draw(rng)),)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The images of a batch, ``(n, H, W)`` uint8."""
        return augmented(self.slices.images[rng.integers(len(self.slices), size=self.size)], rng)


@dataclass(frozen=True)
class CorruptedBatches(SliceBatches):
    """Batches ``(seen, healthy, opacity, content)``: what is encoded and then patched, and what it should become.

    Attributes
    ----------
    factor, channels : int
        Of the latents.
    textures : torch.Tensor or None
        ``(m, c, h, w)`` latents.
    deform : callable, optional
        From a slice ``(H, W)`` and a generator to a slice of another shape: a morphological corruption.
    """

    factor: int = 4
    channels: int = 3
    textures: Tensor | None = None
    deform: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None

    def __call__(self, number: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng((self.seed, number))
        healthy = self.draw(rng)
        seen = healthy if self.deform is None else np.stack([self.deform(image, rng) for image in healthy])
        shape = tuple(size // self.factor for size in healthy.shape[1:])
        brains = shrunk(torch.from_numpy(seen), shape)
        patches = [draw_patches(brain, self.channels, self.textures, rng) for brain in brains]
        opacity, content = (torch.stack([getattr(p, name) for p in patches]) for name in ("opacity", "content"))
        return as_tensor(seen), as_tensor(healthy), opacity, content


@dataclass(frozen=True)
class Latents:
    """From a batch of `CorruptedBatches` to latents: where the flow begins and ends."""

    autoencoder: Autoencoder

    @torch.no_grad()
    def __call__(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Latent of the corrupted brain, and of the healthy one; sampled, as in the authors' training."""
        seen, healthy, opacity, content = batch
        end = self.autoencoder.posterior(healthy).sample().float()
        same = (seen == healthy).flatten(1).all(dim=1)
        start = end if bool(same.all()) else torch.where(same[:, None, None, None], end, self._encode(seen))
        return mixed(start, content, opacity), end

    def _encode(self, seen: Tensor) -> Tensor:
        return self.autoencoder.posterior(seen).sample().float()


def velocity_loss(network: nn.Module, start: Tensor, end: Tensor) -> Tensor:
    """Mean squared error of the velocity at random times of the straight lines from `start` to `end`."""
    time = torch.rand(len(start), device=start.device)
    where = start + time[:, None, None, None] * (end - start)
    return F.mse_loss(network(where, time).float(), end - start)


@dataclass(frozen=True)
class FlowLoss:
    """REFLECT-1: from corrupted latents to the healthy ones that they were made of."""

    latents: Latents

    def __call__(self, network: nn.Module, batch: tuple[Tensor, ...], step: int) -> Tensor:
        return velocity_loss(network, *self.latents(batch))


@dataclass(frozen=True)
class ReflowLoss:
    """REFLECT-2: from corrupted latents to where a frozen teacher carries them, so that one step will do."""

    latents: Latents
    teacher: Velocity

    def __call__(self, network: nn.Module, batch: tuple[Tensor, ...], step: int) -> Tensor:
        start, _ = self.latents(batch)
        with torch.no_grad():
            end = transport(self.teacher, start, REFLOW_STEPS).float()
        return velocity_loss(network, start, end)


@dataclass
class Reconstruction:
    """The losses of an autoencoder and of its critic, which judges from `critic_from` on.

    Attributes
    ----------
    critic : Critic or None
    perceptual : callable or None
        LPIPS, in place of the structural loss.
    """

    critic: Critic | None = None
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    structural: float = 0.5
    adversarial: float = 0.02
    kl: float = 1e-6
    critic_from: int = 1000
    made: Tensor | None = None

    def autoencoder_loss(self, network: nn.Module, batch: tuple[Tensor, ...], step: int) -> Tensor:
        """Difference, structure (or perception), divergence of the latents, and what the critic says."""
        (image,) = batch
        made, posterior = network(image)
        self.made = made.detach()
        loss = F.l1_loss(made.float(), image) + self.kl * kl_loss(posterior, SCALE) / image[0].numel()
        if self.perceptual is None:
            loss = loss + self.structural * structural_loss(made, image)
        else:
            loss = loss + self.perceptual(made, image).mean()
        if self.critic is not None and step >= self.critic_from:
            loss = loss - self.adversarial * self.critic(made).mean().float()
        return loss

    def critic_loss(self, network: nn.Module, batch: tuple[Tensor, ...], step: int) -> Tensor | None:
        """Hinge loss on what the autoencoder has just made."""
        return critic_loss(network, batch[0], self.made) if step >= self.critic_from else None
