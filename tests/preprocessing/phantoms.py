"""Small heads made from the MNI template that nilearn ships: half as long as a head, so that a test takes a second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from nilearn.datasets import load_mni152_template
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_app.images import Image, data, like, on_affine
from bids_app.preprocessing.linear import translation
from bids_app.preprocessing.templates import Template

#: Left, in front and above: where the phantom differs from its mirror image. World mm of the small brain.
MARK = (-18.0, 10.0, 14.0)


@dataclass(frozen=True)
class Phantom:
    """A head with its brain mask, and the brain alone."""

    head: Image
    mask: Image

    @property
    def brain(self) -> Image:
        return like(self.head, np.where(data(self.mask) > 0, data(self.head), 0))


@cache
def template(size: float = 0.5) -> Template:
    """The MNI brain, `size` times as long as it is, on 50 x 59 x 48 voxels."""
    full = load_mni152_template(resolution=4)
    values = np.clip(data(full), 0, None)
    inside = ndimage.binary_fill_holes(values > 0.1 * values.max())
    affine = np.diag([size, size, size, 1.0]) @ full.affine
    brain = np.where(inside, values / np.percentile(values[inside], 99), 0)
    return Template("small", on_affine(brain.astype(np.float32), affine), on_affine(inside.astype(np.uint8), affine))


@cache
def patient(size: float = 0.5, seed: int = 1) -> Phantom:
    """Another person's head: the template deformed by some voxels, with a dark mark, skull and scalp, and noise."""
    rng = np.random.default_rng(seed)
    source = template(size)
    values, inside = (np.pad(data(image), 6) for image in (source.t1w, source.brain_mask))
    bends = [ndimage.gaussian_filter(rng.normal(size=values.shape), 6) for _ in range(3)]
    places = np.indices(values.shape) + [3 * bend / np.abs(bend).max() for bend in bends]
    values, inside = (ndimage.map_coordinates(array, places, order=1) for array in (values, inside))
    mask = ndimage.binary_fill_holes(inside > 0.5)
    affine = source.t1w.affine @ translation(np.full(3, -6.0))
    mark = blob(values.shape, affine, 2 * size * np.array(MARK), 2 * size * 5)
    depth = ndimage.distance_transform_edt(~mask)
    values = np.where(mask, 600 * values * (1 - 0.8 * mark), 700 * ((depth > 2) & (depth <= 4)))
    values += rng.normal(0, 15, values.shape)
    return Phantom(on_affine(np.abs(values).astype(np.float32), affine), on_affine(mask, affine))


def blob(shape: tuple[int, ...], affine: np.ndarray, centre: np.ndarray, radius_mm: float) -> np.ndarray:
    """A soft ball, 0 to 1."""
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return np.clip((radius_mm - np.linalg.norm(places - centre, axis=-1)) / 4 + 0.5, 0, 1)


def flair_of(phantom: Phantom) -> Image:
    """The same head with fluid dark, grey brighter than white, and slices of twice the thickness."""
    values = np.interp(data(phantom.head), [0, 100, 200, 330, 540, 800], [0, 30, 150, 500, 380, 350])
    values = (values[:, :, ::2] + values[:, :, 1::2]) / 2
    values += np.random.default_rng(2).normal(0, 15, values.shape)
    affine = phantom.head.affine @ translation(np.array([0, 0, 0.5])) @ np.diag([1.0, 1.0, 2.0, 1.0])
    return on_affine(np.abs(values).astype(np.float32), affine)


def thing(phantom: Phantom) -> Image:
    """Another object in place of the head: an egg of smooth blotches."""
    shape = phantom.head.shape
    blotches = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=shape), 2)
    egg = np.linalg.norm((np.moveaxis(np.indices(shape), 0, -1) / (np.array(shape) - 1) - 0.5) / 0.4, axis=-1) < 1
    return like(phantom.head, np.where(egg, 300 + 2000 * blotches, 0).clip(0).astype(np.float32))


def rigid(degrees: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> np.ndarray:
    """Rotations about the world axes, then a shift."""
    matrix = translation(np.array(shift_mm, float))
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return matrix


def elsewhere(image: Image, matrix: np.ndarray) -> Image:
    """The same voxels with a header that puts them elsewhere, as if the patient had moved by `matrix`."""
    return on_affine(data(image), matrix @ image.affine)


def brain_points(phantom: Phantom) -> np.ndarray:
    """World points spread over the brain, shape (n, 3)."""
    voxels = np.argwhere(data(phantom.mask) > 0)[::97]
    return voxels @ phantom.mask.affine[:3, :3].T + phantom.mask.affine[:3, 3]


def distance(first: np.ndarray, second: np.ndarray, points: np.ndarray) -> float:
    """How far apart two matrices carry the points: the largest distance in mm."""
    difference = first - second
    return float(np.linalg.norm(points @ difference[:3, :3].T + difference[:3, 3], axis=1).max())
