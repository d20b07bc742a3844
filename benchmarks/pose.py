"""Real heads as the lesion models see them, through the functions of the App."""

from __future__ import annotations

from pathlib import Path

from bids_app.errors import VisitError
from bids_app.images import Image, masked
from bids_app.preprocessing.bias import correct_bias
from bids_app.preprocessing.brain import extract_brain
from bids_app.preprocessing.headers import clean
from bids_app.preprocessing.normalization import brain_in_pose, to_pose
from bids_app.preprocessing.templates import load_template
from bids_app.settings import DEFAULT_SPACE


def pose_head(source: Path) -> Image:
    """A whole-head T1w as the lesion models see it: brain-extracted, bias-corrected, rigidly on MNI at 1 mm.

    Raises
    ------
    VisitError
        If the scan cannot be read or aligned.
    """
    t1w = clean(source).image
    mask = extract_brain(t1w)
    corrected, template = correct_bias(t1w, mask), load_template(DEFAULT_SPACE)
    registration = to_pose(masked(corrected, mask), mask, template)
    if not registration.check.usable:
        raise VisitError(f"{source} could not be aligned with MNI: {registration.check.sentence}")
    posed, _ = brain_in_pose(corrected, mask, registration.matrix, template)
    return posed
