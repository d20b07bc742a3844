"""``--derivatives NAME=PATH``: what fMRIPrep, sMRIPrep or a human already made of a visit.

Files are found by the names their makers give them, in ``sub-*/[ses-*/]anat`` of each folder:

* ``*_desc-preproc_T1w`` and ``*_desc-brain_mask`` without ``space-`` (the native T1w and its mask);
* ``*_from-T1w_to-<space>_mode-image_xfm.h5`` and back, for the first requested standard space that has both;
* lesion masks drawn by hand, without ``space-`` or with ``space-T1w`` or ``space-orig``: ``*_label-lesion_roi``,
  ``*_label-L_*mask``, ``*_desc-lesion*_mask``, ``*_lesion_mask``.

Of a visit that has no T1w, in the space of its FLAIR: names with ``space-FLAIR`` and ``from-FLAIR``, and lesion masks
without ``space-``, which can have been drawn on no T1w.

T1w, mask and transforms belong together, so they come from one folder: the first that has any of them.

Files of the subject as a whole (``sub-01/anat`` of a subject with sessions) serve a session only where the subject has
no other: fMRIPrep makes them from the T1w of all sessions, and no lesion is the same in two of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_app.derivatives.names import RAW_DATASET, ScanName, sidecar, visit_folder
from bids_app.errors import NoInputError, UsageError
from bids_app.study.models import Problem, Reuse, Scan, Severity
from bids_app.text import read_json

IMAGE_EXTENSIONS = (".nii.gz", ".nii")
_NAME = "[0-9A-Za-z_.+-]+"


@dataclass(frozen=True)
class DerivedFile:
    """A file of another pipeline, with its name taken apart.

    Attributes
    ----------
    entities : mapping of str to str
        All of them, by short key.
    tail : str
        What follows the last entity: the suffix, or ``lesion_mask``.
    extension : str
    """

    path: Path
    entities: Mapping[str, str]
    tail: str
    extension: str

    @classmethod
    def parse(cls, path: Path) -> DerivedFile:
        """Take a file name apart.

        >>> DerivedFile.parse(Path("sub-1_desc-brain_mask.nii.gz")).tail
        'mask'
        """
        stem, _, rest = path.name.partition(".")
        parts = stem.split("_")
        entities = [part.partition("-")[::2] for part in parts if "-" in part]
        tail = "_".join(part for part in parts if "-" not in part)
        return cls(path, dict(entities), tail, f".{rest}")


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
        if not folder.is_dir():
            raise NoInputError(f"The derivatives folder {name}={folder} does not exist.", "Check the path.")


def find_reuse(
    subject: str,
    session: str | None,
    reference: Scan,
    derivatives: Mapping[str, Path],
    spaces: Sequence[str] = (),
    sessions: int = 1,
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
    sessions : int
        Sessions of the subject that have scans, asked for or not.

    Returns
    -------
    reuse : Reuse
        `sources` holds ``bids:NAME:path`` for every file.
    problems : tuple of Problem
        ``not-reused`` for files of the subject as a whole, ``no-inverse`` for a transform without the way back.
    """
    found, problems = Reuse(), []
    for name, root in derivatives.items():
        files = [file for file in _anat_files(root, subject, session) if _made_from(file, reference.name)]
        if session and sessions > 1:
            shared = [file for file in files if _of_all_sessions(file)]
            problems += _not_reused(shared, reference, spaces, sessions)
            files = [file for file in files if file not in shared]
        if not (found.preprocessed or found.brain_mask or found.to_standard):
            anatomy = _anatomy(files, reference, spaces)
            problems += () if anatomy.to_standard else _one_way(files, reference, spaces)
            found = _add(found, name, root, anatomy)
        if not found.lesion_mask:
            found = _add(found, name, root, Reuse(lesion_mask=_lesion_mask(files, reference)))
    return found, tuple(problems)


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
    anatomy = _anatomy(shared, reference, spaces)
    files = [path.name for path in (*_paths(anatomy).values(), _lesion_mask(shared, reference)) if path]
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


def _anat_files(root: Path, subject: str, session: str | None) -> list[DerivedFile]:
    """Files of a visit; those of the subject as a whole where it has no anatomy of single sessions."""
    subject_folder = root / visit_folder(subject, None)
    folder = root / visit_folder(subject, session) / "anat"
    if session and not any(subject_folder.glob("ses-*/anat")):
        folder = subject_folder / "anat"
    return [DerivedFile.parse(path) for path in sorted(folder.iterdir())] if folder.is_dir() else []


def _made_from(file: DerivedFile, scan: ScanName) -> bool:
    """Whether the source entities in a derivative's name agree with a scan; those it lacks are no matter."""
    mine = dict(scan.entities)
    sources = {key: label for key, label in file.entities.items() if key in ("sub", "ses", "acq", "ce", "rec", "run")}
    return all(_same_label(key, label, mine.get(key)) for key, label in sources.items())


def _same_label(key: str, first: str, second: str | None) -> bool:
    """Whether two labels are equal; ``run-1`` and ``run-01`` are."""
    if key == "run" and second and first.isdigit() and second.isdigit():
        return int(first) == int(second)
    return first == second


def _anatomy(files: Sequence[DerivedFile], reference: Scan, spaces: Sequence[str]) -> Reuse:
    """Preprocessed scan, mask and transforms of one folder."""
    contrast, name = reference.suffix, reference.name
    space = None if contrast == "T1w" else contrast
    native = [file for file in files if file.entities.get("space") == space and file.extension in IMAGE_EXTENSIONS]
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


def _lesion_mask(files: Sequence[DerivedFile], reference: Scan) -> Path | None:
    """The lesion mask in the space of the reference scan that a human drew."""
    drawn = [
        file
        for file in files
        if file.extension in IMAGE_EXTENSIONS
        and file.entities.get("space") in (None, "orig", reference.suffix)
        and _named_as_lesion(file)
        and not _made_by_machine(file.path)
    ]
    return _best(drawn, reference.name)


def _named_as_lesion(file: DerivedFile) -> bool:
    if file.tail == "roi":
        return file.entities.get("label") == "lesion"
    if file.tail == "mask":
        return file.entities.get("label") == "L" or file.entities.get("desc", "").startswith("lesion")
    return file.tail == "lesion_mask"


def _made_by_machine(image: Path) -> bool:
    """Whether the sidecar says that no human drew the mask, as those of this App do."""
    try:
        content = read_json(sidecar(image))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("Manual") is False


def _best(files: Sequence[DerivedFile], scan: ScanName) -> Path | None:
    """The file that shares most entities with a scan; the first by name among equals."""
    keys = {key for key, _ in scan.entities}
    ranked = sorted(files, key=lambda file: (-len(keys & set(file.entities)), file.path.name))
    return ranked[0].path if ranked else None
