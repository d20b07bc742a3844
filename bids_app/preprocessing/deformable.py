"""Deformable registration of a brain to a template: symmetric-force demons with a cost-function mask.

SimpleITK's demons know no mask, so the masked voxels are given the template's own values, carried there by the current
deformation, and again every few iterations: a voxel that equals its target pulls nowhere, and what the deformation does
inside the mask follows from its surroundings alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

#: Iterations after which masked voxels are filled anew.
REFILL = 10
#: Landmarks of the histograms that are matched before intensities are compared.
QUANTILES = 33
#: Voxels whose Jacobian is below this are smoothed until it is not, so that nothing folds.
MIN_JACOBIAN = 0.1
MAX_UNFOLDINGS = 30
#: Steps of the fixed-point inversion: from zero, and from the last inverse when masked voxels are filled.
INVERSION_STEPS = 20
REFILL_INVERSION_STEPS = 2


@dataclass(frozen=True)
class Level:
    """One resolution of the registration; all images share one grid.

    Attributes
    ----------
    target, source : SimpleITK.Image
        Brain-only template, and brain after the affine; background 0.
    excluded : SimpleITK.Image or None
        1 where `source` must not drive the deformation, 0 elsewhere.
    iterations : int
    smoothing : float
        Standard deviation, in voxels, of the Gaussian that smooths the whole field at every iteration.
    """

    target: sitk.Image
    source: sitk.Image
    excluded: sitk.Image | None
    iterations: int
    smoothing: float


def register_field(levels: Iterable[Level]) -> sitk.Image:
    """Displacement field that pulls the source onto the target, coarse to fine.

    Returns
    -------
    SimpleITK.Image
        Vectors in mm (LPS), float64, on the grid of the last level, free of folds.

    Raises
    ------
    RuntimeError
        If source and target do not overlap; also from SimpleITK.

    References
    ----------
    Thirion, Image matching as a diffusion process, Medical Image Analysis 1998; Vercauteren et al., Diffeomorphic
    demons, NeuroImage 2009 (symmetric forces); Brett et al., Spatial normalization of brain images with focal lesions
    using cost function masking, NeuroImage 2001.
    """
    field = inverse = None
    for level in levels:
        field = _zero_field(level.target) if field is None else sitk.Resample(field, level.target)
        source = _matched(level, field)
        for iterations in _rounds(level):
            if level.excluded is not None:
                inverse = inverted(field, REFILL_INVERSION_STEPS, inverse)
                source = _filled(source, level, inverse)
            field = _demons(level, source, field, iterations)
    return unfolded(field)


def inverted(field: sitk.Image, steps: int = INVERSION_STEPS, guess: sitk.Image | None = None) -> sitk.Image:
    """The inverse of a displacement field on the same grid, by a damped fixed-point iteration from `guess`.

    References
    ----------
    Chen et al., A simple fixed-point approach to invert a deformation field, Medical Physics 2008.
    """
    inverse = _zero_field(field) if guess is None else sitk.Resample(guess, field)
    for _ in range(steps):
        step = sitk.Resample(field, field, as_transform(inverse), sitk.sitkLinear, 0.0)
        mixed = 0.25 * sitk.GetArrayFromImage(inverse) - 0.75 * sitk.GetArrayFromImage(step)
        inverse = vectors(mixed, field)
    return inverse


def as_transform(field: sitk.Image) -> sitk.DisplacementFieldTransform:
    """A field as a transform; the field itself stays usable (SimpleITK would empty it)."""
    return sitk.DisplacementFieldTransform(sitk.Image(field))


def vectors(values: np.ndarray, grid: sitk.Image) -> sitk.Image:
    """An array of shape (z, y, x, 3) in mm as a displacement field on `grid`."""
    field = sitk.GetImageFromArray(values.astype(np.float64), isVector=True)
    field.CopyInformation(grid)
    return field


def _zero_field(grid: sitk.Image) -> sitk.Image:
    field = sitk.Image(grid.GetSize(), sitk.sitkVectorFloat64, 3)
    field.CopyInformation(grid)
    return field


def _rounds(level: Level) -> list[int]:
    """Iterations between two fillings of the masked voxels."""
    return [level.iterations] if level.excluded is None else [REFILL] * -(-level.iterations // REFILL)


def _filled(source: sitk.Image, level: Level, inverse: sitk.Image) -> sitk.Image:
    """`source`, in the grey values of the template, with the template itself where it is excluded."""
    expected = sitk.Resample(level.target, source, as_transform(inverse), sitk.sitkLinear, 0.0)
    return source * (1 - level.excluded) + expected * level.excluded


def _matched(level: Level, field: sitk.Image) -> sitk.Image:
    """The source in the grey values of the template: quantiles of the voxels that correspond now are made equal."""
    target = sitk.GetArrayFromImage(level.target)
    moved = _moved(level.source, field)
    both = (target > 0) & (moved > 0)
    if level.excluded is not None:
        both &= _moved(level.excluded, field) < 0.5
    if not both.any():
        raise RuntimeError("no tissue of the brain lies within the template")
    shares = np.linspace(0, 1, QUANTILES)
    have, want = np.quantile(moved[both], shares), np.quantile(target[both], shares)
    values = sitk.GetArrayFromImage(level.source)
    out = sitk.GetImageFromArray(np.where(values > 0, np.interp(values, have, want), 0).astype(np.float32))
    out.CopyInformation(level.source)
    return out


def _moved(image: sitk.Image, field: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.Resample(image, field, as_transform(field), sitk.sitkLinear, 0.0))


def _demons(level: Level, source: sitk.Image, field: sitk.Image, iterations: int) -> sitk.Image:
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(iterations)
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations(level.smoothing)
    return sitk.Cast(demons.Execute(sitk.Cast(level.target, sitk.sitkFloat32), source, field), sitk.sitkVectorFloat64)


def unfolded(field: sitk.Image) -> sitk.Image:
    """The field, smoothed where it folds or nearly so, until it does not."""
    for _ in range(MAX_UNFOLDINGS):
        folded = sitk.DisplacementFieldJacobianDeterminant(field) < MIN_JACOBIAN
        if not sitk.GetArrayFromImage(folded).any():
            break
        around = sitk.Cast(sitk.BinaryDilate(folded, [2, 2, 2]), sitk.sitkFloat64)
        weight = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(around, field.GetSpacing()[0]))[..., None]
        smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(field, field.GetSpacing()[0]))
        values = sitk.GetArrayFromImage(field)
        field = vectors(values + np.clip(weight, 0, 1) * (smooth - values), field)
    return field
