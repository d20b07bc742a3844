"""A brain to standard space: rigid to the models' pose, then affine and deformable, the lesion left out of the cost.

Templates are T1w. A FLAIR is brought there by mutual information, and deformed after the template was given its grey
values (`deformable`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from bids_app.images import Image, data, like, masked, on_affine, resample, voxel_volume_mm3
from bids_app.measures.overlap import dice
from bids_app.preprocessing import deformable, linear
from bids_app.preprocessing.checks import (
    AFFINE_LIMITS,
    COMPARE_MM,
    FLAIR_NORMALIZATION_LIMITS,
    NORMALIZATION_LIMITS,
    POSE_LIMITS,
    Check,
    Measured,
    Registration,
    first_that_passes,
    local_correlation,
)
from bids_app.preprocessing.itk import from_itk, pull_transform, to_itk
from bids_app.preprocessing.templates import Template
from bids_app.preprocessing.transforms import apply_linear, resample_itk

#: Rotations tried for the pose: what patients do in a scanner, then what wrong headers do.
LIKELY_DEGREES = (-24.0, -8.0, 8.0, 24.0)
ANY_DEGREES = (-90.0, -45.0, 0.0, 45.0, 90.0, 180.0)
#: The lesion's surroundings are oedema and distorted tissue, and its mask is never exact.
LESION_MARGIN_MM = 3.0
#: Around the brain, so that background counts and the deformation has room to fade.
BOX_MARGIN_MM = 20.0
#: Voxel size, iterations and smoothing of the two levels of the deformation; the second try is stiffer.
Schedule = tuple[tuple[float, int, float], ...]
SCHEDULE: Schedule = ((4.0, 60, 1.0), (2.0, 40, 1.0))
STIFF_SCHEDULE: Schedule = ((4.0, 60, 2.0), (2.0, 40, 2.0))
#: The deformation is smooth: on this grid a file has 6.7 MB (in double precision, as SimpleITK writes).
STORED_MM = 3.0
FADE_VOXELS = 5


@dataclass(frozen=True)
class Normalization:
    """Deformable registration to a standard space.

    Attributes
    ----------
    forward, inverse : Path or None
        ITK composite files from the scan to the standard space and back (pull; see `transforms`); None where the
        registration failed.
    check : Check
    """

    forward: Path | None
    inverse: Path | None
    check: Check


def to_pose(brain: Image, mask: Image, template: Template) -> Registration:
    """Rigid registration of a brain to a template: the pose in which the models see it.

    Parameters
    ----------
    brain, mask : Image
        Bias-corrected T1w or FLAIR and its brain mask, on one grid.

    Returns
    -------
    Registration
        ``matrix`` carries the scan to the template's world; ``check`` against `checks.POSE_LIMITS`.
    """
    scans = _Scans.of(brain, mask, None, template)

    def way(degrees: tuple[float, ...]) -> np.ndarray:
        starts = [
            turned
            for start in (np.eye(4), scans.shift)
            for turned in linear.rotations_about(start, scans.fixed.centre, degrees)
        ]
        return linear.register(scans.fixed, scans.moving, starts)

    def measure(matrix: np.ndarray) -> Measured:
        return scans.measure(pull_transform(matrix))

    matrix, check = first_that_passes((lambda: way(LIKELY_DEGREES), lambda: way(ANY_DEGREES)), measure, POSE_LIMITS)
    return Registration(np.eye(4) if matrix is None else matrix, check)


def brain_in_pose(scan: Image, mask: Image, matrix: np.ndarray, template: Template) -> tuple[Image, Image]:
    """A scan as lesion models see it, zero outside the brain, and its brain mask there.

    Parameters
    ----------
    scan, mask : Image
        Bias-corrected scan and its brain mask, on one grid.
    matrix : array of shape (4, 4)
        From `to_pose`.
    """
    posed_mask = apply_linear(mask, matrix, template.t1w, order=0)
    return masked(apply_linear(scan, matrix, template.t1w, order=3), posed_mask), posed_mask


def to_affine(
    brain: Image,
    mask: Image,
    lesion: Image | None,
    template: Template,
    initial: np.ndarray,
    contrast: str = "T1w",
) -> Registration:
    """Affine registration of a brain to a template; the lesion does not take part.

    Parameters
    ----------
    brain, mask, lesion, template, initial, contrast
        As for `normalize`.

    Returns
    -------
    Registration
        ``matrix`` carries the scan to the template's world; ``check`` against `checks.AFFINE_LIMITS`.
    """
    scans = _Scans.of(brain, mask, lesion, template)
    starts = [initial, _scaled(initial, scans)]
    first = "correlation" if contrast == "T1w" else "mutual information"
    ways = (lambda: scans.affine(starts, first), lambda: scans.affine([*starts, scans.shift], "mutual information"))
    matrix, check = first_that_passes(ways, lambda found: scans.measure(pull_transform(found)), AFFINE_LIMITS)
    return Registration(initial if matrix is None else matrix, check)


def normalize(
    brain: Image,
    mask: Image,
    lesion: Image | None,
    template: Template,
    initial: np.ndarray,
    folder: Path,
    contrast: str = "T1w",
    affine: np.ndarray | None = None,
) -> Normalization:
    """Affine and deformable registration of a brain to a template; the lesion does not take part.

    Parameters
    ----------
    brain, mask : Image
        Bias-corrected scan and its brain mask, on one grid.
    lesion : Image or None
        Lesion mask on the same grid; `LESION_MARGIN_MM` is added.
    initial : array of shape (4, 4)
        Rigid matrix from the scan to the template (push), from `to_pose`.
    folder : Path
        Where the two transforms are written.
    contrast : str
        ``T1w`` or ``FLAIR``.
    affine : array of shape (4, 4), optional
        From `to_affine`, where that is known already.

    Returns
    -------
    Normalization
        With `check` against `checks.NORMALIZATION_LIMITS` or `checks.FLAIR_NORMALIZATION_LIMITS`, measured with the
        transform as it is stored.
    """
    scans = _Scans.of(brain, mask, lesion, template)
    starts = [initial, _scaled(initial, scans)]
    one_contrast = contrast == "T1w"
    limits = NORMALIZATION_LIMITS if one_contrast else FLAIR_NORMALIZATION_LIMITS

    def way(starts: list[np.ndarray], metric: linear.Metric, schedule: Schedule, known: np.ndarray | None) -> _Pulls:
        matrix = scans.affine(starts, metric) if known is None else known
        return _pulls(matrix, deformable.register_field(scans.levels(matrix, schedule, one_contrast)))

    ways = (
        lambda: way(starts, "correlation" if one_contrast else "mutual information", SCHEDULE, affine),
        lambda: way([*starts, scans.shift], "mutual information", STIFF_SCHEDULE, None),
    )
    found, check = first_that_passes(ways, lambda pulls: scans.measure(pulls.forward), limits)
    if found is None or not check.usable:
        return Normalization(None, None, check)
    return Normalization(*found.write(folder), check)


@dataclass(frozen=True)
class _Pulls:
    """The ITK transforms of a normalization, as they are stored."""

    forward: sitk.CompositeTransform
    inverse: sitk.CompositeTransform

    def write(self, folder: Path) -> tuple[Path, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        forward, inverse = folder / "forward.h5", folder / "inverse.h5"
        sitk.WriteTransform(self.forward, str(forward))
        sitk.WriteTransform(self.inverse, str(inverse))
        return forward, inverse


@dataclass(frozen=True)
class _Scans:
    """A brain and a template, ready to be registered and compared.

    Attributes
    ----------
    moving, fixed : Pyramid
        Brain and template, without background.
    mask, healthy : Image
        Brain mask, and where the brain may be looked at: everywhere but in the lesion. None without a lesion.
    template : Template
    compared, target : Image, array of bool
        The template on voxels of `COMPARE_MM` and its brain mask there.
    """

    moving: linear.Pyramid
    fixed: linear.Pyramid
    mask: Image
    healthy: Image | None
    template: Template
    compared: Image
    target: np.ndarray

    @classmethod
    def of(cls, brain: Image, mask: Image, lesion: Image | None, template: Template) -> _Scans:
        fixed = linear.Pyramid(_boxed(template.t1w, template.brain_mask))
        compared = from_itk(fixed.at(COMPARE_MM))
        return cls(
            moving=linear.Pyramid(_boxed(masked(brain, mask), mask)),
            fixed=fixed,
            mask=_boxed(mask, mask),
            healthy=None if lesion is None or not data(lesion).any() else _healthy(_boxed(lesion, mask)),
            template=template,
            compared=compared,
            target=data(resample(template.brain_mask, compared, order=0)) > 0,
        )

    @property
    def shift(self) -> np.ndarray:
        """The matrix that brings the centre of the brain to that of the template."""
        return linear.translation(self.fixed.centre - self.moving.centre)

    def affine(self, starts: list[np.ndarray], metric: linear.Metric) -> np.ndarray:
        """The best affine matrix that any of the starts leads to."""
        return linear.register(self.fixed, self.moving, starts, "affine", metric, moving_mask=self.healthy)

    def levels(self, matrix: np.ndarray, schedule: Schedule, one_contrast: bool) -> list[deformable.Level]:
        """Template and brain, brought there by the affine `matrix`, at the resolutions of `schedule`."""
        pull = pull_transform(matrix)
        healthy = None if self.healthy is None else to_itk(self.healthy)
        out = []
        for spacing, iterations, smoothing in schedule:
            target, moving = self.fixed.at(spacing), self.moving.at(spacing)
            source = sitk.Resample(moving, target, pull, sitk.sitkLinear, 0.0)
            excluded = None if healthy is None else 1 - sitk.Resample(healthy, target, pull, sitk.sitkLinear, 1.0)
            out.append(deformable.Level(target, source, excluded, iterations, smoothing, one_contrast))
        return out

    def measure(self, pull: sitk.Transform) -> Measured:
        """How well brain and template agree after `pull`."""
        moved = resample_itk(from_itk(self.moving.at(COMPARE_MM)), pull, self.compared, "linear")
        mask = data(resample_itk(self.mask, pull, self.compared, "nearest")) > 0
        looked_at = mask & self.target
        if self.healthy is not None:
            looked_at &= data(resample_itk(self.healthy, pull, self.compared, "nearest")) > 0
        return Measured(dice(mask, self.target, empty=0.0), local_correlation(self.compared, moved, looked_at))


def _pulls(matrix: np.ndarray, field: sitk.Image) -> _Pulls:
    """Both directions of an affine followed by a deformation, on the grid on which fields are stored."""
    affine, stored = pull_transform(matrix), deformable.unfolded(_stored(field))
    forward, inverse = (deformable.as_transform(each) for each in (stored, deformable.inverted(stored)))
    # ITK applies the last transform of a list first
    return _Pulls(sitk.CompositeTransform([affine, forward]), sitk.CompositeTransform([inverse, affine.GetInverse()]))


def write_stored(matrix: np.ndarray, field: sitk.Image, folder: Path) -> tuple[Path, Path]:
    """Write both directions of an affine followed by a deformation, as `normalize` does.

    Parameters
    ----------
    matrix : array of shape (4, 4)
        From the scan to the template (push).
    field : SimpleITK.Image
        Displacements of points of the template before the affine is undone, mm, LPS.
    """
    return _pulls(matrix, field).write(folder)


def _stored(field: sitk.Image) -> sitk.Image:
    """`field` on voxels of `STORED_MM`, fading to zero at its border, outside of which ITK takes it as zero."""
    size = np.array(field.GetSize())
    ramps = [np.clip(np.minimum(np.arange(n), np.arange(n)[::-1]) / FADE_VOXELS, 0, 1) for n in size[::-1]]
    window = np.einsum("i,j,k->ijk", *ramps)[..., None]
    faded = deformable.vectors(sitk.GetArrayFromImage(field) * window, field)
    spacing = np.array(field.GetSpacing())
    shape = np.ceil((size - 1) * spacing / STORED_MM + 1).astype(int).tolist()
    return sitk.Resample(
        faded, shape, sitk.Transform(), sitk.sitkLinear, field.GetOrigin(), [STORED_MM] * 3, field.GetDirection(), 0.0
    )


def _scaled(initial: np.ndarray, scans: _Scans) -> np.ndarray:
    """`initial`, followed by the scaling about the template's centre that makes the brains equally large."""
    masks = (scans.template.brain_mask, scans.mask)
    template, brain = (np.count_nonzero(data(mask)) * voxel_volume_mm3(mask) for mask in masks)
    scale = np.eye(4)
    scale[:3, :3] *= (template / brain) ** (1 / 3)
    scale[:3, 3] = scans.fixed.centre - scale[:3, :3] @ scans.fixed.centre
    return scale @ initial


def _healthy(lesion: Image) -> Image:
    """1 everywhere but in the lesion and its margin."""
    sizes = lesion.header.get_zooms()[:3]
    return like(lesion, ndimage.distance_transform_edt(data(lesion) <= 0, sampling=sizes) > LESION_MARGIN_MM)


def _boxed(image: Image, mask: Image) -> Image:
    """The part of `image` around `mask` with a margin of `BOX_MARGIN_MM`, zero where the scan ends.

    ITK does not count voxels outside of an image: without the margin nothing would keep a brain from growing out of it.
    """
    box = ndimage.find_objects(data(mask) > 0, max_label=1)[0]
    margins = [int(np.ceil(BOX_MARGIN_MM / size)) for size in mask.header.get_zooms()[:3]]
    values = np.pad(data(image)[box], [(margin, margin) for margin in margins])
    start = np.array([side.start - margin for side, margin in zip(box, margins, strict=True)])
    affine = image.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(image.affine, start)
    return on_affine(values, affine)
