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

#: Entities that say what a scan is, in BIDS order; derivatives keep them.
SCAN_ENTITIES = ("sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir",
                 "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi")  # fmt: skip

#: All entities in BIDS order; those after `SCAN_ENTITIES` say what was made of a scan.
ENTITY_ORDER = (*SCAN_ENTITIES, "space", "from", "to", "mode", "split", "recording", "chunk",
                "atlas", "seg", "scale", "res", "den", "label", "desc")  # fmt: skip

#: Contrasts that a visit's results can lie in the space of, the preferred one first: a space is named after its scan.
NATIVE_SPACES = ("T1w", "FLAIR")

LESION_LABEL = "L"  # the BIDS abbreviation of a lesion
LESION_DESC = "nnunet"
LESION_SEG = "lesions"
ANOMALY_DESC = "reflect"
TWIN_DESC = "pseudohealthy"
FINDINGS_SEG = "findings"
STANDARD_RES = "1"

PIPELINE = "afterstroke"  # how GeneratedBy calls the App
RAW_DATASET = "raw"  # how BIDS URIs call the dataset that the scans come from
DESCRIPTION = "dataset_description.json"
BIDSIGNORE = ".bidsignore"
DESC_TABLE = "descriptions.tsv"
PARTICIPANTS = "participants.tsv"
GROUP_SESSIONS = "group_sessions.tsv"
GROUP_LESIONS = "group_lesions.tsv"
GROUP_FINDINGS = "group_findings.tsv"
GROUP_CLASSES = "group_volumeclasses.tsv"
GROUP_MISSING = "group_missing.tsv"
SELECTION = "selection.json"  # which part of the cohort the tables beside it are of
LOG_FOLDER = "log"
RUN_LOGS = "logs"
MODEL_INPUT = "model-input"
RECORD_PATTERN = "sub-*_record.json"

#: Names that are no BIDS derivative yet; without slashes, because the validator matches folders by bare name.
IGNORED_BY_VALIDATOR = ("*.html", "figures", "log", "logs", "*_xfm.*", "*_uncertainty.*", "*_anomalymap.*", "group_*")


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
        return cls(tuple(pair for pair in pairs if pair[0] in SCAN_ENTITIES))

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
    return {"space": space} if space in NATIVE_SPACES else {"space": space, "res": STANDARD_RES}


def _space_unless_t1w(space: str) -> dict[str, str]:
    """As `_space`, but nothing for the T1w itself: fMRIPrep reads such names as those of the native T1w, and of no
    other scan."""
    return {} if space == "T1w" else _space(space)


def preprocessed(scan: ScanName, contrast: str, space: str = "T1w") -> PurePosixPath:
    """Cleaned, bias-corrected scan of a contrast, on its own grid or on that of another space.

    >>> scan = ScanName.parse("sub-01_T1w.nii.gz")
    >>> preprocessed(scan, "T1w").name, preprocessed(scan, "FLAIR").name
    ('sub-01_desc-preproc_T1w.nii.gz', 'sub-01_space-T1w_desc-preproc_FLAIR.nii.gz')
    """
    entities = _space_unless_t1w(space) if contrast == "T1w" else _space(space)
    return derivative(scan, contrast, desc="preproc", **entities)


def brain_mask(scan: ScanName, space: str = "T1w") -> PurePosixPath:
    """Brain mask; in the space of the T1w under the name that fMRIPrep reads."""
    return derivative(scan, "mask", desc="brain", **_space_unless_t1w(space))


def lesion_mask(scan: ScanName, space: str = "T1w") -> PurePosixPath:
    """Binary lesion mask."""
    return derivative(scan, "mask", label=LESION_LABEL, desc=LESION_DESC, **_space(space))


def lesion_probability(scan: ScanName, space: str = "T1w") -> PurePosixPath:
    """Lesion probability in [0, 1]."""
    return derivative(scan, "probseg", label=LESION_LABEL, desc=LESION_DESC, **_space(space))


def lesion_uncertainty(scan: ScanName, space: str = "T1w") -> PurePosixPath:
    """Standard deviation of the lesion probability between folds."""
    return derivative(scan, "uncertainty", label=LESION_LABEL, desc=LESION_DESC, **_space(space))


