"""Morphological corruption: a healthy slice whose fluid spaces were made wider or narrower by a smooth deformation.

REFLECT's patches teach it to mend what is focal; wide ventricles, wide sulci and local atrophy are no patches, and are
left as they are. Here they are made of healthy slices, before these are encoded, so that the flow learns the way back.
No labels are needed: fluid is what is dark in a T1w and in a FLAIR alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage

FLUID = 0.22
"""Share of the grey range below which a pixel of the brain is taken for fluid."""
DEEP_PIXELS = 25
"""Fluid so far from the edge of the brain is ventricle, all other is sulcus."""
_COARSE = 4
"""Depth is measured on every so many pixels: drawing batches must keep up with a GPU."""


@dataclass(frozen=True)
class Morphology:
    """How slices are deformed; ranges (low, high) are of a uniform draw.

    Attributes
    ----------
    share : float
        Of the slices that are deformed at all.
    narrower : float
        Share of these whose fluid spaces become narrower instead of wider.
    reach : tuple of float
        Width of the zone around the fluid that moves, pixels.
    pixels : tuple of float
        Largest displacement.
    local : float
        Share of the deformations that are confined to a part of the brain.
    """

    kind: ClassVar[str] = "morphological"
    share: float = 0.5
    narrower: float = 0.25
    reach: tuple[float, float] = (2.0, 7.0)
    pixels: tuple[float, float] = (1.0, 6.0)
    local: float = 0.6

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A slice of grey values (`slices.grey_values`), ``(rows, columns)`` uint8, deformed or as it was."""
        brain = image > 0
        if rng.random() >= self.share or not brain.any():
            return image
        fluid = _chosen_fluid(image, brain, rng)
        if not fluid.any():
            return image
        window = _window(image.shape, np.argwhere(fluid), rng) if rng.random() < self.local else 1.0
        amount = rng.uniform(*self.pixels) * (-1 if rng.random() < self.narrower else 1)
        return widened(image, fluid, amount * window, rng.uniform(*self.reach))


def widened(image: np.ndarray, fluid: np.ndarray, pixels: np.ndarray | float, reach: float) -> np.ndarray:
    """A slice whose fluid pushes its surroundings away.

    Parameters
    ----------
    image : ndarray
        ``(rows, columns)`` uint8 grey values.
    fluid : ndarray
        Booleans: what grows.
    pixels : float or ndarray
        Displacement where it is largest; negative narrows. May vary over the slice.
    reach : float
        Width of the zone that moves, pixels.

    Returns
    -------
    ndarray
        The same shape and brain; what would show the outside of the brain is as dark as fluid.
    """
    near = ndimage.gaussian_filter(fluid.astype(np.float32), reach)
    slope = np.stack(np.gradient(near))
    # pixels look towards the fluid, the more the steeper its border is: those inside of it stay where they are
    steepness = np.sqrt((slope**2).sum(axis=0))
    field = slope / max(float(steepness.max()), 1e-6) * pixels
    brain = image > 0
    where = np.stack(np.nonzero(brain)) + field[:, brain]
    moved = ndimage.map_coordinates(image.astype(np.float32), where, order=1, mode="nearest")
    out = np.zeros_like(image)
    out[brain] = np.clip(np.rint(moved), 1, 255)
    return out


def _chosen_fluid(image: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ventricles, sulci or both."""
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.7)
    fluid = brain & (smooth < 255 * FLUID)
    kind = rng.integers(3)
    if kind == 0:
        return fluid
    deep = _deep(brain)
    return fluid & deep if kind == 1 else fluid & ~deep


def _deep(brain: np.ndarray) -> np.ndarray:
    """What lies deeper than `DEEP_PIXELS`, to some pixels."""
    coarse = ndimage.distance_transform_edt(brain[::_COARSE, ::_COARSE]) * _COARSE > DEEP_PIXELS
    fine = coarse.repeat(_COARSE, axis=0).repeat(_COARSE, axis=1)
    return fine[: brain.shape[0], : brain.shape[1]]


def _window(shape: tuple[int, int], places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth hill over one of the places, 0 to 1."""
    point, width = rng.uniform(places.min(axis=0), places.max(axis=0)), rng.uniform(10, 40)
    middle = nearest(places, point)
    distance = sum((axis - centre) ** 2 for axis, centre in zip(np.ogrid[: shape[0], : shape[1]], middle, strict=True))
    return np.exp(-distance / (2 * width**2))


def nearest(places: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The one of ``(n, 2)`` places that is nearest to a point.

    Slices side by side, drawn alike, are changed at the same spot if it is chosen by a random point, and not by the
    number of a place.
    """
    return places[np.argmin(((places - point) ** 2).sum(axis=1))]
