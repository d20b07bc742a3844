"""How anomalous healthy brains are at each place: folds of the cortex differ from their twins in every brain.

The map of REFLECT has one scale for the whole brain. Beside the maps of healthy brains it says what is unusual where it
is, as a z-score says it of grey values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

BLUR = 3.0
"""Of what was gathered, in pixels: a place is as exact as affine alignment brings brains to it."""
LEAST_DEVIATION = 0.02
"""Added to deviations: where healthy brains agree, a trifle is not yet unusual."""


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
    def of(cls, healthy: Iterable[tuple[np.ndarray, np.ndarray]]) -> Usual:
        """From the maps of healthy brains, and where each has brain (booleans), all of one shape."""
        share = total = squares = np.float32(0)
        for anomaly, brain in healthy:
            inside = np.where(brain, anomaly, 0).astype(np.float32)
            share, total, squares = share + brain, total + inside, squares + inside**2
        share, total, squares = (ndimage.gaussian_filter(np.float32(each), BLUR) for each in (share, total, squares))
        mean = total / np.maximum(share, 1e-2)
        return cls(mean, np.sqrt(np.maximum(squares / np.maximum(share, 1e-2) - mean**2, 0)))

    def scores(self, anomaly: np.ndarray) -> np.ndarray:
        """Deviations by which maps (the last axes are those of a map) lie above what is usual at each place."""
        return (anomaly - self.mean) / (self.deviation + LEAST_DEVIATION)
