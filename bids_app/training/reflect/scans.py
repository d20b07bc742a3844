"""The healthy scans, or slices, of a dataset: found, prepared as the App prepares a visit, kept as grey values."""

from __future__ import annotations

import shutil
import uuid
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bids_app import app_version, images
from bids_app.anomaly.slices import grey_values, to_slices
from bids_app.derivatives.names import ScanName
from bids_app.derivatives.record import checksums, fingerprint
from bids_app.derivatives.results import Aligned
from bids_app.derivatives.write import atomic
from bids_app.errors import NoInputError, VisitError
from bids_app.preprocessing import transforms
from bids_app.settings import AnomalyTraining, Settings, TrainingSettings
from bids_app.study.index import index
from bids_app.study.models import Problem, Scan, Severity, Visit
from bids_app.training.own.cases import Case, find_cases
from bids_app.training.own.prepare import mask_to_reference, moved_mask
from bids_app.training.preparation import attempt, job_of, prepare_each
from bids_app.training.reflect.slices import LEAST_PIXELS, Slices, height_mm
from bids_app.wording import counted, listed
from bids_app.workflow import stages
from bids_app.workflow.explanation import look

IXI_T1W = "IXI[0-9]*-T1.nii*"
"""How the T1w of the IXI dataset are called, which lie in one folder: IXI002-Guys-0828-T1.nii.gz."""
LEAST_SUBJECTS = 4
HELD_OUT = 0.1
"""Share of the subjects for validation and for the threshold; two at least."""


@dataclass(frozen=True)
class Candidate:
    """A scan that may be learned from.

    Attributes
    ----------
    visit : Visit
        With this scan alone.
    case : Case or None
        Its lesion mask; None says that all of it is healthy.
    """

    visit: Visit
    case: Case | None = None

    @property
    def label(self) -> str:
        return self.visit.label


@dataclass(frozen=True)
class Found:
    """What a dataset has to learn from.

    Attributes
    ----------
    name : str
        Of the dataset.
    scans : tuple of Candidate
        By subject and session.
    left_out : tuple of (str, Problem)
        Label of a visit, and why it cannot be used.
    learns : bool
        Whether a network learns from them; else all of them measure a threshold.
    """

    name: str
    scans: tuple[Candidate, ...]
    left_out: tuple[tuple[str, Problem], ...] = ()
    learns: bool = True

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted({scan.visit.subject for scan in self.scans}))

    @property
    def held_out(self) -> frozenset[str]:
        """Subjects for validation, chosen by their label: two at least. With some thirty subjects, a tenth of which are
        two of themselves, whoever is held out stays so when others join."""
        if not self.learns:
            return frozenset(self.subjects)
        places = {subject: zlib.crc32(subject.encode()) / 2**32 for subject in self.subjects}
        lowest = sorted(places, key=places.__getitem__)[:2]
        return frozenset(lowest) | {subject for subject, place in places.items() if place < HELD_OUT}

    def among(self, ready: Sequence[PreparedScan]) -> Found:
        """With those scans alone that could be prepared: held out is who can be measured."""
        return replace(self, scans=tuple(each.scan for each in ready))


