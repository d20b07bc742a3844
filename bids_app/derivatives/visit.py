"""All files of a visit: which, where, with which sidecar; and the visit's row of the sessions table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from bids_app.anomaly.findings import NONLESIONAL, Finding
from bids_app.derivatives import names, sidecars
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.results import Aligned, Explained, Normalized, Posed, Prepared, Provenance, Segmented
from bids_app.derivatives.write import copy_file, write_json, write_table
from bids_app.lesion.components import Lesion
from bids_app.networks.weights import sha256
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
    """

    path: PurePosixPath
    content: Path | pd.DataFrame
    sidecar: dict[str, Any] | None

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
        write = write_table if isinstance(item.content, pd.DataFrame) else _write_copy
        write(out_dir / item.path, item.content)
    return {str(path): sha256(out_dir / path) for path in paths_of(files)}


def _write_copy(path: Path, source: Path) -> None:
    copy_file(source, path)


def _native_scans(prepared: Prepared, provenance: Provenance) -> Iterator[OutputFile]:
    scan, space = prepared.visit.reference.name, prepared.contrast
    reference = _native_reference(prepared)
    yield OutputFile(reference, prepared.reference, sidecars.reference(prepared, provenance))
    mask = sidecars.brain_mask(prepared, reference, provenance)
    yield OutputFile(names.brain_mask(scan, space), prepared.brain_mask, mask)
    if prepared.flair:
        name = prepared.visit.flair.name
        sidecar = sidecars.aligned_flair(prepared, reference, provenance)
        yield OutputFile(names.transform(name, "FLAIR", space, ".txt"), prepared.flair_transform, None)
        yield OutputFile(names.preprocessed(name, "FLAIR", space), prepared.flair, sidecar)


def _native_reference(prepared: Prepared) -> PurePosixPath:
    """The preprocessed reference scan, which the files of its space refer to."""
    return names.preprocessed(prepared.visit.reference.name, prepared.contrast, prepared.contrast)


def _lesions(prepared: Prepared, segmented: Segmented, provenance: Provenance) -> Iterator[OutputFile]:
    scan, space = prepared.visit.reference.name, prepared.contrast
    seen = looked_at(prepared, segmented, provenance)
    probability, mask = names.lesion_probability(scan, space), names.lesion_mask(scan, space)

    def described(kind: str, sources: list[str]) -> dict[str, Any]:
        here = sidecars.own(_native_reference(prepared))
        return sidecars.lesion(kind, segmented, sources, provenance, SpatialReference=here)

    if segmented.probability:
        yield OutputFile(probability, segmented.probability, described("probseg", seen))
    if segmented.uncertainty:
        uncertainty = names.lesion_uncertainty(scan, space)
        yield OutputFile(uncertainty, segmented.uncertainty, described("uncertainty", seen))
    parents = [sidecars.own(probability)] if segmented.probability else seen
    yield OutputFile(mask, segmented.mask, described("mask", parents))
    # image and lookup table share one sidecar, which therefore describes the columns as well
    both = described("dseg", [sidecars.own(mask)]) | dictionary("lesion")
    yield OutputFile(names.lesion_instances(scan, space), segmented.labels, both)
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

    def described(kind: str, sources: list[str]) -> dict[str, Any]:
        return sidecars.anomaly(kind, explained, sources, provenance, **here)

    yield OutputFile(anomaly, explained.anomaly, described("anomalymap", looked_at))
    yield OutputFile(names.healthy_twin(seen, contrast, native), explained.twin, described("twin", looked_at))
    yield OutputFile(mask, explained.mask, described("mask", [sidecars.own(anomaly)]))
    parents = [sidecars.own(anomaly), sidecars.own(names.lesion_mask(scan, native))]
    both = described("dseg", parents) | dictionary("finding")
    yield OutputFile(names.findings(scan, native), explained.labels, both)
    yield OutputFile(names.findings_table(scan, native), findings_table(explained.findings), None)


def _standard_anomalies(
    prepared: Prepared, explained: Explained, space: Normalized, provenance: Provenance
) -> Iterator[OutputFile]:
    scan, native, contrast = prepared.visit.reference.name, prepared.contrast, explained.model.contrast
    forward = sidecars.own(names.transform(scan, native, space.space))
    there = next(each for each in explained.standard if each.space == space.space)
    seen = _explained_scan(prepared, explained)
    twins = names.healthy_twin(seen, contrast, native), names.healthy_twin(seen, contrast, space.space)
    carried = (
        ("anomalymap", names.anomaly_map(scan, native), names.anomaly_map(scan, space.space), there.anomaly),
        ("twin", *twins, there.twin),
        ("mask", names.anomaly_mask(scan, native), names.anomaly_mask(scan, space.space), there.mask),
    )
    for kind, source, path, content in carried:
        keys = sidecars.standard_keys(space)
        sidecar = sidecars.anomaly(kind, explained, [sidecars.own(source), forward], provenance, **keys)
        yield OutputFile(path, content, sidecar)


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

    def described(what: str, source: PurePosixPath, **extra: Any) -> dict[str, Any]:
        sources = [sidecars.own(source), sidecars.own(forward)]
        return sidecars.standard(what, sources, space, provenance, **extra)

    reference = described(
        f"Preprocessed {native}", _native_reference(prepared), SkullStripped=prepared.skull_stripped
    )
    yield OutputFile(names.preprocessed(scan, native, name), space.reference, reference)
    brain = described("Brain mask", names.brain_mask(scan, native), Type="Brain", Manual=False)
    yield OutputFile(names.brain_mask(scan, name), space.brain_mask, brain)
    for kind, named, content in (
        ("mask", names.lesion_mask, space.lesion_mask),
        ("probseg", names.lesion_probability, space.probability),
    ):
        if content is not None:
            sources = [sidecars.own(named(scan, native)), sidecars.own(forward)]
            keys = sidecars.standard_keys(space)
            yield OutputFile(named(scan, name), content, sidecars.lesion(kind, segmented, sources, provenance, **keys))


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
) -> dict[str, Any]:
    """The row of a finished visit in the sessions table; columns as in ``data/columns.json``."""
    volumes = [lesion.volume_ml for lesion in segmented.lesions]
    return {
        "session_id": session_id(prepared.visit.session),
        "status": "done",
        "native_space": prepared.contrast,
        "channels": "+".join(segmented.model.channels) if segmented.model else "manual",
        "lesion_count": len(volumes),
        "lesion_volume_ml": round(sum(volumes), 4),
        "lesion_volume_left_ml": round(segmented.volume_left_ml, 4),
        "lesion_volume_right_ml": round(segmented.volume_right_ml, 4),
        "largest_lesion_ml": round(max(volumes, default=0.0), 4),
        **_finding_columns(explained),
        "brain_volume_ml": round(prepared.brain_volume_ml, 1),
        "flair_registration": prepared.flair_check.status if prepared.flair_check else None,
        "pose_registration": posed.check.status,
        "mni_registration": next((each.check.status for each in normalized if each.space.startswith("MNI")), None),
        "problems": ";".join(problem.code for problem in problems) or None,
    }


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
