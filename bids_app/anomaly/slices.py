"""Brains as the networks see them: axial slices of a box in MNI space, 1 mm, every brain with the same grey values.

Arrays are ``(slices, rows, columns)``: slices from the feet upwards, rows from anterior to posterior, columns from the
subject's left to the right. `tensors` makes of them what networks take; nothing here needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_app import images
from bids_app.errors import ConfigError
from bids_app.images import Image

SHAPE = (160, 192, 160)
CENTRE_MM = (0.0, -17.0, 9.0)
"""Middle of the box (x, y, z) in MNI152NLin2009aSym; an affinely aligned brain has some 5 mm of margin in it."""
PERCENTILES = (1, 99)
"""Of the brain; they become the darkest and the brightest value."""


def box() -> Image:
    """The grid of the box: an empty image, RAS, 1 mm."""
    affine = np.eye(4)
    affine[:3, 3] = [centre - (size - 1) / 2 for centre, size in zip(CENTRE_MM, reversed(SHAPE), strict=True)]
    return images.on_affine(np.zeros(SHAPE[::-1], np.uint8), affine)


def to_slices(image: Image) -> np.ndarray:
    """Slices of an image on the grid of `box`."""
    return np.ascontiguousarray(images.data(image).transpose(2, 1, 0)[:, ::-1])


def from_slices(slices: np.ndarray) -> Image:
    """Image on the grid of `box`; the inverse of `to_slices`."""
    return images.on_affine(np.ascontiguousarray(slices[:, ::-1].transpose(2, 1, 0)), box().affine)


@dataclass(frozen=True)
class GreyScale:
    """From the intensities of a brain to grey values from 1 to 255, and back.

    Attributes
    ----------
    low, high : float
        Intensities that become 1 and 255.
    """

    low: float
    high: float

    @classmethod
    def of(cls, intensities: np.ndarray, brain: np.ndarray) -> GreyScale:
        """By the percentiles of a brain; `brain` is of booleans and not empty."""
        low, high = np.percentile(intensities[brain], PERCENTILES).tolist()
        return cls(low, max(high, low + 1e-6))

    def grey(self, intensities: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Grey values as they are stored and learned from: 0 outside the brain, 1 to 255 inside, uint8."""
        values = np.clip(1 + 254 * (intensities - self.low) / (self.high - self.low), 1, 255)
        return np.where(brain, np.rint(values), 0).astype(np.uint8)

    def intensities(self, grey: np.ndarray) -> np.ndarray:
        """Intensities of grey values, float32."""
        return (self.low + (grey - 1) / 254 * (self.high - self.low)).astype(np.float32)


def grey_values(intensities: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Grey values of a brain on its own `GreyScale`; nothing but 0 where `brain` is empty."""
    if not brain.any():
        return np.zeros(intensities.shape, np.uint8)
    return GreyScale.of(intensities, brain).grey(intensities, brain)


def margins(shape: Sequence[int], goal: Sequence[int]) -> list[tuple[int, int]]:
    """How much goes before and after each axis to put a shape in the middle of a larger one.

    Raises
    ------
    ConfigError
        If it is not larger.
    """
    missing = [large - small for small, large in zip(shape, goal, strict=True)]
    if min(missing) < 0:
        raise ConfigError(
            f"The anomaly model takes slices of {tuple(goal)}; ours, {tuple(shape)}, do not fit into them.",
            "Correct the slice_shape in its card.json.",
        )
    return [(each // 2, each - each // 2) for each in missing]
