"""Folders of ``--derivatives`` that serve no visit, and masks for which no folder was given: told with what to give."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bids_app.derivatives.names import visit_folder
from bids_app.study.derived import DerivedFile, files_in, files_of_visit, folders_in
from bids_app.study.masks import looks_like_mask, why_not
from bids_app.study.models import Problem, Severity, Visit
from bids_app.wording import listed

#: Labels, folders or files that a sentence names.
_SHOWN = 3
#: Visits, from the first to the last, for which the dataset's own derivatives are looked through.
_SAMPLE = 50


def unused_folders(
    dataset: Path, derivatives: Mapping[str, Path], visits: Sequence[Visit], participants: Sequence[str] | None
) -> tuple[Problem, ...]:
    """Find the folders of which no file is reused, and those that hold participants whom the dataset does not have.

    Parameters
    ----------
    dataset : Path
        The raw dataset.
    derivatives : mapping of str to Path
        Folders by name.
    visits : sequence of Visit
        The visits of the run, with what they reuse.
    participants : sequence of str or None
        Labels of all participants of the dataset; None if not all were asked for.

    Returns
    -------
    tuple of Problem
        ``derivatives-unused``, a warning, with what was looked for, what lies there and what to give instead;
        ``derivatives-of-nobody``, a note.
    """
    processed = [visit for visit in visits if visit.reference]
    if not processed:
        return ()
    problems = []
    for name, root in derivatives.items():
        if not any(_serves(name, root, visit) for visit in processed):
            message = f"{name}={root} serves no visit of this run: {_why(name, root, dataset, processed)}"
            problems.append(Problem("derivatives-unused", Severity.WARNING, message))
        elif participants and (strangers := sorted(set(_participants_in(root)) - set(participants))):
            message = f"{name} holds {listed(strangers, 'sub-', _SHOWN)}, which the dataset does not have."
            problems.append(Problem("derivatives-of-nobody", Severity.INFO, message))
    return tuple(problems)


def masks_not_given(dataset: Path, derivatives: Mapping[str, Path], visits: Sequence[Visit]) -> tuple[Problem, ...]:
    """Find lesion masks drawn by hand in the dataset's own ``derivatives`` that were not given with ``--derivatives``.

    Only some visits are looked up, spread over all, so that large datasets take no longer.
    """
    given = {folder.resolve() for folder in derivatives.values()}
    without = [visit for visit in visits if visit.reference and not visit.reuse.lesion_mask]
    sample = without[:: max(1, len(without) // _SAMPLE)]
    folders = [path for path in folders_in(dataset / "derivatives") if path.resolve() not in given] if sample else []
    found = ((folder, next(_drawn_in(folder, sample), None)) for folder in folders)
    return tuple(
        Problem(
            "mask-not-used",
            Severity.WARNING,
            f"Not used as lesion mask: those in derivatives/{folder.name}, as {mask.name}. "
            f"To use them: --derivatives {_given(folder)}",
            (mask.name,),
        )
        for folder, mask in found
        if mask
    )


def _drawn_in(folder: Path, visits: Sequence[Visit]) -> Iterator[Path]:
    """Masks in a folder that a visit would take."""
    for visit in visits:
        for file in files_of_visit(folder, visit.subject, visit.session):
            if looks_like_mask(file) and not why_not(file, visit.reference):
                yield file.path


def _serves(name: str, root: Path, visit: Visit) -> bool:
    """Whether a visit takes a file from a folder, or would if it did not hold too many."""
    if any(uri.startswith(f"bids:{name}:") for uri in visit.reuse.sources):
        return True
    too_many = {file for problem in visit.problems if problem.code == "several-masks" for file in problem.files}
    return any(file.path.name in too_many for file in files_of_visit(root, visit.subject, visit.session) if too_many)


def _why(name: str, root: Path, dataset: Path, visits: Sequence[Visit]) -> str:
    """What is the matter with a folder, and what to give instead: the first that applies."""
    there = _participants_in(root)
    if not there and (above := _dataset_above(root)):
        return f"it lies inside a participant. Give {name}={above}"
    if not there:
        return _without_participants(name, root, dataset)
    asked = sorted({visit.subject for visit in visits})
    if not set(asked) & set(there):
        has, wanted = listed(there, "sub-", _SHOWN), listed(asked, "sub-", _SHOWN)
        return f"it has {has}, and no {wanted}. The labels have to be equal."
    return _without_files(root, next(visit for visit in visits if visit.subject in there))


def _dataset_above(root: Path) -> Path | None:
    """The folder that holds the participants, of a folder inside one of them."""
    inside = [folder for folder in (root, *root.parents) if folder.name.startswith("sub-")]
    if not (root.name == "anat" or root.name.startswith(("sub-", "ses-"))):
        return None
    return inside[-1].parent if inside else None


def _without_participants(name: str, root: Path, dataset: Path) -> str:
    """Of a folder without ``sub-*``: whether the folders below have them, or files lie in it."""
    others = (folder for folder in folders_in(root) if folder.resolve() != dataset.resolve())
    below = [folder for folder in others if _participants_in(folder)]
    if below:
        names = listed([folder.name for folder in below], limit=_SHOWN)
        them = " ".join(map(_given, below[:_SHOWN]))
        return f"it has no folder sub-*, but {names} below it {'has' if len(below) == 1 else 'have'}. Give {them}"
    if files := files_in(root):
        names = listed([file.path.name for file in files], limit=_SHOWN)
        return f"its files ({names}) lie at its top. Each belongs into a folder as {name}/sub-01/anat."
    if not folders_in(root):
        return "it is empty. If it is a dataset of DataLad, get it first: datalad get -n, then datalad get."
    names = listed([folder.name for folder in folders_in(root)], limit=_SHOWN)
    return f"it has no folder sub-*, but {names}. Give the folder that holds sub-*."


def _without_files(root: Path, visit: Visit) -> str:
    """Of a folder that has the participant: what there is of the visit."""
    wanted = visit_folder(visit.subject, visit.session) / "anat"
    files = files_of_visit(root, visit.subject, visit.session)
    if not files:
        subject = root / visit_folder(visit.subject, None)
        there = listed([folder.name for folder in folders_in(subject)] or ["nothing"], limit=_SHOWN)
        return f"there is no {wanted} with files in it; in {subject.name} there is {there}."
    names = listed([file.path.name for file in files if not _is_text(file)] or ["text alone"], limit=_SHOWN)
    contrast = visit.reference.suffix
    return (
        f"in {wanted} there is {names}, and none of *_desc-preproc_{contrast}, *_desc-brain_mask, *_label-L_mask, or "
        f"*_from-{contrast}_to-*_xfm.h5 to a space that is asked for and back."
    )


def _is_text(file: DerivedFile) -> bool:
    return file.extension.lower().endswith((".json", ".tsv", ".txt", ".html"))


def _participants_in(folder: Path) -> list[str]:
    """Labels of the folders ``sub-<label>``."""
    return [path.name.removeprefix("sub-") for path in folders_in(folder) if path.name.startswith("sub-")]


def _given(folder: Path) -> str:
    """A folder as it is given after ``--derivatives``, for a shell.

    >>> _given(Path("/data/lesion masks"))
    "'lesionmasks=/data/lesion masks'"
    """
    name = re.sub(r"[^0-9A-Za-z_.+-]", "", folder.name) or "masks"
    return shlex.quote(f"{name}={folder}")
