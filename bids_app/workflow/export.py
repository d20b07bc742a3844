"""Lesion masks for other pipelines, in a folder of the user's choice."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib

from bids_app import images
from bids_app.derivatives import names
from bids_app.derivatives.write import write_image
from bids_app.errors import VisitError
from bids_app.study.models import Visit


def export_lesion_roi(visit: Visit, mask: Path, folder: Path) -> Path:
    """Write a lesion mask on the grid of the raw T1w, under the name that fMRIPrep reads beside it.

    Raises
    ------
    VisitError
        If the raw T1w can no longer be read.
    """
    try:
        raw = nib.load(visit.t1w.path)
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise VisitError(f"{visit.t1w.path} cannot be read: {error}.", "Check the file.") from error
    grid = images.on_affine(raw.dataobj[..., 0] if raw.ndim == 4 else raw.dataobj[...], raw.affine)
    return write_image(folder / names.lesion_roi(visit.t1w.name), images.resample(images.load(mask), grid, order=0))
