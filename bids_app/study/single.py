"""One scan that is in no dataset, made into a dataset of links, so that it goes the way of all others.

The links are kept in ``sourcedata/raw`` of the output folder, where BIDS wants what derivatives were made from: the
``bids:raw:`` addresses in the sidecars then lead to the scans however often the work folder is emptied, and for cases
from any number of folders. (A link to the folder of one scan would be true for that case only, and the scan does not
have there the name that the sidecars give it.)
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from bids_app.derivatives.names import DESCRIPTION, RAW_DATASET, ScanName, visit_folder, visit_label
from bids_app.errors import NoInputError, UsageError
from bids_app.study.content import TO_BIDS, holds_dicom, how_to_bind, is_dicom, target_of
from bids_app.study.folders import link
from bids_app.study.unused import IMAGE_EXTENSIONS, LABEL, format_of
from bids_app.wording import capitalized

_DATASET = {"Name": "Single cases", "BIDSVersion": "1.11.1", "DatasetType": "raw"}


@dataclass(frozen=True)
class Case:
    """The files given to ``afterstroke case``.

    Attributes
    ----------
    t1w, flair : Path or None
        At least one of them.
    label : str or None
        Participant label; None takes it from the name of the T1w, else of the FLAIR.
    """

    t1w: Path | None
    flair: Path | None = None
    label: str | None = None

    @property
    def scans(self) -> list[Path]:
        """What there is, the one that names the case first."""
        return [path for path in (self.t1w, self.flair) if path]

    @property
    def subject(self) -> str:
        """Participant label: the one given, else that of a BIDS name, else the letters and digits of the file name.

        >>> Case(Path("sub-07_ses-2_T1w.nii.gz")).subject, Case(Path("MR 12_t1.nii")).subject
        ('07', 'MR12t1')
        """
        if self.label:
            return self.label
        entities = dict(ScanName.parse(self.scans[0].name).entities)
        return entities.get("sub") or re.sub(r"[^0-9A-Za-z]", "", _stem(self.scans[0])) or "case"

    @property
    def session(self) -> str | None:
        """Session label of a BIDS name."""
        entities = dict(ScanName.parse(self.scans[0].name).entities)
        return entities.get("ses") if "sub" in entities else None


def check_case(case: Case, out_dir: Path | None = None) -> None:
    """Make sure that the files are there and are NIfTI, and that an output folder was given.

    Raises
    ------
    NoInputError, UsageError
        Naming the file.
    """
    for path in case.scans:
        _check_scan(path)
    if case.label and not LABEL.fullmatch(case.label):
        raise UsageError(f"'{case.label}' is no participant label.", "Use letters and digits only.")
    if out_dir and _extension_of(out_dir):
        raise UsageError(
            f"{out_dir} is called like a scan: the output folder is missing.", "Put it last: T1W [FLAIR] OUT."
        )


def _check_scan(path: Path) -> None:
    if path.is_dir():
        raise _no_file(path)
    if not path.is_file():
        if target := target_of(path):
            raise NoInputError(f"{path} is a link to {target}, which is not here.", how_to_bind(target))
        raise NoInputError(f"The file {path} does not exist.", "Check the path; in a container, bind its folder.")
    if _extension_of(path):
        return
    reason = format_of(path.name)
    if is_dicom(path) or reason is None:
        hint = TO_BIDS if is_dicom(path) else "Convert it first, with dcm2niix for DICOM."
    else:
        hint = f"{capitalized(reason.value)}."
    raise UsageError(f"{path} is no NIfTI file (.nii or .nii.gz).", hint)


def _no_file(folder: Path) -> UsageError:
    """The error of a folder in the place of a scan."""
    scans = sorted(path.name for path in folder.iterdir() if _extension_of(path))
    if scans:
        return UsageError(f"{folder} is a folder.", f"Give the scan in it, as {folder / scans[0]}.")
    if (folder / DESCRIPTION).is_file():
        return UsageError(f"{folder} is a BIDS dataset.", f"Run: afterstroke {folder} OUT participant")
    if holds_dicom(folder):
        return UsageError(f"{folder} is a folder of DICOM, no NIfTI file.", TO_BIDS)
    return UsageError(
        f"{folder} is a folder, no NIfTI file.", f"Give one scan (.nii or .nii.gz). For DICOM: {TO_BIDS}"
    )


def make_case(case: Case, out_dir: Path) -> Path:
    """Add one case to the dataset of the cases of an output folder, and return that dataset's folder.

    Raises
    ------
    UsageError
        If another file went to that output folder under the same label, or the scan is one of those links.
    """
    root = out_dir / "sourcedata" / RAW_DATASET
    for path in case.scans:
        if path.absolute().is_relative_to(root.absolute()):
            raise UsageError(f"{path} was put there by an earlier run.", "Give the file that it was made from.")
    anat = root / visit_folder(case.subject, case.session) / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    _describe(root)
    stem = anat / visit_label(case.subject, case.session)
    scans = [path for name in ("*_T1w.*", "*_FLAIR.*") for path in anat.glob(name)]
    earlier = next((path for path in scans if path.is_symlink()), None)
    if earlier and earlier.readlink() not in [path.absolute() for path in case.scans]:
        raise UsageError(
            f"{out_dir} already holds {stem.name}, made from {earlier.readlink()}.",
            "Name this case with --participant-label, or choose another output folder.",
        )
    _replace(f"{stem}_T1w", case.t1w)
    _replace(f"{stem}_FLAIR", case.flair)
    return root


def _describe(root: Path) -> None:
    """Write the description whole: the runs of other cases may be reading it."""
    temporary = root / f".{uuid.uuid4().hex}.{DESCRIPTION}"
    temporary.write_text(json.dumps(_DATASET), encoding="utf-8")
    temporary.replace(root / DESCRIPTION)


def _replace(stem: str, source: Path | None) -> None:
    """Put `source`, or nothing, in the place of an earlier scan."""
    for extension in IMAGE_EXTENSIONS:
        Path(stem + extension).unlink(missing_ok=True)
    if source:
        link(source, Path(stem + _extension_of(source)))


def _extension_of(path: Path) -> str:
    """``.nii.gz`` or ``.nii``, in whatever case it is written; empty for other files."""
    return next((item for item in IMAGE_EXTENSIONS if path.name.lower().endswith(item)), "")


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(_extension_of(path))]
