"""The JSON beside each output: what it is, what it was made from, and how."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any

from bids_app.anomaly.findings import MIN_VOLUME_MM3
from bids_app.anomaly.folder import DEVIATIONS, LEAST_DEVIATION, USUAL
from bids_app.derivatives import names
from bids_app.derivatives.description import DISCLAIMER
from bids_app.derivatives.results import (
    AnomalyUse,
    Explained,
    ModelUse,
    Normalized,
    Prepared,
    Provenance,
    Segmented,
)
from bids_app.lesion.terms import DECIDES, ModelTerms
from bids_app.study.models import Reuse, Scan

#: Where standard spaces are defined: the MNI's own page, for all others TemplateFlow.
ICBM152 = "https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009"
TEMPLATEFLOW = "https://github.com/templateflow/tpl-{space}"

INTERPRETATION = (
    "Half the blurred difference of the decoded images, half that of their latents. Not a probability, and not "
    "comparable between models. A high value says that a model of healthy brains would have drawn this place "
    "otherwise, and does not say why."
)

BY_PLACE = (
    f"by place: mean + {DEVIATIONS} x (standard deviation + {LEAST_DEVIATION}) of healthy brains there, "
    f"which are in the model's {USUAL}"
)
RESOLUTION = {names.STANDARD_RES: "1 mm isotropic, the grid of the template"}


def own(path: PurePosixPath) -> str:
    """BIDS URI of a file of this derivative dataset."""
    return f"bids::{path}"


def raw(scan: Scan, provenance: Provenance) -> str:
    """BIDS URI of a raw scan."""
    try:
        relative = scan.path.relative_to(provenance.bids_dir)
    except ValueError:
        relative = scan.path.name
    return f"bids:{names.RAW_DATASET}:{relative}"


def reused(reuse: Reuse, path: Path) -> str:
    """BIDS URI of a file of another pipeline."""
    return next(uri for uri in reuse.sources if uri.endswith(f"/{path.name}"))


def base(description: str, sources: list[str], provenance: Provenance, **extra: Any) -> dict[str, Any]:
    """The keys every sidecar has, then `extra`."""
    return {
        "Description": f"{description}. {DISCLAIMER}",
        "Sources": sources,
        **extra,
        "ConfigurationHash": provenance.configuration_hash,
    }


def reference(prepared: Prepared, provenance: Provenance) -> dict[str, Any]:
    """Sidecar of the preprocessed reference scan in its native space."""
    visit, contrast = prepared.visit, prepared.contrast
    taken = visit.reuse.preprocessed
    read = taken or visit.reference.path
    made = "taken from another pipeline" if taken else "header repaired, RAS+, bias field corrected"
    return base(
        f"{contrast}, {made}",
        [reused(visit.reuse, taken) if taken else raw(visit.reference, provenance)],
        provenance,
        SkullStripped=prepared.skull_stripped,
        SpatialReference="orig",
        HeaderRepairs=repairs(prepared, read.name),
    )


def repairs(prepared: Prepared, name: str) -> list[str]:
    """What was mended in the file of that name."""
    return [problem.message for problem in prepared.problems if name in problem.files]


def aligned_flair(prepared: Prepared, t1w: PurePosixPath, provenance: Provenance) -> dict[str, Any]:
    """Sidecar of the FLAIR on the T1w grid."""
    check = prepared.flair_check
    return base(
        "FLAIR rigidly aligned to the T1w and resampled onto its grid",
        [raw(prepared.visit.flair, provenance), own(t1w)],
        provenance,
        SkullStripped=prepared.flair_stripped,
        SpatialReference=own(t1w),
        HeaderRepairs=repairs(prepared, prepared.visit.flair.path.name),
        Registration=check_keys(check),
    )


def brain_mask(prepared: Prepared, scan: PurePosixPath, provenance: Provenance) -> dict[str, Any]:
    """Sidecar of the native brain mask; `scan` is the preprocessed one that it was made on."""
    reuse = prepared.visit.reuse
    if reuse.brain_mask:
        what, sources = "Brain mask taken from another pipeline", [reused(reuse, reuse.brain_mask)]
    elif prepared.skull_stripped:
        what, sources = "Brain mask: the non-zero voxels of a scan that came without skull", [own(scan)]
    else:
        what, sources = "Brain mask by deepbet", [own(scan)]
    model = {"Model": {"Name": "deepbet", "SHA256": prepared.brain_weights}} if prepared.brain_weights else {}
    return base(what, sources, provenance, Type="Brain", Manual=False, **model, SpatialReference=own(scan))


def model_keys(model: ModelUse) -> dict[str, Any]:
    """What is said of the model that made a lesion map."""
    terms = model.terms
    return {
        "Model": {"Name": model.name, "Version": model.version, "SHA256": model.sha256, "Folds": list(model.folds)},
        "Channels": list(model.channels),
        "Input": model_input_keys(model.terms),
        "Threshold": DECIDES if terms.threshold.value is None else terms.threshold.value,
        "ThresholdSource": terms.threshold.source,
        "MinimumVolume": {"Value": terms.min_volume_mm3.value, "Units": "mm^3"},
        "MinimumVolumeSource": terms.min_volume_mm3.source,
        "Connectivity": 26,
        "Device": model.device,
    }


def model_input_keys(terms: ModelTerms) -> dict[str, Any]:
    """What is said of what a lesion model was given."""
    wanted = terms.input.value
    return {
        "Space": wanted.space,
        "BrainExtracted": wanted.brain_alone,
        "BiasCorrected": wanted.corrected,
        "Source": terms.input.source,
        "Description": wanted.words,
        "Steps": terms.steps,
    }


def model_input(model: ModelUse, sources: list[str], provenance: Provenance) -> dict[str, Any]:
    """The JSON beside the scans that a lesion model was given."""
    channels = {f"{number:04d}": channel for number, channel in enumerate(model.channels)}
    what = "What the lesion model was given, before its own cropping, normalization and resampling"
    return base(what, sources, provenance, **model_keys(model) | {"Channels": channels})


def lesion(
    kind: str, segmented: Segmented, sources: list[str], provenance: Provenance, **extra: Any
) -> dict[str, Any]:
    """Sidecar of a lesion mask, probability, uncertainty or instance image.

    Parameters
    ----------
    kind : str
        ``mask``, ``probseg``, ``uncertainty`` or ``dseg``.
    """
    what = {
        "mask": "Binary stroke lesion mask",
        "probseg": "Stroke lesion probability, from the mean of the folds' logits",
        "uncertainty": "Standard deviation of the lesion probability between the folds",
        "dseg": "Stroke lesions one by one, numbered by decreasing volume",
    }[kind]
    keys = {"Type": "Lesion"} if kind == "mask" else {}
    if kind in ("probseg", "uncertainty"):
        keys["Units"] = "arbitrary"
    if segmented.model is None:
        return base(f"{what}, drawn by hand", sources, provenance, **keys, Manual=True, **extra)
    model = segmented.model
    return base(f"{what}, {model.terms.steps}", sources, provenance, **keys, Manual=False, **model_keys(model), **extra)


def anomaly_keys(model: AnomalyUse) -> dict[str, Any]:
    """What is said of the model that made an anomaly map."""
    return {
        "Model": {"Name": model.name, "Version": model.version, "SHA256": model.sha256},
        "Channels": [model.contrast],
        "Steps": model.steps,
        "BrainMasked": model.masked,
        "Side": model.side,
        "Threshold": BY_PLACE if model.threshold is None else model.threshold,
        "MinimumVolume": {"Value": MIN_VOLUME_MM3, "Units": "mm^3"},
        "Connectivity": 26,
        "Device": model.device,
    }


def anomaly(
    kind: str, explained: Explained, sources: list[str], provenance: Provenance, **extra: Any
) -> dict[str, Any]:
    """Sidecar of an anomaly map, a healthy twin, a thresholded map or the findings.

    Parameters
    ----------
    kind : str
        ``anomalymap``, ``twin``, ``mask`` or ``dseg``.
    """
    what = {
        "anomalymap": "How far the brain is from its healthy twin, by REFLECT, from 0 to 1",
        "twin": "Synthetic: what REFLECT draws as the healthy twin of this brain; never acquired, not for measuring",
        "mask": "Where the anomaly map reaches its threshold, in findings that are large enough",
        "dseg": "Findings of the anomaly map one by one, numbered by decreasing volume",
    }[kind]
    keys: dict[str, Any] = {"Manual": False}
    if kind == "mask":
        keys["Type"] = "ROI"
    if kind in ("anomalymap", "twin"):
        keys = {"SkullStripped": True}
    if kind == "anomalymap":
        keys |= {"Units": "arbitrary", "Interpretation": INTERPRETATION}
    return base(what, sources, provenance, **keys, **anomaly_keys(explained.model), **extra)


def space_reference(space: str) -> str:
    """Where a standard space is defined."""
    return ICBM152 if space.startswith("MNI152NLin2009") else TEMPLATEFLOW.format(space=space)


def standard_keys(normalized: Normalized) -> dict[str, Any]:
    """What every image in a standard space says of that space and of how it got there."""
    return {
        "SpatialReference": space_reference(normalized.space),
        "Resolution": RESOLUTION,
        "Registration": check_keys(normalized.check),
    }


def standard(
    description: str, sources: list[str], normalized: Normalized, provenance: Provenance, **extra: Any
) -> dict[str, Any]:
    """Sidecar of a scan or brain mask in a standard space."""
    what = f"{description}, deformed to {normalized.space}"
    return base(what, sources, provenance, **extra, **standard_keys(normalized))


def check_keys(check: Any) -> dict[str, Any]:
    """What is said of a registration; null for what could not be measured, since JSON knows no NaN."""
    measured = {
        "TissueOverlap": check.overlap,
        "Similarity": check.similarity,
        "SimilarityNearby": check.nearby,
        "SimilarityElsewhere": check.elsewhere,
    }
    return {"Status": check.status} | {key: None if math.isnan(value) else value for key, value in measured.items()}
