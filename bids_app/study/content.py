"""Whether a file is really here, or only its name: DataLad's links and pointers, links to nowhere, empty files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from bids_app.study.models import Problem, Severity

#: What git-annex leaves of an unlocked file, and git of a link where the file system knows none.
_POINTER = re.compile(rb"(/|(\.\./)*\.git/)annex/objects/")
_LONGEST = 200  # bytes that are enough for `_POINTER`, however deep the folder
_ANNEX = ".git/annex/objects"

#: DICOM has these letters after a preamble of 128 bytes; its files often have no extension.
_MAGIC, _PREAMBLE = b"DICM", 128
DICOM_EXTENSIONS = (".dcm", ".dicom", ".ima")
#: Entries of a folder that are looked at to know whether it holds DICOM.
_LOOKED_AT = 50

TO_BIDS = (
    "Convert the dataset to BIDS with HeuDiConv, BIDScoin or dcm2bids; or one series to NIfTI with "
    "dcm2niix (dcm2niix -z y -o NIFTI_FOLDER DICOM_FOLDER), for afterstroke case."
)


def has_content(path: Path) -> bool:
    """False for a dangling link, and for the text that git-annex or git leaves in place of a file.

    A file that is not there has no content either; one that cannot be read has, and processing says what is wrong.
    """
    return _first_bytes(path) is not None


def absence(path: Path) -> Problem | None:
    """The problem of a file that is listed, but whose content is not here; None if it is."""
    start = _first_bytes(path)
    if start:
        return None
    if start == b"":
        message = f"{path.name} is empty (0 bytes). Copy or convert it again."
        return Problem("empty-file", Severity.ERROR, message, (path.name,))
    target = target_of(path)
    if target is None or _ANNEX in target.as_posix():
        message = f"{path.name} is not downloaded. Run: datalad get {path}"
        return Problem("not-downloaded", Severity.ERROR, message, (path.name,))
    message = f"{path.name} is a link to {target}, which is not here. {how_to_bind(target)}"
    return Problem("dangling-link", Severity.ERROR, message, (path.name,))


def target_of(path: Path) -> Path | None:
    """Where a link leads in the end, whether there is anything or not; None if it is no link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else None


def how_to_bind(target: Path) -> str:
    """What to do about a link whose target is not here."""
    return f"In a container, bind {target.parent} under the same path; else correct the link."


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its extension or its first bytes."""
    if path.suffix.lower() in DICOM_EXTENSIONS or path.name.upper() == "DICOMDIR":
        return True
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def holds_dicom(folder: Path, depth: int = 3) -> bool:
    """Whether a folder, or one inside it, holds DICOM; looks at the first entries of each only."""
    return any(is_dicom(path) for path in _files_in(folder, depth))


def _files_in(folder: Path, depth: int) -> Iterable[Path]:
    try:
        with os.scandir(folder) as entries:
            found = [(Path(entry), entry.is_dir()) for entry in islice(entries, _LOOKED_AT)]
    except OSError:
        return
    yield from (path for path, is_folder in found if not is_folder)
    if depth > 1:
        for path, is_folder in found:
            if is_folder:
                yield from _files_in(path, depth - 1)


def _first_bytes(path: Path) -> bytes | None:
    """The beginning of a file; None where its content is elsewhere."""
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST)
    except FileNotFoundError:
        return None
    except OSError:
        return b"?"  # processing says what is wrong
    return None if _POINTER.match(start) else start
