"""BIDS datasets of tiny files, for tests that look at names and headers only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_app.derivatives.names import ScanName, visit_folder

#: Scans of datasets that tests of several modules use.
ONE_SESSION = ("sub-01_T1w", "sub-01_FLAIR", "sub-02_T1w")
TWO_SESSIONS = ("sub-01_ses-1_T1w", "sub-01_ses-1_FLAIR", "sub-01_ses-2_T1w", "sub-02_ses-1_T1w", "sub-02_ses-1_FLAIR")

DESCRIPTION = {
    "Name": "Skeleton",
    "BIDSVersion": "1.10.0",
    "DatasetType": "raw",
    "License": "CC0",
    "Authors": ["A", "B"],
}


def make_skeleton(
    root: Path,
    scans: Iterable[str],
    zooms: Mapping[str, tuple[float, float, float]] | None = None,
    extension: str = ".nii.gz",
) -> Path:
    """Make a dataset of scans of 2 x 2 x 2 voxels.

    Parameters
    ----------
    scans : iterable of str
        File names without extension; each goes to anat of its visit.
    zooms : mapping of str to tuple
        Voxel sizes in mm of some of them; the others have 1 mm.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(DESCRIPTION))
    (root / "README").write_text("A dataset for tests, without any real scan in it.\n" * 4)
    for scan in scans:
        path = anat(root, scan) / f"{scan}{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_scan(path, (zooms or {}).get(scan, (1, 1, 1)))
    return root


def anat(root: Path, scan: str) -> Path:
    """Folder of a scan."""
    name = ScanName.parse(scan)
    return root / visit_folder(name.subject, name.session) / "anat"


def write_scan(path: Path, zooms: tuple[float, float, float] = (1, 1, 1)) -> Path:
    """A NIfTI file of 2 x 2 x 2 voxels, others in a FLAIR than in a T1w."""
    image = nib.Nifti1Image(np.full((2, 2, 2), "_FLAIR" in path.name, dtype=np.uint8), np.diag([*zooms, 1]))
    image.set_qform(image.affine, "scanner")
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


def make_empty(root: Path, *paths: str) -> Path:
    """A folder with empty files, such as the derivatives of another pipeline."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def make_dangling(path: Path) -> Path:
    """What DataLad leaves of a file that is not downloaded: a link into the annex that points nowhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("../../.git/annex/objects/xx/yy/MD5E-s100--0.nii.gz")
    return path


def listing(folder: Path) -> dict[str, int]:
    """Everything in a folder, with the time of its last change: equal before and after if nothing was written."""
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}
