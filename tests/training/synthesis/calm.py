"""A recipe without deformation, and where in the patch something lies."""

from __future__ import annotations

import torch
from torch import Generator

from bids_app.training.synthesis.geometry import random_points
from bids_app.training.synthesis.recipe import Recipe
from bids_app.training.synthesis.tissue import Tissue, draw_tissue
from tests.training.heads import toy_head, toy_source

CALM = Recipe(
    rotation_deg=0, shear=0, warp_mm=(0.1, 0.2), scale=(1, 1), axis_scale=(1, 1), shifted=0.0, jitter_voxels=(0, 0, 0)
)


def side(mask: torch.Tensor) -> float:
    """Mean position from left (-1) to right (1)."""
    x = torch.linspace(-1, 1, mask.shape[-1])
    return float((mask.float() * x).sum() / mask.sum())


def calm_tissue(seed: int = 0) -> Tissue:
    """The toy head, straight and in the middle."""
    rng = Generator().manual_seed(seed)
    return draw_tissue(toy_source(), random_points(toy_head(), CALM, rng), rng)
