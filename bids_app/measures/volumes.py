"""Volumes of masks, their classes, and on which side of the brain they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine

from bids_app import images
from bids_app.images import Image

#: Upper limits in mL of the classes ``small`` and ``medium`` (Di Matteo et al., Pattern Recognition Letters 2026).
SMALL_ML = 15.0
MEDIUM_ML = 70.0

#: Share of a lesion's voxels that must lie on one side for the lesion to count as of that side.
ONE_SIDE = 0.9


@dataclass(frozen=True)
class SideVolumes:
    """Volumes in mL left and right of the midplane; voxels exactly on it count half on each side."""

    left_ml: float
    right_ml: float


def volume_ml(mask: Image) -> float:
    """Volume in mL of the voxels of `mask` above zero."""
    return int(np.count_nonzero(np.asarray(mask.dataobj) > 0)) * images.voxel_volume_mm3(mask) / 1000


def volume_class(ml: float) -> str:
    """Class of a visit's total lesion volume: ``none``, ``small`` (to 15 mL), ``medium`` (to 70 mL) or ``large``.

    >>> [volume_class(ml) for ml in (0, 15, 15.1, 70, 70.1)]
    ['none', 'small', 'medium', 'medium', 'large']

    Raises
    ------
    ValueError
        If `ml` is negative or not a number.
    """
    if not ml >= 0:
        raise ValueError(f"{ml} is no volume")
    if ml == 0:
        return "none"
    return "small" if ml <= SMALL_ML else "medium" if ml <= MEDIUM_ML else "large"


def left_of_midplane(image: Image, voxels: np.ndarray, pose_matrix: np.ndarray | None = None) -> np.ndarray:
    """How much of each voxel counts as left: 1 left of the midplane, 0 right of it, 0.5 exactly on it.

    Parameters
    ----------
    image : Image
        The grid of the voxels.
    voxels : ndarray, shape (n, 3)
        Voxel indices.
    pose_matrix : ndarray, shape (4, 4), optional
        Carries world coordinates of the image (mm, RAS+) to the MNI pose, whose midplane is x = 0. Without it the
        image is taken to be in that pose.
    """
    x = apply_affine(_to_pose(image, pose_matrix), voxels)[:, 0]
    return np.where(np.abs(x) < 1e-6, 0.5, x < 0).astype(float)


def side_volumes(mask: Image, pose_matrix: np.ndarray | None = None) -> SideVolumes:
    """Volume of `mask` on either side of the midplane of the MNI pose (see `left_of_midplane`)."""
    voxels = np.argwhere(np.asarray(mask.dataobj) > 0)
    left = float(left_of_midplane(mask, voxels, pose_matrix).sum())
    ml = images.voxel_volume_mm3(mask) / 1000
    return SideVolumes(left * ml, (len(voxels) - left) * ml)


def hemisphere(image: Image, voxels: np.ndarray, pose_matrix: np.ndarray | None = None) -> str:
    """``L`` or ``R`` if at least 90 % of the voxels lie on that side of the midplane, else ``B``.

    Parameters
    ----------
    voxels : ndarray, shape (n, 3), n > 0
        Voxel indices in `image`.
    """
    left = float(left_of_midplane(image, voxels, pose_matrix).mean())
    if left >= ONE_SIDE:
        return "L"
    return "R" if 1 - left >= ONE_SIDE else "B"


def _to_pose(image: Image, pose_matrix: np.ndarray | None) -> np.ndarray:
    """Matrix from voxel indices to the MNI pose."""
    return image.affine if pose_matrix is None else pose_matrix @ image.affine
