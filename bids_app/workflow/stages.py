"""The steps of a visit: plain functions from what came before to what comes next.

Each takes the job, the results of earlier steps and a folder for its files, and returns a frozen dataclass of paths
and numbers. Two have rooms of their own: anomaly maps in ``explanation.py``, what is written in ``deliver.py``. The
nipype interfaces around all of them are in ``interfaces.py``. Images that are only to be delivered are saved
uncompressed: single precision hardly shrinks, and takes long to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bids_app import images
from bids_app.anomaly import atlas
from bids_app.anomaly.findings import Atlas
from bids_app.derivatives.results import Aligned, Anomalies, Matrix, ModelUse, Normalized, Posed, Prepared, Segmented
from bids_app.errors import VisitError
from bids_app.images import Image
from bids_app.lesion.components import Lesions, find_lesions, lesions_of_mask
from bids_app.lesion.model import LesionModel, LesionModels
from bids_app.measures.overlap import dice
from bids_app.measures.volumes import side_volumes, volume_ml
from bids_app.preprocessing import brain, headers, transforms
from bids_app.preprocessing.bias import correct_bias
from bids_app.preprocessing.bridge import bridged
from bids_app.preprocessing.checks import POSE_LIMITS, Check
from bids_app.preprocessing.coregistration import register_flair
from bids_app.preprocessing.normalization import Normalization, brain_in_pose, to_affine, to_pose
from bids_app.preprocessing.normalization import normalize as normalize_brain
from bids_app.preprocessing.templates import Template, load_template
from bids_app.settings import DEFAULT_SPACE
from bids_app.study.models import Problem, Reuse, Severity, Visit
from bids_app.workflow import tools
from bids_app.workflow.job import Job

#: Share of the lesion outside the brain mask that is worth a warning; borders never agree to the voxel.
MAX_OUTSIDE_BRAIN = 0.1


def prepare(job: Job, folder: Path) -> Prepared:
    """Clean the headers, find the brain, correct the bias field, align the FLAIR with the T1w if there are both."""
    visit = job.visit
    scan = headers.clean(visit.reuse.preprocessed or visit.reference.path)
    stripped = _is_stripped(scan.image, job.settings.skull_stripped)
    mask = _brain_mask(scan.image, stripped, job)
    extracted = not (stripped or visit.reuse.brain_mask)
    corrected = scan.image if visit.reuse.preprocessed else correct_bias(scan.image, mask)
    prepared = Prepared(
        visit=visit,
        reference=images.save(corrected, folder / "reference.nii.gz"),
        brain_mask=images.save(mask, folder / "brain_mask.nii.gz"),
        brain_volume_ml=volume_ml(mask),
        skull_stripped=stripped,
        brain_weights=tools.brain_weights() if extracted else None,
        problems=scan.problems,
    )
    return prepared if visit.flair_to_align is None else _with_flair(prepared, corrected, mask, folder)


def _is_stripped(scan: Image, wanted: str) -> bool:
    return brain.is_skull_stripped(scan) if wanted == "auto" else wanted == "yes"


def _brain_mask(scan: Image, stripped: bool, job: Job) -> Image:
    """The mask of another pipeline, of a scan that came without skull, or of the brain extraction."""
    if path := job.visit.reuse.brain_mask:
        return brain.checked_volume(images.resample(headers.clean_mask(path), scan, order=0))
    if stripped:
        return brain.stripped_brain_mask(scan)
    with tools.exclusive_device(job.settings):
        return tools.brain_extractor(job.settings.device)(scan)


def _with_flair(prepared: Prepared, t1w: Image, mask: Image, folder: Path) -> Prepared:
    """Add the FLAIR: aligned, bias corrected, on its own grid and on that of the T1w; or say why it is not used."""
    try:
        flair = headers.clean(prepared.visit.flair_to_align.path)
    except VisitError as error:
        return _without_flair(prepared, "flair-unusable", str(error))
    prepared = replace(prepared, problems=prepared.problems + flair.problems)
    registration = register_flair(flair.image, t1w, mask)
    prepared = replace(prepared, flair_check=registration.check)
    if not registration.check.usable:
        return _without_flair(prepared, "flair-misaligned", registration.check.sentence)
    mask_on_flair = transforms.apply_linear(mask, np.linalg.inv(registration.matrix), flair.image, order=0)
    corrected = correct_bias(flair.image, mask_on_flair)
    on_t1w = transforms.apply_linear(corrected, registration.matrix, t1w, order=3)
    return replace(
        prepared,
        flair=images.save(on_t1w, folder / "flair.nii"),
        flair_native=images.save(corrected, folder / "flair_native.nii.gz"),
        flair_transform=transforms.write_itk_linear(registration.matrix, folder / "flair_to_t1w.txt"),
        flair_matrix=_frozen(registration.matrix),
        flair_stripped=brain.is_skull_stripped(flair.image),
    )


def _without_flair(prepared: Prepared, code: str, why: str) -> Prepared:
    """The visit goes on as if it had no FLAIR, and says so."""
    message = f"The FLAIR is treated as missing. {why}"
    problem = Problem(code, Severity.WARNING, message, (prepared.visit.flair_to_align.path.name,))
    return replace(prepared, problems=(*prepared.problems, problem))


def pose(prepared: Prepared, folder: Path) -> Posed:
    """Bring the brain to the pose that lesion models see: rigidly on MNI, 1 mm, zero outside the brain.

    Raises
    ------
    VisitError
        If no way of aligning the brain passed its check.
    """
    scan, mask = images.load(prepared.reference), images.load(prepared.brain_mask)
    template = load_template(DEFAULT_SPACE)
    registration = to_pose(images.masked(scan, mask), mask, template)
    if not registration.check.usable:
        why = f"could not be aligned with MNI: {registration.check.sentence}"
        raise VisitError(
            f"The {prepared.contrast} of {prepared.visit.label} {why}",
            "Look at the brain mask; give a better one with --derivatives, or leave the visit out.",
        )
    matrix = registration.matrix
    posed, posed_mask = brain_in_pose(scan, mask, matrix, template)
    scans = [(prepared.contrast, images.save(posed, folder / "pose.nii.gz"))]
    if prepared.flair_native:
        scans.append(("FLAIR", _pose_flair(prepared, matrix, template.t1w, posed_mask, folder)))
    return Posed(tuple(scans), _frozen(matrix), registration.check)


def _pose_flair(prepared: Prepared, matrix: np.ndarray, grid: Image, mask: Image, folder: Path) -> Path:
    """The FLAIR that was aligned with the T1w in the pose, interpolated once from its own grid."""
    both = matrix @ np.array(prepared.flair_matrix)
    flair = transforms.apply_linear(images.load(prepared.flair_native), both, grid, order=3)
    return images.save(images.masked(flair, mask), folder / "pose_flair.nii.gz")


def segment(job: Job, prepared: Prepared, posed: Posed, folder: Path) -> Segmented:
    """Find the lesions, or take the mask that was drawn by hand."""
    native, matrix = images.load(prepared.reference), np.array(posed.matrix)
    if job.visit.reuse.lesion_mask:
        drawn = images.resample(headers.clean_mask(job.visit.reuse.lesion_mask), native, order=0)
        lesions = lesions_of_mask(drawn, pose_matrix=matrix)
        found = _segmented(lesions, None, None, None, matrix, folder)
        return replace(found, problems=_outside_brain(lesions, prepared))
    with tools.exclusive_device(job.settings):
        models = tools.lesion_models(job.model_folder, job.settings.folds, job.settings.device)
        model = _model_for(models, posed, job.visit)
        prediction = model.predict([images.load(posed.scan(channel)) for channel in model.channels])
    to_native = np.linalg.inv(matrix)
    probability = transforms.apply_linear(prediction.probability, to_native, native, order=1)
    uncertainty = prediction.deviation and transforms.apply_linear(prediction.deviation, to_native, native, order=1)
    use = _model_use(model, job)
    lesions = find_lesions(probability, use.threshold, use.min_volume_mm3, matrix)
    found = _segmented(lesions, probability, uncertainty, use, matrix, folder)
    assumed = tuple(Problem("model-assumption", Severity.WARNING, note) for note in model.notes)
    return replace(found, problems=(*assumed, *_outside_brain(lesions, prepared)))


def _outside_brain(lesions: Lesions, prepared: Prepared) -> tuple[Problem, ...]:
    """A warning if much of the lesion lies outside the brain mask: one of the two is wrong then."""
    lesion = images.data(lesions.mask) > 0
    outside = lesion & (images.data(images.load(prepared.brain_mask)) == 0)
    if np.count_nonzero(outside) <= MAX_OUTSIDE_BRAIN * np.count_nonzero(lesion):
        return ()
    share = np.count_nonzero(outside) / np.count_nonzero(lesion)
    message = f"{share:.0%} of the lesion of {prepared.visit.label} lies outside the brain mask: look at both."
    return (Problem("lesion-outside-brain", Severity.WARNING, message),)


def _model_for(models: LesionModels, posed: Posed, visit: Visit) -> LesionModel:
    """The model that fits the contrasts there are: a late fusion has one for each contrast alone."""
    model = models.for_contrasts(posed.contrasts)
    if model is None:
        wanted = models.models[0]
        missing = [channel for channel in wanted.channels if channel not in posed.contrasts]
        raise VisitError(
            f"{visit.label} has no usable {' or '.join(missing)}, which the lesion model {wanted.name} needs.",
            "Choose a model for the contrasts there are with --lesion-model.",
        )
    return model


def _model_use(model: LesionModel, job: Job) -> ModelUse:
    """The model's own threshold and minimum volume, unless the user chose others."""
    settings, card = job.settings, model.card
    return ModelUse(
        name=model.name,
        version=model.version,
        sha256=model.sha256,
        channels=model.channels,
        folds=model.folds,
        threshold=card.threshold if settings.threshold is None else settings.threshold,
        min_volume_mm3=card.min_volume_mm3 if settings.min_lesion_volume is None else settings.min_lesion_volume,
        device=tools.device(settings.device).name,
    )


