"""Agreement of a predicted lesion mask with a reference mask, voxel by voxel and lesion by lesion.

Definitions (TP, FP, FN are voxels, a *lesion* is a 26-connected component):

* Dice = 2 TP / (2 TP + FP + FN); two empty masks agree perfectly: 1.
* sensitivity = TP / (TP + FN); undefined (nan) without a reference lesion.
* precision = TP / (TP + FP); undefined (nan) without a predicted lesion.
* volume difference = predicted minus reference volume, mL.
* A reference lesion is *found* if at least 10 % of its voxels are predicted; a predicted lesion is *true* if at least
  10 % of its voxels are reference (the rule of StrokeSeg's toolkit, applied the same way in both directions).
  Lesion sensitivity and precision are the shares of found and of true lesions, lesion F1 is their harmonic mean;
  two empty masks have F1 = 1, one empty mask has F1 = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_app import images
from bids_app.images import Image

#: Share of a lesion that must be overlapped for it to be found (or true).
HIT = 0.1

#: Neighbourhood of a voxel that makes lesions 26-connected.
CONNECTIVITY_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Overlap:
    """Agreement of a prediction with a reference; the module's docstring defines every value.

    Attributes
    ----------
    dice, lesion_f1 : float
        In [0, 1].
    sensitivity, precision, lesion_sensitivity, lesion_precision : float
        In [0, 1], nan where undefined.
    volume_difference_ml : float
        Predicted minus reference.
    reference_lesions, predicted_lesions : int
        Counts of components.
    """

    dice: float
    sensitivity: float
    precision: float
    volume_difference_ml: float
    lesion_f1: float
    lesion_sensitivity: float
    lesion_precision: float
    reference_lesions: int
    predicted_lesions: int


def dice(reference: np.ndarray, prediction: np.ndarray, empty: float = 1.0) -> float:
    """Dice coefficient of two masks of one shape, `empty` if both are empty: they agree, or nothing was aligned."""
    first, second = _masks(reference, prediction)
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else empty


def found_lesions(lesions_of: np.ndarray, mask: np.ndarray) -> tuple[int, int]:
    """How many lesions of one mask are covered to at least 10 % by another, and how many there are."""
    first, second = _masks(lesions_of, mask)
    labels, count = ndimage.label(first, CONNECTIVITY_26)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    covered = np.bincount(labels[second], minlength=count + 1)[1:]
    return int(np.count_nonzero(covered >= HIT * sizes)), count


def compare(reference: Image, prediction: Image) -> Overlap:
    """All measures of agreement of two masks on one grid.

    Raises
    ------
    ValueError
        If the two images do not share a grid.
    """
    if not images.same_grid(reference, prediction):
        raise ValueError("the two masks lie on different grids; resample one of them first")
    true, predicted = _masks(np.asarray(reference.dataobj), np.asarray(prediction.dataobj))
    both = int((true & predicted).sum())
    found, true_count = found_lesions(true, predicted)
    right, predicted_count = found_lesions(predicted, true)
    lesion_sensitivity, lesion_precision = _share(found, true_count), _share(right, predicted_count)
    return Overlap(
        dice=dice(true, predicted),
        sensitivity=_share(both, int(true.sum())),
        precision=_share(both, int(predicted.sum())),
        volume_difference_ml=(int(predicted.sum()) - int(true.sum())) * images.voxel_volume_mm3(reference) / 1000,
        lesion_f1=_f1(lesion_sensitivity, lesion_precision),
        lesion_sensitivity=lesion_sensitivity,
        lesion_precision=lesion_precision,
        reference_lesions=true_count,
        predicted_lesions=predicted_count,
    )


def _masks(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays as boolean masks."""
    if first.shape != second.shape:
        raise ValueError(f"masks of shapes {first.shape} and {second.shape}")
    return first > 0, second > 0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _f1(sensitivity: float, precision: float) -> float:
    """Harmonic mean of two shares; nan stands for an empty mask."""
    if math.isnan(sensitivity) or math.isnan(precision):
        return 1.0 if math.isnan(sensitivity) and math.isnan(precision) else 0.0
    return 2 * sensitivity * precision / (sensitivity + precision) if sensitivity + precision else 0.0
