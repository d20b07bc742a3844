"""The scans and masks that a lesion model is trained on, and what is wrong with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_app.errors import NoInputError, VisitError
from bids_app.measures.volumes import volume_ml
from bids_app.preprocessing import masks
from bids_app.settings import Settings, TrainingSettings
from bids_app.study.content import has_content
from bids_app.study.index import index
from bids_app.study.masks import several_masks
from bids_app.study.models import Problem, Severity, Visit
from bids_app.training.own.masks import (
    ATLAS,
    atlas_visits,
    beside_pattern,
    check_pattern,
    find_all_masks,
    find_masks,
    is_there,
    scan_of_mask,
)
from bids_app.training.plans import FUSIONS
from bids_app.wording import counted, listed

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
    unmatched : tuple of Problem
        Masks that are of no visit.
    """

    name: str
    cases: tuple[Case, ...]
    left_out: tuple[tuple[str, Problem], ...] = ()
    unmatched: tuple[Problem, ...] = ()


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
    found = {visit.label: find_masks(settings.masks, settings.bids_dir, visit) for visit in visits if visit.reference}
    users = _users_of_masks(visits, found, settings)
    cases, left_out = [], []
    for visit in visits:
        try:
            cases.append(_case(visit, found.get(visit.label, ()), users, settings))
        except _Unusable as unusable:
            left_out.append((visit.label, unusable.problem))
    cohort = Cohort(name, tuple(cases), tuple(left_out), _unmatched(found, settings))
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


def _users_of_masks(
    visits: Sequence[Visit], found: Mapping[str, Sequence[Path]], settings: TrainingSettings
) -> Counter[Path]:
    """How many visits that could be trained on have a file as their one mask."""
    usable = (visit for visit in visits if _unusable_scans(visit, settings) is None)
    return Counter(found[visit.label][0].resolve() for visit in usable if len(found[visit.label]) == 1)


def _unusable_scans(visit: Visit, settings: TrainingSettings) -> Problem | None:
    """What is wrong with the scans of a visit, or which of them the model lacks."""
    for problem in visit.problems:
        if problem.severity is Severity.ERROR:
            return problem
    missing = [contrast for contrast in FUSIONS[settings.fusion].contrasts if contrast not in visit.contrasts]
    if not missing:
        return None
    message = f"{visit.label} has no {missing[0]}, which --fusion {settings.fusion} needs."
    return Problem(f"no-{missing[0].lower()}", Severity.ERROR, message)


def _case(visit: Visit, found: Sequence[Path], users: Counter[Path], settings: TrainingSettings) -> Case:
    """One visit, its scans and its mask checked."""
    if problem := _unusable_scans(visit, settings):
        raise _Unusable(problem.code, problem.message)
    mask = _only_mask(visit, found, users, settings)
    drawn_on = _drawn_on(mask, visit)
    if not is_there(drawn_on):
        message = f"{mask.name} was drawn on {drawn_on.name}, which is not there."
        raise _Unusable("no-scan-of-mask", message, mask)
    if not has_content(drawn_on):
        raise _Unusable("not-downloaded", f"{drawn_on.name} is not downloaded. Run: datalad get {drawn_on}", drawn_on)
    given = _checked_mask(mask, drawn_on)
    # a model of FLAIR alone is prepared as the App prepares a visit that has nothing else
    contrasts = _fields(FUSIONS[settings.fusion].contrasts)
    needed = replace(visit, **{scan: None for scan in ("t1w", "flair") if scan not in contrasts})
    # masks beside the scans that a participant run would not look for may be the very ones of --masks
    problems = tuple(problem for problem in visit.problems if problem.code not in ("flair-alone", "mask-not-used"))
    return Case(needed, mask, drawn_on, volume_ml(given.image), problems + given.problems)


def _fields(contrasts: Sequence[str]) -> set[str]:
    """Names of the scans of a visit: ``t1w``, ``flair``."""
    return {contrast.lower() for contrast in contrasts}


def _only_mask(visit: Visit, found: Sequence[Path], users: Counter[Path], settings: TrainingSettings) -> Path:
    """The one mask of a visit."""
    if not found:
        raise _Unusable("no-mask", _no_mask(visit, settings))
    if len(found) > 1:
        problem = several_masks(visit.label, found, "make --masks narrower")
        raise _Unusable(problem.code, problem.message, *found)
    if users[found[0].resolve()] > 1:
        raise _Unusable("shared-mask", f"{found[0].name} is the mask of several visits.", found[0])
    if not has_content(found[0]):
        raise _Unusable("not-downloaded", f"{found[0].name} is not downloaded. Run: datalad get {found[0]}", found[0])
    return found[0]


def _no_mask(visit: Visit, settings: TrainingSettings) -> str:
    """That a visit has no mask, and what lies where one was looked for."""
    message = f"{visit.label} has no mask that --masks finds."
    if near := beside_pattern(settings.masks, settings.bids_dir, visit):
        return f"{message[:-1]}; where it looks there is {listed([path.name for path in near], limit=3)}."
    return message


def _drawn_on(mask: Path, visit: Visit) -> Path:
    """The scan that shares the grid of the mask; else the one that its name tells; else the reference scan."""
    scans = [scan.path for scan in (visit.t1w, visit.flair) if scan]
    return masks.drawn_on(mask, scans) or scan_of_mask(mask, visit) or visit.reference.path


def _checked_mask(mask: Path, scan: Path) -> masks.GivenMask:
    """The mask, judged beside the scan that it was drawn on."""
    try:
        return masks.read_lesion_mask(mask, scan)
    except masks.MaskError as error:
        raise _Unusable(error.code, str(error), mask) from error
    except VisitError as error:
        raise _Unusable("scan-unreadable", error.message, scan) from error


def _unmatched(found: Mapping[str, Sequence[Path]], settings: TrainingSettings) -> tuple[Problem, ...]:
    """Masks that the pattern would find for a visit of any label, and that are of none there is."""
    if settings.participants:  # those of the others are left alone on purpose
        return ()
    used = {mask for masks_of_visit in found.values() for mask in masks_of_visit}
    alone = [mask.name for mask in find_all_masks(settings.masks, settings.bids_dir) if mask not in used]
    if not alone:
        return ()
    message = f"{counted(len(alone), 'mask')} of no visit: {listed(alone, limit=SHOWN)}."
    return (Problem("mask-not-used", Severity.WARNING, message, tuple(alone)),)


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
    rows += [("not used", problem.code, "", problem.message) for problem in cohort.unmatched]
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
