"""What the steps of a visit hand to each other and, at the end, to the writer.

Images are paths in the work folder, so that a step can be run again, or on another machine, from what came before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bids_app.lesion.components import Lesion
from bids_app.preprocessing.checks import Check
from bids_app.study.models import Problem, Visit

#: A 4 x 4 affine in RAS world millimetres as nested tuples: hashable, comparable, exact in a repr.
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Prepared:
    """The visit's scans, cleaned, on the native T1w grid (RAS+).

    Attributes
    ----------
    t1w : Path
        Bias-corrected T1w with its skull, unless `skull_stripped`.
    brain_mask : Path
        Binary mask.
    flair : Path or None
        FLAIR on the T1w grid; None if there is none or it could not be aligned.
    flair_native : Path or None
        Bias-corrected FLAIR on its own grid (RAS+), to be interpolated only once wherever it is needed.
    flair_transform : Path or None
        ITK file that brings the FLAIR to the T1w.
    flair_matrix : Matrix or None
        The same, FLAIR world to T1w world.
    flair_check, problems
        How the alignment went; what was repaired in the headers.
    brain_volume_ml : float
    skull_stripped, flair_stripped : bool
        Whether T1w and FLAIR came without skull.
    brain_weights : str or None
        sha256 of the brain extraction's weights; None if the mask was not made by it.
    """

    visit: Visit
    t1w: Path
    brain_mask: Path
    brain_volume_ml: float
    skull_stripped: bool
    flair: Path | None = None
    flair_native: Path | None = None
    flair_transform: Path | None = None
    flair_matrix: Matrix | None = None
    flair_check: Check | None = None
    flair_stripped: bool = False
    brain_weights: str | None = None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Posed:
    """The brain in the pose that lesion models see: rigidly on MNI, 1 mm, background zero.

    Attributes
    ----------
    t1w : Path
    flair : Path or None
    matrix : Matrix
        T1w world to pose world.
    """

    t1w: Path
    flair: Path | None
    matrix: Matrix
    check: Check


@dataclass(frozen=True)
class ModelUse:
    """Which model made a segmentation, how: what its sidecars say."""

    name: str
    version: str
    sha256: str
    channels: tuple[str, ...]
    folds: tuple[str, ...]
    threshold: float
    min_volume_mm3: float
    device: str


@dataclass(frozen=True)
class Segmented:
    """The lesions of a visit on the native T1w grid.

    Attributes
    ----------
    mask, labels : Path
        Binary mask; one integer a lesion.
    probability : Path or None
        Lesion probability in [0, 1]; None for a mask drawn by hand.
    uncertainty : Path or None
        Standard deviation of the probability between folds; None for fewer than two folds.
    lesions : tuple of Lesion
        By decreasing volume.
    volume_left_ml, volume_right_ml : float
        Lesion volume on either side of the midplane of the pose.
    model : ModelUse or None
        None for a mask drawn by hand.
    problems : tuple of Problem
        What is doubtful about the lesions.
    """

    mask: Path
    labels: Path
    probability: Path | None
    uncertainty: Path | None
    lesions: tuple[Lesion, ...]
    volume_left_ml: float
    volume_right_ml: float
    model: ModelUse | None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Normalized:
    """The visit in one standard space, 1 mm.

    Attributes
    ----------
    check : Check
        Where it is not usable, there is nothing else: a failed registration leaves no images.
    forward, inverse : Path or None
        ITK transforms from T1w to the standard space and back.
    t1w, brain_mask, lesion_mask, probability : Path or None
        The native images, carried there.
    """

    space: str
    check: Check
    forward: Path | None = None
    inverse: Path | None = None
    t1w: Path | None = None
    brain_mask: Path | None = None
    lesion_mask: Path | None = None
    probability: Path | None = None


@dataclass(frozen=True)
class Provenance:
    """What all sidecars of a visit share.

    Attributes
    ----------
    configuration_hash : str
    version : str
        Version of the App.
    bids_dir : Path
        The raw dataset, for BIDS URIs.
    """

    configuration_hash: str
    version: str
    bids_dir: Path
