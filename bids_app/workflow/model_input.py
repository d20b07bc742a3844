"""What a lesion model is given of a visit, in the space that it wants, and the way back to the reference scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app import images
from bids_app.derivatives.results import Posed, Prepared
from bids_app.errors import VisitError
from bids_app.images import Image
from bids_app.lesion.inputs import AFFINE, RIGID, LesionInput, usual
from bids_app.preprocessing import headers, transforms
from bids_app.preprocessing.normalization import to_affine
from bids_app.preprocessing.templates import load_template
from bids_app.settings import DEFAULT_SPACE
from bids_app.study.models import Problem, Severity

#: A registration is this exact: two scans of one grid that it finds closer than this are taken as they lie.
REGISTRATION_ERROR_MM = 2.0


@dataclass(frozen=True)
class Given:
    """What a lesion model is given.

    Attributes
    ----------
    scans : tuple of Image
        One a channel, on one grid.
    matrix : ndarray, shape (4, 4)
        World of the reference scan to world of the scans.
    problems : tuple of Problem
        What is doubtful about them.
    """

    scans: tuple[Image, ...]
    matrix: np.ndarray
    problems: tuple[Problem, ...] = ()

    def carried(self, image: Image, reference: Image, order: int) -> Image:
        """An image on the grid of the scans, brought to that of the reference scan.

        Where the two grids differ in the order of their axes alone, every voxel keeps its value.
        """
        if np.array_equal(self.matrix, np.eye(4)):
            turned = images.to_ras(image)
            if images.same_grid(turned, reference):
                return images.like(reference, images.data(turned))
        return transforms.apply_linear(image, np.linalg.inv(self.matrix), reference, order)


@dataclass(frozen=True)
class _Source:
    """A scan of a visit on its own grid.

    Attributes
    ----------
    image : Image
        RAS+, with its skull unless it came without.
    stored : str
        The order of the axes in its file, such as ``LIA``.
    to_reference : ndarray, shape (4, 4)
        Its world to that of the reference scan.
    problems : tuple of Problem
    """

    image: Image
    stored: str
    to_reference: np.ndarray
    problems: tuple[Problem, ...] = ()


def given(prepared: Prepared, posed: Posed, channels: Sequence[str], wanted: LesionInput) -> Given:
    """The scans of a visit as a lesion model wants them.

    Parameters
    ----------
    channels : sequence of str
        ``T1w``, ``FLAIR`` or both, in the model's order; the visit has them.

    Raises
    ------
    VisitError
        If a scan cannot be read, or the brain cannot be aligned affinely where the model wants that.
    """
    if wanted == usual(RIGID):
        return Given(tuple(images.load(posed.scan(channel)) for channel in channels), np.array(posed.matrix))
    sources = {channel: _source(prepared, channel, wanted.corrected) for channel in channels}
    problems = tuple(problem for source in sources.values() for problem in source.problems)
    if wanted.own_grid:
        return _on_own_grid(prepared, sources, wanted.brain_alone, problems)
    matrix = _affine(prepared, posed) if wanted.space == AFFINE else np.array(posed.matrix)
    return Given(_in_mni(prepared, sources, matrix), matrix, problems)


def _source(prepared: Prepared, channel: str, corrected: bool) -> _Source:
    """One scan of the visit, as its file holds it or with its bias field corrected."""
    visit = prepared.visit
    if channel != prepared.contrast:
        cleaned = headers.clean(visit.flair_to_align.path, raise_negative=False)
        image = images.load(prepared.flair_native) if corrected else cleaned.image
        return _Source(image, cleaned.stored, np.array(prepared.flair_matrix))
    cleaned = headers.clean(visit.reference.path, raise_negative=False)
    processed = images.load(prepared.reference)
    if corrected:
        return _Source(processed, cleaned.stored, np.eye(4))
    if images.same_grid(cleaned.image, processed):
        return _Source(cleaned.image, cleaned.stored, np.eye(4))
    # another pipeline may have moved the scan: where the raw voxels lie in the space of its brain mask is not known
    message = (
        f"The lesion model wants {visit.reference.path.name} as it is, but {visit.reuse.preprocessed.name}, which is "
        "reused, lies on another grid: the model got that one."
    )
    problem = Problem("model-input-reused", Severity.WARNING, message, (visit.reference.path.name,))
    return _Source(processed, cleaned.stored, np.eye(4), (problem,))


def _on_own_grid(
    prepared: Prepared, sources: dict[str, _Source], brain_alone: bool, problems: tuple[Problem, ...]
) -> Given:
    """Scans on the grid of one of them (of two, of the reference scan), axes in the order of its file.

    A scan that lies on this grid already is not interpolated, whatever the registration found.
    """
    base = sources.get(prepared.contrast) or next(iter(sources.values()))
    to_reference, doubts = _placed(prepared, base, sources)
    mask = images.load(prepared.brain_mask)
    if not (images.same_grid(mask, base.image) and np.array_equal(to_reference, np.eye(4))):
        mask = transforms.apply_linear(mask, np.linalg.inv(to_reference), base.image, order=0)

    def moved(source: _Source) -> Image:
        if source is base or images.same_grid(source.image, base.image):
            image = source.image
        else:
            image = transforms.apply_linear(source.image, source.to_reference, base.image, order=3)
        return images.to_axes(images.masked(image, mask) if brain_alone else image, base.stored)

    scans = tuple(moved(source) for source in sources.values())
    return Given(scans, np.linalg.inv(to_reference), (*problems, *doubts))


def _placed(
    prepared: Prepared, base: _Source, sources: dict[str, _Source]
) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """The world of the base to that of the reference scan, and a doubt about a FLAIR that lies on the T1w's grid."""
    flair = sources.get("FLAIR")
    reference = images.load(prepared.reference)
    if flair is None or not images.same_grid(flair.image, reference):
        return base.to_reference, ()
    moved = _displacement(images.load(prepared.brain_mask), flair.to_reference)
    if moved <= REGISTRATION_ERROR_MM:
        return np.eye(4), ()
    if base is flair:
        return base.to_reference, ()
    message = (
        f"The T1w and the FLAIR lie on one grid, and the lesion model got them as they are, but the registration finds "
        f"the FLAIR {moved:.1f} mm beside the T1w: look at them."
    )
    return np.eye(4), (Problem("model-input-apart", Severity.WARNING, message),)


