"""Where the voxels of a synthetic scan lie in the head: affine maps and smooth diffeomorphic deformations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Generator, Tensor

from bids_app.training.anatomy import Head
from bids_app.training.synthesis.fields import (
    PATCH,
    SPACING_MM,
    apply_matrix,
    normal,
    patch_points,
    pick,
    resize,
    sample,
    smooth_noise,
    uniform,
)
from bids_app.training.synthesis.recipe import Recipe


def rotation_matrix(degrees: Sequence[float]) -> np.ndarray:
    """``(3, 3)`` rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn, (a, b) = np.eye(3), [i for i in range(3) if i != axis]
        turn[[a, b], [a, b]] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def random_affine(recipe: Recipe, rng: Generator) -> np.ndarray:
    """``(3, 3)`` matrix from patch millimetres to pose millimetres about the brain's centre."""
    rotation = rotation_matrix([normal(recipe.rotation_deg, rng) for _ in range(3)])
    size = uniform(*recipe.scale, rng)
    scale = np.diag([1 / (size * uniform(*recipe.axis_scale, rng)) for _ in range(3)])
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = [normal(recipe.shear, rng) for _ in range(3)]
    return rotation @ shear @ scale


def random_warp(rms_mm: float, rng: Generator, shape: Sequence[int] = PATCH, steps: int = 4) -> Tensor:
    """Diffeomorphic displacement by scaling and squaring a smooth random velocity.

    Parameters
    ----------
    rms_mm : float
        Root mean square of the velocity, mm.
    rng : torch.Generator
    shape : sequence of int
        ``(z, y, x)`` of the patch.
    steps : int
        Number of squarings.

    Returns
    -------
    torch.Tensor
        ``(1, z, y, x, 3)`` displacement (x, y, z), mm.
    """
    coarse = [n // 4 for n in shape]  # 8 mm suffices for so smooth a field
    velocity = smooth_noise(pick((24.0, 36.0, 50.0), rng) / 4, rng, 3, coarse) * (rms_mm / 2**steps)
    points = 4 * patch_points(coarse, rng.device)
    to_voxel = np.diag([*(1 / (4 * SPACING_MM),) * 3, 1.0])
    to_voxel[:3, 3] = [(n - 1) / 2 for n in reversed(coarse)]
    for _ in range(steps):
        velocity = velocity + sample(velocity, points + velocity.permute(0, 2, 3, 4, 1), to_voxel)
    return resize(velocity, shape).permute(0, 2, 3, 4, 1)


def random_points(head: Head, recipe: Recipe, rng: Generator) -> Tensor:
    """Pose millimetres that each voxel of the patch shows, ``(1, z, y, x, 3)``."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = random_affine(recipe, rng), head.center
    straight = apply_matrix(matrix, patch_points(device=rng.device))
    return straight + random_warp(uniform(*recipe.warp_mm, rng), rng)
