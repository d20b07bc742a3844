"""All files of a visit: which, where, with which sidecar; and the visit's row of the sessions table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from bids_app import images
from bids_app.anomaly.findings import NONLESIONAL, Finding
from bids_app.derivatives import names, sidecars
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.results import Aligned, Explained, Normalized, Posed, Prepared, Provenance, Segmented
from bids_app.derivatives.scanner import NO_SCANNER, Scanner
from bids_app.derivatives.storage import FormCode, Kind, Labels, Map, Scan, code_of_space, stored
from bids_app.derivatives.write import copy_file, write_image, write_json, write_table
from bids_app.lesion.components import Lesion
from bids_app.networks.weights import sha256
from bids_app.preprocessing.checks import Check
from bids_app.study.models import Problem


@dataclass(frozen=True)
class OutputFile:
    """One file to write.

    Attributes
    ----------
    path : PurePosixPath
        Relative to the output folder.
    content : Path or DataFrame
        A finished file of the work folder, or a table.
    sidecar : dict or None
        The JSON beside it.
    kind : Scan, Map, Labels or None
        How an image is stored; None for what is copied as it is.
    code : FormCode
        What its world coordinates are those of.
    """

    path: PurePosixPath
    content: Path | pd.DataFrame
    sidecar: dict[str, Any] | None
    kind: Kind | None = None
    code: FormCode = FormCode.SCANNER

    @property
    def paths(self) -> list[PurePosixPath]:
        """What is written for it, the sidecar first."""
        return [self.path] if self.sidecar is None else [names.sidecar(self.path), self.path]


def visit_files(
    prepared: Prepared,
    segmented: Segmented,
    normalized: tuple[Normalized, ...],
    provenance: Provenance,
    explained: Explained | None = None,
    aligned: Aligned | None = None,
) -> Iterator[OutputFile]:
    """Every file of a visit, native space first; `aligned` is what the anomaly map rests on."""
    yield from _native_scans(prepared, provenance)
    yield from _lesions(prepared, segmented, provenance)
    if explained:
        yield from _anomalies(prepared, segmented, explained, provenance, aligned)
    for space in normalized:
        if space.check.usable:
            yield from _standard_space(prepared, segmented, space, provenance)
            if explained:
                yield from _standard_anomalies(prepared, explained, space, provenance)


def paths_of(files: Sequence[OutputFile]) -> list[PurePosixPath]:
    """All paths that are written, sidecars included, each once."""
    return list(dict.fromkeys(path for item in files for path in item.paths))


def write_files(out_dir: Path, files: Sequence[OutputFile]) -> dict[str, str]:
    """Write the files; return the sha256 of each, sidecars included, by relative path."""
    for item in files:
        if item.sidecar is not None:
            # the sidecar first: an image is never seen without what explains it
            write_json(out_dir / names.sidecar(item.path), item.sidecar)
        _write(out_dir / item.path, item)
    return {str(path): sha256(out_dir / path) for path in paths_of(files)}


def _write(path: Path, item: OutputFile) -> None:
    if isinstance(item.content, pd.DataFrame):
        write_table(path, item.content)
    elif item.kind is None:
        copy_file(item.content, path)
    else:
        write_image(path, stored(images.load(item.content), item.kind, item.code))


def _native_scans(prepared: Prepared, provenance: Provenance) -> Iterator[OutputFile]:
    scan, space = prepared.visit.reference.name, prepared.contrast
    reference = _native_reference(prepared)
    yield OutputFile(reference, prepared.reference, sidecars.reference(prepared, provenance), Scan())
    mask = sidecars.brain_mask(prepared, reference, provenance)
    yield OutputFile(names.brain_mask(scan, space), prepared.brain_mask, mask, Labels())
    if prepared.flair:
        name = prepared.visit.flair.name
        sidecar = sidecars.aligned_flair(prepared, reference, provenance)
        yield OutputFile(names.transform(name, "FLAIR", space, ".txt"), prepared.flair_transform, None)
        yield OutputFile(names.preprocessed(name, "FLAIR", space), prepared.flair, sidecar, Scan(), FormCode.ALIGNED)


def _native_reference(prepared: Prepared) -> PurePosixPath:
    """The preprocessed reference scan, which the files of its space refer to."""
    return names.preprocessed(prepared.visit.reference.name, prepared.contrast, prepared.contrast)


def _lesions(prepared: Prepared, segmented: Segmented, provenance: Provenance) -> Iterator[OutputFile]:
    scan, space = prepared.visit.reference.name, prepared.contrast
    seen = looked_at(prepared, segmented, provenance)
    probability, mask = names.lesion_probability(scan, space), names.lesion_mask(scan, space)
    inside, code = (prepared.brain_mask, segmented.mask), code_of_space(space)

    def described(kind: str, sources: list[str]) -> dict[str, Any]:
        here = sidecars.own(_native_reference(prepared))
        return sidecars.lesion(kind, segmented, sources, provenance, SpatialReference=here)

    if segmented.probability:
        exact = Map(inside, segmented.model and segmented.model.terms.threshold.value)
        yield OutputFile(probability, segmented.probability, described("probseg", seen), exact, code)
    if segmented.uncertainty:
        uncertainty = names.lesion_uncertainty(scan, space)
        yield OutputFile(uncertainty, segmented.uncertainty, described("uncertainty", seen), Map(inside), code)
    parents = [sidecars.own(probability)] if segmented.probability else seen
    yield OutputFile(mask, segmented.mask, described("mask", parents), Labels(), code)
    # image and lookup table share one sidecar, which therefore describes the columns as well
    both = described("dseg", [sidecars.own(mask)]) | dictionary("lesion")
    yield OutputFile(names.lesion_instances(scan, space), segmented.labels, both, Labels(), code)
    yield OutputFile(names.lesion_table(scan, space), lesion_table(segmented.lesions), None)


def _anomalies(
    prepared: Prepared,
    segmented: Segmented,
    explained: Explained,
    provenance: Provenance,
    aligned: Aligned | None,
) -> Iterator[OutputFile]:
    scan, native, contrast = prepared.visit.reference.name, prepared.contrast, explained.model.contrast
    seen = _explained_scan(prepared, explained)
    looked_at = [sidecars.own(names.preprocessed(seen, contrast, native))]
    here = {"SpatialReference": sidecars.own(_native_reference(prepared))}
    here |= {"Registration": sidecars.check_keys(aligned.check)} if aligned else {}
    anomaly, mask = names.anomaly_map(scan, native), names.anomaly_mask(scan, native)
    twin, code = names.healthy_twin(seen, contrast, native), code_of_space(native)
    exact = Map((prepared.brain_mask, explained.mask), explained.model.threshold)

    def described(kind: str, sources: list[str]) -> dict[str, Any]:
        return sidecars.anomaly(kind, explained, sources, provenance, **here)

    yield OutputFile(anomaly, explained.anomaly, described("anomalymap", looked_at), exact, code)
    yield OutputFile(twin, explained.twin, described("twin", looked_at), Scan(), code)
    yield OutputFile(mask, explained.mask, described("mask", [sidecars.own(anomaly)]), Labels(), code)
    parents = [sidecars.own(anomaly), sidecars.own(names.lesion_mask(scan, native))]
    both = described("dseg", parents) | dictionary("finding")
    yield OutputFile(names.findings(scan, native), explained.labels, both, Labels(), code)
    yield OutputFile(names.findings_table(scan, native), findings_table(explained.findings), None)


def _standard_anomalies(
    prepared: Prepared, explained: Explained, space: Normalized, provenance: Provenance
) -> Iterator[OutputFile]:
    scan, native, contrast = prepared.visit.reference.name, prepared.contrast, explained.model.contrast
    forward = sidecars.own(names.transform(scan, native, space.space))
    there = next(each for each in explained.standard if each.space == space.space)
    seen = _explained_scan(prepared, explained)
    twins = names.healthy_twin(seen, contrast, native), names.healthy_twin(seen, contrast, space.space)
    maps = names.anomaly_map(scan, native), names.anomaly_map(scan, space.space)
    masks = names.anomaly_mask(scan, native), names.anomaly_mask(scan, space.space)
    carried = (
        ("anomalymap", *maps, there.anomaly, Map((space.brain_mask, there.mask))),
        ("twin", *twins, there.twin, Scan()),
        ("mask", *masks, there.mask, Labels()),
    )
    for what, source, path, content, kind in carried:
        keys = sidecars.standard_keys(space)
        sidecar = sidecars.anomaly(what, explained, [sidecars.own(source), forward], provenance, **keys)
        yield OutputFile(path, content, sidecar, kind, code_of_space(space.space))


def _explained_scan(prepared: Prepared, explained: Explained) -> names.ScanName:
    """The scan that the healthy twin is one of."""
    visit = prepared.visit
    return visit.flair.name if explained.model.contrast == "FLAIR" else visit.reference.name


def looked_at(prepared: Prepared, segmented: Segmented, provenance: Provenance) -> list[str]:
    """BIDS URIs of what the lesions were found in: the scans that the model took, or a mask drawn by hand."""
    visit = prepared.visit
    if segmented.model is None:
        return [sidecars.reused(visit.reuse, visit.reuse.lesion_mask)]
    scans = {scan.suffix: scan for scan in (visit.t1w, visit.flair) if scan}
    taken = [scans[channel] for channel in segmented.model.channels]
    wanted = segmented.model.terms.input.value
    if wanted.corrected:
        return [sidecars.own(names.preprocessed(scan.name, scan.suffix, prepared.contrast)) for scan in taken]
    sources = [sidecars.raw(scan, provenance) for scan in taken]
    if wanted.brain_alone:
        sources.append(sidecars.own(names.brain_mask(visit.reference.name, prepared.contrast)))
    return sources


def write_model_input(
    folder: Path, prepared: Prepared, segmented: Segmented, provenance: Provenance
) -> list[Path]:
    """Write what the lesion model was given, under the names that ``nnUNetv2_predict -i`` reads; nothing if not kept.

    Parameters
    ----------
    folder : Path
        Of the run's logs.
    """
    if not segmented.seen:
        return []
    visit = prepared.visit
    sidecar = sidecars.model_input(segmented.model, looked_at(prepared, segmented, provenance), provenance)
    written = [write_json(folder / names.model_input_sidecar(visit.subject, visit.session), sidecar)]
    for number, scan in enumerate(segmented.seen):
        written.append(copy_file(scan, folder / names.model_input(visit.subject, visit.session, number)))
    return written


def _standard_space(
    prepared: Prepared, segmented: Segmented, space: Normalized, provenance: Provenance
) -> Iterator[OutputFile]:
    scan, native, name = prepared.visit.reference.name, prepared.contrast, space.space
    forward = names.transform(scan, native, name)
    yield OutputFile(forward, space.forward, None)
    yield OutputFile(names.transform(scan, name, native), space.inverse, None)
    yield from _standard_scans(prepared, space, provenance, forward)
    yield from _standard_lesions(prepared, segmented, space, provenance, forward)


def _standard_scans(
    prepared: Prepared, space: Normalized, provenance: Provenance, forward: PurePosixPath
) -> Iterator[OutputFile]:
    """Scans and brain mask in a standard space; `forward` is the transform that brought them there."""
    scan, native, name = prepared.visit.reference.name, prepared.contrast, space.space
    code = code_of_space(name)

    def described(what: str, source: PurePosixPath, **extra: Any) -> dict[str, Any]:
        sources = [sidecars.own(source), sidecars.own(forward)]
        return sidecars.standard(what, sources, space, provenance, **extra)

    reference = described(
        f"Preprocessed {native}", _native_reference(prepared), SkullStripped=prepared.skull_stripped
    )
    yield OutputFile(names.preprocessed(scan, native, name), space.reference, reference, Scan(), code)
    brain = described("Brain mask", names.brain_mask(scan, native), Type="Brain", Manual=False)
    yield OutputFile(names.brain_mask(scan, name), space.brain_mask, brain, Labels(), code)
    if prepared.flair and space.flair:
        own = prepared.visit.flair.name
        source = names.preprocessed(own, "FLAIR", native)
        flair = described("FLAIR, aligned to the T1w", source, SkullStripped=prepared.flair_stripped)
        yield OutputFile(names.preprocessed(own, "FLAIR", name), space.flair, flair, Scan(), code)


def _standard_lesions(
    prepared: Prepared, segmented: Segmented, space: Normalized, provenance: Provenance, forward: PurePosixPath
) -> Iterator[OutputFile]:
    """What was found, in a standard space; a mask drawn by hand has neither probability nor uncertainty."""
    scan, native, name = prepared.visit.reference.name, prepared.contrast, space.space
    inside = space.brain_mask, space.lesion_mask
    for what, named, content, kind in (
        ("mask", names.lesion_mask, space.lesion_mask, Labels()),
        ("dseg", names.lesion_instances, space.lesion_labels, Labels()),
        ("probseg", names.lesion_probability, space.probability, Map(inside)),
        ("uncertainty", names.lesion_uncertainty, space.uncertainty, Map(inside)),
    ):
        if content is not None:
            sources = [sidecars.own(named(scan, native)), sidecars.own(forward)]
            sidecar = sidecars.lesion(what, segmented, sources, provenance, **sidecars.standard_keys(space))
            yield OutputFile(named(scan, name), content, sidecar, kind, code_of_space(name))


def lesion_table(lesions: tuple[Lesion, ...]) -> pd.DataFrame:
    """The lesions of a visit, a row each; columns as in ``data/columns.json``."""
    rows = [_lesion_row(lesion) for lesion in lesions]
    return pd.DataFrame(rows, columns=list(dictionary("lesion")))


def _lesion_row(lesion: Lesion) -> dict[str, Any]:
    native = [round(value, 2) for value in lesion.centroid_mm]
    mni = [None] * 3 if lesion.mni_mm is None else [round(value, 2) for value in lesion.mni_mm]
    axes = "xyz"
    return {
        "index": lesion.index,
        "name": f"lesion{lesion.index}",
        "abbreviation": names.LESION_LABEL,
        "volume_ml": round(lesion.volume_ml, 4),
        "volume_voxels": lesion.voxels,
        **{f"centroid_{axis}_mm": value for axis, value in zip(axes, native, strict=True)},
        **{f"mni_{axis}_mm": value for axis, value in zip(axes, mni, strict=True)},
        "hemisphere": lesion.hemisphere,
        "region": lesion.region,
        "probability_mean": None if lesion.mean_probability is None else round(lesion.mean_probability, 4),
    }


def findings_table(findings: tuple[Finding, ...]) -> pd.DataFrame:
    """The findings of a visit, a row each; columns as in ``data/columns.json``."""
    rows = [_finding_row(finding) for finding in findings]
    return pd.DataFrame(rows, columns=list(dictionary("finding")))


def _finding_row(finding: Finding) -> dict[str, Any]:
    native = [round(value, 2) for value in finding.peak_mm]
    mni = [None] * 3 if finding.mni_mm is None else [round(value, 2) for value in finding.mni_mm]
    axes = "xyz"
    return {
        "index": finding.index,
        "name": f"finding{finding.index}",
        "kind": finding.kind,
        "lesion_share": round(finding.lesion_share, 4),
        "region": finding.region,
        "hemisphere": finding.hemisphere,
        "volume_ml": round(finding.volume_ml, 4),
        "volume_voxels": finding.voxels,
        "anomaly_peak": round(finding.peak, 4),
        "anomaly_mean": round(finding.mean, 4),
        **{f"peak_{axis}_mm": value for axis, value in zip(axes, native, strict=True)},
        **{f"mni_{axis}_mm": value for axis, value in zip(axes, mni, strict=True)},
    }


def session_row(
    prepared: Prepared,
    posed: Posed,
    segmented: Segmented,
    normalized: tuple[Normalized, ...],
    problems: tuple[Problem, ...],
    explained: Explained | None = None,
    aligned: Aligned | None = None,
    scanner: Scanner = NO_SCANNER,
) -> dict[str, Any]:
    """The row of a finished visit in the sessions table; columns as in ``data/columns.json``."""
    volumes = [lesion.volume_ml for lesion in segmented.lesions]
    return {
        "session_id": session_id(prepared.visit.session),
        "status": "done",
        "native_space": prepared.contrast,
        **_voxel_columns(prepared),
        "manufacturer": scanner.manufacturer,
        "scanner_model": scanner.model,
        "field_strength_t": scanner.field_strength_t,
        "channels": "+".join(segmented.model.channels) if segmented.model else "manual",
        "lesion_count": len(volumes),
        "lesion_volume_ml": round(sum(volumes), 4),
        "lesion_volume_left_ml": round(segmented.volume_left_ml, 4),
        "lesion_volume_right_ml": round(segmented.volume_right_ml, 4),
        "largest_lesion_ml": round(max(volumes, default=0.0), 4),
        **_finding_columns(explained),
        "brain_volume_ml": round(prepared.brain_volume_ml, 1),
        **_check_columns("flair", prepared.flair_check),
        **_check_columns("pose", posed.check),
        **_check_columns("affine", aligned.check if aligned else None),
        **_check_columns("mni", next((each.check for each in normalized if each.space.startswith("MNI")), None)),
        "problems": ";".join(problem.code for problem in problems) or None,
    }


def _voxel_columns(prepared: Prepared) -> dict[str, float]:
    """Voxel size of the reference scan, from left to right, from back to front, and upwards."""
    sizes = images.load(prepared.reference).header.get_zooms()[:3]
    return {f"voxel_{axis}_mm": round(float(size), 3) for axis, size in zip("xyz", sizes, strict=True)}


def _check_columns(name: str, check: Check | None) -> dict[str, Any]:
    """Verdict and figures of a registration's check; nothing where there was none, or nothing could be measured."""
    figures = {"overlap": check.overlap, "similarity": check.similarity} if check else {}
    measured = {key: round(float(value), 3) for key, value in figures.items() if not math.isnan(value)}
    columns = {f"{name}_registration_{key}": measured.get(key) for key in ("overlap", "similarity")}
    return {f"{name}_registration": check.status if check else None} | columns


def _finding_columns(explained: Explained | None) -> dict[str, Any]:
    """How much departs from a healthy brain, and how much of it has nothing to do with the lesion."""
    found = explained.findings if explained else ()
    apart = [finding for finding in found if finding.kind == NONLESIONAL]
    values = {
        "finding_count": len(found),
        "finding_volume_ml": round(sum(finding.volume_ml for finding in found), 4),
        "nonlesional_count": len(apart),
        "nonlesional_volume_ml": round(sum(finding.volume_ml for finding in apart), 4),
    }
    return values if explained else dict.fromkeys(values)


def session_id(session: str | None) -> str:
    """Value of the session column: ``ses-1``, or ``n/a`` in a dataset without sessions."""
    return f"ses-{session}" if session else "n/a"
