"""The velocity network of REFLECT: what carries a latent from a departed brain towards a healthy one.

A U-Net of latent diffusion (Rombach et al., CVPR 2022) whose time is the plain number t in [0, 1], as Beizaee et al.
(MICCAI 2025) use it. The layers are those of diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VelocitySize:
    """The architecture of a velocity network.

    Attributes
    ----------
    channels : tuple of int
        Of each level, the finest first; each level has half the resolution of the one before.
    heads : int
        Attention heads, at every level that has attention.
    attention : tuple of bool
        Which levels have attention.
    blocks : int
        Residual blocks a level (one more on the way up).
    patch : int
        Squares of so many latent cells on a side become channels before the first layer and cells again after the last.
        1 leaves cells as they are.
    context : int
        Slices on either side that it sees as further input channels (2.5-D); 0 looks at one slice alone.
    volumetric : bool
        After every residual block, a convolution over three neighbouring slices (3-D, in two plus one dimensions: Tran
        et al., CVPR 2018). It starts as zero, so that training begins with a network of single slices.
    dropout : float
        While training.
    """

    channels: tuple[int, ...]
    heads: int = 4
    attention: tuple[bool, ...] = (True, True, True)
    blocks: int = 2
    patch: int = 1
    context: int = 0
    volumetric: bool = False
    dropout: float = 0.0

    @property
    def sees_neighbours(self) -> bool:
        """Whether a slice is looked at together with those beside it."""
        return self.volumetric or self.context > 0

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> VelocitySize:
        """The size that a model's card describes."""
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**lists)

    def to_card(self) -> dict[str, Any]:
        """The size as JSON holds it."""
        return asdict(self)


def _authors(channels: int, heads: int) -> VelocitySize:
    return VelocitySize((channels, 2 * channels, 4 * channels), heads, dropout=0.4)


SIZES: Mapping[str, VelocitySize] = {
    "XS": _authors(64, 4),
    "S": _authors(128, 4),
    "M": _authors(192, 6),
    "L": _authors(256, 8),
    "XL": _authors(384, 12),
    "tiny": VelocitySize((64, 96, 128), heads=4, attention=(False, False, True), blocks=1, patch=2),
}
"""The authors' sizes (16, 64, 145, 257 and 579 M parameters), and one that a laptop runs in seconds."""


class _PlainTime(nn.Module):
    """Time as it is, ``(n,)`` to ``(n, 1)``, where diffusion models have sines of it."""

    def forward(self, time: Tensor) -> Tensor:
        return time[:, None]


class Velocity(nn.Module):
    """Velocity of a latent at a time.

    Parameters
    ----------
    size : VelocitySize
    latent_channels : int

    Attributes
    ----------
    core : diffusers.UNet2DModel
    """

    def __init__(self, size: VelocitySize, latent_channels: int):
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding
        from diffusers.models.unets.unet_2d import UNet2DModel

        self.size = size
        self.latent_channels = latent_channels
        self.core = UNet2DModel(
            in_channels=latent_channels * (2 * size.context + 1) * size.patch**2,
            out_channels=latent_channels * size.patch**2,
            block_out_channels=size.channels,
            layers_per_block=size.blocks,
            down_block_types=tuple("AttnDownBlock2D" if has else "DownBlock2D" for has in size.attention),
            up_block_types=tuple("AttnUpBlock2D" if has else "UpBlock2D" for has in size.attention[::-1]),
            attention_head_dim=size.channels[0] // size.heads,
            norm_num_groups=_groups(size.channels),
            norm_eps=1e-5,
            dropout=size.dropout,
        )
        self.core.time_proj = _PlainTime()
        self.core.time_embedding = TimestepEmbedding(1, 4 * size.channels[0])
        self.core.apply(partial(_set_heads, heads=size.heads))
        if size.volumetric:
            self.core.apply(_join_slices)

    def forward(self, latent: Tensor, time: Tensor | float, stack: int | None = None) -> Tensor:
        """Velocity, shape (n, c, h, w).

        Parameters
        ----------
        latent : torch.Tensor
            ``(n, c * (2 * context + 1), h, w)``; with context, the slices from the lowest to the highest.
        time : torch.Tensor or float
            In [0, 1]; one, or ``(n,)``.
        stack : int, optional
            So many slices that follow each other are neighbours, from the lowest to the highest; all of them if not
            given. Nothing but a volumetric network asks.
        """
        for module in self.modules():
            if isinstance(module, _AcrossSlices):
                module.stack = stack or len(latent)
        times = torch.as_tensor(time, dtype=latent.dtype, device=latent.device).expand(len(latent))
        height, width = latent.shape[2:]
        framed = _framed(latent, self.size.patch * 2 ** (len(self.size.channels) - 1))
        folded = self.core(F.pixel_unshuffle(framed, self.size.patch), times, return_dict=False)[0]
        return F.pixel_shuffle(folded, self.size.patch)[..., :height, :width]


