"""Deformable registration of a brain to a template: symmetric-force demons with a cost-function mask.

SimpleITK's demons know no mask, so the masked voxels are given the template's own values, carried there by the current
deformation, and again every few iterations: a voxel that equals its target pulls nowhere, and what the deformation does
inside the mask follows from its surroundings alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk


@dataclass(frozen=True)
class Schedule:
    """One resolution of the registration.

    Attributes
    ----------
    spacing_mm : float
    iterations : int
    smoothing_voxels : float
        Standard deviation of the Gaussian that keeps the field smooth, applied to the whole field at every iteration.
    """

    spacing_mm: float
    iterations: int
    smoothing_voxels: float


#: Iterations after which masked voxels are filled anew.
REFILL = 10
#: Landmarks of the histograms that are matched before the intensities are compared.
QUANTILES = 33
#: Folded voxels (Jacobian below this) are smoothed away.
MIN_JACOBIAN = 0.05
INVERSION_STEPS = 15


def register_field(
    fixed: dict[float, sitk.Image], moving: dict[float, sitk.Image], excluded: sitk.Image | None, schedule: tuple[Schedule, ...]
) -> sitk.Image:
    """Displacement field that pulls `moving` onto `fixed`.

    Parameters
    ----------
    fixed, moving : dict of float to Image
        Brain-only template and brain by voxel size, on one grid at each size (the affine applied), background 0.
    excluded : Image, optional
        0 to 1, on any grid of the moving brain: what must not drive the deformation.

    Returns
    -------
    Image
        Vectors in mm (LPS), float64, on the grid of the finest level, without folds inside the template.

    References
    ----------
    Thirion, Image matching as a diffusion process, Med. Image Anal. 1998; Vercauteren et al., Diffeomorphic demons, NeuroImage
    2009 (symmetric forces); Brett et al., Spatial normalization of brain images with focal lesions using cost function
    masking, NeuroImage 2001.
    """
    field = None
    for level in schedule:
        target, source = fixed[level.spacing_mm], moving[level.spacing_mm]
        field = zero_field(target) if field is None else sitk.Resample(field, target)
        field = _one_level(target, source, excluded, field, level)
    return _without_folds(field, fixed[schedule[-1].spacing_mm])
