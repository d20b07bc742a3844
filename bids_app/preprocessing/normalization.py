"""A brain to standard space: rigid to the models' pose, then affine and deformable, the lesion left out of the cost.

Templates are T1w. A FLAIR is brought there by mutual information, and deformed after the template was given its grey
values (`deformable`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from bids_app.images import Image, data, like, masked, on_affine, voxel_volume_mm3
from bids_app.preprocessing import deformable, linear
from bids_app.preprocessing.checks import (
    AFFINE_LIMITS,
    NORMALIZATION_LIMITS,
    POSE_LIMITS,
    Check,
    Measured,
    Registration,
    check_of,
    first_accepted,
)
from bids_app.preprocessing.comparison import COMPARE_MM, COVERED, Candidate, Fit, Target, fit, measure, soft
from bids_app.preprocessing.itk import pull_transform, to_itk
from bids_app.preprocessing.templates import Template
from bids_app.preprocessing.transforms import apply_linear, read_itk

#: Rotations tried for the pose: what patients do in a scanner, then what wrong headers do.
LIKELY_DEGREES = (-24.0, -8.0, 8.0, 24.0)
ANY_DEGREES = (-90.0, -45.0, 0.0, 45.0, 90.0, 180.0)
#: The lesion's surroundings are oedema and distorted tissue, and its mask is never exact.
LESION_MARGIN_MM = 3.0
#: Share of a template's 99th percentile above which its T1w shows tissue and not fluid.
TISSUE = 0.5
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

    Brains differ in size, and masks in how much of the fluid around it they hold, so the brain is scaled while it is
    brought to the template: without, the outline decides, and small brains end up to 5 mm and 10 degrees off. The
    rigid part of that is the pose; the check looks at the scaled brain.

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
        return linear.register(scans.fixed, scans.moving, starts, "similarity")

    ways = (lambda: way(LIKELY_DEGREES), lambda: way(ANY_DEGREES))
    scaled, check = first_accepted(ways, scans.measure_linear, POSE_LIMITS)
    return Registration(np.eye(4) if scaled is None else linear.rigid_part(scaled, scans.fixed.centre), check)


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
    matrix, check = first_accepted(ways, scans.measure_linear, AFFINE_LIMITS)
    return Registration(initial if matrix is None else matrix, check)


def normalize(
    brain: Image,
    mask: Image,
    lesion: Image | None,
    template: Template,
    initial: np.ndarray,
    folder: Path,
    contrast: str = "T1w",
    affine: Registration | None = None,
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
    affine : Registration, optional
        From `to_affine`, where that is known already.

    Returns
    -------
    Normalization
        With `check` against `checks.NORMALIZATION_LIMITS`: overlap and similarity of the transform as it is stored.
        Whether it fits better elsewhere is asked before the deformation, which makes a scan fit wherever it lies.
    """
    scans = _Scans.of(brain, mask, lesion, template)
    starts = [initial, _scaled(initial, scans)]
    one_contrast = contrast == "T1w"

    def way(matrix: np.ndarray, before: Measured, schedule: Schedule) -> _Deformed:
        field = deformable.register_field(scans.levels(matrix, schedule, one_contrast))
        return _Deformed(_pulls(matrix, field), before)

    def first() -> _Deformed:
        if affine is not None:
            return way(affine.matrix, affine.check.measured, SCHEDULE)
        matrix = scans.affine(starts, "correlation" if one_contrast else "mutual information")
        return way(matrix, scans.measure_linear(matrix), SCHEDULE)

    def second() -> _Deformed:
        matrix = scans.affine([*starts, scans.shift], "mutual information")
        return way(matrix, scans.measure_linear(matrix), STIFF_SCHEDULE)

    def measured(found: _Deformed) -> Measured:
        here = scans.fit(found.pulls.forward)
        return replace(found.before, overlap=here.overlap, similarity=here.similarity)

    found, check = first_accepted((first, second), measured, NORMALIZATION_LIMITS)
    if found is None or not check.usable:
        return Normalization(None, None, check)
    return Normalization(*found.pulls.write(folder), check)


def check_transform(brain: Image, mask: Image, lesion: Image | None, template: Template, path: Path) -> Check:
    """Judge a transform to a standard space that somebody else made.

    Parameters
    ----------
    brain, mask, lesion, template
        As for `normalize`.
    path : Path
        ITK file that pulls the scan to the standard space.

    Raises
    ------
    VisitError
        If the file is missing or holds no transform that ITK knows.
    """
    scans = _Scans.of(brain, mask, lesion, template)
    return check_of(scans.measure(read_itk(path)), NORMALIZATION_LIMITS)


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
class _Deformed:
    """A deformation, and what was measured of the affine that it begins with."""

    pulls: _Pulls
    before: Measured


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
    target, candidate : Target, Candidate
        Template and brain, ready to be compared.
    """

    moving: linear.Pyramid
    fixed: linear.Pyramid
    mask: Image
    healthy: Image | None
    template: Template
    target: Target
    candidate: Candidate

    @classmethod
    def of(cls, brain: Image, mask: Image, lesion: Image | None, template: Template) -> _Scans:
        fixed = linear.Pyramid(_boxed(template.t1w, template.brain_mask))
        moving = linear.Pyramid(_boxed(masked(brain, mask), mask))
        boxed = _boxed(mask, mask)
        healthy = None if lesion is None or not data(lesion).any() else _healthy(_boxed(lesion, mask))
        return cls(
            moving=moving,
            fixed=fixed,
            mask=boxed,
            healthy=healthy,
            template=template,
            target=template_target(template, fixed),
            candidate=Candidate(
                image=moving.at(COMPARE_MM),
                mask=linear.downsample(soft(boxed), COMPARE_MM),
                healthy=None if healthy is None else linear.downsample(soft(healthy), COMPARE_MM),
            ),
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
        return measure(self.target, self.candidate, pull)

    def fit(self, pull: sitk.Transform) -> Fit:
        """How well they agree after `pull`, without a look at other poses."""
        return fit(self.target, self.candidate, pull)

    def measure_linear(self, matrix: np.ndarray) -> Measured:
        """How well brain and template agree where the brain is pushed by `matrix`."""
        return self.measure(pull_transform(matrix))


def template_target(template: Template, pyramid: linear.Pyramid) -> Target:
    """A template to compare scans with; its tissue is what is brighter than fluid in its T1w."""
    grid = pyramid.at(COMPARE_MM)

    def on_grid(inside: np.ndarray) -> np.ndarray:
        small = linear.downsample(soft(like(template.t1w, inside)), COMPARE_MM)
        return sitk.GetArrayFromImage(sitk.Resample(small, grid)).T > COVERED

    brain = data(template.brain_mask) > 0
    return Target(grid, on_grid(brain), on_grid(brain & (data(template.t1w) > TISSUE)))


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
