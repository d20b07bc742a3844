"""Axial slices to learn from, and how they are varied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_app.anomaly.slices import CENTRE_MM, SHAPE

MAX_SHIFT = 1 / 32
"""Of the size of a slice, up to which it is shifted, in half of all cases (as the authors do)."""
MAX_CONTRAST = MAX_BRIGHTNESS = 0.1
MIRRORED = 0.5
"""Share of the brains that are seen with left and right exchanged: twice as many, and none lopsided by itself. The
authors mirror nothing."""
LEAST_PIXELS = 400
"""Slices with less brain are left out."""


@dataclass(frozen=True)
class Slices:
    """Axial slices, as `anomaly.slices` has them.

    Attributes
    ----------
    images : ndarray
        ``(n, H, W)`` uint8: 0 outside of the brain, 1 to 255 inside (`anomaly.slices.grey_values`).
    subjects : tuple of str
        One a slice.
    heights : ndarray
        ``(n,)`` position in mm along the axis of the body; with context, neighbours are found by it.
    """

    images: np.ndarray
    subjects: tuple[str, ...]
    heights: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Sequence[int] | np.ndarray) -> Slices:
        chosen = np.asarray(chosen)
        return Slices(self.images[chosen], tuple(np.array(self.subjects)[chosen]), self.heights[chosen])

    def stacks(self, length: int) -> np.ndarray:
        """Slices that lie one upon the other in one brain, ``(n, length)`` of indices from the lowest upwards.

        Every stack there is without a gap: between neighbours lies no more than the smallest distance there is.
        """
        order = np.lexsort((self.heights, np.unique(self.subjects, return_inverse=True)[1]))
        if length == 1:
            return order[:, None]
        subjects, heights = np.array(self.subjects)[order], self.heights[order]
        gaps = np.where(subjects[1:] == subjects[:-1], np.diff(heights), np.inf)
        joined = gaps <= 1.5 * gaps.min(initial=np.inf) if np.isfinite(gaps).any() else gaps < 0
        starts = [start for start in range(len(order) - length + 1) if joined[start : start + length - 1].all()]
        return np.stack([order[start : start + length] for start in starts] or [np.zeros(0, int)]).reshape(-1, length)


def height_mm(level: np.ndarray) -> np.ndarray:
    """Position of slices of the box along the axis of the body."""
    return CENTRE_MM[2] + level - (SHAPE[0] - 1) / 2


def augmented(stack: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slices of one brain mirrored, shifted, and brighter or of more contrast, each with probability one half, all
    alike.

    The background stays 0.
    """
    seed = rng.integers(2**32)
    if rng.random() < MIRRORED:
        stack = stack[:, :, ::-1]
    return np.stack([_augmented(image, np.random.default_rng(seed)) for image in stack])


def _augmented(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
        image = _shifted(image, [round(rng.uniform(-1, 1) * MAX_SHIFT * size) for size in image.shape])
    if rng.random() < 0.5:
        gain, offset = 1 + rng.uniform(-1, 1) * MAX_CONTRAST, 255 * rng.uniform(-1, 1) * MAX_BRIGHTNESS
        values = np.clip(image * gain + offset, 1, 255)
        image = np.where(image > 0, np.rint(values), 0).astype(np.uint8)
    return image


def _shifted(image: np.ndarray, shift: Sequence[int]) -> np.ndarray:
    """Moved by whole pixels; what leaves on one side is lost."""
    moved = np.zeros_like(image)
    source = tuple(slice(max(0, -s), image.shape[axis] - max(0, s)) for axis, s in enumerate(shift))
    goal = tuple(slice(max(0, s), image.shape[axis] - max(0, -s)) for axis, s in enumerate(shift))
    moved[goal] = image[source]
    return moved