def _displacement(mask: Image, matrix: np.ndarray) -> float:
    """How far, in mm, a matrix moves the corner of the brain's box that it moves most."""
    box = ndimage.find_objects(images.data(mask) > 0, max_label=1)[0]
    ends = [(side.start, side.stop - 1) for side in box]
    corners = images.world(mask, np.stack(np.meshgrid(*ends), axis=-1).reshape(-1, 3))
    return float(np.linalg.norm(transforms.apply_to_points(corners, matrix) - corners, axis=1).max())


def _affine(prepared: Prepared, posed: Posed) -> np.ndarray:
    """The affine matrix from the reference scan to MNI; the lesion, which is not known yet, takes part."""
    mask = images.load(prepared.brain_mask)
    brain = images.masked(images.load(prepared.reference), mask)
    template = load_template(DEFAULT_SPACE)
    found = to_affine(brain, mask, None, template, np.array(posed.matrix), prepared.contrast)
    if not found.check.usable:
        raise VisitError(
            f"The {prepared.contrast} of {prepared.visit.label} could not be aligned affinely with MNI, as the lesion "
            f"model wants it: {found.check.sentence}",
            "Look at the brain mask; or give the model another input with --lesion-input.",
        )
    return found.matrix


def _in_mni(prepared: Prepared, sources: dict[str, _Source], matrix: np.ndarray) -> tuple[Image, ...]:
    """The brains on the grid of the template, each interpolated once from its own grid, zero outside the brain."""
    template = load_template(DEFAULT_SPACE)
    mask = transforms.apply_linear(images.load(prepared.brain_mask), matrix, template.t1w, order=0)

    def moved(source: _Source) -> Image:
        to_template = matrix @ source.to_reference
        return images.masked(transforms.apply_linear(source.image, to_template, template.t1w, order=3), mask)

    return tuple(moved(source) for source in sources.values())


def kept(seen: Given, folder: Path) -> tuple[Path, ...]:
    """The scans of a model, saved in the work folder, one a channel."""
    return tuple(
        images.save(scan, folder / f"model_input_{number}.nii.gz") for number, scan in enumerate(seen.scans)
    )
