"""Every file name the App writes or looks for; no other module spells one.

A visit's files are named by the entities of their source scan plus the entities given here, in the order that the
BIDS specification fixes (``desc`` last).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import TypeVar

AnyPath = TypeVar("AnyPath", bound=PurePath)

#: Entities in BIDS order.
ENTITY_ORDER = ("sub", "ses", "acq", "ce", "rec", "run", "echo", "part", "space", "from", "to", "mode",
                "atlas", "seg", "scale", "res", "label", "desc")  # fmt: skip

LESION_LABEL = "L"  # the BIDS abbreviation of a lesion
LESION_DESC = "nnunet"
LESION_SEG = "lesions"
STANDARD_RES = "1"

RAW_DATASET = "raw"  # how BIDS URIs call the dataset that the scans come from
DESCRIPTION = "dataset_description.json"
BIDSIGNORE = ".bidsignore"
DESC_TABLE = "descriptions.tsv"
PARTICIPANTS = "participants.tsv"
GROUP_SESSIONS = "group_sessions.tsv"
GROUP_LESIONS = "group_lesions.tsv"
GROUP_CLASSES = "group_volumeclasses.tsv"
GROUP_MISSING = "group_missing.tsv"
LOG_FOLDER = "log"
RECORD_PATTERN = "*_record.json"

#: Names that are no BIDS derivative yet; without slashes, because the validator matches folders by bare name.
IGNORED_BY_VALIDATOR = ("*.html", "figures", "log", "*_xfm.*", "*_uncertainty.*", "*_anomalymap.*", "group_*")


@dataclass(frozen=True)
class ScanName:
    """The entities of a scan, from which all names of its derivatives follow.

    Attributes
    ----------
    entities : tuple of (str, str)
        Short entity keys and labels, in BIDS order, as in ``(("sub", "01"), ("ses", "1"), ("run", "2"))``.
    """

    entities: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, filename: str) -> ScanName:
        """Entities of a BIDS file name.

        >>> ScanName.parse("sub-01_ses-1_run-2_T1w.nii.gz").entities
        (('sub', '01'), ('ses', '1'), ('run', '2'))
        """
        pairs = re.findall(r"(?:^|_)([a-z]+)-([0-9a-zA-Z+]+)", PurePosixPath(filename).name)
        return cls(tuple(pair for pair in pairs if pair[0] in ENTITY_ORDER[:8]))

    @property
    def subject(self) -> str:
        return dict(self.entities)["sub"]

    @property
    def session(self) -> str | None:
        return dict(self.entities).get("ses")


def visit_folder(subject: str, session: str | None) -> PurePosixPath:
    """Folder of a visit, relative to the dataset.

    >>> str(visit_folder("01", None))
    'sub-01'
    """
    folder = PurePosixPath(f"sub-{subject}")
    return folder / f"ses-{session}" if session else folder


def visit_label(subject: str, session: str | None) -> str:
    """``sub-01_ses-1`` or ``sub-01``: how a visit is called in messages, logs and work folders."""
    return "_".join(visit_folder(subject, session).parts)


def derivative(scan: ScanName, suffix: str, extension: str = ".nii.gz", **extra: str) -> PurePosixPath:
    """Path, relative to the output folder, of a derivative of `scan`.

    >>> scan = ScanName.parse("sub-01_ses-1_T1w.nii.gz")
    >>> str(derivative(scan, "mask", space="T1w", label="L", desc="nnunet"))
    'sub-01/ses-1/anat/sub-01_ses-1_space-T1w_label-L_desc-nnunet_mask.nii.gz'
    """
    entities = dict(scan.entities) | extra
    if unknown := set(entities) - set(ENTITY_ORDER):
        raise ValueError(f"unknown BIDS entities: {sorted(unknown)}")
    stem = "_".join(f"{key}-{entities[key]}" for key in ENTITY_ORDER if key in entities)
    return visit_folder(scan.subject, scan.session) / "anat" / f"{stem}_{suffix}{extension}"


def _space(space: str) -> dict[str, str]:
    """Entities of an image in `space`; standard spaces carry their resolution."""
    return {"space": space} if space == "T1w" else {"space": space, "res": STANDARD_RES}


def preprocessed_t1w(t1w: ScanName, space: str | None = None) -> PurePosixPath:
    """Cleaned, bias-corrected T1w; without `space` the native one, under the name that fMRIPrep reads."""
    return derivative(t1w, "T1w", desc="preproc", **(_space(space) if space else {}))


def preprocessed_flair(flair: ScanName, space: str = "T1w") -> PurePosixPath:
    """FLAIR resampled onto the T1w."""
    return derivative(flair, "FLAIR", desc="preproc", **_space(space))


def brain_mask(t1w: ScanName, space: str | None = None) -> PurePosixPath:
    """Brain mask; without `space` the native one, under the name that fMRIPrep reads."""
    return derivative(t1w, "mask", desc="brain", **(_space(space) if space else {}))


def lesion_mask(t1w: ScanName, space: str = "T1w") -> PurePosixPath:
    """Binary lesion mask."""
    return derivative(t1w, "mask", label=LESION_LABEL, desc=LESION_DESC, **_space(space))


def lesion_probability(t1w: ScanName, space: str = "T1w") -> PurePosixPath:
    """Lesion probability in [0, 1]."""
    return derivative(t1w, "probseg", label=LESION_LABEL, desc=LESION_DESC, **_space(space))


def lesion_uncertainty(t1w: ScanName, space: str = "T1w") -> PurePosixPath:
    """Standard deviation of the lesion probability between folds."""
    return derivative(t1w, "uncertainty", label=LESION_LABEL, desc=LESION_DESC, **_space(space))


def lesion_instances(t1w: ScanName, extension: str = ".nii.gz") -> PurePosixPath:
    """One integer per lesion; with ``.tsv`` the table of the lesions."""
    return derivative(t1w, "dseg", extension, space="T1w", seg=LESION_SEG, desc=LESION_DESC)


def transform(scan: ScanName, source: str, target: str, extension: str = ".h5") -> PurePosixPath:
    """Transform that carries an image from `source` space to `target` space."""
    return derivative(scan, "xfm", extension, **{"from": source, "to": target, "mode": "image"})


def lesion_roi(t1w: ScanName) -> PurePosixPath:
    """Lesion mask under the name that fMRIPrep reads beside a raw T1w (for a separate folder)."""
    return derivative(t1w, "roi", label="lesion")


def sidecar(path: AnyPath) -> AnyPath:
    """The JSON beside an image or table.

    >>> str(sidecar(PurePosixPath("a_T1w.nii.gz")))
    'a_T1w.json'
    """
    return path.with_name(path.name.removesuffix(".gz").rsplit(".", 1)[0] + ".json")


def sessions_table(subject: str) -> PurePosixPath:
    """Summary of one subject, a row a session."""
    return PurePosixPath(f"sub-{subject}") / f"sub-{subject}_sessions.tsv"


def log_folder(subject: str) -> PurePosixPath:
    """Folder of a subject's records, logs and crash files."""
    return PurePosixPath(f"sub-{subject}") / LOG_FOLDER


def visit_record(subject: str, session: str | None) -> PurePosixPath:
    """Record of what a visit was made from, how it ended and what it wrote."""
    return log_folder(subject) / f"{visit_label(subject, session)}_record.json"


def raw_participants(subject: str) -> PurePosixPath:
    """The raw dataset's participants, as a run left them, so that the group level needs the output folder alone."""
    return log_folder(subject) / "raw_participants.json"


def group_frequency(space: str) -> PurePosixPath:
    """Share of participants with a lesion at each voxel."""
    entities = f"space-{space}_res-{STANDARD_RES}_label-{LESION_LABEL}_desc-{LESION_DESC}"
    return PurePosixPath(f"group_{entities}_probseg.nii.gz")
