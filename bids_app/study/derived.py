"""Files that other pipelines and humans put beside a dataset: their names taken apart, and where they lie."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_app.derivatives.names import ScanName, visit_folder
from bids_app.study.unused import IMAGE_EXTENSIONS

#: Entities that say which scan a file was made from.
SOURCE_ENTITIES = ("sub", "ses", "acq", "ce", "rec", "run")
#: Scans that a name can say in its middle, as in ``sub-01_T1w_label-lesion_roi``; in small letters.
_SCANS = ("t1w", "t1", "t2w", "t2", "flair", "pdw", "t2starw", "swi", "dwi", "adc", "trace", "bold", "ct")
#: Folders of a subject that hold no mask of its anatomy, and may hold thousands of files.
_SKIPPED = ("func", "fmap", "figures", "log", "surf", "eeg", "meg", "ieeg")


@dataclass(frozen=True)
class DerivedFile:
    """A file of another pipeline, with its name taken apart.

    Attributes
    ----------
    entities : mapping of str to str
        All of them, by short key.
    tail : str
        What is no entity, after the name of a scan: the suffix, or ``lesion_mask``.
    extension : str
        From the first dot on.
    scan : str
        Suffix of the scan that the name says before its end, as ``T1w``; empty if it says none.
    """

    path: Path
    entities: Mapping[str, str]
    tail: str
    extension: str
    scan: str = ""

    @classmethod
    def parse(cls, path: Path) -> DerivedFile:
        """Take a file name apart.

        >>> file = DerivedFile.parse(Path("sub-1_T1w_label-lesion_roi.nii.gz"))
        >>> file.tail, file.scan, file.entities["label"]
        ('roi', 'T1w', 'lesion')
        """
        stem, _, rest = path.name.partition(".")
        parts = stem.split("_")
        entities = dict(part.partition("-")[::2] for part in parts if "-" in part)
        words = [part for part in parts if "-" not in part]
        scan = words.pop(0) if words and words[0] != parts[-1] and words[0].lower() in _SCANS else ""
        return cls(path, entities, "_".join(words), f".{rest}", scan)

    @property
    def is_image(self) -> bool:
        """Whether the file is a NIfTI image by its name."""
        return self.extension in IMAGE_EXTENSIONS


def files_of_visit(root: Path, subject: str, session: str | None) -> list[DerivedFile]:
    """Files in the anat folder of a visit; those of the subject as a whole where no session has its own anatomy."""
    subject_folder = root / visit_folder(subject, None)
    folder = root / visit_folder(subject, session) / "anat"
    if session and not any(subject_folder.glob("ses-*/anat")):
        folder = subject_folder / "anat"
    return files_in(folder)


def other_files(root: Path, subject: str, others: Collection[str]) -> list[DerivedFile]:
    """Files of a subject that may have been meant for a visit, wherever they lie.

    Parameters
    ----------
    others : collection of str
        Labels of other sessions, whose folders are left alone.
    """
    subject_folder = root / visit_folder(subject, None)
    folders = [subject_folder]
    for folder in folders_in(subject_folder):
        if folder.name.removeprefix("ses-") in others:
            continue
        folders.append(folder)
        if folder.name.startswith("ses-"):
            folders += folders_in(folder)
    folders = [folder for folder in folders if folder.name not in _SKIPPED]
    return [file for folder in folders for file in files_in(folder)]


def files_in(folder: Path) -> list[DerivedFile]:
    """Files of a folder by name, without those that are hidden; none if it is not there or cannot be read."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    except OSError:
        return []
    return [DerivedFile.parse(folder / name) for name in names if not name.startswith(".")]


def folders_in(parent: Path) -> list[Path]:
    """Folders of a folder by name, without those that are hidden; none if it is not there or cannot be read."""
    try:
        names = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
    except OSError:
        return []
    return [parent / name for name in names if not name.startswith(".")]


def made_from(file: DerivedFile, scan: ScanName) -> bool:
    """Whether the source entities in a derivative's name agree with a scan; those it lacks are no matter."""
    return not other_sources(file, scan)


def other_sources(file: DerivedFile, scan: ScanName) -> list[str]:
    """Source entities of a derivative that its scan does not have, as ``run-2``."""
    mine = dict(scan.entities)
    return [
        f"{key}-{label}"
        for key, label in file.entities.items()
        if key in SOURCE_ENTITIES and not _same_label(key, label, mine.get(key))
    ]


def _same_label(key: str, first: str, second: str | None) -> bool:
    """Whether two labels are equal; ``run-1`` and ``run-01`` are."""
    if key == "run" and second and first.isdigit() and second.isdigit():
        return int(first) == int(second)
    return first == second


def best(files: Sequence[DerivedFile], scan: ScanName) -> list[DerivedFile]:
    """The files that share most entities with a scan, by name; several where they share equally many."""
    keys = {key for key, _ in scan.entities}
    shared = [len(keys & set(file.entities)) for file in files]
    return sorted(
        (file for file, number in zip(files, shared, strict=True) if number == max(shared)),
        key=lambda file: file.path.name,
    )
