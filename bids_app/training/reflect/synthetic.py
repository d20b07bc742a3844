"""Synthetic healthy brains to train REFLECT with, made once and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Generator

from bids_app.anomaly.slices import SHAPE, grey_values
from bids_app.derivatives.write import atomic
from bids_app.training.reflect.slices import LEAST_PIXELS, Slices, height_mm
from bids_app.training.series import Material, pick_source
from bids_app.training.synthesis.healthy import healthy_brain
from bids_app.training.synthesis.tissue import Source


def make_brains(material: Material, count: int, path: Path, workers: int = 1) -> np.ndarray:
    """Grey values of synthetic brains, ``(count, slices, rows, columns)`` uint8; from the file if it is there.

    Parameters
    ----------
    material : Material
    count : int
    path : Path
    workers : int
        Threads that make a brain each.
    """

    def draw(number: int) -> np.ndarray:
        rng = Generator().manual_seed(material.seed * 2 * 10**9 + number)
        return grey_brain(pick_source(material, rng), rng)

    if not path.exists():
        with atomic(path) as temporary, ThreadPoolExecutor(workers) as pool:
            brains = np.lib.format.open_memmap(temporary, "w+", np.uint8, (count, *SHAPE))
            for number, brain in enumerate(pool.map(draw, range(count))):
                brains[number] = brain
            brains.flush()
    return np.load(path, mmap_mode="r")


def grey_brain(source: Source, rng: Generator) -> np.ndarray:
    """One synthetic brain as grey values."""
    brain = healthy_brain(source, rng)
    return grey_values(brain.image.numpy()[:, ::-1], brain.mask.numpy()[:, ::-1])


def slices_of(brains: np.ndarray, names: Sequence[str]) -> Slices:
    """All slices of some brains that show enough of them."""
    shown = np.array([[np.count_nonzero(part) >= LEAST_PIXELS for part in brain] for brain in brains])
    which, level = np.nonzero(shown)
    return Slices(brains[which, level], tuple(np.array(names)[which]), height_mm(level))
