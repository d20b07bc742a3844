"""How anomalous healthy brains are at each place: folds of the cortex differ from their twins in every brain.

The map of REFLECT has one scale for the whole brain. Beside the maps of healthy brains it says what is unusual where it
is, as a z-score says it of grey values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_app import images
from bids_app.anomaly.folder import DEVIATIONS, LEAST_DEVIATION
from bids_app.anomaly.slices import SHAPE, box
from bids_app.errors import ConfigError

BLUR = 3.0
"""Of what was gathered, in pixels: a place is as exact as affine alignment brings brains to it."""
SPACING = 4
"""Pixels from one stored value to the next: they are smooth."""


def moments_by_place(
    values: Iterable[tuple[np.ndarray, np.ndarray]], blur: float, least_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance at every place, over those that have brain there; variances may be less than 0 by rounding.

    Parameters
    ----------
    values : iterable of (ndarray, ndarray)
        Values, and where there is brain (booleans), all of one shape.
    blur : float
        Standard deviation of a Gaussian, pixels: where few have brain, their neighbours tell.
    least_share : float
        Of brains at a place, to divide by.
    """
    share = total = squares = np.float32(0)
    for each, brain in values:
        inside = np.where(brain, each, 0).astype(np.float32)
        share, total, squares = share + brain, total + inside, squares + inside**2
    share, total, squares = (ndimage.gaussian_filter(np.float32(each), blur) for each in (share, total, squares))
    share = np.maximum(share, least_share)
    mean = total / share
    return mean, squares / share - mean**2


@dataclass(frozen=True)
class Usual:
    """Anomaly of healthy brains by place.

    Attributes
    ----------
    mean, deviation : ndarray
        Over brains, of the shape of a map, float32.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, healthy: Iterable[tuple[np.ndarray, np.ndarray]]) -> Usual | None:
        """From the maps of healthy brains, and where each has brain (booleans), all of one shape; None without any."""
        healthy = iter(healthy)
        first = next(healthy, None)
        if first is None:
            return None
        mean, variance = moments_by_place(chain([first], healthy), BLUR, least_share=1e-2)
        return cls(mean, np.sqrt(np.maximum(variance, 0)))

    def scores(self, anomaly: np.ndarray) -> np.ndarray:
        """Deviations by which maps (the last axes are those of a map) lie above what is usual at each place."""
        return (anomaly - self.mean) / (self.deviation + LEAST_DEVIATION)

    @property
    def limits(self) -> np.ndarray:
        """Anomaly from which a brain is unusual, at each place."""
        return self.mean + DEVIATIONS * (self.deviation + LEAST_DEVIATION)

    def save(self, path: Path) -> Path:
        """Write both as an image in MNI space, ``(x, y, z, 2)``; of whole brains on the grid of `slices.box`."""
        coarse = np.stack([_shrunk(values) for values in (self.mean, self.deviation)], axis=-1)
        stored = np.ascontiguousarray(coarse[:, ::-1].transpose(2, 1, 0, 3))
        return images.save(images.on_affine(stored.astype(np.float32), _coarse_affine()), path)

    @classmethod
    def load(cls, path: Path) -> Usual:
        """Read what `save` wrote, in whichever order its voxels are stored.

        Raises
        ------
        ConfigError
            If it is no such image, or one of another grid.
        """
        try:
            image = nib.as_closest_canonical(nib.load(path))
            stored = np.asarray(image.dataobj, np.float32)
        except (OSError, ValueError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
            raise ConfigError(f"{path} cannot be read: {error}.", "Copy the model folder again.") from error
        expected = (*(size // SPACING for size in reversed(SHAPE)), 2)
        if stored.shape != expected or not np.allclose(image.affine, _coarse_affine(), atol=1e-2):
            raise ConfigError(
                f"{path} has another grid than what is usual is stored on.", "Copy the model folder again."
            )
        mean, deviation = np.moveaxis(stored.transpose(2, 1, 0, 3)[:, ::-1], -1, 0)
        return cls(_enlarged(mean), _enlarged(deviation))


def _coarse_affine() -> np.ndarray:
    """Of the grid of `slices.box` with larger voxels."""
    affine = box().affine @ np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = nib.affines.apply_affine(box().affine, np.full(3, (SPACING - 1) / 2))
    return affine


def _shrunk(values: np.ndarray) -> np.ndarray:
    """Means of cubes of `SPACING` pixels a side."""
    split = [part for size in values.shape for part in (size // SPACING, SPACING)]
    return values.reshape(split).mean(axis=(1, 3, 5))


def _enlarged(values: np.ndarray) -> np.ndarray:
    return ndimage.zoom(values, SPACING, order=1, mode="nearest", grid_mode=True)
