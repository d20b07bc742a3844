"""Training scans and masks go the way of the App's own scans: brain-extracted, bias-corrected, in the pose."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app import app_version, images
from bids_app.derivatives.read import read_object
from bids_app.derivatives.record import checksums, fingerprint
from bids_app.derivatives.results import Prepared
from bids_app.derivatives.write import write_json
from bids_app.errors import VisitError
from bids_app.images import Image
from bids_app.preprocessing import headers, masks, transforms
from bids_app.preprocessing.coregistration import register_flair
from bids_app.preprocessing.templates import load_template
from bids_app.settings import DEFAULT_SPACE, TrainingSettings
from bids_app.study.models import Problem, Severity
from bids_app.training.own.cases import Case
from bids_app.training.preparation import attempt, job_of, prepare_each
from bids_app.workflow import stages

RECORD = "record.json"


@dataclass(frozen=True)
class Ready:
    """A case as a network sees it: all images on the grid of MNI152NLin2009aSym, 1 mm, RAS+, rigidly aligned.

    Attributes
    ----------
    case : Case
    scans : tuple of (str, Path)
        Contrast and file, zero outside the brain.
    mask : Path
        uint8, 0 or 1.
    fingerprint : str
        Digest over the contents of everything it was made from.
    """

    case: Case
    scans: tuple[tuple[str, Path], ...]
    mask: Path
    fingerprint: str

    @property
    def label(self) -> str:
        return self.case.label

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.mask.parent

    def channel(self, contrast: str) -> Path:
        """The scan of one contrast."""
        return dict(self.scans)[contrast]


@dataclass(frozen=True)
class _Task:
    """One case to prepare, for a worker process."""

    case: Case
    settings: TrainingSettings
    contrasts: tuple[str, ...]
    scans: Path

    @property
    def label(self) -> str:
        return self.case.label

    def __call__(self) -> Ready | Problem:
        return attempt(lambda: prepare_case(self.case, self.settings, self.contrasts, self.scans), self.label)


def prepare_all(
    cases: Sequence[Case],
    settings: TrainingSettings,
    contrasts: tuple[str, ...],
    say: Callable[[str], None],
) -> tuple[Ready, ...]:
    """Prepare the cases that are not prepared yet; those that fail are told and left out.

    Raises
    ------
    DatasetError
        If more than half fail.
    UnavailableError
        If there is not enough memory to prepare so many side by side.
    """
    scans = settings.work_dir / "training" / "scans" / "-".join(contrasts)
    tasks = [_Task(case, settings, contrasts, scans) for case in cases]
    hint = "See what was said of them above; correct the scans, or --masks."
    ready = prepare_each(tasks, settings.nprocs, say, "case", hint)
    return tuple(sorted(ready, key=lambda item: item.label))


def prepare_case(case: Case, settings: TrainingSettings, contrasts: tuple[str, ...], scans: Path) -> Ready:
    """Bring scans and mask of one case into the pose, or find that it was done before.

    Each case is kept below its label and a digest of what it was made from: trainings with other masks or from another
    dataset, even at the same time, leave each other's scans alone.

    Parameters
    ----------
    contrasts : tuple of str
        What is needed of ``T1w`` and ``FLAIR``.
    scans : Path
        Where prepared cases are kept.

    Raises
    ------
    VisitError
        If a scan is broken, a registration failed, or the mask does not lie in the brain.
    """
    record = _record(case, settings, contrasts)
    ready = _ready(case, contrasts, scans, record)
    if _is_done(ready, record):
        return ready
    unfinished = ready.folder.with_name(f".{uuid.uuid4().hex}.{ready.folder.name}")
    try:
        _prepare_into(unfinished, ready, settings)
        write_json(unfinished / RECORD, record)
        _put(unfinished, ready, record)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return ready


def _ready(case: Case, contrasts: Sequence[str], scans: Path, record: Mapping) -> Ready:
    """Where the files of a case lie once they are made."""
    folder = scans / f"{case.label}_{record['fingerprint'][:8]}"
    files = tuple((contrast, folder / f"{contrast}.nii.gz") for contrast in contrasts)
    return Ready(case, files, folder / "mask.nii.gz", record["fingerprint"])


def _prepare_into(folder: Path, ready: Ready, settings: TrainingSettings) -> None:
    """Make the files of a case, in a folder of their own."""
    case, contrasts, steps = ready.case, [contrast for contrast, _ in ready.scans], folder / "steps"
    prepared = stages.prepare(job_of(case.visit, settings), steps)
    _require_flair(prepared, contrasts)
    posed = stages.pose(prepared, steps)
    for contrast, path in ready.scans:
        images.save(images.load(posed.scan(contrast)), folder / path.name)
    matrix = np.array(posed.matrix) @ mask_to_reference(case, prepared)
    brain = images.data(images.load(posed.scan(contrasts[0]))) > 0
    images.save(moved_mask(case, matrix, load_template(DEFAULT_SPACE).t1w, brain), folder / ready.mask.name)
    shutil.rmtree(steps, ignore_errors=True)


def _put(unfinished: Path, ready: Ready, record: Mapping) -> None:
    """Give a finished case its name, unless another training has done so meanwhile."""
    if _is_done(ready, record):
        return
    shutil.rmtree(ready.folder, ignore_errors=True)
    try:
        unfinished.rename(ready.folder)
    except OSError:
        if not _is_done(ready, record):
            raise


def mask_to_reference(case: Case, prepared: Prepared) -> np.ndarray:
    """Matrix that carries the mask's world to that of the reference scan: RAS mm, ``(4, 4)``, pushing.

    Raises
    ------
    VisitError
        If the scan it was drawn on could not be aligned with the reference scan.
    """
    visit = case.visit
    if case.drawn_on == visit.reference.path:
        return np.eye(4)
    if visit.flair_to_align is not None and case.drawn_on == visit.flair_to_align.path:
        return np.array(prepared.flair_matrix)
    scan = headers.clean(case.drawn_on).image
    # mutual information does not mind which contrasts these are
    registration = register_flair(scan, images.load(prepared.reference), images.load(prepared.brain_mask))
    if not registration.check.usable:
        raise VisitError(
            f"{case.drawn_on.name}, on which the mask was drawn, could not be aligned with {visit.reference.path.name}."
        )
    return registration.matrix


def moved_mask(case: Case, matrix: np.ndarray, grid: Image, brain: np.ndarray) -> Image:
    """The mask on another grid, nearest neighbour once.

    Parameters
    ----------
    case : Case
    matrix : numpy.ndarray
        ``(4, 4)``, carries the world of the mask to that of the grid.
    grid : Image
    brain : numpy.ndarray
        Where the brain is on it, bool.

    Raises
    ------
    VisitError
        If it cannot be used; above all if most of the lesion lies outside the brain.
    """
    drawn = masks.read_lesion_mask(case.mask, case.drawn_on).image
    moved = transforms.apply_linear(drawn, matrix, grid, order=0)
    masks.check_kept(drawn, moved, case.mask.name)
    masks.check_in_brain(moved, images.like(moved, brain), case.mask.name)
    return moved


def _require_flair(prepared: Prepared, contrasts: Sequence[str]) -> None:
    """Fail if the FLAIR is needed beside a T1w, and could not be used."""
    if len(contrasts) == 2 and prepared.flair_native is None:
        problems = [problem.message for problem in prepared.problems if problem.severity is Severity.WARNING]
        raise VisitError(f"{prepared.visit.label} cannot be used: {problems[-1] if problems else 'no FLAIR'}")


def _record(case: Case, settings: TrainingSettings, contrasts: Sequence[str]) -> dict:
    """What a prepared case was made from."""
    visit = case.visit
    files = {"mask": case.mask, "drawn_on": case.drawn_on}
    files |= {scan.suffix: scan.path for scan in (visit.t1w, visit.flair) if scan}
    inputs = checksums(files)
    how = {"contrasts": " ".join(contrasts), "skull_stripped": settings.skull_stripped, "version": app_version()}
    return {"inputs": inputs, **how, "fingerprint": fingerprint(inputs | how)}


def _is_done(ready: Ready, record: Mapping) -> bool:
    files = (ready.mask, *(path for _, path in ready.scans))
    return read_object(ready.folder / RECORD) == record and all(path.is_file() for path in files)
