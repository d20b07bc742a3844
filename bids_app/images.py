"""Small pure functions on NIfTI images: an array never travels without its affine.

Images are `nibabel.Nifti1Image`; world coordinates are millimetres, RAS+ (x grows to the patient's right).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

Image = nib.Nifti1Image


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie, without their values.

    Attributes
    ----------
    shape : tuple of int
        Number of voxels along each of the three axes.
    affine : ndarray, shape (4, 4)
        Voxel indices to world coordinates, mm, RAS+.
    """

    shape: tuple[int, ...]
    affine: np.ndarray

    @classmethod
    def of(cls, image: Image) -> Grid:
        """The grid of an image."""
        return cls(image.shape[:3], image.affine)

    def to_ras(self) -> Grid:
        """The same voxels with their axes in the closest RAS+ order."""
        orientation = nib.io_orientation(self.affine)
        shape = tuple(self.shape[int(axis)] for axis in np.argsort(orientation[:, 0]))
        return Grid(shape, self.affine @ nib.orientations.inv_ornt_aff(orientation, self.shape))

    def corners(self) -> np.ndarray:
        """World coordinates of the eight outermost voxels, shape (8, 3), mm."""
        ends = np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij")
        return nib.affines.apply_affine(self.affine, np.stack(ends, axis=-1).reshape(-1, 3))

    def largest_gap_mm(self, other: Grid) -> float:
        """Largest distance between corners of the same index; infinite if the shapes differ."""
        if self.shape != other.shape:
            return np.inf
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())


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


def to_axes(image: Image, axes: str) -> Image:
    """The same scan with its voxels stored in another order, such as ``LIA``; no interpolation."""
    here, there = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axes))
    return image.as_reoriented(nib.orientations.ornt_transform(here, there))


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
