"""Which file among the derivatives is the lesion mask that a human drew, and why the others are not.

Taken are masks whose name says lesion, by whatever habit: ``label-L_mask`` (BIDS), ``label-lesion_roi`` (fMRIPrep, also
``T1w_label-lesion_roi``), ``label-lesion_mask``, ``desc-lesion_mask`` (ARC, SOOP), ``label-L_desc-T1lesion_mask``
(ATLAS), ``lesion_mask``, ``lesion``, ``label-stroke_mask``, and ``desc-manual_mask`` or ``roi`` that say nothing else.
Every other file that looks like one is named with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_app.derivatives.names import ANOMALY_DESC, LESION_LABEL, sidecar, visit_folder
from bids_app.study.derived import SOURCE_ENTITIES, DerivedFile, best, other_sources
from bids_app.study.models import Problem, Scan, Severity
from bids_app.text import read_json
from bids_app.wording import listed

#: Words for a lesion; not for what is merely named after one.
_LESION = re.compile(r"(?<!peri)(?<!non)(?<!contra)lesion(?!al|fill|free)|stroke|infarct|isch(a?)emi|hemorrhag", re.I)
#: What a binary mask is called at the end; nothing, in ``T1w_lesion-manual``.
_MASKS = ("mask", "roi", "msk", "seg", "lesion", "lesions", "")
#: Maps of another kind, which say lesion all the same.
_MAPS = ("dseg", "probseg")
#: Where a scan is that nobody moved, besides its own suffix.
_NATIVE = ("orig", "native", "individual", "scanner", "anat")
#: Labels and descriptions of masks of something else, which nobody takes for a lesion.
_OF_SOMETHING_ELSE = (
    "brain", "ribbon", "head", "face", "gm", "wm", "csf", "bs", "cortex", "aseg", "aparcaseg", ANOMALY_DESC,
)  # fmt: skip
#: Entities that say nothing of what a mask shows.
_NO_CONTENT = (*SOURCE_ENTITIES, "task", "dir", "echo", "part", "space", "res", "den", "hemi", "from", "to", "mode")
#: Images that are no NIfTI file, or not called as one.
_IMAGES = re.compile(r"(\.[^.]+)*\.(nii|nii\.gz|mgz|mgh|nrrd|nhdr|mha|mhd|img|hdr|voi|mnc|mif)", re.I)
#: Files of one reason that a sentence names.
_SHOWN = 3

_GOOD_NAME = f"*_label-{LESION_LABEL}_mask.nii.gz"
MACHINE = "made by a program, as Manual in its sidecar is false; write true there if it was corrected by hand"


@dataclass(frozen=True)
class Drawn:
    """The lesion masks of a visit in one folder.

    Attributes
    ----------
    masks : tuple of Path
        Those that may be used and fit the scan equally well; usually none or one.
    refused : tuple of (str, Path)
        Why a file that looks like a lesion mask is none of them, and the file.
    """

    masks: tuple[Path, ...] = ()
    refused: tuple[tuple[str, Path], ...] = ()


def find_drawn(files: Sequence[DerivedFile], others: Sequence[DerivedFile], reference: Scan) -> Drawn:
    """Find the lesion masks among the files of a folder.

    Parameters
    ----------
    files : sequence of DerivedFile
        Where the masks of the visit belong.
    others : sequence of DerivedFile
        Further files of the subject: masks among them are named only.
    reference : Scan
        The raw scan in whose space the visit is processed.
    """
    looking = [file for file in files if looks_like_mask(file)]
    reasons = {file.path: why_not(file, reference) for file in looking}
    fitting = [file for file in looking if not reasons[file.path]]
    chosen = [file.path for file in best(fitting, reference.name)] if fitting else []
    refused = [(why, path) for path, why in reasons.items() if why]
    refused += [("made from the same scan, but its name fits less well", file.path)
                for file in fitting if file.path not in chosen]  # fmt: skip
    refused += [
        (why_not(file, reference) or _misplaced(file, reference), file.path) for file in others if looks_like_mask(file)
    ]
    return Drawn(tuple(chosen), tuple(refused))


def several_masks(label: str, masks: Sequence[Path], what_to_do: str) -> Problem:
    """The error of a visit with more than one mask: which of them is meant, or whether all are, nobody can tell."""
    names = listed([mask.name for mask in masks], limit=_SHOWN)
    message = f"{label} has {len(masks)} masks: {names}; {what_to_do}."
    return Problem("several-masks", Severity.ERROR, message, tuple(mask.name for mask in masks))


def not_used(refused: Sequence[tuple[str, Path]], severity: Severity) -> tuple[Problem, ...]:
    """One problem that names all files that look like lesion masks and are not used, by their reasons."""
    if not refused:
        return ()
    by_reason: dict[str, list[str]] = {}
    for why, path in refused:
        by_reason.setdefault(why, []).append(path.name)
    parts = [f"{listed(names, limit=_SHOWN)} ({why})" for why, names in by_reason.items()]
    files = tuple(path.name for _, path in refused)
    return (Problem("mask-not-used", severity, f"Not used as lesion mask: {'; '.join(parts)}.", files),)


def looks_like_mask(file: DerivedFile) -> bool:
    """Whether a file may be a lesion mask by its name, usable or not: it says lesion, or ends as a mask of anything."""
    if not _IMAGES.fullmatch(file.extension):
        return False
    return _says_lesion(file) or (_suffix(file) in _MASKS[:-1] and not _is_of_something_else(file))


def why_not(file: DerivedFile, reference: Scan) -> str:
    """Why a file that looks like a lesion mask cannot be used for a scan; empty if it can."""
    reasons = (
        MACHINE if _sidecar(file.path).get("Manual") is False else "",
        _wrong_format(file),
        _wrong_scan(file, reference),
        _wrong_space(file, reference),
        _no_mask_of_lesion(file),
    )
    return next((reason for reason in reasons if reason), "")


def _suffix(file: DerivedFile) -> str:
    return file.tail.rpartition("_")[2].lower()


def _content(file: DerivedFile) -> list[str]:
    """The words of a name that say what the file shows."""
    words = [word for key, label in file.entities.items() if key not in _NO_CONTENT for word in (key, label)]
    return [*words, *file.tail.split("_")]


def _says_lesion(file: DerivedFile) -> bool:
    if file.entities.get("label") == LESION_LABEL or _sidecar(file.path).get("Type") == "Lesion":
        return True
    return any(_LESION.search(word) for word in _content(file))


def _is_of_something_else(file: DerivedFile) -> bool:
    words = [file.entities.get(key, "").lower() for key in ("label", "desc")] + file.tail.lower().split("_")[:-1]
    return any(word in _OF_SOMETHING_ELSE for word in words) or _sidecar(file.path).get("Type") == "Brain"


def _wrong_format(file: DerivedFile) -> str:
    if file.is_image:
        return ""
    if file.extension.lower() in (".nii", ".nii.gz"):
        return "its ending has to be in small letters, .nii.gz"
    if file.extension.lower().endswith((".nii", ".nii.gz")):
        return "its name has a dot before .nii"
    return f"no NIfTI file but {file.extension}: convert it to .nii.gz"


def _wrong_scan(file: DerivedFile, reference: Scan) -> str:
    if different := other_sources(file, reference.name):
        return f"of {', '.join(different)}, and the scan is {reference.path.name.partition('.')[0]}"
    if file.scan and not _is_suffix(file.scan, reference.suffix):
        return f"drawn on the {file.scan}: resample it onto the {reference.suffix}, and name it after that"
    return ""


def _wrong_space(file: DerivedFile, reference: Scan) -> str:
    space = file.entities.get("space")
    own = DerivedFile.parse(reference.path).entities.get("space")
    if space in (None, own) or _is_suffix(space, reference.suffix) or space.lower() in _NATIVE:
        return ""
    return f"in the space {space}, not in that of the {reference.suffix}"


def _is_suffix(word: str, suffix: str) -> bool:
    """Whether a word stands for a scan; T1 is T1w."""
    return word.lower().removesuffix("w") == suffix.lower().removesuffix("w")


def _no_mask_of_lesion(file: DerivedFile) -> str:
    suffix = _suffix(file)
    if suffix in _MAPS:
        kind = "a probability map" if suffix == "probseg" else "a label map"
        return f"{kind}: save the lesion as a mask, as {_GOOD_NAME}"
    if _says_lesion(file):
        is_mask = suffix in _MASKS or _LESION.search(suffix)
        return "" if is_mask else f"its name ends in _{suffix}: if it is a mask, call it {_GOOD_NAME}"
    described = {key for key in ("label", "desc", "seg") if key in file.entities}
    by_hand = described == {"desc"} and file.entities["desc"].lower().startswith("manual")
    if by_hand or (suffix == "roi" and not described):
        return ""
    return f"its name does not say that it shows a lesion: call it {_GOOD_NAME}"


def _misplaced(file: DerivedFile, reference: Scan) -> str:
    """Where a mask lies, and where it is looked for."""
    name = reference.name
    parts = file.path.parent.parts
    place = "/".join(parts[parts.index(str(visit_folder(name.subject, None))) :])
    return f"in {place}/, not in {visit_folder(name.subject, name.session)}/anat/"


def _sidecar(image: Path) -> dict:
    """What the JSON beside a file says; nothing where there is none."""
    try:
        content = read_json(sidecar(image))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
