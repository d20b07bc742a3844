"""What the steps of a visit hand to each other and, at the end, to the writer.

Images are paths in the work folder, so that a step can be run again, or on another machine, from what came before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bids_app.anomaly.findings import Finding
from bids_app.anomaly.folder import BOTH
from bids_app.lesion.components import Lesion
from bids_app.lesion.terms import ModelTerms
from bids_app.preprocessing.checks import Check
from bids_app.study.models import Problem, Visit

#: A 4 x 4 affine in RAS world millimetres as nested tuples: hashable, comparable, exact in a repr.
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Prepared:
    """The visit's scans, cleaned, on the native grid of its reference scan (RAS+).

    Attributes
    ----------
    reference : Path
        The bias-corrected reference scan (see `contrast`) with its skull, unless `skull_stripped`.
    brain_mask : Path
        Binary mask.
    flair : Path or None
        FLAIR on the grid of a T1w; None if there is none, it could not be aligned, or it is the reference itself.
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
        Whether the reference scan and the FLAIR aligned with it came without skull.
    brain_weights : str or None
        sha256 of the brain extraction's weights; None if the mask was not made by it.
    """

    visit: Visit
    reference: Path
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

    @property
    def contrast(self) -> str:
        """``T1w`` or ``FLAIR``: the contrast of the reference scan, which names the native space as well."""
        return self.visit.reference.suffix


@dataclass(frozen=True)
class Posed:
    """The brain in the pose that lesion models see: rigidly on MNI, 1 mm, background zero.

    Attributes
    ----------
    scans : tuple of (str, Path)
        Contrast, ``T1w`` or ``FLAIR``, and brain; that of the reference scan first.
    matrix : Matrix
        World of the reference scan to pose world.
    problems : tuple of Problem
        What the pose showed to be doubtful about the scans.
    """

    scans: tuple[tuple[str, Path], ...]
    matrix: Matrix
    check: Check
    problems: tuple[Problem, ...] = ()

    @property
    def contrasts(self) -> tuple[str, ...]:
        """What there is of ``T1w`` and ``FLAIR``."""
        return tuple(contrast for contrast, _ in self.scans)

    def scan(self, contrast: str) -> Path:
        """The brain in one of the contrasts there are."""
        return dict(self.scans)[contrast]


@dataclass(frozen=True)
class ModelUse:
    """Which model made a segmentation, how: what its sidecars say."""

    name: str
    version: str
    sha256: str
    channels: tuple[str, ...]
    folds: tuple[str, ...]
    terms: ModelTerms
    device: str


@dataclass(frozen=True)
class Segmented:
    """The lesions of a visit on the native grid of its reference scan.

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
    seen : tuple of Path
        What the model was given, one scan a channel, where that is to be kept.
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
    seen: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Aligned:
    """The affine registration of the reference scan to the default standard space.

    Attributes
    ----------
    matrix : Matrix
        World of the reference scan to world of the space.
    """

    matrix: Matrix
    check: Check


@dataclass(frozen=True)
class Normalized:
    """The visit in one standard space, 1 mm.

    Attributes
    ----------
    check : Check
        Where it is not usable, there is nothing else: a failed registration leaves no images.
    forward, inverse : Path or None
        ITK transforms from the reference scan to the standard space and back.
    reference, brain_mask, lesion_mask, lesion_labels, probability, uncertainty : Path or None
        The native images, carried there.
    flair : Path or None
        The FLAIR of a visit with T1w, carried there from its own grid.
    """

    space: str
    check: Check
    forward: Path | None = None
    inverse: Path | None = None
    reference: Path | None = None
    brain_mask: Path | None = None
    lesion_mask: Path | None = None
    probability: Path | None = None
    lesion_labels: Path | None = None
    uncertainty: Path | None = None
    flair: Path | None = None


@dataclass(frozen=True)
class AnomalyUse:
    """Which model made an anomaly map, how: what its sidecars say. A threshold of None is one for each place."""

    name: str
    version: str
    sha256: str
    contrast: str
    steps: int
    threshold: float | None
    device: str
    masked: bool = False
    side: str = BOTH


@dataclass(frozen=True)
class StandardAnomaly:
    """Anomaly map, twin and thresholded map in a standard space.

    Attributes
    ----------
    space : str
    anomaly, twin, mask : Path
    """

    space: str
    anomaly: Path
    twin: Path
    mask: Path


@dataclass(frozen=True)
class Explained:
    """How a visit departs from its healthy twin, on the native grid of its reference scan.

    Attributes
    ----------
    anomaly, twin : Path
        Anomaly map in [0, 1]; the twin in the grey values of the scan, zero outside the brain.
    mask, labels : Path
        Where the map reaches the threshold, in findings that are large enough; one integer a finding.
    findings : tuple of Finding
        By decreasing volume.
    model : AnomalyUse
    standard : tuple of StandardAnomaly
    """

    anomaly: Path
    twin: Path
    mask: Path
    labels: Path
    findings: tuple[Finding, ...]
    model: AnomalyUse
    standard: tuple[StandardAnomaly, ...] = ()


@dataclass(frozen=True)
class Anomalies:
    """What the anomaly step came to.

    Attributes
    ----------
    explained : Explained or None
        None where the step was switched off or could not be done.
    problems : tuple of Problem
    """

    explained: Explained | None
    problems: tuple[Problem, ...] = ()


NO_ANOMALIES = Anomalies(None)


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
