"""Grey textures without end: what fills the patches of REFLECT's corruption where no texture images are at hand.

The authors take the Describable Textures Dataset (Cimpoi et al., CVPR 2014). Here five families of patterns are drawn
instead, each bent and shaded at random: waves, blotches, cells, spots and veins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_app.errors import ConfigError

Shape = tuple[int, int]
PICTURES = (".jpg", ".jpeg", ".png")


def texture_shape(shape: Shape) -> Shape:
    """Rows and columns of textures for slices: a quarter more, so that patches show any part of them at any place.

    Rounded up to multiples of 32, as autoencoders take them.
    """
    rows, columns = (32 * -(-5 * size // (4 * 32)) for size in shape)
    return rows, columns


def find_pictures(folder: Path) -> list[Path]:
    """The pictures below a folder.

    Raises
    ------
    ConfigError
        If there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise ConfigError(f"There is no picture below {folder}.", "Give the folder of DTD's images.")
    return files


def read_textures(folder: Path, count: int, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Grey crops of the pictures below a folder, ``(count, H, W)`` float32 in [-1, 1].

    Raises
    ------
    ConfigError
        If there are no pictures.
    """
    files = find_pictures(folder)
    return np.stack([_crop(files[rng.integers(len(files))], shape, rng) for _ in range(count)])


def _crop(file: Path, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """A random part of a picture, which is enlarged if it is too small."""
    try:
        with Image.open(file) as stored:
            picture = stored.convert("L")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read as a picture: {error}.", "Remove it, or copy it again.") from error
    factor = max(1.0, shape[0] / picture.height, shape[1] / picture.width)
    picture = picture.resize((math.ceil(picture.width * factor), math.ceil(picture.height * factor)))
    values = np.asarray(picture, np.float32)
    y, x = (rng.integers(large - small + 1) for large, small in zip(values.shape, shape, strict=True))
    return values[y : y + shape[0], x : x + shape[1]] / 127.5 - 1


def draw_textures(count: int, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Textures with values from -1 to 1, ``(count, H, W)`` float32."""
    return np.stack([draw_texture(shape, rng) for _ in range(count)])


def draw_texture(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """One texture of a random family, contrast and brightness, ``(H, W)`` float32 in [-1, 1]."""
    pattern = FAMILIES[rng.integers(len(FAMILIES))](shape, rng)
    low, high = np.percentile(pattern, [1, 99])
    even = np.clip((pattern - low) / max(high - low, 1e-6), 0, 1) ** np.exp(rng.normal(0, 0.4))
    middle, spread = rng.uniform(-0.7, 0.7), rng.uniform(0.2, 1.0)
    return np.clip(middle + spread * (2 * even - 1), -1, 1).astype(np.float32)


def noise(shape: Shape, size: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of unit deviation whose blobs are about `size` pixels wide."""
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), size / 2, mode="wrap")
    return smooth / max(smooth.std(), 1e-6)


def bent(shape: Shape, rng: np.random.Generator) -> Sequence[np.ndarray]:
    """Coordinates (y, x) of all pixels, turned and bent."""
    angle, amount = rng.uniform(0, 2 * np.pi), rng.uniform(0, 8)
    y, x = np.mgrid[: shape[0], : shape[1]] + amount * np.stack([noise(shape, 30, rng) for _ in range(2)])
    return np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x


def waves(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Stripes, or a grid of them."""
    y, x = bent(shape, rng)
    first, second = (np.sin(2 * np.pi * axis / rng.uniform(4, 24)) for axis in (y, x))
    pattern = first + rng.choice([0.0, 1.0]) * second
    return np.sign(pattern) + 0.3 * pattern if rng.random() < 0.3 else pattern


def blotches(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Noise of several sizes."""
    sizes = rng.uniform(1, 20, rng.integers(1, 4))
    return sum(noise(shape, size, rng) * rng.uniform(0.3, 1) for size in sizes)


def cells(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """A Voronoi pattern: flat cells of random grey, or their borders."""
    count = int(np.prod(shape) / rng.uniform(6, 30) ** 2)
    seeds = rng.uniform(0, 1, (count + 2, 2)) * shape
    points = np.stack([axis.ravel() for axis in bent(shape, rng)], axis=1) % np.array(shape)
    distance, nearest = cKDTree(seeds).query(points, k=2)
    if rng.random() < 0.5:
        return rng.standard_normal(len(seeds))[nearest[:, 0]].reshape(shape)
    return (distance[:, 1] - distance[:, 0]).reshape(shape)


def spots(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Round spots on an even ground."""
    size = rng.uniform(1.5, 6)
    seeds = rng.random(shape) < 0.3 / size**2
    return np.minimum(ndimage.gaussian_filter(seeds.astype(float), size, mode="wrap") * size**2, 0.2)


def veins(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Thin winding lines, as in marble."""
    return -np.abs(noise(shape, rng.uniform(6, 30), rng)) ** rng.uniform(0.3, 1.0)


FAMILIES: tuple[Callable[[Shape, np.random.Generator], np.ndarray], ...] = (waves, blotches, cells, spots, veins)
