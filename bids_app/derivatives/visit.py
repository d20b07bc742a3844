"""All files of a visit: which, where, with which sidecar; and the visit's row of the sessions table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from bids_app.derivatives import names, sidecars
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.results import Normalized, Posed, Prepared, Provenance, Segmented
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


def visit_files(
    prepared: Prepared, segmented: Segmented, normalized: tuple[Normalized, ...], provenance: Provenance
) -> Iterator[OutputFile]:
    """Every file of a visit, native space first."""
    yield from _native_scans(prepared, provenance)
    yield from _lesions(prepared, segmented, provenance)
    for space in normalized:
        if space.check.usable:
            yield from _standard_space(prepared, segmented, space, provenance)


def write_files(out_dir: Path, files: Iterator[OutputFile]) -> dict[str, str]:
    """Write the files; return the sha256 of each, sidecars included, by relative path."""
    written: list[PurePosixPath] = []
    for item in files:
        if item.sidecar is not None:
            # the sidecar first: an image is never seen without what explains it
            write_json(out_dir / names.sidecar(item.path), item.sidecar)
            written.append(names.sidecar(item.path))
        write = write_table if isinstance(item.content, pd.DataFrame) else _write_copy
        write(out_dir / item.path, item.content)
        written.append(item.path)
    return {str(path): sha256(out_dir / path) for path in dict.fromkeys(written)}


def _write_copy(path: Path, source: Path) -> None:
    copy_file(source, path)


def _native_scans(prepared: Prepared, provenance: Provenance) -> Iterator[OutputFile]:
    scan = prepared.visit.t1w.name
    t1w = names.preprocessed_t1w(scan)
    yield OutputFile(t1w, prepared.t1w, sidecars.preprocessed_t1w(prepared, provenance))
    yield OutputFile(
        names.brain_mask(scan), prepared.brain_mask, sidecars.brain_mask(prepared, t1w, provenance)
    )
    if prepared.flair:
        name = prepared.visit.flair.name
        sidecar = sidecars.preprocessed_flair(prepared, t1w, provenance)
        yield OutputFile(names.transform(name, "FLAIR", "T1w", ".txt"), prepared.flair_transform, None)
        yield OutputFile(names.preprocessed_flair(name), prepared.flair, sidecar)


def _lesions(prepared: Prepared, segmented: Segmented, provenance: Provenance) -> Iterator[OutputFile]:
    scan = prepared.visit.t1w.name
    t1w = sidecars.own(names.preprocessed_t1w(scan))
    seen = [t1w]
    if prepared.flair and segmented.model and "FLAIR" in segmented.model.channels:
        seen.append(sidecars.own(names.preprocessed_flair(prepared.visit.flair.name)))
    if segmented.model is None:
        seen = [sidecars.reused(prepared.visit.reuse, prepared.visit.reuse.lesion_mask)]
    probability, mask = names.lesion_probability(scan), names.lesion_mask(scan)

    def described(kind: str, sources: list[str]) -> dict[str, Any]:
        return sidecars.lesion(kind, segmented, sources, provenance, SpatialReference=t1w)

    if segmented.probability:
        yield OutputFile(probability, segmented.probability, described("probseg", seen))
    if segmented.uncertainty:
        yield OutputFile(names.lesion_uncertainty(scan), segmented.uncertainty, described("uncertainty", seen))
    parents = [sidecars.own(probability)] if segmented.probability else seen
    yield OutputFile(mask, segmented.mask, described("mask", parents))
    # image and lookup table share one sidecar, which therefore describes the columns as well
    both = described("dseg", [sidecars.own(mask)]) | dictionary("lesion")
    yield OutputFile(names.lesion_instances(scan), segmented.labels, both)
    yield OutputFile(names.lesion_instances(scan, ".tsv"), lesion_table(segmented.lesions), None)


def _standard_space(
    prepared: Prepared, segmented: Segmented, space: Normalized, provenance: Provenance
) -> Iterator[OutputFile]:
    scan, name = prepared.visit.t1w.name, space.space
    forward = names.transform(scan, "T1w", name)
    yield OutputFile(forward, space.forward, None)
    yield OutputFile(names.transform(scan, name, "T1w"), space.inverse, None)

    def described(what: str, native: PurePosixPath, **extra: Any) -> dict[str, Any]:
        sources = [sidecars.own(native), sidecars.own(forward)]
        return sidecars.standard(what, sources, space, provenance, **extra)

    t1w, brain = names.preprocessed_t1w(scan), names.brain_mask(scan)
    stripped = {"SkullStripped": prepared.skull_stripped}
    yield OutputFile(names.preprocessed_t1w(scan, name), space.t1w, described("Preprocessed T1w", t1w, **stripped))
    yield OutputFile(
        names.brain_mask(scan, name), space.brain_mask, described("Brain mask", brain, Type="Brain", Manual=False)
    )
    for kind, native, path, content in (
        ("mask", names.lesion_mask(scan), names.lesion_mask(scan, name), space.lesion_mask),
        ("probseg", names.lesion_probability(scan), names.lesion_probability(scan, name), space.probability),
    ):
        if content is not None:
            sources = [sidecars.own(native), sidecars.own(forward)]
            keys = sidecars.standard_keys(space)
            yield OutputFile(path, content, sidecars.lesion(kind, segmented, sources, provenance, **keys))


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


def session_row(
    prepared: Prepared,
    posed: Posed,
    segmented: Segmented,
    normalized: tuple[Normalized, ...],
    problems: tuple[Problem, ...],
) -> dict[str, Any]:
    """The row of a finished visit in the sessions table; columns as in ``data/columns.json``."""
    volumes = [lesion.volume_ml for lesion in segmented.lesions]
    return {
        "session_id": session_id(prepared.visit.session),
        "status": "done",
        "channels": "+".join(segmented.model.channels) if segmented.model else "manual",
        "lesion_count": len(volumes),
        "lesion_volume_ml": round(sum(volumes), 4),
        "lesion_volume_left_ml": round(segmented.volume_left_ml, 4),
        "lesion_volume_right_ml": round(segmented.volume_right_ml, 4),
        "largest_lesion_ml": round(max(volumes, default=0.0), 4),
        "brain_volume_ml": round(prepared.brain_volume_ml, 1),
        "flair_registration": prepared.flair_check.status if prepared.flair_check else None,
        "pose_registration": posed.check.status,
        "mni_registration": normalized[0].check.status if normalized else None,
        "problems": ";".join(problem.code for problem in problems) or None,
    }


def session_id(session: str | None) -> str:
    """Value of the session column: ``ses-1``, or ``n/a`` in a dataset without sessions."""
    return f"ses-{session}" if session else "n/a"
