"""LPIPS (Zhang et al., CVPR 2018), the perceptual loss of the authors' autoencoder, from weights that the user has."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_app.errors import ConfigError
from bids_app.networks.weights import load_checkpoint

VGG, LINEAR = "vgg16-397923af.pth", "vgg.pth"
"""Files as torchvision (VGG16 trained on ImageNet) and LPIPS v0.1 publish them."""
_STAGES = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Distance of two pictures in the layers of VGG16: ``(n, 1, H, W)`` in [-1, 1] to ``(n,)``."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))
            for widths in _STAGES
        )
        self.linear = nn.ParameterList(torch.ones(widths[-1]) for widths in _STAGES)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])

    def forward(self, made: Tensor, image: Tensor) -> Tensor:
        total = torch.zeros(len(image), device=image.device)
        for one, other, weights in zip(self._features(made), self._features(image), self.linear, strict=True):
            difference = (F.normalize(one, dim=1, eps=1e-10) - F.normalize(other, dim=1, eps=1e-10)) ** 2
            total = total + (difference * weights[:, None, None]).sum(dim=1).mean(dim=(1, 2))
        return total

    def _features(self, image: Tensor) -> list[Tensor]:
        hidden, found = (image.float().expand(-1, 3, -1, -1) - self.shift) / self.scale, []
        for number, stage in enumerate(self.stages):
            hidden = F.max_pool2d(hidden, 2) if number else hidden
            for layer in stage:
                hidden = F.relu(layer(hidden))
            found.append(hidden)
        return found


def read_lpips(folder: Path) -> Lpips:
    """LPIPS with its published weights.

    Parameters
    ----------
    folder : Path
        Holds ``vgg16-397923af.pth`` and ``vgg.pth``.

    Raises
    ------
    ConfigError
        If one of them is missing, or not what its name says.
    """
    network = Lpips()
    try:
        vgg, linear = (load_checkpoint(folder / name) for name in (VGG, LINEAR))
        numbers = sorted({int(name.split(".")[1]) for name in vgg if name.startswith("features.")})
        layers = [layer for stage in network.stages for layer in stage]
        for number, layer in zip(numbers, layers, strict=True):
            layer.load_state_dict({kind: vgg[f"features.{number}.{kind}"] for kind in ("weight", "bias")})
        for number, weights in enumerate(network.linear):
            weights.data.copy_(linear[f"lin{number}.model.1.weight"].flatten())
    except (ConfigError, OSError, KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"The weights of LPIPS in {folder} cannot be used: {error}.",
            f"It holds {VGG} of torchvision and {LINEAR} of LPIPS v0.1 (lpips/weights/v0.1).",
        ) from error
    return network.requires_grad_(False).eval()