def _segmented(
    lesions: Lesions,
    probability: Image | None,
    uncertainty: Image | None,
    model: ModelUse | None,
    matrix: np.ndarray,
    folder: Path,
) -> Segmented:
    sides = side_volumes(lesions.mask, matrix)
    return Segmented(
        mask=images.save(lesions.mask, folder / "lesion_mask.nii.gz"),
        labels=images.save(lesions.labels, folder / "lesion_labels.nii.gz"),
        probability=probability and images.save(probability, folder / "lesion_probability.nii"),
        uncertainty=uncertainty and images.save(uncertainty, folder / "lesion_uncertainty.nii"),
        lesions=lesions.lesions,
        volume_left_ml=sides.left_ml,
        volume_right_ml=sides.right_ml,
        model=model,
    )


def align(job: Job, prepared: Prepared, posed: Posed, segmented: Segmented) -> Aligned | None:
    """Affine registration to the default standard space, with the lesion as a cost-function mask.

    None where nothing needs it: neither an anomaly map nor images in that space are wanted.
    """
    if job.anomaly_folder is None and DEFAULT_SPACE not in job.settings.standard_spaces:
        return None
    return to_mni(prepared, posed, images.load(segmented.mask))


def to_mni(prepared: Prepared, posed: Posed, lesion: Image | None) -> Aligned:
    """Affine registration of the reference scan to the default standard space; a lesion does not take part."""
    scan, mask = images.load(prepared.reference), images.load(prepared.brain_mask)
    initial, template = np.array(posed.matrix), load_template(DEFAULT_SPACE)
    found = to_affine(images.masked(scan, mask), mask, lesion, template, initial, prepared.contrast)
    return Aligned(_frozen(found.matrix), found.check)


