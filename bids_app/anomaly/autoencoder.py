"""The autoencoder of REFLECT: axial slices to latents and back.

A one-channel KL autoencoder of latent diffusion (Rombach et al., CVPR 2022) made of diffusers' layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

SCALE = 0.18215
"""What latents are multiplied by, of every autoencoder of the authors (f8 and f4 alike) and of ours."""


@dataclass(frozen=True)
class AutoencoderSize:
    """The architecture of an autoencoder.

    Attributes
    ----------
    channels : tuple of int
        Of each level, at full resolution first; each level has half the resolution of the one before.
    latent_channels : int
    blocks : int
        Residual blocks a level (one more on the way up).
    attention : bool
        Whether there is attention at the coarsest level.
    """

    channels: tuple[int, ...]
    latent_channels: int
    blocks: int = 2
    attention: bool = True

    @property
    def factor(self) -> int:
        """Pixels on a side of one latent cell."""
        return 2 ** (len(self.channels) - 1)

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
    "tiny-f4": AutoencoderSize((16, 32, 64), latent_channels=3, blocks=1, attention=False),
    "tiny-f8": AutoencoderSize((16, 32, 64, 96), latent_channels=4, blocks=1, attention=False),
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

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One latent, as training draws it; evaluation takes the mean."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.deviation * noise


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
            in_channels=1,
            out_channels=1,
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
        found = self.core.encode(slices, return_dict=False)[0]
        return Posterior(SCALE * found.mean, SCALE * found.std)

    def encode(self, slices: Tensor) -> Tensor:
        """Latents of slices, ``(n, c, H / factor, W / factor)``: the mean of `posterior`."""
        return self.posterior(slices).mean

    def decode(self, latents: Tensor) -> Tensor:
        """Slices of latents, ``(n, 1, H, W)``, about -1 to 1."""
        return self.core.decode(latents / SCALE, return_dict=False)[0]
