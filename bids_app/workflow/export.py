"""Lesion masks for other pipelines, in a folder of the user's choice."""

from __future__ import annotations

from pathlib import Path

from bids_app import images
from bids_app.derivatives import names
from bids_app.derivatives.write import write_image
from bids_app.preprocessing.headers import on_stored_grid
from bids_app.settings import Settings
from bids_app.study.models import Visit


def export_lesion_roi(visit: Visit, mask: Path, folder: Path) -> Path:
    """Write a lesion mask on the voxels of the raw T1w, under the name that fMRIPrep reads beside it.

    Of a visit without T1w it is written on the voxels of the FLAIR, and its name says so.

    Raises
    ------
    VisitError
        If the raw scan can no longer be read.
    """
    scan = visit.reference
    stored = on_stored_grid(images.load(mask), scan.path)
    return write_image(folder / names.lesion_roi(scan.name, scan.suffix), stored)


def export_finished(visit: Visit, settings: Settings) -> Path:
    """Export the lesion mask of a visit that is done, from the output folder. Raises as `export_lesion_roi`."""
    mask = settings.out_dir / names.lesion_mask(visit.reference.name, visit.reference.suffix)
    return export_lesion_roi(visit, mask, settings.export_lesion_roi)
