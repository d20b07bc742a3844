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
from bids_app.lesion.inputs import parse_input
from bids_app.lesion.model import LesionModel, LesionModels, Prediction
from bids_app.measures.volumes import side_volumes, volume_ml
from bids_app.preprocessing import brain, contrast, headers, masks, transforms
from bids_app.preprocessing.bias import correct_bias
from bids_app.preprocessing.bridge import bridged
from bids_app.preprocessing.checks import Check, Registration
from bids_app.preprocessing.coregistration import register_flair
from bids_app.preprocessing.normalization import Normalization, brain_in_pose, check_transform, to_affine, to_pose
from bids_app.preprocessing.normalization import normalize as normalize_brain
from bids_app.preprocessing.templates import Template, load_template
from bids_app.settings import DEFAULT_SPACE
from bids_app.study.models import Problem, Reuse, Severity, Visit
from bids_app.workflow import given, model_input, tools
from bids_app.workflow.job import Job

#: Patients lie turned by up to 30 degrees against MNI (29 was the most seen); wrong headers turn by 90 and more.
MAX_TURN_DEGREES = 50.0


def prepare(job: Job, folder: Path) -> Prepared:
    """Clean the headers, find the brain, correct the bias field, align the FLAIR with the T1w if there are both."""
    visit = job.visit
    given.check_lesion_mask(visit)
    scan = headers.clean(given.processed_scan(visit))
    stripped = _is_stripped(scan.image, job.settings.skull_stripped)
    mask, mask_problems = _brain_mask(scan.image, stripped, job)
    extracted = not (stripped or visit.reuse.brain_mask)
    corrected = scan.image if visit.reuse.preprocessed else correct_bias(scan.image, mask)
    prepared = Prepared(
        visit=visit,
        reference=images.save(corrected, folder / "reference.nii.gz"),
        brain_mask=images.save(mask, folder / "brain_mask.nii.gz"),
        brain_volume_ml=volume_ml(mask),
        skull_stripped=stripped,
        brain_weights=tools.brain_weights() if extracted else None,
        problems=(*scan.problems, *mask_problems),
    )
    return prepared if visit.flair_to_align is None else _with_flair(prepared, corrected, mask, folder)


def _is_stripped(scan: Image, wanted: str) -> bool:
    return brain.is_skull_stripped(scan) if wanted == "auto" else wanted == "yes"


def _brain_mask(scan: Image, stripped: bool, job: Job) -> tuple[Image, tuple[Problem, ...]]:
    """The mask of another pipeline, of a scan that came without skull, or of the brain extraction."""
    if path := job.visit.reuse.brain_mask:
        return given.brain_mask(path, scan, job.visit)
    if stripped:
        return brain.stripped_brain_mask(scan), ()
    with tools.exclusive_device(job.settings):
        return tools.brain_extractor(job.settings.device)(scan), ()


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
    brains = {prepared.contrast: posed}
    if prepared.flair_native:
        brains["FLAIR"] = _pose_flair(prepared, matrix, template.t1w, posed_mask)
    scans = tuple((suffix, images.save(brain, folder / f"pose_{suffix}.nii.gz")) for suffix, brain in brains.items())
    problems = _turned_heads(prepared, matrix) + _contrast_problems(prepared.visit, brains, template)
    return Posed(scans, _frozen(matrix), registration.check, problems)


def _pose_flair(prepared: Prepared, matrix: np.ndarray, grid: Image, mask: Image) -> Image:
    """The FLAIR that was aligned with the T1w in the pose, interpolated once from its own grid."""
    both = matrix @ np.array(prepared.flair_matrix)
    flair = transforms.apply_linear(images.load(prepared.flair_native), both, grid, order=3)
    return images.masked(flair, mask)


def _turned_heads(prepared: Prepared, matrix: np.ndarray) -> tuple[Problem, ...]:
    """A warning for every scan that had to be turned farther than any patient lies; `matrix` poses the reference."""
    turns = {prepared.visit.reference.path.name: matrix}
    if prepared.flair_matrix:
        turns[prepared.visit.flair.path.name] = matrix @ np.array(prepared.flair_matrix)
    degrees = {name: transforms.rotation_degrees(turn) for name, turn in turns.items()}
    return tuple(
        Problem("turned-head", Severity.WARNING, _TURNED.format(name=name, angle=angle), (name,))
        for name, angle in degrees.items()
        if angle > MAX_TURN_DEGREES
    )


_TURNED = (
    "By its header, the head in {name} is turned by {angle:.0f} degrees, as no patient lies. The header is wrong, and "
    "left and right may be exchanged with it: compare with the DICOM files, and convert them again."
)


def _contrast_problems(visit: Visit, brains: dict[str, Image], template: Template) -> tuple[Problem, ...]:
    """Warnings about scans whose contrast is not what their name says."""
    scans = {scan.suffix: scan.path.name for scan in (visit.t1w, visit.flair) if scan}
    known = {problem.code for problem in visit.problems}
    return tuple(
        Problem(doubt.code, Severity.WARNING, doubt.sentence, tuple(scans[suffix] for suffix in doubt.suffixes))
        for doubt in contrast.doubts(brains, template)
        if doubt.code not in known
    )


