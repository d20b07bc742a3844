"""Slices as the networks take them, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bids_app.anomaly.slices import margins


def as_tensor(grey: np.ndarray) -> Tensor:
    """Grey values as networks see them, ``(n, 1, H, W)`` float32 in [-1, 1]; -1 outside of the brain."""
    return torch.from_numpy(grey.astype(np.float32))[:, None] / 127.5 - 1


def padded(slices: Tensor, shape: Sequence[int]) -> Tensor:
    """Slices in the middle of larger ones, -1 around them: networks of REFLECT's authors take 256 x 256."""
    last_first = [side for sides in reversed(margins(slices.shape[2:], shape)) for side in sides]
    return F.pad(slices, last_first, value=-1.0)


def cropped(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """The middle of larger maps; the inverse of `padded`, over the last two axes."""
    starts = [(size - goal) // 2 for size, goal in zip(maps.shape[-2:], shape, strict=True)]
    return maps[..., starts[0] : starts[0] + shape[0], starts[1] : starts[1] + shape[1]]
