"""Deformable registration of a brain to a template: symmetric-force demons with a cost-function mask.

SimpleITK's demons know no mask, so the masked voxels are given the template's own values, carried there by the current
deformation, and again every few iterations: a voxel that equals its target pulls nowhere, and what the deformation does
inside the mask follows from its surroundings alone.

Demons compare grey values, and a FLAIR has others than a T1w. The template is therefore given the grey values of the
scan first: each of its values becomes the mean of what lies on it. In this direction and not in the other, because a
T1w tells fluid, grey and white matter apart, and a FLAIR hardly the last two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

#: Iterations after which masked voxels are filled, and grey values of another contrast are looked up, anew.
REFILL = 10
#: Landmarks of the histograms that are matched before intensities are compared.
QUANTILES = 33
#: Grey values of a template that are looked up in a scan of another contrast, and their smoothing, in values.
GREY_LEVELS = 64
GREY_SMOOTHING = 2.0
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
    one_contrast : bool
        Whether `target` and `source` are of one contrast; if not, the target is given the grey values of the source.
    """

    target: sitk.Image
    source: sitk.Image
    excluded: sitk.Image | None
    iterations: int
    smoothing: float
    one_contrast: bool = True


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
    demons, NeuroImage 2009 (symmetric forces); Guimond et al., Three-dimensional multimodal brain warping using the
    demons algorithm and adaptive intensity corrections, IEEE Trans. Med. Imaging 2001 (two contrasts); Brett et al.,
    Spatial normalization of brain images with focal lesions using cost function masking, NeuroImage 2001.
    """
    field = inverse = None
    for level in levels:
        template = level.target
        field = _zero_field(level.target) if field is None else sitk.Resample(field, level.target)
        source = _matched(level, field) if level.one_contrast else level.source
        for iterations in _rounds(level):
            level = level if level.one_contrast else replace(level, target=_recoloured(template, level, field))
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
    """Iterations between two looks at what corresponds: to fill the masked voxels, and to find grey values."""
    once = level.one_contrast and level.excluded is None
    return [level.iterations] if once else [REFILL] * -(-level.iterations // REFILL)


def _filled(source: sitk.Image, level: Level, inverse: sitk.Image) -> sitk.Image:
    """`source`, in the grey values of the template, with the template itself where it is excluded."""
    expected = sitk.Resample(level.target, source, as_transform(inverse), sitk.sitkLinear, 0.0)
    return source * (1 - level.excluded) + expected * level.excluded


def _recoloured(template: sitk.Image, level: Level, field: sitk.Image) -> sitk.Image:
    """The template in the grey values of the source: each value becomes the mean of the voxels that correspond now."""
    target = sitk.GetArrayFromImage(template)
    have, want = _corresponding(replace(level, target=template), field)
    edges = np.linspace(0, have.max(), GREY_LEVELS + 1)
    counts, sums = (np.histogram(have, edges, weights=weights)[0] for weights in (None, want))
    # smoothed alike, so that rare values take theirs from their neighbours
    counts, sums = (ndimage.gaussian_filter1d(each.astype(float), GREY_SMOOTHING) for each in (counts, sums))
    means = sums / np.maximum(counts, 1e-9)
    return _image_like(template, np.where(target > 0, np.interp(target, (edges[1:] + edges[:-1]) / 2, means), 0))


def _matched(level: Level, field: sitk.Image) -> sitk.Image:
    """The source in the grey values of the template: quantiles of the voxels that correspond now are made equal."""
    target, moved = _corresponding(level, field)
    shares = np.linspace(0, 1, QUANTILES)
    have, want = np.quantile(moved, shares), np.quantile(target, shares)
    values = sitk.GetArrayFromImage(level.source)
    return _image_like(level.source, np.where(values > 0, np.interp(values, have, want), 0))


def _corresponding(level: Level, field: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Values of target and source, shape (n,), at the voxels of tissue that correspond now and may be looked at."""
    target, moved = sitk.GetArrayFromImage(level.target), _moved(level.source, field)
    both = (target > 0) & (moved > 0)
    if level.excluded is not None:
        both &= _moved(level.excluded, field) < 0.5
    if not both.any():
        raise RuntimeError("no tissue of the brain lies within the template")
    return target[both], moved[both]


def _image_like(reference: sitk.Image, values: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.CopyInformation(reference)
    return image


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