@dataclass(frozen=True)
class PreparedScan:
    """A scan as networks see it, on disk.

    Attributes
    ----------
    scan : Candidate
    path : Path
        NPZ with ``grey``, ``(slices, rows, columns)`` uint8 of `anomaly.slices.grey_values`, and ``clean``,
        ``(slices,)`` bool: no lesion.
    fingerprint : str
        Digest over the contents of everything it was made from.
    """

    scan: Candidate
    path: Path
    fingerprint: str

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Grey values, and which slices are clean."""
        with np.load(self.path) as stored:
            return stored["grey"], stored["clean"]


def find_scans(settings: AnomalyTraining) -> Found:
    """The scans of a dataset that can be learned from.

    Raises
    ------
    NoInputError
        If there are too few of them.
    """
    if settings.masks is not None:
        found = _with_masks(settings)
    elif settings.bids_dir.is_dir() and any(settings.bids_dir.glob(IXI_T1W)):
        found = _ixi(settings)
    else:
        found = _healthy(settings)
    if len(found.subjects) < LEAST_SUBJECTS:
        first = f" The first that was left out: {found.left_out[0][1].message}" if found.left_out else ""
        raise NoInputError(
            f"{settings.bids_dir} has {counted(len(found.subjects), 'subject')} with a {settings.contrast} that can be "
            f"learned from; {LEAST_SUBJECTS} are needed.{first}",
            "Check --bids, --contrast and --participant-label.",
        )
    return replace(found, learns=not settings.calibrates)


def _with_masks(settings: AnomalyTraining) -> Found:
    asked = TrainingSettings(
        settings.bids_dir,
        settings.masks,
        settings.out_dir,
        settings.contrast.lower(),
        settings.name,
        participants=settings.participants,
    )
    cohort = find_cases(asked)
    return Found(cohort.name, tuple(Candidate(case.visit, case) for case in cohort.cases), cohort.left_out)


def _healthy(settings: AnomalyTraining) -> Found:
    study = index(Settings(settings.out_dir, settings.bids_dir, participants=settings.participants))
    scans, left_out = [], []
    for visit in study.visits:
        errors = [problem for problem in visit.problems if problem.severity is Severity.ERROR]
        if not errors and settings.contrast not in visit.contrasts:
            errors = [Problem("no-scan", Severity.ERROR, f"{visit.label} has no {settings.contrast}.")]
        if errors:
            left_out.append((visit.label, errors[0]))
        else:
            scans.append(Candidate(_alone(visit, settings.contrast)))
    return Found(study.name, tuple(scans), tuple(left_out))


def _alone(visit: Visit, contrast: str) -> Visit:
    """The visit with one scan, as the App treats one that has no other."""
    return replace(visit, flair=None) if contrast == "T1w" else replace(visit, t1w=None)


def _ixi(settings: AnomalyTraining) -> Found:
    """IXI, one T1w a subject, as its archive unpacks."""
    if settings.contrast != "T1w":
        raise NoInputError(f"{settings.bids_dir} is IXI, which has no {settings.contrast}.", "Use --contrast T1w.")
    paths = {path.name.partition("-")[0]: path for path in sorted(settings.bids_dir.glob(IXI_T1W))}
    if unknown := sorted(set(settings.participants) - set(paths)):
        raise NoInputError(f"{settings.bids_dir} has no {listed(unknown)}.", "Change --participant-label.")
    visits = [
        Visit(subject, None, Scan(path, ScanName((("sub", subject),)), "T1w"), None)
        for subject, path in paths.items()
        if not settings.participants or subject in settings.participants
    ]
    return Found("IXI", tuple(map(Candidate, visits)))


@dataclass(frozen=True)
class _Task:
    """One scan to prepare, for a worker process."""

    scan: Candidate
    settings: AnomalyTraining

    @property
    def label(self) -> str:
        return self.scan.label

    def __call__(self) -> PreparedScan | Problem:
        return attempt(lambda: prepare_scan(self.scan, self.settings), self.label)


def prepare_scans(found: Found, settings: AnomalyTraining, say: Callable[[str], None]) -> tuple[PreparedScan, ...]:
    """Prepare the scans that are not prepared yet; those that fail are told and left out.

    Raises
    ------
    DatasetError
        If more than half fail.
    """
    tasks = [_Task(scan, settings) for scan in found.scans]
    hint = "See what was said of them above, and correct the scans."
    ready = prepare_each(tasks, settings.nprocs, say, "scan", hint)
    return tuple(sorted(ready, key=lambda item: item.scan.label))


def prepare_scan(scan: Candidate, settings: AnomalyTraining) -> PreparedScan:
    """Brain-extract, correct and align one scan, or find that it was done before.

    Raises
    ------
    VisitError
        If it is broken, or cannot be aligned.
    """
    digest = _digest(scan, settings)
    folder = settings.work_dir / "training" / "slices" / settings.contrast
    prepared = PreparedScan(scan, folder / f"{scan.label}_{digest[:8]}.npz", digest)
    if not prepared.path.exists():
        steps = folder / f".{uuid.uuid4().hex}.{scan.label}"
        try:
            grey, clean = grey_slices(scan, settings, steps)
        finally:
            shutil.rmtree(steps, ignore_errors=True)
        with atomic(prepared.path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, grey=grey, clean=clean)
    return prepared


def grey_slices(scan: Candidate, settings: AnomalyTraining, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Grey values of a scan in the box of `anomaly.slices`, and which slices have no lesion."""
    prepared = stages.prepare(job_of(scan.visit, settings), folder)
    reference = images.load(prepared.reference)
    lesion = None
    if scan.case is not None:
        brain = images.data(images.load(prepared.brain_mask)) > 0
        lesion = moved_mask(scan.case, mask_to_reference(scan.case, prepared), reference, brain)
    aligned: Aligned = stages.to_mni(prepared, stages.pose(prepared, folder), lesion)
    if not aligned.check.usable:
        raise VisitError(f"{scan.label} could not be aligned with MNI. {aligned.check.sentence}")
    seen = look(prepared, aligned, settings.contrast)
    grey = grey_values(to_slices(seen.scan), to_slices(seen.brain) > 0)
    if lesion is None:
        return grey, np.ones(len(grey), bool)
    inside = to_slices(transforms.apply_linear(lesion, np.array(aligned.matrix), seen.scan, order=0)) > 0
    return grey, ~inside.any(axis=(1, 2))