def lesion_instances(scan: ScanName, space: str = "T1w", extension: str = ".nii.gz") -> PurePosixPath:
    """One integer per lesion."""
    return derivative(scan, "dseg", extension, seg=LESION_SEG, desc=LESION_DESC, **_space(space))


def anomaly_map(scan: ScanName, space: str = "T1w") -> PurePosixPath:
    """How far the brain is from its healthy twin, in [0, 1]."""
    return derivative(scan, "anomalymap", desc=ANOMALY_DESC, **_space(space))


def healthy_twin(scan: ScanName, contrast: str, space: str = "T1w") -> PurePosixPath:
    """The synthetic healthy twin of the brain, as a scan of a contrast."""
    return derivative(scan, contrast, desc=TWIN_DESC, **_space(space))


def anomaly_mask(scan: ScanName, space: str = "T1w") -> PurePosixPath:
    """Where the anomaly map reaches its threshold."""
    return derivative(scan, "mask", desc=ANOMALY_DESC, **_space(space))


def findings(scan: ScanName, space: str = "T1w", extension: str = ".nii.gz") -> PurePosixPath:
    """One integer per finding."""
    return derivative(scan, "dseg", extension, seg=FINDINGS_SEG, desc=ANOMALY_DESC, **_space(space))


def findings_table(scan: ScanName, space: str = "T1w") -> PurePosixPath:
    """The table of the findings, beside `findings`."""
    return findings(scan, space, ".tsv")


def lesion_table(scan: ScanName, space: str = "T1w") -> PurePosixPath:
    """The table of the lesions, beside `lesion_instances`."""
    return lesion_instances(scan, space, ".tsv")


def transform(scan: ScanName, source: str, target: str, extension: str = ".h5") -> PurePosixPath:
    """Transform that carries an image from `source` space to `target` space."""
    return derivative(scan, "xfm", extension, **{"from": source, "to": target, "mode": "image"})


def lesion_roi(scan: ScanName, space: str = "T1w") -> PurePosixPath:
    """Lesion mask for a separate folder, under the name that fMRIPrep reads beside a raw T1w.

    It reads none in another space, which would be misplaced on a T1w.
    """
    return derivative(scan, "roi", label="lesion", **_space_unless_t1w(space))


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


def model_input(subject: str, session: str | None, channel: int) -> PurePosixPath:
    """One channel of what the lesion model was given, below the logs of a run: by nnU-Net's name of a case.

    >>> str(model_input("01", "1", 0))
    'model-input/sub-01_ses-1_0000.nii.gz'
    """
    return PurePosixPath(MODEL_INPUT) / f"{visit_label(subject, session)}_{channel:04d}.nii.gz"


def model_input_sidecar(subject: str, session: str | None) -> PurePosixPath:
    """What was done to make it, for all channels of a visit."""
    return PurePosixPath(MODEL_INPUT) / f"{visit_label(subject, session)}.json"


def visit_record(subject: str, session: str | None) -> PurePosixPath:
    """Record of what a visit was made from, how it ended and what it wrote."""
    return log_folder(subject) / f"{visit_label(subject, session)}_record.json"


def visit_lock(subject: str, session: str | None) -> PurePosixPath:
    """What a run holds while it processes a visit."""
    return log_folder(subject) / f".{visit_label(subject, session)}.lock"


def run_log(run_id: str) -> PurePosixPath:
    """What a run said, with the time of each line; ``*`` for all runs."""
    return PurePosixPath(RUN_LOGS) / f"{run_id}.log"


def raw_participants(subject: str) -> PurePosixPath:
    """What a run noted of a participant of the raw dataset, so that the group level needs the output folder alone."""
    return log_folder(subject) / "raw_participants.json"


def raw_dataset(state: str) -> PurePosixPath:
    """Participants and sessions of the raw dataset in one of its states, which the notes of participants name."""
    return PurePosixPath(RUN_LOGS) / f"raw_dataset-{state}.json"


def group_part(selection: str) -> PurePosixPath:
    """Folder of the group's tables and maps of a part of the participants."""
    return PurePosixPath(f"group_part-{selection}")


def group_frequency(space: str) -> PurePosixPath:
    """Share of participants with a lesion at each voxel."""
    entities = f"space-{space}_res-{STANDARD_RES}_label-{LESION_LABEL}_desc-{LESION_DESC}"
    return PurePosixPath(f"group_{entities}_probseg.nii.gz")
