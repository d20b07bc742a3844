"""A toy head and toy lesions, made in the test: an ellipsoid brain with a mark in its left half."""

from __future__ import annotations

from functools import cache

import nibabel as nib
import numpy as np

from bids_app.training import anatomy
from bids_app.training.anatomy import Head, LesionMask
from bids_app.training.synthesis.tissue import Source, make_source

SHAPE = (150, 180, 140)
"""(x, y, z) of the label map, 1 mm."""
AFFINE = np.array([[1, 0, 0, -75], [0, 1, 0, -90], [0, 0, 1, -70], [0, 0, 0, 1.0]])
LEFT_PUTAMEN, RIGHT_PUTAMEN = 12, 51


@cache
def label_map() -> nib.Nifti1Image:
    """RAS label map: CSF around cortex around white matter around a ventricle; skull; a putamen on the left only."""
    x, y, z = (axis - n / 2 for axis, n in zip(np.ogrid[tuple(slice(0, n) for n in SHAPE)], SHAPE, strict=True))
    radius = np.sqrt((x / 65) ** 2 + (y / 80) ** 2 + (z / 60) ** 2)
    labels = np.zeros(SHAPE, np.int16)
    for limit, label in ((1.1, 507), (1.0, 24), (0.96, 3), (0.88, 2), (0.2, 4)):
        labels[radius < limit] = label
    labels[(x + 30) ** 2 + (y - 20) ** 2 + z**2 < 10**2] = LEFT_PUTAMEN
    return nib.Nifti1Image(labels, AFFINE)


def no_alignment(brain: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The toy head lies as it should already."""
    return np.eye(4), np.eye(4)


@cache
def toy_head(name: str = "training_seg_01") -> Head:
    return anatomy.make_head(name, label_map(), align=no_alignment)


@cache
def toy_source(name: str = "training_seg_01") -> Source:
    return make_source(toy_head(name))


def lesion_image(center: tuple[float, float, float], radius: float) -> nib.Nifti1Image:
    """A ball at (x, y, z) millimetres as a RAS mask."""
    axes = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    squared = sum((axis + start - middle) ** 2 for axis, start, middle in zip(axes, AFFINE[:3, 3], center, strict=True))
    ball = squared < radius**2
    return nib.Nifti1Image(ball.astype(np.uint8), AFFINE)


@cache
def toy_lesion(x: float = -35.0, radius: float = 14.0, name: str = "sub-0002") -> LesionMask:
    return anatomy.make_lesion(name, lesion_image((x, -20.0, 10.0), radius))
