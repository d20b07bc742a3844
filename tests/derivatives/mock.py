"""A finished visit made of small images, for tests of what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_app import images
from bids_app.anomaly.findings import find
from bids_app.derivatives.names import ScanName
from bids_app.derivatives.results import (
    AnomalyUse,
    Explained,
    ModelUse,
    Normalized,
    Posed,
    Prepared,
    Provenance,
    Segmented,
    StandardAnomaly,
)
from bids_app.lesion.components import find_lesions
from bids_app.lesion.inputs import Stated, usual
from bids_app.lesion.terms import ModelTerms
from bids_app.preprocessing.checks import Check
from bids_app.study.models import Scan, Visit

PASSED = Check("accepted", 0.97, 0.4, "Within limits.")
IDENTITY = tuple(tuple(row) for row in np.eye(4).tolist())
TERMS = ModelTerms(Stated(usual("rigid"), "its card"), Stated(0.5, "its card"), Stated(10.0, "its card"))
MODEL = ModelUse("tiny", "1.0", "0" * 64, ("T1w",), ("0", "1"), TERMS, "cpu")


def make_visit(
    bids: Path, subject: str = "01", session: str | None = "1", flair: bool = True, t1w: bool = True
) -> Visit:
    stem = f"sub-{subject}" + (f"_ses-{session}" if session else "")
    folder = bids / stem.replace("_", "/") / "anat"
    scans = {
        suffix: Scan(folder / f"{stem}_{suffix}.nii.gz", ScanName.parse(f"{stem}_{suffix}.nii.gz"), suffix)
        for suffix in ("T1w", "FLAIR")
    }
    return Visit(subject, session, scans["T1w"] if t1w else None, scans["FLAIR"] if flair else None)


def brain_like(lesion_at: tuple[int, int, int] = (10, 20, 18)) -> nib.Nifti1Image:
    """A probability map with one lesion of 125 voxels of 2 mm, left, where x is below 24 mm."""
    values = np.zeros((24, 28, 26), dtype=np.float32)
    x, y, z = lesion_at
    values[x - 2 : x + 3, y - 2 : y + 3, z - 2 : z + 3] = 0.9
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-24, -28, -26]
    return images.on_affine(values, affine)


def make_results(work: Path, visit: Visit) -> tuple[Prepared, Posed, Segmented, tuple[Normalized, ...]]:
    probability = brain_like()
    ones = images.like(probability, np.ones(probability.shape, np.float32))
    mask = images.like(probability, np.ones(probability.shape, np.uint8))
    lesions = find_lesions(probability, 0.5, 10.0, np.eye(4))
    saved = {
        name: images.save(image, work / f"{name}.nii.gz")
        for name, image in {
            "reference": ones, "mask": mask, "probability": probability, "lesion": lesions.mask,
            "labels": lesions.labels,
        }.items()
    }  # fmt: skip
    for name in ("forward.h5", "inverse.h5", "flair.txt"):
        (work / name).write_bytes(b"a transform")
    prepared = Prepared(
        visit=visit,
        reference=saved["reference"],
        brain_mask=saved["mask"],
        brain_volume_ml=1234.5,
        skull_stripped=False,
        flair=saved["reference"] if visit.flair_to_align else None,
        flair_native=saved["reference"] if visit.flair_to_align else None,
        flair_transform=work / "flair.txt" if visit.flair_to_align else None,
        flair_matrix=IDENTITY if visit.flair_to_align else None,
        flair_check=PASSED if visit.flair_to_align else None,
    )
    posed = Posed(((prepared.contrast, saved["reference"]),), IDENTITY, PASSED)
    model = replace(MODEL, channels=(prepared.contrast,))
    segmented = Segmented(
        saved["lesion"], saved["labels"], saved["probability"], saved["probability"], lesions.lesions, 1.0, 0.0, model
    )
    normalized = Normalized(
        "MNI152NLin2009aSym", PASSED, work / "forward.h5", work / "inverse.h5",
        saved["reference"], saved["mask"], saved["lesion"], saved["probability"],
        saved["labels"], saved["probability"], saved["reference"] if visit.flair_to_align else None,
    )  # fmt: skip
    return prepared, posed, segmented, (normalized,)


def make_explained(work: Path, prepared: Prepared, normalized: tuple[Normalized, ...]) -> Explained:
    """An anomaly map with one finding: where the lesion of `make_results` is."""
    anomaly = brain_like()
    found = find(anomaly, 0.5, images.like(anomaly, (images.data(anomaly) > 0).astype(np.uint8)))
    saved = {
        name: images.save(image, work / f"{name}.nii.gz")
        for name, image in {"anomaly": anomaly, "twin": anomaly, "departed": found.mask, "found": found.labels}.items()
    }
    use = AnomalyUse("tiny", "1.0", "1" * 64, prepared.contrast, 5, 0.5, "cpu")
    standard = tuple(
        StandardAnomaly(space.space, saved["anomaly"], saved["twin"], saved["departed"]) for space in normalized
    )
    images_of_it = saved["anomaly"], saved["twin"], saved["departed"], saved["found"]
    return Explained(*images_of_it, found.findings, use, standard)


def provenance(bids: Path) -> Provenance:
    return Provenance("a1b2c3d4", "0.1.0", bids)
