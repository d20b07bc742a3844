"""Distances between the surfaces of two masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def assd(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> float:
    """Average symmetric surface distance, mm: mean over the surface voxels of both masks of the distance to the other.

    A surface voxel is one with a face neighbour outside its mask; distances run between voxel centres (Heimann et al.
    2009, IEEE Transactions on Medical Imaging 28(8)). StrokeSeg's own "ASD" is the mean over all voxels of the masks,
    and smaller.

    Parameters
    ----------
    reference, prediction : ndarray
        Masks of one shape; above zero is lesion.
    spacing : sequence of float
        Voxel size along each axis, mm.

    Returns
    -------
    float
        nan if a mask is empty.
    """
    first, second = reference > 0, prediction > 0
    if not (first.any() and second.any()):
        return math.nan
    box = _box(first | second)
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (first[box], second[box])]
    away = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    distances = np.concatenate([away[1][surfaces[0]], away[0][surfaces[1]]])
    return float(distances.mean())


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Bounding box, one voxel wider than the mask where there is room, so that its border is seen."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, side.start - 1), side.stop + 1) for side in found)