def segment(job: Job, prepared: Prepared, posed: Posed, folder: Path) -> Segmented:
    """Find the lesions, or take the mask that was drawn by hand."""
    native, matrix = images.load(prepared.reference), np.array(posed.matrix)
    if path := job.visit.reuse.lesion_mask:
        drawn, problems = given.lesion_mask(path, prepared, native)
        lesions = lesions_of_mask(drawn, pose_matrix=matrix)
        return replace(_segmented(lesions, None, None, None, matrix, folder), problems=problems)
    with tools.exclusive_device(job.settings):
        models = tools.lesion_models(job.model_folder, job.settings.folds, job.settings.device)
        model = _model_for(models, posed, job.visit)
        use = _model_use(model, job)
        seen = model_input.given(prepared, posed, model.channels, use.terms.input.value)
        prediction = model.predict(seen.scans)
    probability = seen.carried(prediction.probability, native, order=1)
    uncertainty = prediction.deviation and seen.carried(prediction.deviation, native, order=1)
    lesions = _lesions(model, use, prediction, probability, seen, matrix)
    found = _segmented(lesions, probability, uncertainty, use, matrix, folder)
    problems = (*_doubts(model, job), *seen.problems, *_outside_brain(lesions, prepared))
    kept = model_input.kept(seen, folder) if job.settings.keep_model_input else ()
    return replace(found, problems=problems, seen=kept)


def _lesions(
    model: LesionModel,
    use: ModelUse,
    prediction: Prediction,
    probability: Image,
    seen: model_input.Given,
    matrix: np.ndarray,
) -> Lesions:
    """The lesions on the grid of `probability`, by its threshold or by what was decided where the model looked."""
    threshold, smallest = use.terms.threshold.value, use.terms.min_volume_mm3.value
    decided, order = prediction.decided, 1
    if threshold is not None:
        if model.mask_order is None:
            return find_lesions(probability, threshold, smallest, matrix)
        over = images.data(prediction.probability) >= np.float32(threshold)
        decided, order = images.like(prediction.probability, over.astype(np.float32)), model.mask_order
    mask = images.data(seen.carried(decided, probability, order)) >= 0.5
    return lesions_of_mask(images.like(probability, mask), probability, smallest, matrix)


def _doubts(model: LesionModel, job: Job) -> tuple[Problem, ...]:
    """What was assumed of the model, and whether it was given another input than its card names."""
    assumed = tuple(Problem("model-assumption", Severity.WARNING, note) for note in model.notes)
    wanted = job.settings.lesion_input
    if wanted is None or not model.terms.overruled_by(parse_input(wanted)):
        return assumed
    said = model.terms.input
    message = f"The lesion model {model.name} wants {said.value} ({said.source}), and --lesion-input gave it {wanted}."
    return (*assumed, Problem("model-input-other", Severity.WARNING, message))


def _outside_brain(lesions: Lesions, prepared: Prepared) -> tuple[Problem, ...]:
    """A warning if much of the lesion that a model found lies outside the brain mask."""
    return masks.lesion_outside_brain(lesions.mask, images.load(prepared.brain_mask), prepared.visit.label)


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
    """The model on its own terms, unless the user chose others."""
    return ModelUse(
        name=model.name,
        version=model.version,
        sha256=model.sha256,
        channels=model.channels,
        folds=model.folds,
        terms=model.terms.chosen(job.settings),
        device=tools.device(job.settings.device).name,
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
    known = {}
    if aligned and aligned.check.usable:
        known = {DEFAULT_SPACE: Registration(np.array(aligned.matrix), aligned.check)}
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
    affine: Registration | None,
    folder: Path,
) -> Normalized:
    scan, mask = images.load(prepared.reference), images.load(prepared.brain_mask)
    lesion, template = images.load(segmented.mask), load_template(space)
    brain_alone = images.masked(scan, mask)
    reuse, reused = _reuse_for(template.space, visit.reuse, folder), None
    if reuse:
        check = check_transform(brain_alone, mask, lesion, template, reuse.to_standard)
        reused = _reused_transforms(reuse, check)
    if reused and reused.check.status == "reused":
        found = reused
    else:
        initial = np.array(posed.matrix)
        found = normalize_brain(brain_alone, mask, lesion, template, initial, folder, prepared.contrast, affine)
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


def _reuse_for(space: str, reuse: Reuse, folder: Path) -> Reuse | None:
    """What is reused, with transforms that lead to `space`; None if there are none.

    Those to another space are carried on through its template; `folder` is where they are written.
    """
    if reuse.to_standard is None or reuse.standard_space == space:
        return reuse if reuse.to_standard else None
    way = bridged(reuse.to_standard, reuse.standard_space, space, folder)
    if way is None:
        return None
    return replace(reuse, to_standard=way[0], from_standard=way[1], standard_space=space)


def _reused_transforms(reuse: Reuse, check: Check) -> Normalization:
    """The transforms of another pipeline, which are taken where they are beyond doubt."""
    status = "reused" if check.status == "accepted" else check.status
    sentence = f"The transforms of another pipeline were checked. {check.sentence}"
    return Normalization(reuse.to_standard, reuse.from_standard, replace(check, status=status, sentence=sentence))


def _retried(check: Check, reused: Check) -> Check:
    """The check of our own registration, made because that of another pipeline was not beyond doubt."""
    return replace(check, sentence=f"{reused.sentence} Registered anew. {check.sentence}")


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
