"""What a registration must reach to be believed, and how that is measured.

Two measures, because they fail differently: an *overlap* of brain masks, which notices a brain in the wrong place but
not a wrong brain; and the *local correlation* of intensities, which notices both. The latter is the squared correlation
within windows of 10 mm, averaged over the brain: it does not care whether grey matter is darker (T1w) or brighter
(FLAIR) than white matter, nor about bias fields, and no lesion is large enough to spoil it alone.

The limits below were set on `chris_t1`, `studyforrest_sub02`, the clinical pair and the demo dataset
(docs/decisions.md has the figures). Those of the FLAIR refuse noise, other people's heads, and most errors of 3 mm or 5
degrees; those of the standard space refuse what is no brain, and, in real heads, errors of 3 mm or 5 degrees. Those of
the pose refuse only what is no brain: two brains of different size never agree well, so that a pose off by 10 mm or 20
degrees may pass. Those of a FLAIR that goes to the standard space without T1w refuse what is no brain, and errors of
6 mm or 5 degrees. Left for right is invisible in a symmetric template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from scipy import ndimage

from bids_app.images import Image, data

Status = Literal["passed", "retried", "failed", "reused"]
Found = TypeVar("Found")

#: Images are compared on voxels of this size, in windows of five voxels.
COMPARE_MM = 2.0
WINDOW_VOXELS = 5
#: Windows flatter than this share of the brain's variance say nothing.
FLAT = 1e-4
ROUNDING = 1e-9


@dataclass(frozen=True)
class Check:
    """How far a registration can be trusted.

    Attributes
    ----------
    status : str
        ``passed`` at once, ``retried`` (passed, but only another way), ``failed`` (no way passed: do not use),
        ``reused`` (made by another pipeline, not judged here).
    overlap : float
        0 to 1: Dice of the two brain masks; for a FLAIR, which has no mask, the share of the T1w's brain that lies
        inside the FLAIR's tissue. NaN where nothing could be computed.
    similarity : float
        0 to 1: mean squared local correlation of the intensities inside the brain.
    sentence : str
        The verdict for a report.
    """

    status: Status
    overlap: float
    similarity: float
    sentence: str

    @property
    def usable(self) -> bool:
        """Whether results may be made with this registration."""
        return self.status != "failed"


@dataclass(frozen=True)
class Registration:
    """A linear transform and its check.

    Attributes
    ----------
    matrix : array of shape (4, 4)
        RAS mm, moving world to fixed world (push; see `transforms`). The best that was found even where it failed; the
        identity where nothing was.
    check : Check
    """

    matrix: np.ndarray
    check: Check


@dataclass(frozen=True)
class Limits:
    """The least overlap and similarity at which a registration is believed, and what it is called in sentences."""

    name: str
    overlap: float
    similarity: float


FLAIR_LIMITS = Limits("FLAIR to T1w", overlap=0.80, similarity=0.23)
POSE_LIMITS = Limits("brain to the model's pose", overlap=0.82, similarity=0.14)
AFFINE_LIMITS = Limits("brain to standard space, affine", overlap=0.86, similarity=0.14)
NORMALIZATION_LIMITS = Limits("T1w to standard space", overlap=0.92, similarity=0.42)
#: Less of the template, a T1w, is seen in a FLAIR, however well they agree.
FLAIR_NORMALIZATION_LIMITS = Limits("FLAIR to standard space", overlap=0.92, similarity=0.22)


@dataclass(frozen=True)
class Measured:
    """Overlap and similarity of one registration, both 0 to 1."""

    overlap: float
    similarity: float

    def within(self, limits: Limits) -> bool:
        """Whether both limits are met (NaN meets none)."""
        return self.overlap >= limits.overlap and self.similarity >= limits.similarity



def first_that_passes(
    ways: Iterable[Callable[[], Found]], measure: Callable[[Found], Measured], limits: Limits
) -> tuple[Found | None, Check]:
    """Try one way after the other until one meets the limits.

    Returns
    -------
    found, check
        The first that passed; else the most similar one, with status ``failed``; None if every way broke off.
    """
    tried: list[tuple[Measured, Found]] = []
    errors: list[str] = []
    for number, way in enumerate(ways):
        try:
            found = way()
            measured = measure(found)
        except RuntimeError as error:  # what SimpleITK raises, whatever happened, and so `deformable`
            errors.append(_brief(error))
            continue
        if measured.within(limits):
            status: Status = "passed" if number == 0 else "retried"
            return found, Check(status, measured.overlap, measured.similarity, _verdict(limits, measured, status))
        tried.append((measured, found))
    if not tried:
        why = "; ".join(dict.fromkeys(errors))
        sentence = f"{limits.name}: failed, the images could not be compared ({why})."
        return None, Check("failed", np.nan, np.nan, sentence)
    measured, found = max(tried, key=lambda pair: np.nan_to_num(pair[0].similarity))
    return found, Check("failed", measured.overlap, measured.similarity, _verdict(limits, measured, "failed"))


def local_correlation(first: Image, second: Image, mask: np.ndarray) -> float:
    """Mean squared correlation of two images on one grid, in windows of `WINDOW_VOXELS`, over the voxels of `mask`.

    Returns
    -------
    float
        0 (unrelated; about 0.06 by chance) to 1; NaN if no window has contrast.

    References
    ----------
    Cachier and Pennec, 3D non-rigid registration by gradient descent on a Gaussian-windowed similarity measure, 2000.
    """
    if not mask.any():
        return np.nan
    box = ndimage.find_objects(mask, max_label=1)[0]
    weight = mask[box].astype(np.float64)
    a, b = (np.where(weight > 0, data(image, np.float64)[box], 0) for image in (first, second))
    share = np.maximum(_mean(weight), 1e-6)
    mean_a, mean_b = _mean(a) / share, _mean(b) / share
    inside = weight > 0
    variance_a = (_mean(a * a) / share - mean_a**2)[inside]
    variance_b = (_mean(b * b) / share - mean_b**2)[inside]
    covariance = (_mean(a * b) / share - mean_a * mean_b)[inside]
    telling = (variance_a > _flat(a[inside])) & (variance_b > _flat(b[inside]))
    if not telling.any():
        return np.nan
    return float(np.mean(covariance[telling] ** 2 / (variance_a[telling] * variance_b[telling])))


def _flat(values: np.ndarray) -> float:
    """The variance below which a window is flat; rounding errors alone stay below it."""
    return FLAT * float(values.var()) + ROUNDING * float(np.mean(values**2))


def _mean(values: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(values, WINDOW_VOXELS, mode="constant")


def _brief(error: RuntimeError) -> str:
    """The last line of an error of SimpleITK, without the name and the address in memory of the object it came from."""
    last = (str(error).strip() or "no reason given").splitlines()[-1]
    return re.sub(r"^ITK ERROR: \w+\(0x\w+\): ", "", last).rstrip(".")


def _verdict(limits: Limits, measured: Measured, status: Status) -> str:
    """One sentence with the figures, and with the limits that were missed."""
    figures = f"brain overlap {measured.overlap:.2f}, local correlation {measured.similarity:.2f}"
    if status == "passed":
        return f"{limits.name}: passed ({figures})."
    if status == "retried":
        return f"{limits.name}: passed at the second try ({figures}); look at it."
    wanted = f"at least {limits.overlap:.2f} and {limits.similarity:.2f} are wanted"
    return f"{limits.name}: failed ({figures}; {wanted})."
