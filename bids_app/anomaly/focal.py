"""Focal corruption: blotches of another tone in a healthy slice, before it is encoded.

REFLECT's patches are put into the latent, where nothing healthy has their edges and their grain; a flow can mend them
cell by cell, and leaves a lesion as it is, whose cells are those of tissue or fluid at the wrong place. Here the tone
of a blotch is one of the brain's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bids_app.anomaly.morphology import nearest
from bids_app.anomaly.textures import noise


@dataclass(frozen=True)
class Focal:
    """How slices are blotched; ranges (low, high) are of a uniform draw.

    Attributes
    ----------
    share : float
        Of the slices that are blotched at all.
    most : int
        Blotches of a slice.
    radius : tuple of float
        Pixels, drawn on a logarithmic scale.
    opacity : tuple of float
    edge : tuple of float
        Width of the border, as a share of the radius.
    grain : float
        Largest deviation of the tone within a blotch, as a share of the grey range.
    """

    kind: ClassVar[str] = "focal"
    share: float = 0.5
    most: int = 2
    radius: tuple[float, float] = (2.5, 25.0)
    opacity: tuple[float, float] = (0.3, 1.0)
    edge: tuple[float, float] = (0.15, 0.7)
    grain: float = 0.08

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A slice of grey values (`slices.grey_values`), ``(rows, columns)`` uint8, blotched or as it was."""
        brain = image > 0
        if rng.random() >= self.share or not brain.any():
            return image
        values, places = image.astype(np.float32), np.argwhere(brain)
        for _ in range(rng.integers(1, self.most + 1)):
            centre, tone = nearest(places, _point(places, rng)), np.quantile(image[brain], rng.random())
            radius = np.exp(rng.uniform(*np.log(self.radius)))
            shape = blotch(radius, rng.uniform(*self.edge), rng) * rng.uniform(*self.opacity)
            content = tone + 255 * rng.uniform(0, self.grain) * noise(shape.shape, 2.0, rng)
            here, there = _overlap(image.shape, centre, shape.shape)
            values[here] += shape[there] * (content[there] - values[here])
        return np.where(brain, np.clip(np.rint(values), 1, 255), 0).astype(np.uint8)


def blotch(radius: float, edge: float, rng: np.random.Generator) -> np.ndarray:
    """An irregular blotch in the middle of a square, 0 to 1, float32.

    Parameters
    ----------
    radius : float
        Pixels.
    edge : float
        Width of its border, as a share of the radius.
    """
    half = int(np.ceil(2.4 * radius)) + 1
    rows, columns = np.ogrid[-half : half + 1, -half : half + 1]
    height = 1 - np.hypot(rows, columns) / radius + 0.3 * noise((2 * half + 1,) * 2, radius, rng)
    return np.clip(0.5 + height / edge, 0, 1).astype(np.float32)


def _point(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random point of the ellipse in the box around the places."""
    angle, distance = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
    low, high = places.min(axis=0), places.max(axis=0)
    return (low + high) / 2 + (high - low) / 2 * distance * np.array([np.cos(angle), np.sin(angle)])


def _overlap(
    shape: tuple[int, ...], centre: np.ndarray, square: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a square around a pixel lies in a slice, and which part of it does."""
    corner = [int(middle) - size // 2 for middle, size in zip(centre, square, strict=True)]
    starts = [max(0, low) for low in corner]
    ends = [min(size, low + side) for size, low, side in zip(shape, corner, square, strict=True)]
    here = tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))
    there = tuple(slice(part.start - low, part.stop - low) for part, low in zip(here, corner, strict=True))
    return here, there
