"""One synthetic scan from start to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_app.training.anatomy import LesionMask
from bids_app.training.synthesis.distractors import add_distractors
from bids_app.training.synthesis.fields import chance, pick
from bids_app.training.synthesis.geometry import random_points
from bids_app.training.synthesis.lesions import add_lesions, draw_lesions, draw_stroke, mass_effect, volume_ml
from bids_app.training.synthesis.recipe import Recipe
from bids_app.training.synthesis.scanner import acquire, extraction_mask, random_shift, recenter, shifted, zscore
from bids_app.training.synthesis.tissue import BRAIN, FLAIR, Source, draw_tissue, with_texture

BOTH = 2
"""Channel of the target for models that see both contrasts."""


@dataclass(frozen=True)
class SynthScan:
    """A synthetic T1w and FLAIR ready for a network.

    Attributes
    ----------
    image : torch.Tensor
        ``(2, z, y, x)`` float32: T1w and FLAIR, each z-scored inside the brain, zero outside.
    target : torch.Tensor
        ``(3, z, y, x)`` uint8, 1 where lesion: what shows in the T1w; what shows in the FLAIR, where the FLAIR shows it
        (it may lie some mm beside the T1w); and what shows in either, where the T1w has it.
    anatomy : torch.Tensor
        ``(5, z/2, y/2, x/2)`` float32, 0-1: how much external CSF, cortex, white matter, ventricle and deep grey matter
        there would be without lesion. All zero if it is not known (heads with real texture).
    head : str
        Name of the head.
    lesions : tuple of str
        Names of the lesion masks (none: healthy).
    """

    image: Tensor
    target: Tensor
    anatomy: Tensor
    head: str
    lesions: tuple[str, ...]

    def to(self, device: torch.device | str) -> SynthScan:
        """The same on another device."""
        return replace(
            self, image=self.image.to(device), target=self.target.to(device), anatomy=self.anatomy.to(device)
        )

    @property
    def lesion_ml(self) -> float:
        """Lesion volume in either contrast, mL."""
        return volume_ml(self.target[BOTH])


def synthesize(
    source: Source, strata: Sequence[Sequence[LesionMask]], recipe: Recipe, rng: Generator
) -> SynthScan:
    """One synthetic scan.

    Parameters
    ----------
    source : Source
        The head.
    strata : sequence of sequences of LesionMask
        Lesions to draw from, by volume (see `stratify`).
    recipe : Recipe
    rng : torch.Generator
        The only source of randomness: the same state gives the same scan.

    Returns
    -------
    SynthScan
    """
    return synthesize_with(source, draw_lesions(strata, recipe, rng), recipe, rng)


def synthesize_with(source: Source, lesions: Sequence[LesionMask], recipe: Recipe, rng: Generator) -> SynthScan:
    """One synthetic scan with exactly these lesions (none: healthy); see `synthesize`."""
    strokes = [draw_stroke(lesion, source.head, rng) for lesion in lesions]
    points = random_points(source.head, recipe, rng)
    for stroke in strokes:
        points = mass_effect(points, stroke, recipe, rng)
    tissue = draw_tissue(source, points, rng)
    drawn = add_lesions(add_distractors(with_texture(tissue, rng), tissue, rng), tissue, strokes, rng)
    either = drawn.visible.amax(dim=1, keepdim=True)
    flair = torch.cat([drawn.image[:, FLAIR:], drawn.visible[:, FLAIR:]], dim=1)
    if chance(recipe.shifted, rng):
        flair = shifted(flair, random_shift(recipe, rng))
    mask = extraction_mask(tissue, rng)
    t1w = zscore(acquire(drawn.image[:, :1], recipe.t1w, rng), mask)
    bright = zscore(acquire(flair[:, :1], recipe.flair, rng), mask)
    target = (torch.cat([drawn.visible[:, :1], flair[:, 1:], either], dim=1) > 0.5) & (mask > 0.5)
    jitter = [pick(range(-largest, largest + 1), rng) for largest in recipe.jitter_voxels]
    known = tissue.fractions[:, :BRAIN] * float(source.image is None)
    parts = torch.cat([t1w, bright, target.float(), known], dim=1)
    scan, target, known = recenter(parts, mask, jitter)[0].split([2, 3, BRAIN])
    small = F.avg_pool3d(known[None], 2)[0].clamp(0, 1)
    return SynthScan(scan, target.to(torch.uint8), small, source.head.name, tuple(m.name for m in lesions))