def begun(single: Velocity, size: VelocitySize) -> Velocity:
    """A network of a size that says what one of single slices says; what lies beside a slice changes nothing yet.

    Parameters
    ----------
    single : Velocity
        Of the same size, but for what it sees of neighbours: nothing, or just as much.

    Raises
    ------
    ValueError
        If the sizes differ in anything else.
    """
    if single.size != size and single.size != replace(size, context=0, volumetric=False):
        raise ValueError(f"A network of {size} cannot begin with one of {single.size}.")
    network = Velocity(size, single.latent_channels)
    weights = network.state_dict()
    for name, value in single.state_dict().items():
        here = name if name in weights else re.sub(r"(resnets\.\d+\.)", r"\1block.", name)
        if weights[here].shape != value.shape:
            # the slice itself lies in the middle of its neighbours' channels
            beside = (weights[here].shape[1] - value.shape[1]) // 2
            value = F.pad(value, (0, 0, 0, 0, beside, beside))
        weights[here] = value
    network.load_state_dict(weights)
    return network


def _framed(latent: Tensor, multiple: int) -> Tensor:
    """A latent with its last rows and columns repeated until every level of the network can be halved."""
    missing = [-size % multiple for size in latent.shape[2:]]
    return F.pad(latent, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else latent


class _AcrossSlices(nn.Module):
    """A residual block, then a convolution over neighbouring slices.

    Attributes
    ----------
    stack : int
        Slices of one brain that follow each other in a batch.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block
        channels = block.conv2.out_channels
        self.mix = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)
        self.stack = 1

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        flat = self.block(hidden, time)
        stacks = flat.reshape(-1, self.stack, *flat.shape[1:]).transpose(1, 2).flatten(3)
        return flat + self.mix(stacks).transpose(1, 2).reshape(flat.shape)


def _join_slices(module: nn.Module) -> None:
    """Let the residual blocks of a level of diffusers' U-Net see the slices beside theirs."""
    blocks = getattr(module, "resnets", None)
    if isinstance(blocks, nn.ModuleList):
        module.resnets = nn.ModuleList(_AcrossSlices(block) for block in blocks)


def _groups(channels: tuple[int, ...]) -> int:
    """32 groups of channels, as the authors have, or as many as narrower levels allow: at least 8 channels in each."""
    return 32 if all(width % 32 == 0 for width in channels) else 8


def _set_heads(module: nn.Module, heads: int) -> None:
    """Give every attention layer so many heads: diffusers would fix the channels of one head instead."""
    from diffusers.models.attention_processor import Attention

    if isinstance(module, Attention):
        width = module.to_q.out_features
        module.heads, module.scale = heads, (width // heads) ** -0.5


def with_context(latents: Tensor, context: int) -> Tensor:
    """Each slice of a brain with its neighbours as further channels.

    Parameters
    ----------
    latents : torch.Tensor
        ``(slices, c, h, w)``, from the lowest slice to the highest.
    context : int
        Neighbours on either side; beyond the ends the last slice is repeated.

    Returns
    -------
    torch.Tensor
        ``(slices, c * (2 * context + 1), h, w)``.
    """
    if context == 0:
        return latents
    last = len(latents) - 1
    order = torch.arange(len(latents), device=latents.device)
    return torch.cat([latents[(order + step).clamp(0, last)] for step in range(-context, context + 1)], dim=1)
