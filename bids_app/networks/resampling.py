"""Fast resizing of volumes with the numbers of nnU-Net's default resampling.

nnU-Net resizes with `skimage.transform.resize` (edge mode, no anti-aliasing), that is with SciPy's splines. Spline
interpolation on a regular grid is linear and separable, so the whole operation, prefilter included, is one small
matrix for each axis: three matrix products give the same values up to rounding, several times faster. At order 1 it is
PyTorch's trilinear interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage


def resize(volume: torch.Tensor, shape: Sequence[int], order: int) -> torch.Tensor:
    """Resize the last three axes of a volume.

    Parameters
    ----------
    volume : Tensor, shape (channels, x, y, z), float32
    shape : sequence of 3 int
        New x, y, z.
    order : int
        Spline order: 1 for logits, 3 for scans. Splines above order 1 overshoot; every channel is clipped to its
        range, as scikit-image does.

    Returns
    -------
    Tensor, shape (channels, \\*shape), float32
    """
    shape = tuple(int(size) for size in shape)
    if tuple(volume.shape[1:]) == shape:
        return volume
    if order == 1:
        return torch.nn.functional.interpolate(volume[None], shape, mode="trilinear", align_corners=False)[0]
    channels, *old = volume.shape
    by_x, by_y, by_z = (
        torch.from_numpy(spline_matrix(before, after, order)).to(volume.device)
        for before, after in zip(old, shape, strict=True)
    )
    out = by_y @ (volume @ by_z.T)
    out = (by_x @ out.reshape(channels, old[0], -1)).reshape(channels, *shape)
    low, high = volume.amin(dim=(1, 2, 3), keepdim=True), volume.amax(dim=(1, 2, 3), keepdim=True)
    return torch.minimum(torch.maximum(out, low), high)


def spline_matrix(old: int, new: int, order: int) -> np.ndarray:
    """The linear map, shape (new, old), float32, that resizes one axis of `old` samples to `new` ones.

    Samples sit at voxel centres, and values beyond the border are those of the border.
    """
    units = np.eye(old)
    columns = [ndimage.zoom(unit, new / old, order=order, mode="nearest", grid_mode=True) for unit in units]
    return np.stack(columns, axis=1).astype(np.float32)
