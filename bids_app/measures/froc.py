"""Free-response ROC of an anomaly map: how many objects are found at how many false positives an image.

Candidates are connected components at or above a threshold, each as sure as its highest anomaly; one that touches an
object finds it, one that touches none is a false positive (Mahé et al., arXiv 2510.24398, as it is meant there: see
`compatible_froc` for what the released code counts).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

FALSE_POSITIVES = (0.25, 0.5, 1.0, 1.5)
"""Mean false positives an image at which sensitivity is read."""
CLICK_RADIUS = 5
"""An expert's click stands for a square of 11 x 11 pixels."""


@dataclass(frozen=True)
class Detections:
    """What was found in some images.

    Attributes
    ----------
    objects : ndarray
        ``(n,)`` anomaly of the surest candidate that touches each object; 0 where there is none.
    false_positives : ndarray
        ``(m,)`` anomaly of each candidate that touches no object.
    images : int
    """

    objects: np.ndarray
    false_positives: np.ndarray
    images: int


def detect(anomaly: np.ndarray, objects: np.ndarray, threshold: float, connectivity: int = 1) -> Detections:
    """Objects and false positives of one image.

    Parameters
    ----------
    anomaly : ndarray
        2-d or 3-d, above zero where there is an anomaly.
    objects : ndarray
        Same shape, integers: every object its own number, 0 elsewhere; or booleans, whose connected components are the
        objects.
    threshold : float
        Candidates are the components of ``anomaly >= threshold``.
    connectivity : int
        Of components: 1 joins neighbours that share an edge (in 2-d) or a face (in 3-d), ``anomaly.ndim`` those that
        share a corner.
    """
    structure = ndimage.generate_binary_structure(anomaly.ndim, connectivity)
    if objects.dtype == bool:
        objects, _ = ndimage.label(objects, structure)
    candidates, count = ndimage.label(anomaly >= threshold, structure)
    surest = np.zeros(count + 1)
    np.maximum.at(surest, candidates.ravel(), anomaly.ravel())
    pairs = np.unique(np.stack([objects.ravel(), candidates.ravel()]), axis=1)
    pairs = pairs[:, (pairs > 0).all(axis=0)]
    found = dict.fromkeys(np.unique(objects[objects > 0]).tolist(), 0.0)
    for number, candidate in pairs.T.tolist():
        found[number] = max(found[number], surest[candidate])
    false = np.setdiff1d(np.arange(1, count + 1), pairs[1])
    return Detections(np.array(list(found.values()), float), surest[false], 1)


def joined(parts: Iterable[Detections]) -> Detections:
    """Detections of several images as one."""
    parts = list(parts)
    objects, false = (
        np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0)
        for name in ("objects", "false_positives")
    )
    return Detections(objects, false, sum(part.images for part in parts))


def froc(detections: Detections, at: Sequence[float] = FALSE_POSITIVES) -> np.ndarray:
    """Sensitivity at mean false positives an image, interpolated linearly.

    Returns
    -------
    ndarray
        One value in [0, 1] for each of `at`; where the candidates make fewer false positives than that, what all of
        them find; nan if there is no object.
    """
    if len(detections.objects) == 0 or detections.images == 0:
        return np.full(len(at), np.nan)
    levels = np.unique(np.concatenate([detections.objects, detections.false_positives]))
    levels = levels[levels > 0][::-1]
    rates = _at_or_above(detections.false_positives, levels) / detections.images
    sensitivities = _at_or_above(detections.objects, levels) / len(detections.objects)
    # of the points with the same false positives the last has the highest sensitivity: numpy wants them apart
    rates, last = np.unique(np.concatenate([[0.0], rates])[::-1], return_index=True)
    return np.interp(at, rates, np.concatenate([[0.0], sensitivities])[::-1][last])


def _at_or_above(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """How many values reach each level."""
    return len(values) - np.searchsorted(np.sort(values), levels, side="left")


def click_boxes(clicks: Iterable[tuple[int, int]], shape: Sequence[int], radius: int = CLICK_RADIUS) -> np.ndarray:
    """Objects of experts' clicks, (row, column): squares numbered from 1; of two that overlap, the later is on top."""
    objects = np.zeros(shape, np.int32)
    for number, (row, column) in enumerate(clicks, start=1):
        objects[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1] = number
    return objects


def compatible_froc(
    images: Iterable[tuple[np.ndarray, np.ndarray]], threshold: float, at: Sequence[float] = FALSE_POSITIVES
) -> np.ndarray:
    """Sensitivity as the released code of Mahé et al. counts it, to set beside their published numbers.

    There all objects of an image are one (it is found if one of them is), and an image without a candidate or without
    an object is left out, of the false positives too, but still counts as an image.

    Parameters
    ----------
    images : iterable of (ndarray, ndarray)
        Anomaly map and objects, as for `detect`.
    """
    parts = []
    for anomaly, objects in images:
        counted = (anomaly >= threshold).any() and (objects > 0).any()
        part = detect(anomaly, (objects > 0).astype(np.int32), threshold)
        parts.append(part if counted else Detections(np.zeros(0), np.zeros(0), 1))
    return froc(joined(parts), at)
