"""Real heads in the pose, to see what a model says of them: ``python -m bids_app.training.real_heads T1W OUT``.

A scan goes through the same functions as in the App, so that training sees what the App will show its model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bids_app.errors import VisitError
from bids_app.images import Image, masked, save
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.real_heads", description=__doc__)
    parser.add_argument("t1w", type=Path, help="whole-head T1w")
    parser.add_argument("out", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    save(pose_head(options.t1w), options.out)


if __name__ == "__main__":
    main()
