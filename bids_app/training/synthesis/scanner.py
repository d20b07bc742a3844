"""The scanner, and what preparation makes of its scans: resolution, bias, noise, motion, brain mask, z-score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_app.training.synthesis.fields import (
    SPACING_MM,
    blur,
    chance,
    coarse_blur,
    normal,
    patch_points,
    pick,
    resize,
    sample,
    smooth_noise,
    uniform,
)
from bids_app.training.synthesis.geometry import rotation_matrix
from bids_app.training.synthesis.recipe import Recipe, Scanner
from bids_app.training.synthesis.tissue import BRAIN, Tissue


def extraction_mask(tissue: Tissue, rng: Generator) -> Tensor:
    """Brain mask as a tool would draw it: too wide here, too tight there; from 0 to 1 with soft edges."""
    wide = coarse_blur(tissue.share(BRAIN), 4.0)
    uneven = smooth_noise(uniform(20, 60, rng), rng) * uniform(0.0, 0.1, rng)
    # 0.5 is the edge itself; below it the mask takes dura and skull in, above it cuts cortex off
    threshold = uniform(0.3, 0.68, rng)
    return F.hardtanh((wide + uneven - threshold) / 0.12 + 0.5, 0.0, 1.0)  # exactly 0 outside, as a mask leaves it


def random_shift(recipe: Recipe, rng: Generator) -> np.ndarray:
    """``(4, 4)`` rigid movement within the recipe's limits, patch millimetres to patch millimetres."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix([uniform(-1, 1, rng) * recipe.shift_deg / 2 for _ in range(3)])
    direction = np.array([normal(1.0, rng) for _ in range(3)])
    matrix[:3, 3] = direction / max(np.linalg.norm(direction), 1e-6) * uniform(0, recipe.shift_mm, rng)
    return matrix


def shifted(volume: Tensor, movement: np.ndarray) -> Tensor:
    """A volume ``(1, c, z, y, x)`` seen after a rigid movement about the middle of the patch."""
    shape = volume.shape[2:]
    to_voxel = np.diag([*(1 / SPACING_MM,) * 3, 1.0])
    to_voxel[:3, 3] = [(n - 1) / 2 for n in reversed(shape)]
    return sample(volume, patch_points(shape, volume.device), to_voxel @ movement)


def thick_slices(image: Tensor, scanner: Scanner, rng: Generator, spacing_mm: float = SPACING_MM) -> Tensor:
    """Average over thick slices in one direction and interpolate back."""
    axis = 0 if chance(scanner.axial, rng) else pick((0, 1, 2), rng)
    thickness = uniform(*scanner.slice_mm, rng)
    shape = list(image.shape[2:])
    coarse = list(shape)
    coarse[axis] = max(2, round(shape[axis] * spacing_mm / thickness))
    slices = F.interpolate(image, coarse, mode="area")
    return resize(slices, shape)


def ringing(image: Tensor, rng: Generator) -> Tensor:
    """Truncation ringing: the highest frequencies along one axis are missing."""
    axis = pick((2, 3, 4), rng)
    n = image.shape[axis]
    spectrum = torch.fft.rfft(image, dim=axis)
    kept = round(spectrum.shape[axis] * uniform(0.6, 0.9, rng))
    spectrum.narrow(axis, kept, spectrum.shape[axis] - kept).zero_()
    return torch.fft.irfft(spectrum, n=n, dim=axis)


def motion(image: Tensor, rng: Generator) -> Tensor:
    """A ghost of the head along one axis, and some blur."""
    axis = pick((2, 3, 4), rng)
    ghost = torch.roll(image, round(uniform(0.15, 0.5, rng) * image.shape[axis]), axis)
    softened = blur(image, [uniform(0.3, 0.8, rng) if a == axis else 0.0 for a in (2, 3, 4)])
    return softened + uniform(0.01, 0.07, rng) * ghost


def acquire(image: Tensor, scanner: Scanner, rng: Generator, spacing_mm: float = SPACING_MM) -> Tensor:
    """Resolution, motion, ringing, bias field, Rician noise and display curve of one contrast, ``(1, 1, z, y, x)``."""
    if chance(scanner.motion, rng):
        image = motion(image, rng)
    if chance(scanner.thick_slices, rng):
        image = thick_slices(image, scanner, rng, spacing_mm)
    elif chance(0.5, rng):
        image = blur(image, [uniform(0.0, 0.7, rng) for _ in range(3)])
    elif chance(0.3, rng):
        image = image + uniform(0.2, 0.8, rng) * (image - blur(image, 0.7))  # sharpened by the scanner
    if chance(scanner.ringing, rng):
        image = ringing(image, rng)
    bias = smooth_noise(uniform(50, 120, rng), rng, 1, image.shape[2:], spacing_mm) * uniform(0.0, scanner.bias, rng)
    image = image * torch.exp(bias)
    low, high = scanner.noise
    spread = low + (high - low) * uniform(0, 1, rng) ** 2
    noise = spread * torch.randn((2, *image.shape), generator=rng, device=rng.device)
    if chance(0.5, rng):  # denoised or resampled scans have correlated noise
        noise = torch.stack([blur(part, 0.5) for part in noise])
    noisy = torch.sqrt((image + noise[0]) ** 2 + noise[1] ** 2)
    return noisy.clamp_min(1e-4) ** math.exp(normal(0.2, rng))


def zscore(image: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance inside the mask, faded to zero at its soft edge, as nnU-Net sees a scan."""
    inside = image[mask > 0.5]
    return (image - inside.mean()) / inside.std().clamp_min(1e-6) * mask


def recenter(volumes: Tensor, mask: Tensor, jitter: Sequence[int]) -> Tensor:
    """Shift ``(n, c, z, y, x)`` so that the mask's bounding box sits in the middle, ``jitter`` voxels off.

    What leaves the patch on one side is lost, as in a scan that was cut off; zeros come in on the other.
    """
    moved = torch.zeros_like(volumes)
    source, goal = volumes, moved
    for axis in (2, 3, 4):
        hit = torch.nonzero((mask > 0.5).any(dim=[a for a in (0, 1, 2, 3, 4) if a != axis]))
        size = volumes.shape[axis]
        shift = round((size - 1 - int(hit.min()) - int(hit.max())) / 2) + jitter[axis - 2]
        source = source.narrow(axis, max(0, -shift), size - abs(shift))
        goal = goal.narrow(axis, max(0, shift), size - abs(shift))
    goal.copy_(source)
    return moved
