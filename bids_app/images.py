"""Small pure functions on NIfTI images: an array never travels without its affine.

Images are `nibabel.Nifti1Image`; world coordinates are millimetres, RAS+ (x grows to the patient's right).
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

Image = nib.Nifti1Image


def data(image: Image, dtype=np.float32) -> np.ndarray:
    """Voxel values of `image` as `dtype`, after the header's scaling."""
    return np.asarray(image.dataobj).astype(dtype, copy=False)


def like(reference: Image, values: np.ndarray) -> Image:
    """A new image with the grid of `reference` and the voxel `values` (bool is stored as uint8).

    Raises
    ------
    ValueError
        If the shape of `values` is not that of the reference.
    """
    if values.shape != reference.shape:
        raise ValueError(f"array of shape {values.shape} does not fit a grid of {reference.shape}")
    return on_affine(values, reference.affine)


def on_affine(values: np.ndarray, affine: np.ndarray) -> Image:
    """A NIfTI image of `values` with both sform and qform set to `affine` and units of millimetres."""
    stored = values.astype(np.uint8) if values.dtype == bool else values
    image = nib.Nifti1Image(stored, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return image


def with_form_code(image: Image, code: int) -> Image:
    """The image, whose sform and qform carry a code of NIfTI's: what its world coordinates are those of."""
    out = on_affine(np.asanyarray(image.dataobj), image.affine)
    out.set_sform(image.affine, code=int(code))
    out.set_qform(image.affine, code=int(code))
    return out


def masked(image: Image, mask: Image) -> Image:
    """`image` inside `mask`, zero outside of it; float32, one grid."""
    return like(image, np.where(data(mask) > 0, data(image), np.float32(0)))


def load(path: Path) -> Image:
    """Load a NIfTI file that this App wrote itself (raw files go through `preprocessing.headers`)."""
    return nib.load(path)


def save(image: Image, path: Path) -> Path:
    """Write a file of the work folder, making its folder (derivatives go through `derivatives.write`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def voxel_volume_mm3(image: Image) -> float:
    """Volume of one voxel in mm3."""
    return float(abs(np.linalg.det(image.affine[:3, :3])))


def to_ras(image: Image) -> Image:
    """The same scan with axes reordered and flipped to the closest RAS+ orientation; no interpolation."""
    return nib.as_closest_canonical(image)


def same_grid(first: Image, second: Image, tolerance_mm: float = 1e-3) -> bool:
    """Whether two images share shape and affine (to `tolerance_mm`)."""
    return first.shape[:3] == second.shape[:3] and np.allclose(first.affine, second.affine, atol=tolerance_mm)


def resample(image: Image, reference: Image, order: int = 1) -> Image:
    """Resample `image` onto the grid of `reference` through world coordinates.

    Parameters
    ----------
    order : int
        Spline order: 0 for labels, 1 for probabilities, 3 for scans.
    """
    if same_grid(image, reference):
        return image
    from nibabel.processing import resample_from_to  # scipy.ndimage takes long to import

    out = resample_from_to(image, (reference.shape[:3], reference.affine), order=order)
    return on_affine(np.asarray(out.dataobj), reference.affine)


def world(image: Image, voxels: np.ndarray) -> np.ndarray:
    """World coordinates in mm of voxel indices, shape (n, 3) to (n, 3)."""
    return nib.affines.apply_affine(image.affine, voxels)