def _digest(scan: Candidate, settings: AnomalyTraining) -> str:
    """Over the contents of what a prepared scan is made from."""
    files = {"scan": scan.visit.reference.path}
    if scan.case is not None:
        files |= {"mask": scan.case.mask, "drawn_on": scan.case.drawn_on}
    return fingerprint(checksums(files) | {"skull_stripped": settings.skull_stripped, "version": app_version()})


def gather(scans: Sequence[PreparedScan]) -> Slices:
    """All clean slices with enough brain."""
    grey, subjects, heights = [], [], []
    for prepared in scans:
        brain, clean = prepared.read()
        chosen = np.flatnonzero(clean & ((brain > 0).sum(axis=(1, 2)) >= LEAST_PIXELS))
        grey.append(brain[chosen])
        subjects += [prepared.scan.label] * len(chosen)
        heights.append(height_mm(chosen))
    return Slices(np.concatenate(grey), tuple(subjects), np.concatenate(heights))


def healthy_brains(scans: Sequence[PreparedScan]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Grey values of whole brains, and which of their slices have no lesion, one brain at a time."""
    return (prepared.read() for prepared in scans)


def scan_table(found: Found, ready: Sequence[PreparedScan], late: Collection[str] = ()) -> pd.DataFrame:
    """A row for each visit: what it was used for, or why it was left out.

    Parameters
    ----------
    late : collection of str
        Labels of scans that could be prepared only after the training was begun.

    Returns
    -------
    DataFrame
        Columns ``visit``, ``use`` (``train`` or ``validation``), ``problem`` and ``what``.
    """
    ready = [prepared for prepared in ready if prepared.scan.label not in late]
    used, held_out = {prepared.scan.label for prepared in ready}, found.among(ready).held_out
    rows = [(label, None, problem.code, problem.message) for label, problem in found.left_out]
    for scan in found.scans:
        use = "validation" if scan.visit.subject in held_out else "train"
        row = (use, None, None) if scan.label in used else (None, "not-prepared", "Its preparation failed.")
        if scan.label in late:
            row = (None, "late", "Its preparation failed when the training was begun.")
        rows.append((scan.label, *row))
    return pd.DataFrame(sorted(rows, key=lambda row: row[0]), columns=["visit", "use", "problem", "what"])


def render_found(found: Found, contrast: str) -> str:
    """Scans and problems as plain lines."""
    use = "for the threshold"
    if found.learns:
        use = f"{len(found.held_out)} of these for validation and {use}"
    scans = f"{counted(len(found.scans), contrast)} of {counted(len(found.subjects), 'subject')}, {use}"
    lines = [f"dataset   {found.name}", f"scans     {scans}"]
    return "\n".join(lines + [f"left out  {label}: {problem.message}" for label, problem in found.left_out])
