"""The scans and masks that a lesion model is trained on, and what is wrong with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_app import images
from bids_app.errors import NoInputError, VisitError
from bids_app.preprocessing import headers
from bids_app.settings import Settings, TrainingSettings
from bids_app.study.content import has_content
from bids_app.study.index import index
from bids_app.study.models import Problem, Severity, Visit
from bids_app.training.own.masks import ATLAS, atlas_visits, check_pattern, find_masks, is_there, scan_of_mask
from bids_app.training.plans import FUSIONS
from bids_app.wording import counted, listed

#: Two grids are the same if their corners lie this close.
GRID_TOLERANCE_MM = 0.1
#: Share of the lesion that has to lie in the scan it was drawn on.
MIN_INSIDE = 0.5
#: Half of a brain: no lesion is larger, but a brain mask or a scan taken for a mask is.
MAX_LESION_ML = 700.0
#: Cases of one problem that the table names.
SHOWN = 8


@dataclass(frozen=True)
class Case:
    """One visit with a mask.

    Attributes
    ----------
    visit : Visit
        With those scans alone that the model sees.
    mask : Path
        The mask as it was drawn; empty for a healthy brain.
    drawn_on : Path
        The scan on whose grid the mask lies.
    volume_ml : float
        Volume of the mask.
    problems : tuple of Problem
        None of severity ERROR.
    """

    visit: Visit
    mask: Path
    drawn_on: Path
    volume_ml: float
    problems: tuple[Problem, ...] = ()

    @property
    def label(self) -> str:
        """``sub-01_ses-1``: also the name of the case for nnU-Net."""
        return self.visit.label

    @property
    def subject(self) -> str:
        return self.visit.subject


@dataclass(frozen=True)
class Cohort:
    """What a dataset has to train on.

    Attributes
    ----------
    name : str
        Of the dataset.
    cases : tuple of Case
        By subject and session.
    left_out : tuple of (str, Problem)
        Label of a visit, and why it cannot be used.
    """

    name: str
    cases: tuple[Case, ...]
    left_out: tuple[tuple[str, Problem], ...] = ()


class _Unusable(Exception):
    """Carries the problem of a visit that is left out."""

    def __init__(self, code: str, message: str, *files: Path):
        super().__init__(message)
        self.problem = Problem(code, Severity.ERROR, message, tuple(path.name for path in files))


def find_cases(settings: TrainingSettings) -> Cohort:
    """Find the visits, the mask of each, and everything that speaks against using them.

    Raises
    ------
    NoInputError
        If no visit can be used; the message says why.
    UsageError
        If the pattern of the masks cannot be understood.
    """
    check_pattern(settings.masks)
    name, visits = _visits(settings)
    cases, left_out = [], []
    for visit in visits:
        try:
            cases.append(_case(visit, settings))
        except _Unusable as unusable:
            left_out.append((visit.label, unusable.problem))
    cases, shared = _without_shared(cases)
    cohort = Cohort(name, tuple(cases), tuple(left_out + shared))
    if not cases:
        raise NoInputError(
            f"No visit of {settings.bids_dir} can be trained on: {_codes(cohort.left_out)}.",
            f"First of them: {cohort.left_out[0][1].message}" if cohort.left_out else "Check --masks.",
        )
    return cohort


def _visits(settings: TrainingSettings) -> tuple[str, tuple[Visit, ...]]:
    """Name of the dataset, and its visits."""
    if settings.masks == ATLAS:
        if not settings.bids_dir.is_dir():
            raise NoInputError(f"The folder {settings.bids_dir} does not exist.", "Check --bids.")
        return "ATLAS v2.0", atlas_visits(settings.bids_dir, settings.participants)
    study = index(Settings(settings.out_dir, settings.bids_dir, participants=settings.participants))
    return study.name, study.visits


def _case(visit: Visit, settings: TrainingSettings) -> Case:
    """One visit, its scans and its mask checked."""
    contrasts = FUSIONS[settings.fusion].contrasts
    for problem in visit.problems:
        if problem.severity is Severity.ERROR:
            raise _Unusable(problem.code, problem.message)
    if missing := [contrast for contrast in contrasts if contrast not in visit.contrasts]:
        message = f"{visit.label} has no {missing[0]}, which --fusion {settings.fusion} needs."
        raise _Unusable(f"no-{missing[0].lower()}", message)
    mask = _only_mask(visit, settings)
    drawn_on, doubts = _drawn_on(mask, visit)
    if not is_there(drawn_on):
        message = f"{mask.name} was drawn on {drawn_on.name}, which is not there."
        raise _Unusable("no-scan-of-mask", message, mask)
    if not has_content(drawn_on):
        raise _Unusable("not-downloaded", f"{drawn_on.name} is not downloaded. Run: datalad get {drawn_on}", drawn_on)
    volume = _checked_volume(mask, drawn_on)
    if volume == 0:
        message = f"{mask.name} is empty: a brain without lesion."
        doubts += (Problem("empty-mask", Severity.INFO, message, (mask.name,)),)
    # a model of FLAIR alone is prepared as the App prepares a visit that has nothing else
    needed = replace(visit, **{scan: None for scan in ("t1w", "flair") if scan not in _fields(contrasts)})
    problems = tuple(problem for problem in visit.problems if problem.code != "flair-alone")
    return Case(needed, mask, drawn_on, volume, problems + doubts)


def _fields(contrasts: Sequence[str]) -> set[str]:
    """Names of the scans of a visit: ``t1w``, ``flair``."""
    return {contrast.lower() for contrast in contrasts}


def _only_mask(visit: Visit, settings: TrainingSettings) -> Path:
    """The one mask of a visit."""
    masks = find_masks(settings.masks, settings.bids_dir, visit)
    if not masks:
        raise _Unusable("no-mask", f"{visit.label} has no mask that --masks finds.")
    if len(masks) > 1:
        names = listed([mask.name for mask in masks], limit=3)
        message = f"{visit.label} has {len(masks)} masks: {names}; make --masks narrower."
        raise _Unusable("several-masks", message, *masks)
    if not has_content(masks[0]):
        raise _Unusable("not-downloaded", f"{masks[0].name} is not downloaded. Run: datalad get {masks[0]}", masks[0])
    return masks[0]


def _drawn_on(mask: Path, visit: Visit) -> tuple[Path, tuple[Problem, ...]]:
    """The scan that shares the grid of the mask; else the one its name tells; else the T1w, with a warning."""
    scans = [scan.path for scan in (visit.t1w, visit.flair) if scan]
    same = next((path for path in scans if _same_grid(mask, path)), None)
    chosen = same or scan_of_mask(mask, visit)
    if chosen:
        return chosen, ()
    message = (
        f"{mask.name} lies on the grid of no scan of {visit.label}; "
        f"its header is trusted to place it on {visit.reference.path.name}."
    )
    return visit.reference.path, (Problem("mask-grid", Severity.WARNING, message, (mask.name,)),)


def _same_grid(first: Path, second: Path) -> bool:
    """Whether two files have the same voxels; False if one cannot be read."""
    try:
        one, two = nib.load(first), nib.load(second)
    except Exception:  # whatever is wrong with a file is told when it is read whole
        return False
    if one.shape[:3] != two.shape[:3]:
        return False
    return bool(np.abs(_corners(one) - _corners(two)).max() <= GRID_TOLERANCE_MM)


def _corners(image: nib.spatialimages.SpatialImage) -> np.ndarray:
    """World coordinates of the eight corner voxels, ``(8, 3)``."""
    ends = [(0, size - 1) for size in image.shape[:3]]
    return nib.affines.apply_affine(image.affine, np.stack(np.meshgrid(*ends), axis=-1).reshape(-1, 3))


def _checked_volume(mask: Path, scan: Path) -> float:
    """Volume of a mask in mL, after making sure that it lies in the scan."""
    try:
        drawn = headers.clean_mask(mask)
        grid = nib.load(scan)
        affine, shape = grid.affine, grid.shape[:3]
    except VisitError as error:
        raise _Unusable("mask-unreadable", error.message, mask) from error
    except Exception as error:
        raise _Unusable("scan-unreadable", f"{scan.name} cannot be read: {error}", scan) from error
    _check_values(mask)
    lesion = np.argwhere(np.asarray(drawn.dataobj) > 0)
    if len(lesion) == 0:
        return 0.0
    voxels = nib.affines.apply_affine(np.linalg.inv(affine) @ drawn.affine, lesion)
    inside = ((voxels > -0.5) & (voxels < np.array(shape) - 0.5)).all(axis=1).mean()
    if inside < MIN_INSIDE:
        message = f"{1 - inside:.0%} of the lesion in {mask.name} lies outside {scan.name}."
        raise _Unusable("mask-elsewhere", message, mask)
    volume = len(lesion) * images.voxel_volume_mm3(drawn) / 1000
    if volume > MAX_LESION_ML:
        message = f"{mask.name} marks {volume:.0f} mL, more than a lesion can have: is it a brain mask?"
        raise _Unusable("mask-too-large", message, mask)
    return volume


def _check_values(mask: Path) -> None:
    """Make sure that a mask has one value beside zero, or values up to 1 that say where the lesion is."""
    values = np.asanyarray(nib.load(mask).dataobj)
    marked = np.unique(values[np.isfinite(values) & (values != 0)])
    if len(marked) <= 1 and (len(marked) == 0 or marked[0] > 0.5):
        return
    if marked.min() < 0 or marked.max() > 1:
        message = f"{mask.name} has several values up to {marked.max():g}: it is a scan or a label map, no lesion mask."
        raise _Unusable("mask-values", message, mask)
    if marked.max() <= 0.5:
        message = f"{mask.name} is nowhere above one half, from which a soft mask counts as lesion."
        raise _Unusable("mask-values", message, mask)


def _without_shared(cases: Sequence[Case]) -> tuple[list[Case], list[tuple[str, Problem]]]:
    """Cases with a mask of their own, and the problems of those whose mask the pattern gives to several visits."""
    users = Counter(case.mask.resolve() for case in cases)
    kept = [case for case in cases if users[case.mask.resolve()] == 1]
    shared = [
        (case.label, Problem("shared-mask", Severity.ERROR, f"{case.mask.name} is the mask of several visits."))
        for case in cases
        if users[case.mask.resolve()] > 1
    ]
    return kept, shared


def render_cohort(cohort: Cohort, fusion: str) -> str:
    """Cases and problems as one plain table."""
    subjects = {case.subject for case in cohort.cases}
    volumes = np.array([case.volume_ml for case in cohort.cases if case.volume_ml > 0])
    healthy = len(cohort.cases) - len(volumes)
    lines = [
        f"dataset   {cohort.name}",
        f"fusion    {fusion}, from {' and '.join(FUSIONS[fusion].contrasts)}",
        f"cases     {counted(len(cohort.cases), 'visit')} of {counted(len(subjects), 'subject')}, "
        f"{healthy} without lesion",
    ]
    if len(volumes):
        lines.append(f"lesions   {volumes.min():.2f} to {volumes.max():.1f} mL, median {np.median(volumes):.1f} mL")
    notes = [(case.label, problem) for case in cohort.cases for problem in case.problems]
    rows = [("left out", *row) for row in _rows(cohort.left_out)] + [("used", *row) for row in _rows(notes)]
    if rows:
        heads = ("", "problem", "visit", "what")
        widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(3)]
        lines += ["", *(_line(row, widths) for row in (heads, *rows))]
    return "\n".join(lines)


def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
    cells = (f"{cell:<{width}}" for cell, width in zip(row, (*widths, 0), strict=True))
    return "  ".join(cells).rstrip()


def _rows(problems: Iterable[tuple[str, Problem]]) -> list[tuple[str, str, str]]:
    """Code, label and sentence; of a problem that many visits have, the first ones and a count."""
    by_code: dict[str, list[tuple[str, Problem]]] = {}
    for label, problem in problems:
        by_code.setdefault(problem.code, []).append((label, problem))
    rows = []
    for code, items in sorted(by_code.items()):
        rows += [(code, label, problem.message) for label, problem in items[:SHOWN]]
        if len(items) > SHOWN:
            rows.append((code, f"and {len(items) - SHOWN} more", ""))
    return rows


def _codes(problems: Sequence[tuple[str, Problem]]) -> str:
    counts = Counter(problem.code for _, problem in problems)
    return ", ".join(f"{count} {code}" for code, count in counts.most_common()) or "there is none"
