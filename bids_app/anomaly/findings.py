"""From an anomaly map to findings, one by one: where a brain departs from its healthy twin, and what that has to do
with the lesion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_app import images
from bids_app.images import Image
from bids_app.measures.overlap import CONNECTIVITY_26
from bids_app.measures.volumes import hemisphere

PERILESIONAL_MM = 5.0
"""A finding so near to a lesion, and not in it, is perilesional."""
MIN_VOLUME_MM3 = 30.0
"""Smaller findings are left out: the map is blurred over some 7 mm, so that less than this is the tip of a hill."""
LESIONAL, PERILESIONAL, NONLESIONAL = "lesional", "perilesional", "nonlesional"


@dataclass(frozen=True)
class Finding:
    """One 26-connected component of a thresholded anomaly map.

    Attributes
    ----------
    index : int
        Its value in the label image; 1 is the one with the largest volume.
    voxels : int
    volume_ml : float
    peak, mean : float
        Highest and mean anomaly, in [0, 1].
    peak_mm : tuple of float
        World coordinate (RAS) of the highest anomaly, mm, in the space of the map.
    hemisphere : str
        ``L``, ``R``, or ``B`` when less than 90 % lies on one side.
    kind : str
        ``lesional`` if it overlaps the lesion mask, ``perilesional`` within 5 mm of it, else ``nonlesional``.
    lesion_share : float
        Share of its volume inside the lesion mask, in [0, 1].
    region : str or None
        Structure that holds most of it; None without an atlas.
    mni_mm : tuple of float or None
        The peak in MNI space, where the transform to it is known.
    """

    index: int
    voxels: int
    volume_ml: float
    peak: float
    mean: float
    peak_mm: tuple[float, float, float]
    hemisphere: str
    kind: str
    lesion_share: float
    region: str | None = None
    mni_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Findings:
    """All findings of a visit.

    Attributes
    ----------
    mask : Image
        uint8, 1 in all findings.
    labels : Image
        int32, every finding with its index.
    findings : tuple of Finding
        By decreasing volume.
    """

    mask: Image
    labels: Image
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Atlas:
    """Structures of the brain on the grid of an anomaly map.

    Attributes
    ----------
    labels : Image
    names : mapping of int to str
    """

    labels: Image
    names: Mapping[int, str]

    def region(self, where: np.ndarray | tuple[np.ndarray, ...]) -> str | None:
        """The structure with the most of some voxels, given by what indexes an array of the grid.

        The background of the atlas counts only where there is nothing else: None then.
        """
        found = np.asarray(self.labels.dataobj)[where]
        counts = np.bincount(found[found > 0].astype(np.int64), minlength=1)
        return self.names.get(int(counts.argmax())) if counts.any() else None


def find(
    anomaly: Image,
    threshold: float | Image,
    lesion: Image | None = None,
    atlas: Atlas | None = None,
    pose_matrix: np.ndarray | None = None,
    min_volume_mm3: float = MIN_VOLUME_MM3,
) -> Findings:
    """Findings of an anomaly map: 26-connected components at or above a threshold.

    Parameters
    ----------
    anomaly : Image
        In [0, 1]; nan counts as no anomaly.
    threshold : float or Image
        In (0, 1]; a voxel of exactly this anomaly counts. An image on the same grid says it for each place, and where
        it is 0, nothing is found.
    lesion : Image, optional
        Lesion mask on the same grid; all findings are nonlesional without one.
    atlas : Atlas, optional
        On the same grid.
    pose_matrix : ndarray, shape (4, 4), optional
        Carries world coordinates to the MNI pose, whose x = 0 parts the hemispheres; identity if not given.
    min_volume_mm3 : float
        Findings of less volume are left out; one of exactly this volume stays.
    """
    values = images.data(anomaly)
    components, kept = large_components(
        values >= _limits(threshold), min_volume_mm3 / images.voxel_volume_mm3(anomaly)
    )
    scene = _Scene(anomaly, values, *_lesion_and_distance(lesion, anomaly), atlas, pose_matrix)
    voxels = [np.argwhere(components == number) for number in kept]
    voxels.sort(key=lambda each: (-len(each), -scene.peak(each), *np.round(scene.peak_mm(each), 2)))
    labels = np.zeros(values.shape, np.int32)
    for index, each in enumerate(voxels, start=1):
        labels[tuple(each.T)] = index
    described = tuple(scene.describe(index, each) for index, each in enumerate(voxels, start=1))
    return Findings(images.like(anomaly, labels > 0), images.like(anomaly, labels), described)


def large_components(above: np.ndarray, least: float = MIN_VOLUME_MM3) -> tuple[np.ndarray, list[int]]:
    """26-connected components, numbered in an array of that shape, and the numbers of those of at least so many
    voxels (of 1 mm3, unless `least` says otherwise)."""
    components, _ = ndimage.label(above, CONNECTIVITY_26)
    sizes = np.bincount(components.ravel())
    return components, [number for number in np.flatnonzero(sizes >= least * (1 - 1e-6)).tolist() if number]


def _limits(threshold: float | Image) -> np.ndarray:
    if not isinstance(threshold, Image):
        return np.float32(threshold)
    values = images.data(threshold)
    return np.where(values > 0, values, np.inf)


@dataclass(frozen=True)
class _Scene:
    """What findings are described by."""

    anomaly: Image
    values: np.ndarray
    lesion: np.ndarray
    distance_mm: np.ndarray
    atlas: Atlas | None
    pose_matrix: np.ndarray | None

    def peak(self, voxels: np.ndarray) -> float:
        return float(self.values[tuple(voxels.T)].max())

    def peak_mm(self, voxels: np.ndarray) -> tuple[float, float, float]:
        """Mean place of the voxels that share the highest value: it does not depend on how the image is stored."""
        inside = self.values[tuple(voxels.T)]
        x, y, z = images.world(self.anomaly, voxels[inside == inside.max()]).mean(axis=0).tolist()
        return x, y, z

    def describe(self, index: int, voxels: np.ndarray) -> Finding:
        where = tuple(voxels.T)
        share = float(self.lesion[where].mean())
        near = float(self.distance_mm[where].min()) <= PERILESIONAL_MM
        return Finding(
            index=index,
            voxels=len(voxels),
            volume_ml=len(voxels) * images.voxel_volume_mm3(self.anomaly) / 1000,
            peak=self.peak(voxels),
            mean=float(self.values[where].mean(dtype=np.float64)),
            peak_mm=self.peak_mm(voxels),
            hemisphere=hemisphere(self.anomaly, voxels, self.pose_matrix),
            kind=LESIONAL if share > 0 else PERILESIONAL if near else NONLESIONAL,
            lesion_share=share,
            region=self.atlas.region(where) if self.atlas else None,
        )


def _lesion_and_distance(lesion: Image | None, anomaly: Image) -> tuple[np.ndarray, np.ndarray]:
    """Lesion mask, and distance of every voxel to it in mm (infinite without a lesion)."""
    inside = np.zeros(anomaly.shape, bool) if lesion is None else images.data(lesion) > 0
    if not inside.any():
        return inside, np.full(anomaly.shape, np.inf, np.float32)
    return inside, ndimage.distance_transform_edt(~inside, sampling=anomaly.header.get_zooms()[:3])
