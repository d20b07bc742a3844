"""Stroke lesions: real masks carried into another brain, with what they look like in T1w and FLAIR at some age."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_app.training.anatomy import Head, LesionMask
from bids_app.training.synthesis.distractors import per_contrast, towards
from bids_app.training.synthesis.fields import (
    SPACING_MM,
    blur,
    chance,
    coarse_blur,
    normal,
    pick,
    resize,
    sample,
    smooth_noise,
    soft_step,
    uniform,
)
from bids_app.training.synthesis.geometry import rotation_matrix
from bids_app.training.synthesis.recipe import Recipe
from bids_app.training.synthesis.tissue import BRAIN, CSF, FLAIR, T1W, VENTRICLE, Tissue

MIN_CONTRAST = (0.08, 0.08)
"""Smallest mean change of a visible lesion in T1w and FLAIR, as a share of the contrast of CSF and white matter."""

STAGES = (("chronic", 0.45), ("subacute", 0.33), ("acute", 0.14), ("faint", 0.08))
"""Age of a lesion, with its chance."""

MASS_EFFECT_FROM_ML = 8.0

STRATA_WEIGHTS = (0.25, 0.25, 0.3, 0.2)
"""How often a lesion of each stratum is drawn, of which 5, 15 and 70 mL are the limits."""

_COARSE = 4
"""Mass effect is computed on blocks of 4 x 4 x 4 voxels: it is smooth."""


@dataclass(frozen=True)
class Stroke:
    """A lesion about to be drawn: whose mask, where it goes, and how old it is.

    ``matrix`` takes pose millimetres of the head to voxels of the mask, ``(4, 4)``; ``stage`` is one of `STAGES`.
    """

    lesion: LesionMask
    matrix: np.ndarray
    stage: str


@dataclass(frozen=True)
class Drawn:
    """Intensities with lesions, and where these can be seen.

    Attributes
    ----------
    image : torch.Tensor
        ``(1, 2, z, y, x)``.
    visible : torch.Tensor
        ``(1, 2, z, y, x)``, 0-1: the lesions that show in the T1w, and those that show in the FLAIR.
    """

    image: Tensor
    visible: Tensor


def stratify(lesions: Sequence[LesionMask]) -> tuple[list[LesionMask], ...]:
    """Lesions in four strata by volume: up to 5, 15, 70 mL, and above. Empty strata are left out."""
    edges = (0.0, 5.0, 15.0, 70.0, math.inf)
    strata = [[m for m in lesions if low < m.volume_ml <= high] for low, high in pairwise(edges)]
    return tuple(stratum for stratum in strata if stratum)


def pick_lesion(strata: Sequence[Sequence[LesionMask]], rng: Generator) -> LesionMask:
    """A lesion from a random stratum; large ones come more often than in the cohorts they stem from."""
    weights = np.cumsum(STRATA_WEIGHTS[-len(strata) :])
    index = np.searchsorted(weights, uniform(0, weights[-1], rng), side="right")
    return pick(strata[min(int(index), len(strata) - 1)], rng)


def draw_lesions(strata: Sequence[Sequence[LesionMask]], recipe: Recipe, rng: Generator) -> list[LesionMask]:
    """No lesion for a healthy scan, else one to three."""
    if chance(recipe.healthy, rng):
        return []
    count = 1 + chance(recipe.several, rng) + chance(recipe.several, rng)
    return [pick_lesion(strata, rng) for _ in range(count)]


def draw_stage(rng: Generator) -> str:
    """A stage by its chance."""
    at = uniform(0, 1, rng)
    for name, probability in STAGES:
        if at < probability:
            return name
        at -= probability
    return STAGES[-1][0]


def draw_stroke(
    lesion: LesionMask, head: Head, rng: Generator, flip: bool | None = None, stage: str | None = None
) -> Stroke:
    """Where a lesion goes and how old it is; ``flip`` (into the other hemisphere) and stage are drawn if not given."""
    flip = chance(0.5, rng) if flip is None else flip
    matrix = lesion_matrix(lesion, flip, rng) @ head.pose_to_mni
    return Stroke(lesion, matrix, stage or draw_stage(rng))


def lesion_matrix(lesion: LesionMask, flip: bool, rng: Generator) -> np.ndarray:
    """``(4, 4)`` from MNI millimetres of the head at hand to voxels of the lesion mask.

    The lesion is turned, scaled and shifted about its own middle; ``flip`` puts it into the other hemisphere.
    """
    center = lesion.center * [-1 if flip else 1, 1, 1]
    turn = rotation_matrix([normal(8, rng) for _ in range(3)])
    linear = turn @ np.diag([1 / uniform(0.85, 1.15, rng) for _ in range(3)])
    moved = np.eye(4)
    moved[:3, :3] = linear
    moved[:3, 3] = center - linear @ (center + [normal(4, rng) for _ in range(3)])
    mirror = np.diag([-1.0 if flip else 1.0, 1, 1, 1])
    return lesion.mni_to_voxel @ mirror @ moved


def mass_effect(points: Tensor, stroke: Stroke, recipe: Recipe, rng: Generator) -> Tensor:
    """Points moved as a lesion deforms its surroundings.

    A fresh lesion swells and pushes the midline and the ventricles away; around an old one they fill the room it left
    (ex vacuo). The displacement follows the gradient of the blurred mask, so it is largest at the lesion's border.

    Parameters
    ----------
    points : torch.Tensor
        ``(1, z, y, x, 3)``, pose millimetres that each voxel shows.

    Returns
    -------
    torch.Tensor
        As `points`.
    """
    if stroke.lesion.volume_ml < MASS_EFFECT_FROM_ML or chance(0.4, rng):
        return points
    coarse = F.avg_pool3d(points.movedim(-1, 1), _COARSE).movedim(1, -1)
    mask = torch.from_numpy(stroke.lesion.mask).to(points.device, torch.float32)[None, None]
    pooled = F.avg_pool3d(mask, _COARSE, ceil_mode=True, count_include_pad=False)
    to_pooled = np.diag([1 / _COARSE] * 3 + [1.0])
    to_pooled[:3, 3] = (1 / _COARSE - 1) / 2
    blob = blur(sample(pooled, coarse, to_pooled @ stroke.matrix), uniform(1.0, 2.0, rng))
    slope = torch.stack(torch.gradient(blob[0, 0])[::-1])[None]  # along x, y, z
    steepest = slope.norm(dim=1).max()
    if steepest < 1e-4:
        return points
    swollen = stroke.stage != "chronic"
    # a voxel beside a swollen lesion shows what lay nearer to it, up the slope
    reach = uniform(0.2, 1.0, rng) * recipe.mass_effect_mm * (1 if swollen else -1)
    shift = resize(slope * (reach / steepest), points.shape[1:4])
    return points + shift.permute(0, 2, 3, 4, 1)


def place_lesion(stroke: Stroke, tissue: Tissue, rng: Generator) -> Tensor:
    """Lesion mask on the patch, ``(1, 1, z, y, x)`` from 0 to 1, clipped to brain tissue."""
    wobble = smooth_noise(uniform(10, 25, rng), rng, 3).permute(0, 2, 3, 4, 1) * uniform(0.3, 2.0, rng)
    mask = torch.from_numpy(stroke.lesion.mask).to(rng.device, torch.float32)[None, None]
    placed = sample(blur(mask, 0.7), tissue.points + wobble, stroke.matrix)
    cistern = coarse_blur(tissue.share(CSF), 2.5) > 0.6
    keep = (tissue.share(BRAIN) > 0.9) & (tissue.share(VENTRICLE) < 0.5) & ~cistern
    return placed * keep


def chronic(image: Tensor, mask: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """A cavity of nearly CSF with a gliotic rim, bright in FLAIR; strands of tissue may survive inside.

    In a FLAIR the cavity may be suppressed only in part, and small ones are all rim.
    """
    device = rng.device
    inner = blur(mask, uniform(0.6, 2.0, rng)) + uniform(0.02, 0.12, rng) * smooth_noise(uniform(6, 14, rng), rng)
    core = soft_step(inner, uniform(0.35, 0.75, rng), 0.06) * mask
    csf, grey, _ = tissue.means.of(T1W)
    csf_flair, _, white_flair = tissue.means.of(FLAIR)
    glial = per_contrast(csf + uniform(0.45, 0.95, rng) * (grey - csf), uniform(1.15, 1.9, rng) * white_flair, device)
    fluid = per_contrast(
        csf + uniform(-0.03, 0.25, rng) * (grey - csf),
        csf_flair + uniform(-0.02, 0.3, rng) * (white_flair - csf_flair),
        device,
    )
    rim_strength = per_contrast(uniform(0.4, 1.0, rng), uniform(0.3, 1.0, rng), device)
    rimmed = towards(image, glial, mask * rim_strength, per_contrast(-1, 1, device))
    hollow = per_contrast(1.0, uniform(0.3, 1.0, rng) if chance(0.8, rng) else 0.0, device)
    return towards(rimmed, fluid, core * hollow)


def filled(image: Tensor, mask: Tensor, tissue: Tissue, amounts: tuple[float, float], rng: Generator) -> Tensor:
    """Tissue moved towards CSF in T1w and towards bright in FLAIR, as in infarcts without a cavity and in gliosis.

    ``amounts`` (0-1, T1w and FLAIR) say how far; the texture is uneven and much the same in both contrasts.
    """
    common = smooth_noise(uniform(5, 16, rng), rng, 2)
    mixed = torch.cat([common[:, :1], 0.7 * common[:, :1] + 0.7 * common[:, 1:]], dim=1)
    texture = (1 + 0.25 * mixed).clamp(0.3, 1.7)
    csf = tissue.means.of(T1W)[0]
    goal = per_contrast(csf, uniform(1.3, 2.2, rng), rng.device)
    share = mask * texture * per_contrast(*amounts, rng.device)
    return towards(image, goal, share, per_contrast(-1, 1, rng.device))


def paint_lesion(image: Tensor, mask: Tensor, stage: str, tissue: Tissue, rng: Generator) -> Tensor:
    """The image with one lesion of that stage."""
    soft = blur(mask, uniform(0.3, 1.0, rng))
    if stage == "chronic":
        return chronic(image, soft, tissue, rng)
    t1w, flair = {
        "subacute": ((0.35, 0.85), (0.4, 1.0)),
        "acute": ((0.02, 0.35), (0.3, 1.0)),
        "faint": ((0.2, 0.35), (0.12, 0.4)),
    }[stage]
    return filled(image, soft, tissue, (uniform(*t1w, rng), uniform(*flair, rng)), rng)


def add_lesions(image: Tensor, tissue: Tissue, strokes: Sequence[Stroke], rng: Generator) -> Drawn:
    """Place and paint lesions.

    A contrast in which a lesion changes next to nothing (one in a wide sulcus, a fresh one in a T1w) does not
    get it into its mask: nobody could mark it there. A lesion that shows in no contrast is left out.
    """
    visible = torch.zeros_like(image)
    for stroke in strokes:
        mask = place_lesion(stroke, tissue, rng)
        painted = paint_lesion(image, mask, stroke.stage, tissue, rng)
        seen = shows(image, painted, mask, tissue)
        if any(seen):
            image = painted
            visible = torch.maximum(visible, mask * per_contrast(*map(float, seen), mask.device))
    return Drawn(image, visible)


def shows(before: Tensor, after: Tensor, mask: Tensor, tissue: Tissue) -> tuple[bool, bool]:
    """Whether a lesion can be seen in the T1w, and in the FLAIR, by the mean change inside its mask."""
    volume = mask.sum().clamp_min(1.0)
    change = ((after - before).abs() * mask).sum(dim=(0, 2, 3, 4)) / volume
    contrast = (tissue.means.white - tissue.means.csf).flatten()
    t1w, flair = (change > torch.tensor(MIN_CONTRAST, device=change.device) * contrast).tolist()
    return t1w, flair


def volume_ml(mask: Tensor) -> float:
    """Volume of a binary mask on the network's grid, mL."""
    return float(mask.sum()) * SPACING_MM**3 / 1000
