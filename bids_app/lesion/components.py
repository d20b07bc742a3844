"""From a probability map or a mask to lesions, one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_app import images
from bids_app.images import Image
from bids_app.measures.overlap import CONNECTIVITY_26
from bids_app.measures.volumes import hemisphere

MIN_VOLUME_MM3 = 10.0
"""The smallest lesion in ATLAS v2.0; smaller ones are taken for noise unless a card or the user says otherwise."""


@dataclass(frozen=True)
class Lesion:
    """One 26-connected component of a lesion mask.

    Attributes
    ----------
    index : int
        Its value in the label image; 1 is the largest lesion.
    voxels : int
        Number of native voxels.
    volume_ml : float
    centroid_mm : tuple of float
        Mean world coordinate of its voxels, mm, RAS+, in the space of the mask.
    mean_probability : float or None
        Mean lesion probability over its voxels, in [0, 1]; None for a mask without probabilities.
    hemisphere : str
        ``L``, ``R``, or ``B`` when less than 90 % lies on one side.
    mni_mm : tuple of float or None
        Centroid in MNI space, where the transform to it is known.
    region : str or None
        Structure that holds most of it, where an atlas is aligned with the brain.
    """

    index: int
    voxels: int
    volume_ml: float
    centroid_mm: tuple[float, float, float]
    mean_probability: float | None
    hemisphere: str
    mni_mm: tuple[float, float, float] | None = None
    region: str | None = None


@dataclass(frozen=True)
class Lesions:
    """The lesions of one visit.

    Attributes
    ----------
    mask : Image
        uint8, 1 in all lesions.
    labels : Image
        int32, every lesion with its index.
    lesions : tuple of Lesion
        By decreasing volume.
    """

    mask: Image
    labels: Image
    lesions: tuple[Lesion, ...]


def find_lesions(
    probability: Image, threshold: float, min_volume_mm3: float = MIN_VOLUME_MM3, pose_matrix: np.ndarray | None = None
) -> Lesions:
    """Lesions of a probability map: 26-connected components at or above the threshold, small ones left out.

    Parameters
    ----------
    probability : Image
        Lesion probability in [0, 1]; nan counts as no lesion.
    threshold : float
        In (0, 1]; a voxel of exactly this probability is lesion.
    min_volume_mm3 : float
        Components of less volume are left out; one of exactly this volume stays.
    pose_matrix : ndarray, shape (4, 4), optional
        Carries world coordinates to the MNI pose, whose x = 0 parts the hemispheres; identity if not given.
    """
    values = images.data(probability)
    return _lesions(images.like(probability, values >= np.float32(threshold)), probability, min_volume_mm3, pose_matrix)


def lesions_of_mask(
    mask: Image,
    probability: Image | None = None,
    min_volume_mm3: float = 0.0,
    pose_matrix: np.ndarray | None = None,
) -> Lesions:
    """Lesions of a mask drawn by hand (voxels above zero); the parameters are those of `find_lesions`."""
    return _lesions(mask, probability, min_volume_mm3, pose_matrix)


def _lesions(mask: Image, probability: Image | None, min_volume_mm3: float, pose_matrix: np.ndarray | None) -> Lesions:
    """Label the components of a mask, leave out the small ones and number the others by decreasing volume."""
    found, _ = ndimage.label(np.asarray(mask.dataobj) > 0, CONNECTIVITY_26)
    values = None if probability is None else images.data(probability)
    labels = np.zeros(mask.shape, dtype=np.int32)
    lesions = []
    for index, voxels in enumerate(_largest_first(mask, found, min_volume_mm3), start=1):
        where = tuple(voxels.T)
        labels[where] = index
        mean = None if values is None else float(values[where].mean(dtype=np.float64))
        lesions.append(_describe(mask, index, voxels, mean, pose_matrix))
    return Lesions(images.like(mask, labels > 0), images.like(mask, labels), tuple(lesions))


def _largest_first(mask: Image, labels: np.ndarray, min_volume_mm3: float) -> list[np.ndarray]:
    """Voxel indices, shape (n, 3), of every component that is large enough, the largest first.

    Ties are broken by world coordinates, so that the numbering does not depend on how the image is stored.
    """
    # affines are stored in single precision: a component of exactly the minimum volume must not fall below it
    least = min_volume_mm3 / images.voxel_volume_mm3(mask) * (1 - 1e-6)
    sizes = np.bincount(labels.ravel())
    boxes = ndimage.find_objects(labels)
    kept = []
    for index in np.flatnonzero(sizes[1:] >= least) + 1:
        box = boxes[index - 1]
        kept.append(np.argwhere(labels[box] == index) + [side.start for side in box])
    return sorted(kept, key=lambda voxels: (-len(voxels), [round(x, 2) for x in _centroid(mask, voxels)]))


def _describe(
    mask: Image, index: int, voxels: np.ndarray, mean: float | None, pose_matrix: np.ndarray | None
) -> Lesion:
    """One lesion from its voxel indices."""
    return Lesion(
        index=index,
        voxels=len(voxels),
        volume_ml=len(voxels) * images.voxel_volume_mm3(mask) / 1000,
        centroid_mm=_centroid(mask, voxels),
        mean_probability=mean,
        hemisphere=hemisphere(mask, voxels, pose_matrix),
    )


def _centroid(mask: Image, voxels: np.ndarray) -> tuple[float, float, float]:
    """Mean world coordinate in mm."""
    x, y, z = images.world(mask, voxels).mean(axis=0).tolist()
    return x, y, z
