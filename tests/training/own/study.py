"""A small BIDS dataset to train on: the MNI brain, turned a little, with a lesion that its mask knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from nilearn.datasets import load_mni152_template

from bids_app import images
from bids_app.images import Image
from tests.conftest import stored_as

#: Subject, session, radius of the lesion in mm, and its place in MNI mm. A radius of 0 is a healthy brain.
VISITS = (
    ("01", "1", 18.0, (-36.0, -22.0, 22.0)),
    ("01", "2", 16.0, (-36.0, -22.0, 22.0)),
    ("02", "1", 14.0, (34.0, 10.0, 20.0)),
    ("03", "1", 12.0, (-30.0, 20.0, 10.0)),
    ("04", "1", 20.0, (38.0, -30.0, 24.0)),
    ("05", "1", 10.0, (-28.0, -40.0, 30.0)),
    ("06", "1", 0.0, (0.0, 0.0, 0.0)),
)
MASKS = "derivatives/manual/sub-{subject}/ses-{session}/anat/*_label-L_mask.nii.gz"
ORIENTATIONS = ("RAS", "LAS", "LIA")


@cache
def brain(resolution: int = 3) -> Image:
    """The MNI brain, skull-stripped."""
    template = load_mni152_template(resolution=resolution)
    return images.on_affine(template.get_fdata(dtype=np.float32) * 800, template.affine)


def ball(image: Image, centre: Sequence[float], radius: float) -> np.ndarray:
    """Voxels within a radius in mm of a world place."""
    places = np.moveaxis(np.indices(image.shape), 0, -1) @ image.affine[:3, :3].T + image.affine[:3, 3]
    return np.linalg.norm(places - np.array(centre), axis=-1) < radius


def lying(number: int, more_degrees: float = 0.0) -> np.ndarray:
    """How the head of a visit lies in the scanner: MNI world to scanner world, ``(4, 4)``."""
    angle = np.deg2rad(3.0 * (number % 3) - 3 + more_degrees)
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:3, 3] = (2.0, -3.0, number)
    return pose


def turned(image: Image, pose: np.ndarray) -> Image:
    """The same head lying differently in the scanner: only the affine changes."""
    return images.on_affine(np.asarray(image.dataobj), pose @ image.affine)


def make_study(root: Path, flair: bool = False, visits: Sequence[tuple] = VISITS) -> Path:
    """Write the dataset; scans and masks are stored in different orders of their voxels."""
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "Tiny", "BIDSVersion": "1.11.1"}))
    whole = brain()
    rng = np.random.default_rng(0)
    for number, (subject, session, radius, centre) in enumerate(visits):
        lesion = ball(whole, centre, radius)
        values = images.data(whole) * (1 + 0.02 * rng.standard_normal(whole.shape).astype(np.float32))
        t1w = images.like(whole, np.where(lesion, 0.3, 1).astype(np.float32) * values)
        inverse = np.where(images.data(whole) > 80, np.where(lesion, 1200, 950 - values), 0)
        stem, order = f"sub-{subject}_ses-{session}", ORIENTATIONS[number % 3]
        anat = root / f"sub-{subject}" / f"ses-{session}" / "anat"
        drawn = root / "derivatives" / "manual" / f"sub-{subject}" / f"ses-{session}" / "anat"
        images.save(stored_as(turned(t1w, lying(number)), order), anat / f"{stem}_T1w.nii.gz")
        images.save(
            stored_as(turned(images.like(whole, lesion), lying(number)), order), drawn / f"{stem}_label-L_mask.nii.gz"
        )
        if flair:
            second = turned(images.like(whole, inverse.astype(np.float32)), lying(0, more_degrees=2))
            images.save(second, anat / f"{stem}_FLAIR.nii.gz")
    return root
