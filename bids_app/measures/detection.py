"""Lesion-wise detection under the rules that the field reports, beside that of `overlap`.

* *Any overlap* (ATLAS challenge, Liew et al. 2022): lesions are 26-connected; one voxel in common is a hit.
* *Anima* (animaSegPerfAnalyzer; Commowick et al. 2018, Scientific Reports 8:13650): lesions are 6-connected; one is
  detected if more than ``ALPHA`` of it is covered and the lesions that cover it, by decreasing overlap until they
  make up more than ``GAMMA`` of the overlap, do not lie outside the other mask by more than ``BETA``. Applied both
  ways.

F1 is the harmonic mean of the share of reference lesions that are detected and the share of predicted lesions that are.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from bids_app.measures.overlap import CONNECTIVITY_26

ALPHA, BETA, GAMMA = 0.10, 0.70, 0.65
ANIMA_MIN_MM3 = 3.0
"""Components of less are left out, as animaSegPerfAnalyzer does by default."""


def any_overlap_f1(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Lesion F1 where one voxel in common is a hit; two empty masks have 1, one empty mask has 0.

    Parameters
    ----------
    reference, prediction : ndarray
        Masks of one shape; above zero is lesion.
    """
    first, second = reference > 0, prediction > 0
    if not (first.any() and second.any()):
        return float(not first.any() and not second.any())
    shares = []
    for lesions_of, mask in ((first, second), (second, first)):
        labels, count = ndimage.label(lesions_of, CONNECTIVITY_26)
        shares.append(len(np.unique(labels[mask & lesions_of])) / count)
    return _harmonic(*shares)


def anima_f1(reference: np.ndarray, prediction: np.ndarray, voxel_mm3: float = 1.0) -> float:
    """Lesion F1 by the rule of Anima; 0 if either mask is empty, as there.

    Parameters
    ----------
    reference, prediction : ndarray
        Masks of one shape; above zero is lesion.
    voxel_mm3 : float
        Volume of a voxel, for the smallest component that counts.
    """
    least = math.floor(ANIMA_MIN_MM3 / voxel_mm3) + 1
    true, predicted = (_components(mask > 0, least) for mask in (reference, prediction))
    if not (true.any() and predicted.any()):
        return 0.0
    return _harmonic(_detected_share(true, predicted), _detected_share(predicted, true))


def _components(mask: np.ndarray, least: int) -> np.ndarray:
    """6-connected components with at least so many voxels, numbered from 1."""
    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) >= least
    large[0] = False
    numbers = np.cumsum(large) * large
    return numbers[labels]


def _detected_share(lesions: np.ndarray, others: np.ndarray) -> float:
    """Share of the components of one label image that those of the other detect."""
    sizes, other_sizes = np.bincount(lesions.ravel()), np.bincount(others.ravel())
    shared = np.zeros((len(sizes), len(other_sizes)), dtype=int)
    np.add.at(shared, (lesions.ravel(), others.ravel()), 1)
    outside = shared[0] / np.maximum(other_sizes, 1)  # on the background of this mask, whichever its lesions
    found = [_is_detected(shared[number, 1:], sizes[number], outside[1:]) for number in range(1, len(sizes))]
    return float(np.mean(found))


def _is_detected(covered: np.ndarray, size: int, outside: np.ndarray) -> bool:
    """Whether one lesion is detected, from the voxels that each lesion of the other mask covers of it."""
    total = covered.sum()
    if total <= ALPHA * size:
        return False
    reached = 0
    for index in np.argsort(-covered, kind="stable"):
        if outside[index] > BETA:
            return False
        reached += covered[index]
        if reached > GAMMA * total:
            return True
    return True


def _harmonic(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0
