"""The anomaly step of a visit: its healthy twin, and what departs from it, in native and in standard space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app import images
from bids_app.anomaly import atlas
from bids_app.anomaly.findings import Atlas, Findings, find
from bids_app.anomaly.model import AnomalyModel
from bids_app.anomaly.slices import GreyScale, box, from_slices, to_slices
from bids_app.derivatives.results import (
    Aligned,
    Anomalies,
    AnomalyUse,
    Explained,
    Normalized,
    Prepared,
    Segmented,
    StandardAnomaly,
)
from bids_app.errors import VisitError
from bids_app.images import Image
from bids_app.preprocessing import transforms
from bids_app.preprocessing.templates import load_template
from bids_app.study.models import Problem, Severity
from bids_app.wording import counted
from bids_app.workflow import tools
from bids_app.workflow.job import Job

WHOLE = 0.98
"""Share of the brain that a scan shows at least, to say nothing of it."""


@dataclass(frozen=True)
class Seen:
    """What an anomaly model looks at.

    Attributes
    ----------
    scan, brain : Image
        On the grid of the box.
    to_native : ndarray, shape (4, 4)
        World of the box to world of the reference scan.
    native_brain : Image
        Brain mask on the grid of the reference scan.
    covered : float
        Share of the brain of the reference scan that the scan shows; both masks are of this part.
    """

    scan: Image
    brain: Image
    to_native: np.ndarray
    native_brain: Image
    covered: float

    def carried(self, image: Image, order: int = 1) -> Image:
        """An image of the box on the grid of the reference scan."""
        return transforms.apply_linear(image, self.to_native, self.native_brain, order)


def explain(
    job: Job,
    prepared: Prepared,
    segmented: Segmented,
    aligned: Aligned | None,
    normalized: tuple[Normalized, ...],
    folder: Path,
) -> Anomalies:
    """Map what departs from a healthy brain; where that cannot be done, say why and go on."""
    if job.anomaly_folder is None or aligned is None:
        return Anomalies(None)
    if not aligned.check.usable:
        return _skipped(f"The brain could not be aligned with MNI. {aligned.check.sentence}")
    with tools.exclusive_device(job.settings):
        model = tools.anomaly_model(job.anomaly_folder, job.settings.device)
        seen = look(prepared, aligned, model.card.contrast)
        if seen is None:
            return _skipped(f"The model {model.card.name} needs a {model.card.contrast}, which this visit lacks.")
        try:
            anomaly, twin = compare(model, seen, job.settings.anomaly_steps)
        except VisitError as error:  # the lesions of this visit are there all the same
            return _skipped(str(error))
    use = _model_use(model, job)
    places = Atlas(seen.carried(atlas.labels(), order=0), atlas.STRUCTURES)
    threshold = seen.carried(from_slices(model.usual.limits)) if use.threshold is None else use.threshold
    found = find(anomaly, threshold, images.load(segmented.mask), places, np.array(aligned.matrix))
    problems = (*_doubts(model, job), *_partly(seen, model.card.contrast))
    return Anomalies(_explained(anomaly, twin, found, use, normalized, folder), problems)


def look(prepared: Prepared, aligned: Aligned, contrast: str) -> Seen | None:
    """The scan of a contrast in the box, interpolated once from its own grid; None if the visit lacks it.

    A FLAIR may show less of the brain than the T1w whose mask it takes: what it does not show is no brain here.
    """
    matrix, mask = np.array(aligned.matrix), images.load(prepared.brain_mask)
    if prepared.contrast == contrast:
        scan, to_reference = images.load(prepared.reference), np.eye(4)
        shown = mask
    elif contrast == "FLAIR" and prepared.flair_native:
        scan, to_reference = images.load(prepared.flair_native), np.array(prepared.flair_matrix)
        everywhere = images.like(scan, np.ones(scan.shape, np.uint8))
        shown = images.masked(transforms.apply_linear(everywhere, to_reference, mask, order=0), mask)
    else:
        return None
    grid = box()
    return Seen(
        scan=transforms.apply_linear(scan, matrix @ to_reference, grid, order=3),
        brain=transforms.apply_linear(shown, matrix, grid, order=0),
        to_native=np.linalg.inv(matrix),
        native_brain=shown,
        covered=float((images.data(shown) > 0).sum() / max((images.data(mask) > 0).sum(), 1)),
    )


def compare(model: AnomalyModel, seen: Seen, steps: int | None = None) -> tuple[Image, Image]:
    """Anomaly map and healthy twin on the grid of the reference scan, both zero outside the brain.

    The twin has the intensities of the scan.
    """
    intensities, brain = to_slices(seen.scan), to_slices(seen.brain) > 0
    scale = GreyScale.of(intensities, brain)
    twin = model.explain(scale.grey(intensities, brain), steps)
    anomaly = images.masked(seen.carried(from_slices(twin.anomaly)), seen.native_brain)
    # weighted by how much brain was interpolated from: the zeros around it are no tissue
    weight = images.data(seen.carried(from_slices(brain.astype(np.float32))))
    healthy = np.where(brain, scale.intensities(twin.healthy), 0)
    values = images.data(seen.carried(from_slices(healthy.astype(np.float32))))
    values = np.divide(values, weight, out=np.zeros_like(values), where=weight > 0.1)
    return anomaly, images.masked(images.like(anomaly, values), seen.native_brain)


def _explained(
    anomaly: Image, twin: Image, found: Findings, use: AnomalyUse, normalized: tuple[Normalized, ...], folder: Path
) -> Explained:
    return Explained(
        anomaly=images.save(anomaly, folder / "anomaly.nii"),
        twin=images.save(twin, folder / "twin.nii"),
        mask=images.save(found.mask, folder / "anomaly_mask.nii.gz"),
        labels=images.save(found.labels, folder / "findings.nii.gz"),
        findings=found.findings,
        model=use,
        standard=tuple(
            _in_standard_space(space, anomaly, twin, found.mask, folder / space.space)
            for space in normalized
            if space.check.usable
        ),
    )


def _in_standard_space(
    space: Normalized, anomaly: Image, twin: Image, mask: Image, folder: Path
) -> StandardAnomaly:
    grid = load_template(space.space).t1w

    def carried(image: Image, interpolation: str, name: str) -> Path:
        return images.save(transforms.apply_itk(image, space.forward, grid, interpolation), folder / name)

    return StandardAnomaly(
        space=space.space,
        anomaly=carried(anomaly, "linear", "anomaly.nii"),
        twin=carried(twin, "linear", "twin.nii"),
        mask=carried(mask, "nearest", "anomaly_mask.nii.gz"),
    )


def _model_use(model: AnomalyModel, job: Job) -> AnomalyUse:
    """The model's own steps and threshold, by place where it has such ones, unless the user chose others."""
    settings, card = job.settings, model.card
    own = card.threshold if model.usual is None else None
    return AnomalyUse(
        name=card.name,
        version=card.version,
        sha256=model.sha256,
        contrast=card.contrast,
        steps=settings.anomaly_steps or card.steps,
        threshold=own if settings.anomaly_threshold is None else settings.anomaly_threshold,
        device=tools.device(settings.device).name,
        masked=card.masked,
        side=card.side,
    )


def _doubts(model: AnomalyModel, job: Job) -> tuple[Problem, ...]:
    """What to know of a map: a threshold belongs to a number of steps."""
    settings, card = job.settings, model.card
    if settings.anomaly_steps in (None, card.steps) or settings.anomaly_threshold is not None:
        return ()
    message = (
        f"The threshold of the anomaly model {card.name} was measured with {counted(card.steps, 'step')}, and "
        f"{settings.anomaly_steps} were taken. Give --anomaly-threshold as well."
    )
    return (Problem("anomaly-threshold", Severity.WARNING, message),)


def _partly(seen: Seen, contrast: str) -> tuple[Problem, ...]:
    """What to know of a map of a scan that does not show the whole brain."""
    if seen.covered >= WHOLE:
        return ()
    message = f"The {contrast} shows {seen.covered:.0%} of the brain: elsewhere nothing was looked for."
    return (Problem("anomaly-part", Severity.WARNING, message),)


def _skipped(why: str) -> Anomalies:
    problem = Problem("no-anomaly-map", Severity.WARNING, f"There is no anomaly map. {why}")
    return Anomalies(None, (problem,))
