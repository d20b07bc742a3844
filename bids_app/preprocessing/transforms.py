"""Linear and ITK transforms between spaces, with one convention that is written down and tested.

A **matrix** is 4 x 4, double, in RAS+ millimetres, and *pushes*: ``matrix @ [x, y, z, 1]`` carries a point of the
source image to the target space, so `apply_linear` moves the picture the way the matrix moves points.
``from-FLAIR_to-T1w`` is the matrix that carries the FLAIR onto the T1w; the way back is its inverse.

An **ITK file** (.txt, .h5) of the name ``from-X_to-Y_mode-image`` *pulls*, as in fMRIPrep: it is what
``antsApplyTransforms -r Y -i X -t file`` wants, that is to say it carries points of Y to X. Points of X therefore go to
Y through the file ``from-Y_to-X`` (`apply_itk_to_points`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from bids_app.errors import VisitError
from bids_app.images import Image, data, like
from bids_app.preprocessing.itk import RAS_TO_LPS, from_itk, pull_transform, to_itk

Interpolation = Literal["nearest", "linear", "cubic"]

_INTERPOLATORS = {"nearest": sitk.sitkNearestNeighbor, "linear": sitk.sitkLinear, "cubic": sitk.sitkBSpline}
_BY_ORDER: dict[int, Interpolation] = {0: "nearest", 1: "linear", 3: "cubic"}


def apply_linear(image: Image, matrix: np.ndarray, reference: Image, order: int = 1) -> Image:
    """Move `image` by `matrix` and sample it on the grid of `reference`; 0 outside.

    Parameters
    ----------
    matrix : array of shape (4, 4)
        RAS mm, source world to target world (push).
    order : {0, 1, 3}
        0 for labels (the data type is kept), 1 for probabilities, 3 for scans (clipped to the range of the input,
        because splines overshoot at edges).
    """
    return resample_itk(image, pull_transform(matrix), reference, _BY_ORDER[order])


def apply_itk(
    image: Image,
    transform_path: Path,
    reference: Image,
    interpolation: Interpolation = "linear",
    first: np.ndarray | None = None,
) -> Image:
    """Move `image` with the ITK file ``from-<space of image>_to-<space of reference>``, onto the grid of `reference`.

    Parameters
    ----------
    first : array of shape (4, 4), optional
        Pushing matrix from the world of the image to the space that the file starts from: both in one interpolation.

    Raises
    ------
    VisitError
        If the file is missing or holds no transform that ITK knows.
    """
    pull = read_itk(transform_path)
    if first is not None:
        # points come from the reference: ITK applies the last transform of a list first
        pull = sitk.CompositeTransform([pull_transform(first), pull])
    return resample_itk(image, pull, reference, interpolation)


def apply_to_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Carry world points, shape (n, 3) in RAS mm, from source to target with a pushing `matrix`."""
    return np.asarray(points) @ matrix[:3, :3].T + matrix[:3, 3]


def rotation_degrees(matrix: np.ndarray) -> float:
    """By how much a matrix turns, whatever it scales or shears: 0 to 180 degrees, about whichever axis."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    return float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))


def apply_itk_to_points(points: np.ndarray, transform_path: Path) -> np.ndarray:
    """Carry world points, shape (n, 3) in RAS mm, through an ITK file: from Y to X with ``from-X_to-Y``.

    To place a T1w centroid in standard space use ``from-<standard>_to-T1w``.
    """
    transform = read_itk(transform_path)
    lps = np.asarray(points, float) @ RAS_TO_LPS[:3, :3]
    return np.array([transform.TransformPoint(point) for point in lps.tolist()]).reshape(-1, 3) @ RAS_TO_LPS[:3, :3]


def write_itk_linear(matrix: np.ndarray, path: Path) -> Path:
    """Write a pushing RAS `matrix` as an ITK text transform (pull, LPS), the form of fMRIPrep's ``.txt`` files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pull = RAS_TO_LPS @ np.linalg.inv(matrix) @ RAS_TO_LPS
    numbers = " ".join(repr(float(value)) for value in [*pull[:3, :3].ravel(), *pull[:3, 3]])
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )
    return path


def read_itk(path: Path) -> sitk.Transform:
    """An ITK transform from .txt, .mat, .tfm or .h5.

    Raises
    ------
    VisitError
        If the file is missing or holds no transform that ITK knows.
    """
    if not path.is_file():  # asked first, because HDF5 prints a page about it
        raise VisitError(f"The transform {path} does not exist.", "Check the path.")
    try:
        return sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise VisitError(f"{path} cannot be read as an ITK transform.", "Copy or compute it again.") from error


def resample_itk(image: Image, pull: sitk.Transform, reference: Image, interpolation: Interpolation) -> Image:
    """Sample `image`, pulled by an ITK transform, on the grid of `reference`."""
    grid = to_itk(like(reference, np.zeros(reference.shape, np.uint8)), np.uint8)
    dtype = _itk_dtype(image) if interpolation == "nearest" else np.float32
    moved = from_itk(sitk.Resample(to_itk(image, dtype), grid, pull, _INTERPOLATORS[interpolation], 0.0))
    values = data(moved, dtype)
    if interpolation == "cubic":
        values = np.clip(values, min(0.0, float(data(image).min())), float(data(image).max()))
    return like(reference, values)


def _itk_dtype(image: Image) -> np.dtype:
    """A data type that keeps the labels of `image` and that ITK knows."""
    scaled = image.header.get_slope_inter() != (None, None) and image.header.get_slope_inter() != (1.0, 0.0)
    stored = image.get_data_dtype()
    return np.dtype(np.float32) if scaled or stored.kind not in "iu" else stored.newbyteorder("=")