def normalize(
    job: Job, prepared: Prepared, posed: Posed, segmented: Segmented, aligned: Aligned | None, folder: Path
) -> tuple[Normalized, ...]:
    """Bring the visit to every standard space asked for, with the lesion as a cost-function mask."""
    known = {DEFAULT_SPACE: np.array(aligned.matrix)} if aligned and aligned.check.usable else {}
    return tuple(
        _normalize_to(space, job.visit, prepared, posed, segmented, known.get(space), folder / space)
        for space in job.settings.standard_spaces
    )


def _normalize_to(
    space: str,
    visit: Visit,
    prepared: Prepared,
    posed: Posed,
    segmented: Segmented,
    affine: np.ndarray | None,
    folder: Path,
) -> Normalized:
    scan, mask = images.load(prepared.reference), images.load(prepared.brain_mask)
    lesion, template = images.load(segmented.mask), load_template(space)
    reused = _reused_transforms(visit.reuse, mask, template, folder)
    if reused and reused.check.usable:
        found = reused
    else:
        initial = np.array(posed.matrix)
        seen = images.masked(scan, mask)
        found = normalize_brain(seen, mask, lesion, template, initial, folder, prepared.contrast, affine)
        if reused:
            found = replace(found, check=_retried(found.check, reused.check))
    if not found.check.usable:
        return Normalized(space, found.check)

    def carried(image: Image, name: str, interpolation: str) -> Path:
        moved = transforms.apply_itk(image, found.forward, template.t1w, interpolation)
        return images.save(moved, folder / name)

    def carried_map(path: Path | None, name: str) -> Path | None:
        return path and carried(images.load(path), name, "linear")

    return Normalized(
        space=space,
        forward=found.forward,
        inverse=found.inverse,
        check=found.check,
        reference=carried(scan, "reference.nii", "cubic"),
        brain_mask=carried(mask, "brain_mask.nii.gz", "nearest"),
        lesion_mask=carried(lesion, "lesion_mask.nii.gz", "nearest"),
        lesion_labels=carried(images.load(segmented.labels), "lesion_labels.nii.gz", "nearest"),
        probability=carried_map(segmented.probability, "lesion_probability.nii"),
        uncertainty=carried_map(segmented.uncertainty, "lesion_uncertainty.nii"),
        flair=_flair_in(template, found.forward, prepared, folder),
    )


