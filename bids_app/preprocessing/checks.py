"""What is said of a registration: whether it can be believed, and why not.

The figures come from `comparison`. The limits were set on heads and brains that may be fitted to, with and without
skull, and counted on others (docs/decisions.md; ``python -m benchmarks.registration_checks`` measures them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

Status = Literal["accepted", "doubtful", "failed", "reused"]
Found = TypeVar("Found")

#: Millimetres and degrees by which a scan is moved and turned, to see whether it fits better there.
NEAR = (8.0, 16.0)
FAR_DEGREES = (90.0, 180.0, -90.0)


@dataclass(frozen=True)
class Check:
    """How far a registration can be trusted.

    Attributes
    ----------
    status : str
        ``accepted``; ``doubtful`` (look at it; results are made with it); ``failed`` (do not use); ``reused`` (made by
        another pipeline, and accepted).
    overlap : float
        0 to 1: share of the tissue inside the scan's brain mask, or of that mask inside the brain, whichever is less.
        NaN where nothing could be computed.
    similarity : float
        0 to 1: mean squared local correlation of the intensities over the tissue.
    sentence : str
        The verdict for a report.
    nearby, elsewhere : float
        The highest similarity of the same scan moved by up to 16 mm or degrees, and turned by 90 or 180 degrees, as a
        share of `similarity`: below 1 where the alignment is better than these.
    """

    status: Status
    overlap: float
    similarity: float
    sentence: str
    nearby: float = np.nan
    elsewhere: float = np.nan

    @property
    def usable(self) -> bool:
        """Whether results may be made with this registration."""
        return self.status != "failed"

    @property
    def measured(self) -> Measured:
        """The figures."""
        return Measured(self.overlap, self.similarity, self.nearby, self.elsewhere)


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
    """What a registration must reach, and how it is called in sentences.

    Attributes
    ----------
    name : str
    look_at : str
        What a user should look at where it is doubtful.
    overlap, least_overlap : float
        Below the first it is doubtful, below the second it failed.
    nearby, highest_nearby : float
        Above the first share of its similarity, reached by a pose nearby, it is doubtful; above the second it failed.
    elsewhere, highest_elsewhere : float
        The same for poses turned far.
    """

    name: str
    look_at: str
    overlap: float = 0.85
    least_overlap: float = 0.60
    nearby: float = 1.05
    highest_nearby: float = np.inf
    elsewhere: float = 0.75
    highest_elsewhere: float = 0.85


#: Two scans of one person agree in every fold, so that their peak is sharp; that of two people is not.
FLAIR_LIMITS = Limits("FLAIR to T1w", "the FLAIR over the T1w", nearby=0.75, highest_nearby=0.82)
POSE_LIMITS = Limits("brain to the model's pose", "the brain mask, and whether the header holds the head upright")
AFFINE_LIMITS = Limits("brain to standard space, affine", "the brain mask")
NORMALIZATION_LIMITS = Limits("scan to standard space", "the scan in standard space over the template")


@dataclass(frozen=True)
class Measured:
    """What is measured of one registration.

    Attributes
    ----------
    overlap, similarity, nearby, elsewhere : float
        As of `Check`.
    """

    overlap: float
    similarity: float
    nearby: float
    elsewhere: float

    def status(self, limits: Limits) -> Status:
        """The verdict; what could not be measured has failed."""
        possible = (
            self.overlap >= limits.least_overlap
            and self.nearby <= limits.highest_nearby
            and self.elsewhere <= limits.highest_elsewhere
        )
        if not possible:  # NaN is within no limit
            return "failed"
        sure = self.overlap >= limits.overlap and self.nearby <= limits.nearby and self.elsewhere <= limits.elsewhere
        return "accepted" if sure else "doubtful"


def first_accepted(
    ways: Iterable[Callable[[], Found]], measured: Callable[[Found], Measured], limits: Limits
) -> tuple[Found | None, Check]:
    """Try one way after the other until one is accepted.

    Returns
    -------
    found, check
        The first that is accepted; else the best of those that are doubtful, or of those that failed; None if every
        way broke off.
    """
    tried: list[tuple[Status, Measured, Found]] = []
    errors: list[str] = []
    for way in ways:
        try:
            found = way()
            values = measured(found)
        except RuntimeError as error:  # what SimpleITK raises, whatever happened, and so `deformable`
            errors.append(_brief(error))
            continue
        status = values.status(limits)
        tried.append((status, values, found))
        if status == "accepted":
            break
    if not tried:
        why = "; ".join(dict.fromkeys(errors))
        sentence = f"{limits.name}: failed, the images could not be compared ({why})."
        return None, Check("failed", np.nan, np.nan, sentence)
    order = ("failed", "doubtful", "accepted")
    status, values, found = max(tried, key=lambda one: (order.index(one[0]), np.nan_to_num(one[1].similarity)))
    return found, check_of(values, limits, status)


def check_of(measured: Measured, limits: Limits, status: Status | None = None) -> Check:
    """The check of what was measured; its status unless another one is given."""
    status = status or measured.status(limits)
    sentence = _verdict(limits, measured, status)
    return Check(status, measured.overlap, measured.similarity, sentence, measured.nearby, measured.elsewhere)


def _brief(error: RuntimeError) -> str:
    """The last line of an error of SimpleITK, without the name and the address in memory of the object it came from."""
    last = (str(error).strip() or "no reason given").splitlines()[-1]
    return re.sub(r"^ITK ERROR: \w+\(0x\w+\): ", "", last).rstrip(".")


def _verdict(limits: Limits, measured: Measured, status: Status) -> str:
    """One sentence with the figures, and with what was missed."""
    figures = f"tissue overlap {measured.overlap:.2f}, local correlation {measured.similarity:.2f}"
    if status in ("accepted", "reused"):
        return f"{limits.name}: {status} ({figures})."
    reasons = "; ".join(_reasons(limits, measured))
    if status == "doubtful":
        return f"{limits.name}: doubtful, {reasons} ({figures}). Look at {limits.look_at}."
    return f"{limits.name}: failed, {reasons} ({figures})."


def _reasons(limits: Limits, measured: Measured) -> Iterator[str]:
    """What was missed, in words."""
    if not measured.overlap >= limits.overlap:
        yield "brain mask and target do not overlap well"
    if not np.isfinite(measured.nearby):
        yield "nothing in the scan is like its target"
    if measured.nearby > max(1.0, limits.nearby):
        yield f"it fits better some {NEAR[0]:.0f} to {NEAR[1]:.0f} mm or degrees away"
    elif measured.nearby > limits.nearby:
        yield "it fits less exactly than scans of one person do"
    if measured.elsewhere > limits.elsewhere:
        yield "turned by 90 or 180 degrees it fits nearly as well"
