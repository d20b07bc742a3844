"""The autoencoder of REFLECT: axial slices to latents and back.

A one-channel KL autoencoder of latent diffusion (Rombach et al., CVPR 2022) made of diffusers' layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 0.18215
"""What the authors multiply latents by, of f8 and of f4 alike."""


@dataclass(frozen=True)
class AutoencoderSize:
    """The architecture of an autoencoder.

    Attributes
    ----------
    channels : tuple of int
        Of each level, the finest first; each level has half the resolution of the one before.
    latent_channels : int
    patch : int
        Squares of so many pixels on a side become channels before the first layer and pixels again after the last:
        layers at full resolution take most of the time and few of the weights. 1 leaves pixels as they are.
    blocks : int
        Residual blocks a level (one more on the way up).
    attention : bool
        Whether there is attention at the coarsest level.
    scale : float
        What latents are multiplied by. The authors' have the number of latent diffusion, that makes their standard
        deviation about 1, that of the noise that corruption puts in; ours have such latents as they are
        (`training.reflect.whitening`).
    """

    channels: tuple[int, ...]
    latent_channels: int
    patch: int = 1
    blocks: int = 2
    attention: bool = True
    scale: float = SCALE

    @property
    def factor(self) -> int:
        """Pixels on a side of one latent cell."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> AutoencoderSize:
        """The size that a model's card describes."""
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**lists)

    def to_card(self) -> dict[str, Any]:
        """The size as JSON holds it."""
        return asdict(self)


SIZES: Mapping[str, AutoencoderSize] = {
    "kl-f8": AutoencoderSize((128, 256, 512, 512), latent_channels=4),
    "kl-f4": AutoencoderSize((128, 256, 512), latent_channels=3),
    "tiny-f4": AutoencoderSize((64,), latent_channels=3, patch=4, blocks=1, attention=False),
    "tiny-f8": AutoencoderSize((64, 96), latent_channels=4, patch=4, blocks=1, attention=False),
}
"""The authors' two (84 and 55 M parameters), and small ones."""


@dataclass(frozen=True)
class Posterior:
    """What the encoder says of a latent: independent normal distributions, in scaled latent units.

    Attributes
    ----------
    mean, deviation : torch.Tensor
        ``(n, c, h, w)``.
    """

    mean: Tensor
    deviation: Tensor

    def sample(self) -> Tensor:
        """One latent, as training draws it; evaluation takes the mean."""
        return self.mean + self.deviation * torch.randn_like(self.mean)


class Autoencoder(nn.Module):
    """Slices to latents and back.

    Parameters
    ----------
    size : AutoencoderSize

    Attributes
    ----------
    core : diffusers.AutoencoderKL
    """

    def __init__(self, size: AutoencoderSize):
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        self.size = size
        levels = len(size.channels)
        self.core = AutoencoderKL(
            in_channels=size.patch**2,
            out_channels=size.patch**2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=size.channels,
            layers_per_block=size.blocks,
            latent_channels=size.latent_channels,
            norm_num_groups=32 if size.channels[0] % 32 == 0 else 8,
            mid_block_add_attention=size.attention,
        )

    def posterior(self, slices: Tensor) -> Posterior:
        """Latent distribution of slices, shape (n, 1, H, W), values in [-1, 1]."""
        found = self.core.encode(F.pixel_unshuffle(slices, self.size.patch), return_dict=False)[0]
        return Posterior(self.size.scale * found.mean, self.size.scale * found.std)

    def encode(self, slices: Tensor) -> Tensor:
        """Latents of slices, ``(n, c, H / factor, W / factor)``: the mean of `posterior`."""
        return self.posterior(slices).mean

    def forward(self, slices: Tensor) -> tuple[Tensor, Posterior]:
        """Reconstruction from a sampled latent, and the latent's distribution: what training needs."""
        posterior = self.posterior(slices)
        return self.decode(posterior.sample()), posterior

    def decode(self, latents: Tensor) -> Tensor:
        """Slices of latents, ``(n, 1, H, W)``, about -1 to 1."""
        folded = self.core.decode(latents / self.size.scale, return_dict=False)[0]
        return F.pixel_shuffle(folded, self.size.patch)
