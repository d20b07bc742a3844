"""Heads and lesions to make scans from: who is in which split, and the arrays that synthesis reads.

Arrays are stored in nnU-Net's axis order (z, y, x), each axis growing towards superior, anterior and right
("RAS" read backwards), so that a tensor goes straight into the network.
Coordinates are millimetres (x, y, z) in one of two frames:

* *pose*: the head rigidly aligned to MNI152NLin2009aSym; the brain keeps its native size;
* *MNI*: the head affinely aligned to that template; the lesion masks live here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import maximum_filter

from bids_app.training.alignment import align_to_template, to_ras_zyx

FOLDS = 5
MAX_LESION_ML = 400.0
"""Masks above this volume are implausible (several SOOP masks cover a whole brain)."""

REAL_TEXTURE = {
    "colin": Path("templates", "colin27_head_T1w.nii.gz"),
    "chris": Path("whole_head", "chris_t1.nii.gz"),
    "studyforrest": Path("whole_head", "studyforrest_sub02_T1w_1mm.nii.gz"),
}
"""Healthy heads whose own T1w texture is kept; they are trained on and must not be tested on.

The MNI templates are not among them: the demo's brains are made from one.
"""

OUTSIDE_FIRST, OUTSIDE_STORED = 502, 202
"""Labels 502-530 (skull, skin, eyes, ...) are stored as 202-230 so that a label fits one byte."""
LAST_BRAIN_LABEL = 199
FAR_CSF = 250
"""CSF far from the brain (neck, wide cisterns): stored apart, since no brain mask reaches it."""
_NEAR_MM = 5

VENTRICLES = (4, 5, 14, 15, 43, 44, 72)
EXTERNAL_CSF = (24,)
WHITE_MATTER = (2, 7, 41, 46, 16, 28, 60, 85)
CORTEX = (3, 42, 8, 47)
HYPOINTENSITIES = (25, 57, 77, 78, 79)
"""White-matter hypointensities; the label maps of old heads hold up to 45 mL of 25 and 57 (left and right)."""
DEEP_GREY = (10, 11, 12, 13, 26, 49, 50, 51, 52, 58, 17, 18, 53, 54, 136, 137, 163, 164)

_MARGIN_MM = 8


@dataclass(frozen=True)
class Head:
    """One head to make scans from.

    Attributes
    ----------
    name : str
        Identifier, e.g. ``training_seg_01``; confidence intervals are clustered by it.
    labels : numpy.ndarray
        ``(z, y, x)`` uint8, 1 mm. 0 background, 1-199 FreeSurfer labels, 202-230 outside the brain,
        250 CSF far from it.
    pose_to_voxel : numpy.ndarray
        ``(4, 4)``, pose millimetres (x, y, z) to voxel indices (x, y, z) of ``labels``.
    pose_to_mni : numpy.ndarray
        ``(4, 4)``, pose millimetres to MNI millimetres.
    center : numpy.ndarray
        ``(3,)``, middle of the brain's bounding box in pose millimetres (x, y, z).
    image : numpy.ndarray or None
        ``(z, y, x)`` uint8 T1w of the same head, for heads whose real texture is kept.
    """

    name: str
    labels: np.ndarray
    pose_to_voxel: np.ndarray
    pose_to_mni: np.ndarray
    center: np.ndarray
    image: np.ndarray | None = None


@dataclass(frozen=True)
class LesionMask:
    """One real lesion mask, cropped to its bounding box.

    Attributes
    ----------
    name : str
        Identifier, e.g. ``sub-0011`` or ``Subject_001``.
    mask : numpy.ndarray
        ``(z, y, x)`` uint8 of 0 and 1, 1 mm.
    mni_to_voxel : numpy.ndarray
        ``(4, 4)``, MNI millimetres (x, y, z) to voxel indices (x, y, z) of ``mask``.
    volume_ml : float
        Volume in millilitres.
    """

    name: str
    mask: np.ndarray
    mni_to_voxel: np.ndarray
    volume_ml: float

    @property
    def center(self) -> np.ndarray:
        """Middle of the bounding box in MNI millimetres, ``(3,)`` (x, y, z)."""
        middle = (np.array(self.mask.shape[::-1]) - 1) / 2
        return (np.linalg.inv(self.mni_to_voxel) @ [*middle, 1])[:3]


def split_of(name: str) -> str:
    """Which split a head or lesion belongs to.

    Label maps 01-12 train, 13 and 14 validate and 15-18 test. Lesions whose number ends in 1 are validation, in 3 test,
    all others training, for SOOP and LESYMAP alike.

    Parameters
    ----------
    name : str
        File name or identifier with one number in it.

    Returns
    -------
    str
        ``train``, ``validation`` or ``test``.
    """
    number = re.search(r"\d+", Path(name).name.split(".")[0])
    if number is None:
        return "train"  # template heads: nothing of them is ever tested on
    if name.startswith("training_seg"):
        index = int(number.group())
        return "train" if index <= 12 else "validation" if index <= 14 else "test"
    return {"1": "validation", "3": "test"}.get(number.group()[-1], "train")


def in_split(items: Iterable, split: str) -> list:
    """The heads or lesions of one split, in their given order."""
    return [item for item in items if split_of(item.name) == split]


def left_out(items: Sequence, fold: int) -> list:
    """Heads or lesions of the training split that a fold leaves out: every ``FOLDS``-th one.

    Heads with real texture are few and stay in every fold.

    Parameters
    ----------
    items : sequence of Head or LesionMask
    fold : int
        0 to ``FOLDS`` - 1.
    """
    return [item for item in items if getattr(item, "image", None) is None][fold::FOLDS]


def without_fold(items: Sequence, fold: int) -> list:
    """Heads or lesions of the training split that a fold trains on: all but those of `left_out`."""
    names = {item.name for item in left_out(items, fold)}
    return [item for item in items if item.name not in names]


def compact_labels(labels: np.ndarray) -> np.ndarray:
    """Label map with values up to 530 as bytes: brain labels as they are, 502-530 as 202-230, others 0."""
    labels = labels.astype(np.int32)
    outside = (labels >= OUTSIDE_FIRST) & (labels < OUTSIDE_FIRST + 54)
    kept = np.where(labels <= LAST_BRAIN_LABEL, labels, 0)
    return np.where(outside, labels - OUTSIDE_FIRST + OUTSIDE_STORED, kept).astype(np.uint8)


def mark_far_csf(labels: np.ndarray) -> np.ndarray:
    """Compact labels with external CSF farther than 5 mm from brain tissue turned into ``FAR_CSF``."""
    tissue = brain_of(labels) & ~np.isin(labels, EXTERNAL_CSF)
    # a ball would be rounder, but a box-shaped filter is separable and the mask is drawn unevenly later anyway
    near = maximum_filter(tissue.view(np.uint8), 2 * _NEAR_MM + 1)
    return np.where(np.isin(labels, EXTERNAL_CSF) & (near == 0), FAR_CSF, labels).astype(np.uint8)


def brain_of(labels: np.ndarray) -> np.ndarray:
    """Where a compact label map holds brain or the CSF around it, as booleans."""
    return (labels > 0) & (labels <= LAST_BRAIN_LABEL)


def bounding_slices(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """Slices of the bounding box of ``mask``, widened by ``margin`` voxels where there is room."""
    slices = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        slices.append(slice(max(0, hit[0] - margin), min(mask.shape[axis], hit[-1] + 1 + margin)))
    return tuple(slices)


def _shift(affine: np.ndarray, slices: Sequence[slice]) -> np.ndarray:
    """Affine of an array after cropping it with (z, y, x) slices."""
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*(s.start for s in reversed(slices)), 1])[:3]
    return moved


def pseudo_t1w(labels: np.ndarray) -> np.ndarray:
    """A plain T1w contrast of a label map, 0-110, good enough to register it."""
    table = np.zeros(256, np.float32)
    for names, value in ((WHITE_MATTER, 110), (CORTEX, 75), (DEEP_GREY, 85), (VENTRICLES + EXTERNAL_CSF, 25)):
        table[list(names)] = value
    return table[labels]


def make_head(
    name: str,
    image: nib.spatialimages.SpatialImage,
    t1w: np.ndarray | None = None,
    align: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] = align_to_template,
) -> Head:
    """Head from a label map: cropped to the brain and aligned.

    Parameters
    ----------
    name : str
        Identifier.
    image : nibabel image
        Label map, about 1 mm, in any stored orientation.
    t1w : numpy.ndarray, optional
        T1w on the label map's grid in the order of ``to_ras_zyx``; its real texture is then kept.
    align : callable
        See ``align_to_template``.

    Returns
    -------
    Head
    """
    data, affine = to_ras_zyx(image)
    labels = compact_labels(data)
    labels = mark_far_csf(labels)
    brain = brain_of(labels)
    slices = bounding_slices(brain, _MARGIN_MM)
    labels, brain, affine = labels[slices], brain[slices], _shift(affine, slices)
    contrast = pseudo_t1w(labels) if t1w is None else t1w[slices].astype(np.float32)
    pose_to_native, mni_to_native = align(contrast * brain, affine)
    pose_to_voxel = np.linalg.inv(affine) @ pose_to_native
    return Head(
        name=name,
        labels=labels,
        pose_to_voxel=pose_to_voxel,
        pose_to_mni=np.linalg.inv(mni_to_native) @ pose_to_native,
        center=_center(brain, pose_to_voxel),
        image=None if t1w is None else t1w[slices].astype(np.uint8),
    )


def _center(brain: np.ndarray, pose_to_voxel: np.ndarray) -> np.ndarray:
    """Middle of the brain's bounding box, measured along the axes of the pose, millimetres."""
    voxels = np.argwhere(brain[::2, ::2, ::2])[:, ::-1] * 2.0
    points = nib.affines.apply_affine(np.linalg.inv(pose_to_voxel), voxels)
    return (points.min(axis=0) + points.max(axis=0)) / 2


