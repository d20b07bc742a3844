"""The border to SimpleITK: the one place where RAS meets LPS, and where (x, y, z) meets (z, y, x).

nibabel speaks RAS+ millimetres, ITK speaks LPS+: the first two world axes change sign. ITK transforms are *pull*
transforms: they carry a point of the fixed (target) image to the point of the moving (source) image whose value
belongs there. Everything outside this module and `transforms` is RAS and *push*: a matrix carries the image.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from bids_app.images import Image, data, on_affine

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_itk(image: Image, dtype=np.float32) -> sitk.Image:
    """The same image for SimpleITK, voxels as `dtype`.

    Raises
    ------
    ValueError
        If the affine is sheared: ITK knows no such images (`preprocessing.headers` mends or refuses them).
    """
    affine = RAS_TO_LPS @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = _orthonormal(affine[:3, :3] / spacing)
    out = sitk.GetImageFromArray(np.ascontiguousarray(data(image, dtype).T))
    out.SetSpacing(spacing.tolist())
    out.SetOrigin(affine[:3, 3].tolist())
    out.SetDirection(direction.ravel().tolist())
    return out


def from_itk(image: sitk.Image) -> Image:
    """A SimpleITK image as NIfTI, axes and voxel values unchanged."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return on_affine(sitk.GetArrayFromImage(image).T, RAS_TO_LPS @ affine)


def pull_transform(matrix: np.ndarray) -> sitk.AffineTransform:
    """The ITK transform that moves an image by `matrix` (4 x 4, RAS mm, source to target)."""
    pull = RAS_TO_LPS @ np.linalg.inv(matrix) @ RAS_TO_LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(pull[:3, :3].ravel().tolist())
    transform.SetTranslation(pull[:3, 3].tolist())
    return transform


def push_matrix(transform: sitk.Transform) -> np.ndarray:
    """The inverse of `pull_transform`, for any linear ITK transform whatever its class and centre.

    Raises
    ------
    ValueError
        If the transform is not linear.
    """
    if not transform.IsLinear():
        raise ValueError("the transform is not linear")
    corners = np.vstack([np.zeros(3), np.eye(3)]).tolist()
    origin, *axes = (np.array(transform.TransformPoint(corner)) for corner in corners)
    pull = np.eye(4)
    pull[:3, :3] = np.transpose([axis - origin for axis in axes])
    pull[:3, 3] = origin
    return RAS_TO_LPS @ np.linalg.inv(pull) @ RAS_TO_LPS


def _orthonormal(direction: np.ndarray, tolerance: float = 1e-3) -> np.ndarray:
    """`direction` without its rounding errors (float32 headers are orthonormal to 1e-7 only)."""
    left, stretch, right = np.linalg.svd(direction)
    if np.abs(stretch - 1).max() > tolerance:
        raise ValueError("the affine is sheared, which ITK cannot represent")
    return left @ right
