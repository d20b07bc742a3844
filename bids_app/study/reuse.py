"""``--derivatives NAME=PATH``: what fMRIPrep, sMRIPrep or a human already made of a visit.

Files are found by the names their makers give them, in ``sub-*/[ses-*/]anat`` of each folder:

* ``*_desc-preproc_T1w`` and ``*_desc-brain_mask`` without ``space-`` (the native T1w and its mask);
* ``*_from-T1w_to-<space>_mode-image_xfm.h5`` and back, for the first requested standard space that has both;
* lesion masks drawn by hand, in the space of the scan, by the names in ``masks.py``.

Of a visit that has no T1w, in the space of its FLAIR: names with ``space-FLAIR`` and ``from-FLAIR``, and lesion masks
without ``space-``, which can have been drawn on no T1w.

T1w, mask and transforms belong together, so they come from one folder: the first that has any of them.

Files of the subject as a whole (``sub-01/anat`` of a subject with sessions) serve a session only where the subject has
no other: fMRIPrep makes them from the T1w of all sessions, and no lesion is the same in two of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bids_app.derivatives.names import RAW_DATASET, ScanName, visit_label
from bids_app.errors import NoInputError, UsageError
from bids_app.study.derived import DerivedFile, best, files_of_visit, made_from, other_files
from bids_app.study.masks import MACHINE, Drawn, find_drawn, not_used, several_masks
from bids_app.study.models import Problem, Reuse, Scan, Severity

_NAME = "[0-9A-Za-z_.+-]+"


def parse_derivative(text: str) -> tuple[str, Path]:
    """Name and folder of one ``NAME=PATH``.

    Raises
    ------
    UsageError
        If it is not of that form, or its name is taken.
    """
    name, equals, folder = text.partition("=")
    if not (equals and folder and re.fullmatch(_NAME, name)):
        raise UsageError(f"--derivatives {text} is not of the form NAME=PATH.", "Example: fmriprep=/data/fmriprep.")
    if name == RAW_DATASET:
        raise UsageError(
            f"--derivatives cannot call a folder {name}: that is the dataset itself.", "Choose another name."
        )
    return name, Path(folder)


def check_derivatives(derivatives: Mapping[str, Path]) -> None:
    """Make sure that every folder is there.

    Raises
    ------
    NoInputError
        Naming the first that is not.
    """
    for name, folder in derivatives.items():
        if folder.is_file():
            raise NoInputError(
                f"The derivatives folder {name}={folder} is a file.",
                "Give the folder that holds sub-*; a lesion mask lies in it as sub-01/anat/sub-01_label-L_mask.nii.gz.",
            )
        if not folder.is_dir():
            raise NoInputError(f"The derivatives folder {name}={folder} does not exist.", "Check the path.")


def find_reuse(
    subject: str,
    session: str | None,
    reference: Scan,
    derivatives: Mapping[str, Path],
    spaces: Sequence[str] = (),
    sessions: Sequence[str | None] = (),
) -> tuple[Reuse, tuple[Problem, ...]]:
    """What the folders of `derivatives` hold for a visit.

    Parameters
    ----------
    reference : Scan
        The raw T1w that was chosen, or the FLAIR of a visit without one; files made from another one (other acq, ce,
        rec, run) are left alone.
    derivatives : mapping of str to Path
        Folders by name, in the order of preference.
    spaces : sequence of str
        Standard spaces, in the order of preference.
    sessions : sequence of str or None
        Sessions of the subject that have scans, asked for or not; None stands for scans beside sessions.

    Returns
    -------
    reuse : Reuse
        `sources` holds ``bids:NAME:path`` for every file.
    problems : tuple of Problem
        ``not-reused`` for files of the subject as a whole, ``no-inverse`` for a transform without the way back,
        ``several-masks``, and ``mask-not-used`` for every other file that looks like a lesion mask.
    """
    found, problems, refused = Reuse(), [], []
    for name, root in derivatives.items():
        there = files_of_visit(root, subject, session)
        files = [file for file in there if made_from(file, reference.name)]
        shared = [file for file in there if session and len(sessions) > 1 and _of_all_sessions(file)]
        problems += _not_reused([file for file in files if file in shared], reference, spaces, len(sessions))
        files = [file for file in files if file not in shared]
        if not (found.preprocessed or found.brain_mask or found.to_standard):
            anatomy = _anatomy(files, reference, spaces)
            problems += () if anatomy.to_standard else _one_way(files, reference, spaces)
            found = _add(found, name, root, anatomy)
        drawn = _drawn(root, reference, there, shared, sessions)
        refused += drawn.refused
        if found.lesion_mask:
            refused += [("another folder comes first", path) for path in drawn.masks]
        elif len(drawn.masks) > 1:
            what_to_do = f"leave one of them in {name}, with all lesions in it"
            problems.append(several_masks(visit_label(subject, session), drawn.masks, what_to_do))
        else:
            found = _add(found, name, root, Reuse(lesion_mask=next(iter(drawn.masks), None)))
    return found, (*problems, *_not_used(refused, found))


def _drawn(
    root: Path,
    reference: Scan,
    there: Sequence[DerivedFile],
    shared: Sequence[DerivedFile],
    sessions: Sequence[str | None],
) -> Drawn:
    """The lesion masks of a visit in one folder, and whatever else looks like one and is of no other session."""
    subject, session = reference.name.subject, reference.name.session
    others = {label for label in sessions if label and label != session}
    own = [file for file in there if file not in shared and file.entities.get("ses") not in others]
    known = {file.path for file in there}
    elsewhere = [file for file in other_files(root, subject, others) if file.entities.get("ses") not in others]
    return find_drawn(own, [file for file in elsewhere if file.path not in known], reference)


def _not_used(refused: Sequence[tuple[str, Path]], found: Reuse) -> tuple[Problem, ...]:
    """The files that look like lesion masks and are none of the visit: a warning, where they may have been meant."""
    harmless = found.lesion_mask or all(why == MACHINE for why, _ in refused)
    return not_used(refused, Severity.INFO if harmless else Severity.WARNING)


def is_derivative_name(name: str) -> bool:
    """Whether a folder may be called so in BIDS URIs; ``raw`` is the dataset itself."""
    return bool(re.fullmatch(_NAME, name)) and name != RAW_DATASET


def _of_all_sessions(file: DerivedFile) -> bool:
    """Whether neither the name nor the folder of a file says of which session it is."""
    return "ses" not in file.entities and not file.path.parent.parent.name.startswith("ses-")


def _not_reused(
    shared: Sequence[DerivedFile], reference: Scan, spaces: Sequence[str], sessions: int
) -> tuple[Problem, ...]:
    """What would have been reused, had the subject one session only."""
    paths = [*_paths(_anatomy(shared, reference, spaces)).values(), *find_drawn(shared, (), reference).masks]
    files = [path.name for path in paths]
    if not files:
        return ()
    message = (
        f"Not reused, because sub-{reference.name.subject} has {sessions} sessions and these files are of no single "
        f"one (T1w are never averaged across sessions): {', '.join(files)}."
    )
    return (Problem("not-reused", Severity.WARNING, message, tuple(files)),)


def _one_way(files: Sequence[DerivedFile], reference: Scan, spaces: Sequence[str]) -> tuple[Problem, ...]:
    """Transforms to or from a requested space of which the other direction is not there."""
    pairs = (_both_ways(files, reference, space) for space in spaces)
    lonely = [path.name for pair in pairs for path in pair if path]
    if not lonely:
        return ()
    why = f"there is no transform in the other direction of {', '.join(lonely)}"
    message = f"The {reference.suffix} is registered anew, as {why}."
    return (Problem("no-inverse", Severity.INFO, message, tuple(lonely)),)


def _paths(reuse: Reuse) -> dict[str, Path]:
    """The files that are there, by their field."""
    fields = ("preprocessed", "brain_mask", "to_standard", "from_standard", "lesion_mask")
    return {field: path for field in fields if (path := getattr(reuse, field))}


def _add(found: Reuse, name: str, root: Path, more: Reuse) -> Reuse:
    """`found` with the files of `more`, which lie below `root`, and their URIs."""
    new = _paths(more)
    uris = tuple(f"bids:{name}:{path.relative_to(root).as_posix()}" for path in new.values())
    space = more.standard_space or found.standard_space
    return replace(found, **new, standard_space=space, sources=found.sources + uris)


def _anatomy(files: Sequence[DerivedFile], reference: Scan, spaces: Sequence[str]) -> Reuse:
    """Preprocessed scan, mask and transforms of one folder."""
    contrast, name = reference.suffix, reference.name
    space = None if contrast == "T1w" else contrast
    native = [file for file in files if file.entities.get("space") == space and file.is_image]
    preprocessed = [file for file in native if file.entities.get("desc") == "preproc" and file.tail == contrast]
    masks = [file for file in native if file.entities.get("desc") == "brain" and file.tail == "mask"]
    pairs = ((space, *_both_ways(files, reference, space)) for space in spaces)
    space, forward, back = next((pair for pair in pairs if all(pair)), (None, None, None))
    return Reuse(
        preprocessed=_best(preprocessed, name),
        brain_mask=_best(masks, name),
        to_standard=forward,
        from_standard=back,
        standard_space=space,
    )


def _both_ways(files: Sequence[DerivedFile], reference: Scan, space: str) -> tuple[Path | None, Path | None]:
    """Transforms to a standard space and back; maps made there need both."""
    native, name = reference.suffix, reference.name
    return _transform(files, name, native, space), _transform(files, name, space, native)


def _transform(files: Sequence[DerivedFile], scan: ScanName, source: str, target: str) -> Path | None:
    wanted = {"from": source, "to": target, "mode": "image"}
    matching = [
        file
        for file in files
        if file.tail == "xfm" and file.extension == ".h5" and wanted.items() <= file.entities.items()
    ]
    return _best(matching, scan)


def _best(files: Sequence[DerivedFile], scan: ScanName) -> Path | None:
    """The file that shares most entities with a scan; the first by name among equals."""
    return best(files, scan)[0].path if files else None
