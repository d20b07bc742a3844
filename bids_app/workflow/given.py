"""What a visit is given instead of made here: a preprocessed scan, a brain mask, a lesion mask drawn by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from bids_app import images
from bids_app.derivatives.results import Prepared
from bids_app.errors import VisitError
from bids_app.images import Grid, Image
from bids_app.preprocessing import brain, masks, transforms
from bids_app.study.models import Problem, Severity, Study, Visit

#: Masks that a plan reads; they take 0.2 s each.
MAX_MASKS_READ = 200


def processed_scan(visit: Visit) -> Path:
    """The file that is processed: the reference scan, or what another pipeline made of it.

    Raises
    ------
    VisitError
        If the one lies elsewhere than the other.
    """
    if visit.reuse.preprocessed is None:
        return visit.reference.path
    masks.check_preprocessed(visit.reuse.preprocessed, visit.reference.path)
    return visit.reuse.preprocessed


def brain_mask(path: Path, scan: Image, visit: Visit) -> tuple[Image, tuple[Problem, ...]]:
    """The brain mask of another pipeline on the grid of the scan, and what is doubtful about it.

    Raises
    ------
    VisitError
        If it is no brain mask of this scan.
    """
    read = masks.read_brain_mask(path, _drawn_on(path, visit))
    mask = images.resample(read.image, scan, order=0)
    try:
        return brain.checked_volume(mask), read.problems
    except VisitError as error:
        hint = f"It is {path.name}: look at it on the scan, or leave it out of --derivatives."
        raise VisitError(error.message, hint) from error


def check_lesion_mask(visit: Visit) -> None:
    """Judge the lesion mask drawn by hand before anything else: what follows takes minutes.

    Raises
    ------
    VisitError
        If it is no lesion mask of this visit.
    """
    if path := visit.reuse.lesion_mask:
        masks.read_lesion_mask(path, _drawn_on(path, visit))


def with_masks_judged(study: Study) -> Study:
    """The study with what a run would say of the lesion masks drawn by hand, for a plan that is not followed by one.

    Of a large study they are not read, and that is said.
    """
    drawn = [visit for visit in study.visits if visit.usable and visit.reuse.lesion_mask]
    if len(drawn) > MAX_MASKS_READ:
        message = f"{len(drawn)} lesion masks drawn by hand are read when their visits are processed, and not before."
        return replace(study, problems=(*study.problems, Problem("masks-unread", Severity.INFO, message)))
    visits = (visit if visit not in drawn else _with_mask_judged(visit) for visit in study.visits)
    return replace(study, visits=tuple(visits))


def _with_mask_judged(visit: Visit) -> Visit:
    path = visit.reuse.lesion_mask
    try:
        problems = masks.read_lesion_mask(path, _drawn_on(path, visit)).problems
    except VisitError as error:
        code = getattr(error, "code", "scan-unreadable")
        problems = (Problem(code, Severity.ERROR, str(error), (path.name,)),)
    return replace(visit, problems=(*visit.problems, *problems))


def lesion_mask(path: Path, prepared: Prepared, native: Image) -> tuple[Image, tuple[Problem, ...]]:
    """The lesion mask drawn by hand on the grid of the reference scan, and what is doubtful about it.

    A mask that lies on the voxels of the FLAIR is carried to the T1w as the FLAIR itself was.

    Parameters
    ----------
    native : Image
        The reference scan.

    Raises
    ------
    VisitError
        If it is no lesion mask of this visit.
    """
    visit = prepared.visit
    scan = _drawn_on(path, visit)
    read = masks.read_lesion_mask(path, scan)
    if visit.flair_to_align and scan == visit.flair_to_align.path:
        drawn, doubts = _from_flair(path, read.image, prepared, native)
    else:
        drawn, doubts = images.resample(read.image, native, order=0), _on_raw_grid(path, read.image, scan, visit)
    masks.check_kept(read.image, drawn, path.name)
    outside = masks.check_in_brain(drawn, images.load(prepared.brain_mask), path.name)
    return drawn, (*read.problems, *doubts, *outside)


def _drawn_on(mask: Path, visit: Visit) -> Path:
    """The scan on whose voxels a given mask lies; else the one that is processed, which it is taken to belong to."""
    processed = visit.reuse.preprocessed or visit.reference.path
    scans = [processed, visit.reference.path]
    if visit.flair_to_align:
        scans.append(visit.flair_to_align.path)
    return masks.drawn_on(mask, scans) or processed


def _from_flair(path: Path, mask: Image, prepared: Prepared, native: Image) -> tuple[Image, tuple[Problem, ...]]:
    """A mask on the voxels of the FLAIR, brought to the T1w."""
    where = f"{path.name} lies on the voxels of the FLAIR"
    if prepared.flair_matrix is None:
        message = f"{where}, which could not be aligned: its header is trusted to place it on the {prepared.contrast}."
        doubt = Problem("mask-grid", Severity.WARNING, message, (path.name,))
        return images.resample(mask, native, order=0), (doubt,)
    message = f"{where}, and was brought to the {prepared.contrast} by the transform of the FLAIR."
    moved = transforms.apply_linear(mask, np.array(prepared.flair_matrix), native, order=0)
    return moved, (Problem("mask-grid", Severity.INFO, message, (path.name,)),)


def _on_raw_grid(path: Path, mask: Image, scan: Path, visit: Visit) -> tuple[Problem, ...]:
    """A warning where a mask lies on the voxels of the raw scan, and another pipeline changed those."""
    if visit.reuse.preprocessed in (None, scan):
        return ()
    return (masks.other_grid(path, Grid.of(mask), visit.reuse.preprocessed),)
