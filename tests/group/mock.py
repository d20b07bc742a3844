"""An output folder as the participant level leaves it, made of small images."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_app import images
from bids_app.derivatives import names
from bids_app.derivatives.record import Record, write_record
from bids_app.derivatives.sessions import RawDataset, write_raw_dataset, write_raw_participants
from bids_app.derivatives.visit import session_id
from bids_app.derivatives.write import write_image, write_json, write_table

SPACE = "MNI152NLin2009aSym"
LEFT, RIGHT = (2, 6, 5), (9, 6, 5)


def standard_mask(*lesions: tuple[int, int, int]) -> nib.Nifti1Image:
    """A mask of single lesion voxels on a small RAS grid of 2 mm; world x is 2 i - 11 mm."""
    values = np.zeros((12, 14, 10), dtype=np.uint8)
    for voxel in lesions:
        values[voxel] = 1
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-11, -13, -9]
    return images.on_affine(values, affine)


def lesion_row(index: int, volume: float, side: str = "L") -> dict:
    return {
        "index": index, "name": f"lesion{index}", "abbreviation": "L", "volume_ml": volume, "volume_voxels": 125,
        "centroid_x_mm": -7.0, "centroid_y_mm": -1.0, "centroid_z_mm": 1.5,
        "mni_x_mm": -7.0, "mni_y_mm": None, "mni_z_mm": None, "hemisphere": side,
        "region": "left thalamus", "probability_mean": 0.9,
    }  # fmt: skip


def add_done(
    out: Path,
    subject: str,
    session: str | None = None,
    *,
    mask: nib.Nifti1Image | None = None,
    volumes: tuple[float, ...] = (20.0,),
    version: str = "0.1.0",
    configuration: str = "a1b2c3d4",
    contrast: str = "T1w",
) -> dict[str, Path]:
    """A finished visit; returns the paths of its table, its mask and its record."""
    scan = names.ScanName.parse(f"{names.visit_label(subject, session)}_{contrast}.nii.gz")
    table, image = names.lesion_table(scan, contrast), names.lesion_mask(scan, SPACE)
    rows = [lesion_row(index, volume) for index, volume in enumerate(volumes, start=1)]
    write_table(out / table, pd.DataFrame(rows, columns=list(lesion_row(1, 1.0))))
    write_image(out / image, standard_mask(LEFT) if mask is None else mask)
    write_json(names.sidecar(out / image), {"Registration": {"Status": "accepted"}})
    summary = {
        "session_id": session_id(session), "status": "done", "native_space": contrast, "channels": contrast,
        "voxel_x_mm": 1.0, "voxel_y_mm": 1.0, "voxel_z_mm": 1.2, "manufacturer": "Siemens", "field_strength_t": 3.0,
        "lesion_count": len(volumes),
        "lesion_volume_ml": sum(volumes), "lesion_volume_left_ml": sum(volumes), "lesion_volume_right_ml": 0.0,
        "largest_lesion_ml": max(volumes, default=0.0), "brain_volume_ml": 1234.5, "flair_registration": None,
        "pose_registration": "accepted", "pose_registration_overlap": 0.91, "pose_registration_similarity": 0.4,
        "mni_registration": "accepted", "problems": None,
    }  # fmt: skip
    # the native mask and the dseg image are listed as well, and must not be taken for one of the others
    others = (names.lesion_mask(scan, contrast), names.lesion_instances(scan, contrast), names.brain_mask(scan, SPACE))
    outputs = {str(path): "0" * 64 for path in (table, image, *others)}
    record = write_record(
        out, Record(subject, session, "done", version, configuration, "f", {}, outputs=outputs, summary=summary)
    )
    return {"table": out / table, "mask": out / image, "record": record}


def add_failed(out: Path, subject: str, session: str | None = None, error: str = "The T1w is empty.") -> Path:
    """The record of a visit that failed."""
    return write_record(out, Record(subject, session, "failed", "0.1.0", "a1b2c3d4", "f", {}, error=error))


def add_raw(
    out: Path,
    subject: str,
    visits: dict,
    columns: tuple[str, ...] = (),
    rows: tuple = (),
    dictionary: dict | None = None,
) -> Path:
    """What a run noted of the raw dataset beside a subject's records."""
    by_label = {row[columns.index("participant_id")].removeprefix("sub-"): row for row in rows}
    raw = RawDataset("Mock", visits, columns, by_label, dictionary or {})
    return write_raw_participants(out, subject, raw, write_raw_dataset(out, raw))


def add_early_raw(
    out: Path, subject: str, visits: dict, columns: tuple[str, ...], row: tuple | None, listed: list[str]
) -> Path:
    """The note of an early version, which held the list of all."""
    content = {
        "dataset": "Mock", "visits": visits, "columns": columns, "row": row, "listed": listed, "dictionary": {},
    }  # fmt: skip
    return write_json(out / names.raw_participants(subject), content)


def run_lines(out: Path, **settings) -> list[str]:
    """What the group level says of an output folder."""
    from bids_app.group.run import run_group
    from bids_app.settings import Settings

    lines: list[str] = []
    assert run_group(Settings(out_dir=out, **settings), lines.append) == 0
    return lines
