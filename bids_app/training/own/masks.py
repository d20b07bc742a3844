"""Where the lesion masks of a dataset lie, and how its files are called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bids_app.derivatives.names import ScanName
from bids_app.errors import DatasetError, NoInputError, UsageError
from bids_app.settings import DEFAULT_SPACE
from bids_app.study.choice import choose
from bids_app.study.derived import IMAGE_EXTENSIONS, files_in
from bids_app.study.masks import looks_like_mask
from bids_app.study.models import Scan, Visit
from bids_app.wording import listed

#: ATLAS v2.0 (Liew et al., Sci Data 2022), beside each T1w.
ATLAS = "atlas"
ATLAS_T1W = f"_space-{DEFAULT_SPACE}_T1w"
ATLAS_MASK = f"_space-{DEFAULT_SPACE}_label-L_desc-T1lesion_mask"
#: Where its participants lie: in its archive by cohort, in other releases as derivatives, or at the top.
ATLAS_PLACES = ("sub-*", "R*/sub-*", "Training/R*/sub-*", "derivatives/ATLAS/sub-*")

#: Aphasia Recovery Cohort, OpenNeuro ds004884 (Gibson et al., Sci Data 2024): masks are drawn on a T2w and named so.
ARC = "arc"

#: Patterns by the word that stands for them.
KNOWN = {ARC: "derivatives/lesion_masks/sub-{subject}/ses-{session}/anat/*desc-lesion_mask.nii*"}


def check_pattern(pattern: str) -> None:
    """Make sure that a pattern can be understood.

    Raises
    ------
    UsageError
        If it has placeholders other than ``{subject}`` and ``{session}``, or matches no file's name.
    """
    steps = Path(pattern).parts
    if not Path(pattern).name or any("**" in step and step != "**" for step in steps):
        raise UsageError(
            f"The pattern of --masks, '{pattern}', can find no file.",
            "It ends in the name of the masks, and ** stands alone between slashes, as in 'masks/**/*_mask.nii.gz'.",
        )
    if unknown := sorted(set(re.findall(r"\{([^}]*)\}", pattern)) - {"subject", "session"}):
        raise UsageError(
            f"The pattern of --masks has the placeholder {{{unknown[0]}}}.", "It may have {subject} and {session}."
        )


def find_masks(pattern: str, root: Path, visit: Visit) -> list[Path]:
    """Masks of a visit: the files that the pattern matches, without those named after someone else.

    Parameters
    ----------
    pattern : str
        Relative to `root` or absolute, with ``{subject}``, ``{session}`` and the stars of a shell; or a word of
        `KNOWN`, or ``atlas``.
    root : Path
        The dataset.
    """
    if pattern == ATLAS:
        mask = visit.t1w.path.with_name(visit.t1w.path.name.replace(ATLAS_T1W, ATLAS_MASK))
        return [mask] if is_there(mask) else []
    found = _glob(Path(fill(KNOWN.get(pattern, pattern), visit)), root)
    return sorted(path for path in found if _is_image(path) and _may_be_of(_below(path, root), visit))


def find_all_masks(pattern: str, root: Path) -> list[Path]:
    """Masks that the pattern would find, whatever their labels; none of ``atlas``, which lie beside their scans."""
    if pattern == ATLAS:
        return []
    anyone = re.sub(r"\{[^}]*\}", "*", KNOWN.get(pattern, pattern))
    return sorted(path for path in _glob(Path(anyone), root) if _is_image(path))


def beside_pattern(pattern: str, root: Path, visit: Visit) -> list[Path]:
    """Files in the folders where a pattern looks for the mask of a visit, which may be it by another name or format."""
    if pattern == ATLAS:
        return []
    place = Path(fill(KNOWN.get(pattern, pattern), visit)).parent
    folders = _glob(place, root) if place.parts else [root]
    files = [file for folder in folders if folder.is_dir() for file in files_in(folder)]
    return sorted(file.path for file in files if looks_like_mask(file) and _may_be_of(_below(file.path, root), visit))


def fill(pattern: str, visit: Visit) -> str:
    """A pattern with the labels of a visit; ``ses-{session}`` vanishes where there are no sessions.

    >>> fill("m/sub-{subject}/ses-{session}/sub-{subject}_ses-{session}_*", Visit("01", None, None, None))
    'm/sub-01/sub-01_*'
    """
    if visit.session is None:
        pattern = pattern.replace("/ses-{session}", "").replace("_ses-{session}", "")
    return pattern.replace("{subject}", visit.subject).replace("{session}", visit.session or "")


def _glob(place: Path, root: Path) -> Iterator[Path]:
    """What a path with the stars of a shell matches, from the dataset on if it is relative."""
    base = Path(place.anchor) if place.is_absolute() else root
    return base.glob(str(place.relative_to(base) if place.is_absolute() else place))


def _is_image(path: Path) -> bool:
    return path.name.endswith(IMAGE_EXTENSIONS)


def is_there(path: Path) -> bool:
    """Whether there is a file, or a link to one that may not have been downloaded."""
    return path.is_symlink() or path.exists()


def _below(path: Path, root: Path) -> Path:
    """The part of a path that can be about a visit: below the dataset, or else the last folders of BIDS."""
    return path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[-4:])


def _may_be_of(path: Path, visit: Visit) -> bool:
    """Whether no label in the file's path is that of another visit, and one is that of this subject."""
    labels = [re.findall(rf"(?:^|[/_]){key}-([0-9a-zA-Z+]+)", path.as_posix()) for key in ("sub", "ses")]
    subjects, sessions = labels
    if not subjects:  # no BIDS name: the pattern has to know
        return True
    return subjects[-1] == visit.subject and (not sessions or sessions[-1] == visit.session)


