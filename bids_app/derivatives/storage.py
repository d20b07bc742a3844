"""How images are stored: in whole numbers of a step that suits what they hold, and with the code of their space.

Networks and interpolation leave noise in all 24 bits of a single-precision voxel, which no compression shortens. A
visit stored so took three times the space, and nobody can tell the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from bids_app import images
from bids_app.derivatives.names import NATIVE_SPACES
from bids_app.images import Image

#: Of maps from 0 to 1.
MAP_STEP = 2.0**-10
#: A scan is stored in at least so many grey levels up to its `BRIGHT` percentile: far below the noise of any scanner.
GREY_LEVELS = 2000
BRIGHT = 99.9
LARGEST = np.iinfo(np.int16).max


class FormCode(IntEnum):
    """What NIfTI's sform and qform codes say of world coordinates."""

    SCANNER = 1  # of the scanner
    ALIGNED = 2  # of another scan
    MNI = 4
    TEMPLATE = 5  # of another template


def code_of_space(space: str) -> FormCode:
    """The code of images that were brought to a space, as fMRIPrep writes it.

    >>> code_of_space("MNI152NLin2009aSym").name, code_of_space("OASIS30ANTs").name, code_of_space("T1w").name
    ('MNI', 'TEMPLATE', 'ALIGNED')
    """
    if space in NATIVE_SPACES:
        return FormCode.ALIGNED
    return FormCode.MNI if space.startswith("MNI") else FormCode.TEMPLATE


@dataclass(frozen=True)
class Scan:
    """A scan, or a synthetic one, in its own grey values."""

    def voxels(self, image: Image) -> tuple[np.ndarray, float]:
        """Voxels as they are stored, int16, and their step."""
        values = _finite(image)
        some = values[::2, ::2, ::2]  # enough voxels to say how bright the scan is
        bright = np.percentile(some[some > 0], BRIGHT) if (some > 0).any() else 0.0
        fine, needed = bright / GREY_LEVELS, np.abs(values).max(initial=0.0) / LARGEST
        # steps that are powers of two, so that all software reads exactly the same values; the brightest voxel fits
        step = max(_power_of_two(fine, np.floor), _power_of_two(needed, np.ceil)) or 1.0
        return np.rint(values * np.float32(1 / step)).astype(np.int16), step


@dataclass(frozen=True)
class Map:
    """A map from 0 to 1 (a probability, an uncertainty, an anomaly), which is zero outside the brain.

    Attributes
    ----------
    inside : tuple of Path
        Masks on the grid of the map; it is kept where any of them is.
    threshold : float or None
        Rounding brings no voxel to the other side of it.
    """

    inside: tuple[Path, ...] = ()
    threshold: float | None = None

    def voxels(self, image: Image) -> tuple[np.ndarray, float]:
        """Voxels as they are stored, int16, and their step."""
        values = _finite(image)
        # downwards, so that 0.5 and every other whole number of steps is a threshold that parts the voxels as before
        levels = np.floor(values * np.float32(1 / MAP_STEP)).astype(np.int16)
        if self.threshold is not None:
            levels = _on_their_side(levels, values >= np.float32(self.threshold), self.threshold)
        if self.inside:
            levels[~_any_of(self.inside)] = 0
        return levels, MAP_STEP


@dataclass(frozen=True)
class Labels:
    """A mask or whole numbers, in the smallest type that holds them."""

    def voxels(self, image: Image) -> tuple[np.ndarray, float]:
        """Voxels as they are stored, and their step."""
        values = np.asarray(image.dataobj)
        return values.astype(np.min_scalar_type(int(values.max(initial=0)))), 1.0


Kind = Scan | Map | Labels


def stored(image: Image, kind: Kind, code: FormCode) -> Image:
    """An image ready to be written: compact, with sform and qform of one code.

    Parameters
    ----------
    image : Image
        As the steps of a visit hand it on, after the header's scaling.

    Returns
    -------
    Image
        Its voxels are those of the file: in memory, the header's scaling has not been applied to them.
    """
    voxels, step = kind.voxels(image)
    out = images.with_form_code(images.like(image, voxels), code)
    if step != 1.0:
        out.header.set_slope_inter(step, 0.0)
    return out


def _finite(image: Image) -> np.ndarray:
    """Voxel values, float32, zero where there is no number."""
    values = images.data(image)
    return values if np.isfinite(values).all() else np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _power_of_two(value: float, rounding: Callable[[float], float]) -> float:
    """A power of two near a value, below it or above it; 0 of zero.

    >>> _power_of_two(0.3, np.floor), _power_of_two(0.3, np.ceil), _power_of_two(0.0, np.ceil)
    (0.25, 0.5, 0.0)
    """
    return float(2.0 ** rounding(np.log2(value))) if value > 0 else 0.0


def _on_their_side(levels: np.ndarray, above: np.ndarray, threshold: float) -> np.ndarray:
    """Levels moved by one where rounding took them over the threshold, or below it."""
    rounded_above = levels * MAP_STEP >= threshold
    return levels + (above & ~rounded_above) - (~above & rounded_above)


def _any_of(masks: tuple[Path, ...]) -> np.ndarray:
    """Where any of the masks is; bool."""
    return np.logical_or.reduce([images.data(images.load(mask)) > 0 for mask in masks])
