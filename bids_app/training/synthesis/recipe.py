"""Every range that synthesis draws from, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scanner:
    """How one contrast is acquired; shares are probabilities, ranges (low, high) of a uniform draw.

    Attributes
    ----------
    thick_slices : float
        Chance of thick slices in one direction.
    axial : float
        Chance that this direction is the axial one; else any of the three.
    slice_mm : tuple of float
        Their thickness, mm.
    noise : tuple of float
        Standard deviation of Rician noise as a share of the white-matter signal; small values come more often.
    bias : float
        Largest standard deviation of the logarithm of the residual bias field.
    ringing, motion : float
        Chance of truncation ringing, and of ghosts and blur by motion.
    """

    thick_slices: float
    axial: float
    slice_mm: tuple[float, float]
    noise: tuple[float, float]
    bias: float
    ringing: float = 0.15
    motion: float = 0.15


T1W_SCANNER = Scanner(thick_slices=0.25, axial=0.33, slice_mm=(3.0, 7.0), noise=(0.0, 0.07), bias=0.12)
FLAIR_SCANNER = Scanner(thick_slices=0.65, axial=0.8, slice_mm=(2.5, 7.0), noise=(0.0, 0.09), bias=0.16)


@dataclass(frozen=True)
class Recipe:
    """What synthesis draws from; ranges are (low, high) of a uniform draw unless said otherwise.

    Attributes
    ----------
    healthy : float
        Share of scans without a lesion, 0-1.
    several : float
        Chance of each further lesion (at most three in all).
    scale, axis_scale : tuple of float
        Size of the brain, overall and per axis.
    shear : float
        Standard deviation.
    rotation_deg : float
        Standard deviation of what the rigid alignment leaves over, degrees.
    warp_mm : tuple of float
        Root mean square of the smooth deformation's velocity, mm.
    mass_effect_mm : float
        Largest shift by a swollen lesion or by a shrunken one (ex-vacuo), mm.
    t1w, flair : Scanner
    shifted : float
        Share of scans whose FLAIR does not lie exactly on the T1w.
    shift_mm, shift_deg : float
        Largest misalignment of the FLAIR.
    real_texture : float
        Share of scans made from heads that keep the texture of a real T1w.
    jitter_voxels : tuple of int
        Largest shift (z, y, x) of the bounding box from the middle of the patch.
    """

    healthy: float = 0.3
    several: float = 0.25
    scale: tuple[float, float] = (0.92, 1.08)
    axis_scale: tuple[float, float] = (0.96, 1.05)
    shear: float = 0.015
    rotation_deg: float = 3.0
    warp_mm: tuple[float, float] = (0.5, 4.0)
    mass_effect_mm: float = 5.0
    t1w: Scanner = field(default=T1W_SCANNER)
    flair: Scanner = field(default=FLAIR_SCANNER)
    shifted: float = 0.5
    shift_mm: float = 3.0
    shift_deg: float = 2.0
    real_texture: float = 0.45
    jitter_voxels: tuple[int, int, int] = (2, 2, 1)