def _flair_in(template: Template, forward: Path, prepared: Prepared, folder: Path) -> Path | None:
    """The FLAIR beside a T1w in a standard space, interpolated once from its own grid."""
    if prepared.flair_native is None:
        return None
    flair, to_t1w = images.load(prepared.flair_native), np.array(prepared.flair_matrix)
    moved = transforms.apply_itk(flair, forward, template.t1w, "cubic", first=to_t1w)
    return images.save(moved, folder / "flair.nii")


def _reused_transforms(reuse: Reuse, mask: Image, template: Template, folder: Path) -> Normalization | None:
    """The transforms of another pipeline, judged by where they put the brain mask; None if there are none.

    Those to another space are carried on through its template.
    """
    if reuse.to_standard is None:
        return None
    way = reuse.to_standard, reuse.from_standard
    if reuse.standard_space != template.space:
        way = bridged(reuse.to_standard, reuse.standard_space, template.space, folder)
    if way is None:
        return None
    forward, inverse = way
    moved = transforms.apply_itk(mask, forward, template.t1w, "nearest")
    overlap = dice(images.data(moved) > 0, images.data(template.brain_mask) > 0, empty=0.0)
    # gross errors only: brain masks of different pipelines hold more or less of the fluid around the brain
    status = "reused" if overlap >= POSE_LIMITS.overlap else "failed"
    sentence = f"The transforms of another pipeline overlap the brains of scan and template by {overlap:.2f}."
    return Normalization(forward, inverse, Check(status, overlap, np.nan, sentence))


def _retried(check: Check, reused: Check) -> Check:
    """The check of our own registration, made because that of another pipeline failed its own."""
    status = "retried" if check.usable else "failed"
    return replace(check, status=status, sentence=f"{reused.sentence} Registered anew. {check.sentence}")


def locate(
    segmented: Segmented, normalized: tuple[Normalized, ...], aligned: Aligned | None = None
) -> Segmented:
    """Add MNI coordinates to the lesions, from the first standard space that is a trusted MNI, and their regions."""
    places = in_mni([lesion.centroid_mm for lesion in segmented.lesions], normalized)
    regions = _regions(segmented, normalized, aligned)
    located = zip(segmented.lesions, places, regions, strict=True)
    return replace(
        segmented, lesions=tuple(replace(lesion, mni_mm=place, region=region) for lesion, place, region in located)
    )


def _regions(
    segmented: Segmented, normalized: tuple[Normalized, ...], aligned: Aligned | None
) -> list[str | None]:
    """The structure that holds most of each lesion; None for all where no atlas is aligned with the brain.

    The atlas is aligned as it is for findings, by the affine registration, and where none was made, by the first
    trusted MNI.
    """
    if not segmented.lesions:
        return []
    labels = images.load(segmented.labels)
    trusted = _trusted_mni(normalized)
    if aligned and aligned.check.usable:
        moved = transforms.apply_linear(atlas.labels(), np.linalg.inv(aligned.matrix), labels, order=0)
    elif trusted:
        moved = transforms.apply_itk(atlas.labels(), trusted[0].inverse, labels, "nearest")
    else:
        return [None] * len(segmented.lesions)
    places, values = Atlas(moved, atlas.STRUCTURES), np.asarray(labels.dataobj)
    return [places.region(values == lesion.index) for lesion in segmented.lesions]


def _trusted_mni(normalized: tuple[Normalized, ...]) -> list[Normalized]:
    """The standard spaces that are MNI and whose registration may be used."""
    return [space for space in normalized if space.space.startswith("MNI") and space.check.usable]


def locate_findings(anomalies: Anomalies, normalized: tuple[Normalized, ...]) -> Anomalies:
    """Add MNI coordinates to the findings, as `locate` does to lesions."""
    if anomalies.explained is None:
        return anomalies
    found = anomalies.explained.findings
    pairs = zip(found, in_mni([finding.peak_mm for finding in found], normalized), strict=True)
    located = tuple(replace(finding, mni_mm=place) for finding, place in pairs)
    return replace(anomalies, explained=replace(anomalies.explained, findings=located))


def in_mni(
    places: Sequence[tuple[float, float, float]], normalized: tuple[Normalized, ...]
) -> list[tuple[float, float, float] | None]:
    """Native world coordinates in MNI, mm; None for each where no space is a trusted MNI."""
    trusted = _trusted_mni(normalized)
    if not trusted or not places:
        return [None] * len(places)
    # points travel against the images: from native space to MNI through the file that pulls images from MNI to it
    return [tuple(place) for place in transforms.apply_itk_to_points(np.array(places), trusted[0].inverse).tolist()]


def _frozen(matrix: np.ndarray) -> Matrix:
    return tuple(tuple(float(value) for value in row) for row in matrix)
