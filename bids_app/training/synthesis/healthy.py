"""Healthy T1w at 1 mm in the box of `anomaly.slices`, from which REFLECT learns what is normal.

They lie as affine registration leaves them. Heads, intensities and scanner are those of `scan`, but there is no lesion,
and none of the things that only look like one: of age they show what a label map holds (wide sulci and ventricles,
hypointensities).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_app.anomaly.slices import CENTRE_MM, SHAPE
from bids_app.training.synthesis.fields import (
    apply_matrix,
    blur,
    chance,
    normal,
    patch_points,
    resize,
    sample,
    smooth_noise,
    uniform,
)
from bids_app.training.synthesis.geometry import random_warp, rotation_matrix
from bids_app.training.synthesis.recipe import Scanner
from bids_app.training.synthesis.scanner import acquire, extraction_mask
from bids_app.training.synthesis.tissue import (
    GREY,
    T1W,
    WHITE,
    Means,
    Source,
    Tissue,
    draw_means,
    real_curves,
    t1w_table,
)

SPACING_MM = 1.0
SOFTNESS = (0.4, 0.8)
"""Standard deviation, voxels, of the blur that turns the sharp borders of a label map into those of a scan."""

HEALTHY_SCANNER = Scanner(
    thick_slices=0.1, axial=0.33, slice_mm=(1.5, 3.0), noise=(0.0, 0.06), bias=0.1, ringing=0.1, motion=0.05
)


@dataclass(frozen=True)
class Misalignment:
    """What affine alignment leaves over, between heads and by its own error; standard deviations, and a range.

    Attributes
    ----------
    scale, shear : float
    rotation_deg, shift_mm : float
    warp_mm : tuple of float
        Root mean square of the smooth deformation, mm.
    """

    scale: float = 0.012
    shear: float = 0.01
    rotation_deg: float = 1.2
    shift_mm: float = 1.2
    warp_mm: tuple[float, float] = (0.5, 3.5)


@dataclass(frozen=True)
class HealthyBrain:
    """A synthetic T1w of a healthy brain.

    Attributes
    ----------
    image : torch.Tensor
        ``(z, y, x)`` float32, ``SHAPE``, 1 mm; arbitrary units, zero outside the brain mask.
    mask : torch.Tensor
        ``(z, y, x)`` bool.
    points : torch.Tensor
        ``(1, z, y, x, 3)`` pose millimetres of the head that each voxel shows.
    """

    image: Tensor
    mask: Tensor
    points: Tensor


def healthy_brain(
    source: Source,
    rng: Generator,
    misalignment: Misalignment = Misalignment(),
    deform: Tensor | None = None,
    paint: Callable[[Tensor, Tissue], Tensor] | None = None,
) -> HealthyBrain:
    """One healthy T1w; with `deform` or `paint`, what became of it, drawn with the same random numbers.

    Parameters
    ----------
    source : Source
    rng : torch.Generator
        The only source of randomness.
    misalignment : Misalignment
    deform : torch.Tensor, optional
        ``(1, z, y, x, 3)`` mm that is added to where a voxel looks, on the grid of the result.
    paint : callable, optional
        Changes the intensities, ``(1, 1, z, y, x)`` and about 1 in white matter, before they are scanned; is given the
        tissue at 2 mm too.
    """
    points = draw_points(source, misalignment, rng)
    if deform is not None:
        points = points + deform
    means = draw_means(rng)
    if source.image is None:
        index, table = source.labels, t1w_table(means.of(T1W), rng)
    else:
        index, table = source.image, real_curves(source, means)[:, T1W]
    volume = torch.index_select(table, 0, index.flatten()).view(1, 1, *index.shape)
    image = sample(volume, points, source.head.pose_to_voxel)
    if source.image is None:
        image = blur(image, uniform(*SOFTNESS, rng))
    tissue = coarse_tissue(source, points, means)
    image = _textured(image, tissue, rng)
    if paint is not None:
        image = paint(image, tissue)
    image = acquire(image, HEALTHY_SCANNER, rng, SPACING_MM)
    mask = resize(extraction_mask(tissue, rng), SHAPE)[0, 0] > 0.5
    return HealthyBrain(image[0, 0] * mask, mask, points)


def draw_points(source: Source, misalignment: Misalignment, rng: Generator) -> Tensor:
    """Pose millimetres that each voxel of the box shows, ``(1, z, y, x, 3)``."""
    matrix = np.eye(4)
    turn = rotation_matrix([normal(misalignment.rotation_deg, rng) for _ in range(3)])
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = [normal(misalignment.shear, rng) for _ in range(3)]
    matrix[:3, :3] = turn @ shear @ np.diag([1 + normal(misalignment.scale, rng) for _ in range(3)])
    matrix[:3, 3] = [centre + normal(misalignment.shift_mm, rng) for centre in CENTRE_MM]
    to_pose = np.linalg.inv(source.head.pose_to_mni) @ matrix
    straight = apply_matrix(to_pose, patch_points(SHAPE, rng.device, SPACING_MM))
    warp = random_warp(uniform(*misalignment.warp_mm, rng), rng).permute(0, 4, 1, 2, 3)
    return straight + resize(warp, SHAPE).permute(0, 2, 3, 4, 1)


def coarse_tissue(source: Source, points: Tensor, means: Means | None = None) -> Tissue:
    """Fractions of the tissues at 2 mm, where they are smooth anyway; `points` are those of a `HealthyBrain`."""
    coarse = F.avg_pool3d(points.permute(0, 4, 1, 2, 3), 2).permute(0, 2, 3, 4, 1)
    halved = np.diag([0.5, 0.5, 0.5, 1.0])
    halved[:3, 3] = -0.25
    fractions = sample(source.fractions, coarse, halved @ source.head.pose_to_voxel)
    return Tissue(torch.empty(0), fractions, coarse, means)


def _textured(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """Slow variation inside grey and white matter, and fine texture everywhere."""
    slow = smooth_noise(uniform(12, 40, rng), rng, 2) * uniform(0.0, 0.06, rng)
    inside = torch.cat([tissue.share(GREY), tissue.share(WHITE)], dim=1)
    factor = 1 + resize((slow * inside).sum(dim=1, keepdim=True), SHAPE)
    if chance(0.7, rng):
        fine = smooth_noise(uniform(2, 5, rng), rng, 1, SHAPE, SPACING_MM)
        factor = factor + fine * uniform(0.0, 0.04, rng)
    return image * factor
