"""What REFLECT learns to undo: patches of a healthy latent replaced by texture or noise.

Random walks outline polygons inside the brain; each is filled with the latent of a texture or with coloured noise, more
or less opaque (Beizaee et al., MICCAI 2025, and their ``MedicalDataLoader.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

OBJECTS = (1, 2, 3, 4)
STEPS = (200, 120, 100, 80)
"""Longest walk with so many objects, on a latent of 32 x 32 cells."""
REFERENCE_CELLS = 32 * 32
NONE = 0.1
"""Share of samples that stay healthy."""
TEXTURE = 0.5
OPACITY = (0.2, 1.0)


@dataclass(frozen=True)
class Patches:
    """Where a latent is replaced, by what, how much of it.

    Attributes
    ----------
    opacity : torch.Tensor
        ``(1, h, w)``, 0 to 1.
    content : torch.Tensor
        ``(c, h, w)``.
    """

    opacity: Tensor
    content: Tensor


def mixed(latent: Tensor, content: Tensor, opacity: Tensor) -> Tensor:
    """``sqrt(1 - m) z + sqrt(m) r``: variances add up to what they were."""
    return (1 - opacity).sqrt() * latent + opacity.sqrt() * content


def shrunk(brains: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Brain masks on the cells of a latent, ``(n, h, w)`` booleans."""
    values = F.interpolate((brains > 0).float()[:, None], tuple(shape), mode="bilinear", align_corners=False)
    return (values[:, 0] > 0).cpu().numpy()


def draw_patches(brain: np.ndarray, channels: int, textures: Tensor | None, rng: np.random.Generator) -> Patches:
    """The patches of one sample; none where `brain` is empty.

    Parameters
    ----------
    brain : ndarray
        ``(h, w)`` booleans: the cells of the latent that are brain.
    channels : int
        Of the latent.
    textures : torch.Tensor or None
        Latents of textures, ``(n, c, H, W)`` with at least as many channels and cells; None fills with noise alone.
    rng : numpy.random.Generator
    """
    opacity = np.zeros(brain.shape, np.float32)
    content = torch.zeros((channels, *brain.shape))
    if not brain.any() or rng.random() < NONE:
        return Patches(torch.from_numpy(opacity)[None], content)
    for walk in random_walks(brain, rng):
        here = polygon(walk, brain.shape) & (opacity == 0)  # the first object stays on top
        opacity[here] = rng.uniform(*OPACITY)
        where = torch.from_numpy(here)
        content[:, where] = draw_content(brain.shape, channels, textures, rng)[:, where]
    return Patches(torch.from_numpy(opacity)[None], content)


def random_walks(brain: np.ndarray, rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """One to four walks inside the brain, as lists of (x, y); few and long ones are more likely than many and short."""
    count = OBJECTS[_COUNTS.searchsorted(rng.random())]
    lengths = _lengths(max(1, round(STEPS[count - 1] * brain.size / REFERENCE_CELLS)))
    starts, rows = np.argwhere(brain), brain.tolist()
    walks = []
    for _ in range(count):
        length = lengths.searchsorted(rng.random())
        walks.append(_walk(rows, starts[rng.integers(len(starts))].tolist(), rng.integers(-1, 2, (length, 2))))
    return walks


def _cumulated(weights: np.ndarray) -> np.ndarray:
    """Limits between which a uniform number draws each; the last one is out of reach."""
    limits = np.cumsum(weights) / np.sum(weights)
    limits[-1] = np.inf
    return limits


_COUNTS = _cumulated(1 / np.array(OBJECTS))


@lru_cache
def _lengths(longest: int) -> np.ndarray:
    """Of a walk, 0 to `longest` - 1: the first is ten times as likely as the last."""
    return _cumulated(10 - 9 * np.arange(longest) / longest)


def _walk(brain: list[list[bool]], start: list[int], steps: np.ndarray) -> list[tuple[int, int]]:
    y, x = start
    height, width, visited = len(brain), len(brain[0]), [(x, y)]
    for dy, dx in steps.tolist():
        if 0 <= y + dy < height and 0 <= x + dx < width and brain[y + dy][x + dx]:
            y, x = y + dy, x + dx
            visited.append((x, y))
    return visited


def polygon(points: list[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    """The closed polygon through the points, filled, and its outline; ``(h, w)`` booleans."""
    image = Image.new("1", shape[::-1])
    draw = ImageDraw.Draw(image)
    if len(points) > 1:
        draw.polygon(points, fill=1, outline=1)
    draw.point(points, fill=1)
    return np.array(image)


def draw_content(
    shape: tuple[int, int], channels: int, textures: Tensor | None, rng: np.random.Generator
) -> Tensor:
    """What fills a patch, ``(channels, h, w)`` float32, of unit variance: a crop of a texture's latent, or coloured
    noise, ``sqrt(a)`` of one value a channel and ``sqrt(1 - a)`` of one a cell. Parameters as of `draw_patches`."""
    if textures is not None and rng.random() < TEXTURE:
        chosen = textures[rng.integers(len(textures)), :channels]
        y, x = (rng.integers(large - small + 1) for large, small in zip(chosen.shape[1:], shape, strict=True))
        return chosen[:, y : y + shape[0], x : x + shape[1]].float().cpu()
    share = rng.random()
    common, fine = rng.standard_normal((channels, 1, 1)), rng.standard_normal((channels, *shape))
    return torch.from_numpy(share**0.5 * common + (1 - share) ** 0.5 * fine).float()