def make_lesion(name: str, image: nib.spatialimages.SpatialImage) -> LesionMask | None:
    """Lesion mask from an image in MNI space; None if it is empty or implausibly large."""
    data, affine = to_ras_zyx(image)
    mask = data > 0.5
    volume_ml = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    if not 0 < volume_ml <= MAX_LESION_ML:
        return None
    slices = bounding_slices(mask, margin=1)
    to_voxel = np.linalg.inv(_shift(affine, slices))
    return LesionMask(name, mask[slices].astype(np.uint8), to_voxel, volume_ml)


def _tissue_classes(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """CSF, grey and white matter of a T1w by three-class k-means, as labels 24, 3 and 2."""
    values = image[brain].astype(np.float32)
    means = np.percentile(values, [5, 40, 80])
    for _ in range(30):
        nearest = np.abs(values[:, None] - means).argmin(axis=1)
        means = np.array([values[nearest == k].mean() for k in range(3)])
    labels = np.zeros(image.shape, np.uint8)
    labels[brain] = np.array([24, 3, 2], np.uint8)[nearest]
    return labels


def make_template_head(name: str, image: nib.spatialimages.SpatialImage, brain: np.ndarray) -> Head:
    """Head that keeps the texture of a real T1w; its tissue labels come from its intensities.

    Parameters
    ----------
    name : str
        Identifier without digits, so that it belongs to the training split.
    image : nibabel image
        T1w, 1 mm.
    brain : numpy.ndarray
        ``(z, y, x)`` booleans in the order of ``to_ras_zyx``.

    Returns
    -------
    Head
    """
    data, affine = to_ras_zyx(image)
    scaled = np.clip(data * (200.0 / np.percentile(data[brain], 99)), 0, 255)
    labels = _tissue_classes(scaled, brain)
    return make_head(name, nib.Nifti1Image(labels.transpose(2, 1, 0), affine), scaled)
