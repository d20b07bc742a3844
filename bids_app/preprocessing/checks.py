"""What a registration must reach to be believed, and how that is measured.

PLACEHOLDER_LIMITS
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Status = Literal["passed", "retried", "failed", "reused"]


@dataclass(frozen=True)
class Check:
    """How far a registration can be trusted.

    Attributes
    ----------
    status : str
        ``passed`` at once, ``retried`` (passed, but only another way), ``failed`` (no way passed: do not use),
        ``reused`` (made by another pipeline, not judged here).
    overlap : float
        Dice of the two brain masks after registration, 0 to 1.
    similarity : float
        Agreement of the intensities; which measure and which limit is said with each registration.
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
        RAS mm, moving world to fixed world (push; see `transforms`).
    check : Check
    """

    matrix: np.ndarray
    check: Check