def scan_of_mask(mask: Path, visit: Visit) -> Path | None:
    """The raw scan, no T1w or FLAIR, that a mask says it was drawn on, as ``*_T2w_desc-lesion_mask``.

    None if its name says nothing of the kind. The scan may be missing.
    """
    named = re.match(r"(sub-.*_(?:T2w|PDw|T2starw|dwi))_", mask.name)
    if named is None:
        return None
    candidates = [visit.reference.path.with_name(named.group(1) + extension) for extension in IMAGE_EXTENSIONS]
    return next((path for path in candidates if is_there(path)), candidates[0])


def atlas_visits(root: Path, participants: Sequence[str]) -> tuple[Visit, ...]:
    """Visits of ATLAS v2.0, wherever its participants lie below `root`.

    Raises
    ------
    DatasetError
        If there are none.
    NoInputError
        If a participant that was asked for is not there.
    """
    scans: dict[tuple[str, str | None], list[Scan]] = {}
    for place in ATLAS_PLACES:
        for path in sorted(root.glob(f"{place}/ses-*/anat/*{ATLAS_T1W}.nii*")):
            name = ScanName.parse(path.name)
            scans.setdefault((name.subject, name.session), []).append(Scan(path, name, "T1w"))
        if scans:
            break
    if not scans:
        raise DatasetError(
            f"{root} does not look like ATLAS v2.0: there is no sub-*/ses-*/anat/*{ATLAS_T1W}.nii.gz.",
            "Give the folder that holds its participants or cohorts, or a pattern with --masks.",
        )
    if unknown := sorted(set(participants) - {subject for subject, _ in scans}):
        raise NoInputError(f"{root} has no {listed(unknown, 'sub-')}.", "Change --participant-label.")
    wanted = {key: found for key, found in scans.items() if not participants or key[0] in participants}
    return tuple(_visit(*key, found) for key, found in sorted(wanted.items()))


def _visit(subject: str, session: str | None, scans: Sequence[Scan]) -> Visit:
    t1w, problems = choose(scans)
    return Visit(subject, session, t1w, None, problems=problems)
