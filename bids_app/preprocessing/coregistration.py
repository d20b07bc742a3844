"""FLAIR to T1w of the same visit: rigid, by mutual information, whole heads allowed."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from bids_app.images import Image, data, like, resample
from bids_app.preprocessing import linear
from bids_app.preprocessing.checks import FLAIR_LIMITS, Measured, Registration, first_accepted
from bids_app.preprocessing.comparison import COMPARE_MM, COVERED, Candidate, Target, measure, soft
from bids_app.preprocessing.itk import from_itk, pull_transform

#: The metric looks at the brain and this much around it: skull and scalp help, jaw and neck may have moved.
MARGIN_MM = 10.0
#: Share of the FLAIR's 98th percentile above which it shows tissue.
TISSUE = 0.1
#: Rotations tried in all combinations from the headers' alignment and from that of the centres.
LIKELY_DEGREES = (-24.0, -8.0, 8.0, 24.0)
#: The second try: anything a wrong header can do, and fields of view of which only a part is shared.
ANY_DEGREES = (-90.0, -45.0, 0.0, 45.0, 90.0, 180.0)
SHIFTS_MM = (-50.0, -25.0, 25.0, 50.0)
#: Rotations around what the second try found: its starts are coarse, and one of them may end 5 mm off.
NEAR_DEGREES = (-8.0, 0.0, 8.0)


def register_flair(flair: Image, t1w: Image, t1w_mask: Image) -> Registration:
    """Rigid registration of a FLAIR to a T1w.

    The headers are not trusted: rotations around their alignment and around that of the centres of mass are tried. The
    second try looks at the brain alone, from any rotation by 45 or 90 degrees and from places up to 50 mm higher and
    lower, and ends as the first, with what surrounds the brain.

    Parameters
    ----------
    flair, t1w : Image
        Heads or brains, any grids, up to 7 mm slices.
    t1w_mask : Image
        Brain mask on the grid of the T1w.

    Returns
    -------
    Registration
        ``matrix`` carries the FLAIR to the T1w; ``check`` against `checks.FLAIR_LIMITS`.

    References
    ----------
    Mattes et al., PET-CT image registration in the chest using free-form deformations, IEEE Trans. Med. Imaging 2003.
    """
    t1w, flair = linear.Pyramid(t1w), linear.Pyramid(flair)
    brain = resample(t1w_mask, from_itk(t1w.at(linear.FINE_MM)), order=0)
    around = like(brain, ndimage.distance_transform_edt(data(brain) == 0) * linear.FINE_MM <= MARGIN_MM)
    target, candidate = _target(t1w, t1w_mask), _candidate(flair)

    def likely() -> np.ndarray:
        return linear.register(t1w, flair, _starts(t1w, flair, LIKELY_DEGREES), fixed_mask=around)

    def anything() -> np.ndarray:
        starts = _starts(t1w, flair, ANY_DEGREES) + _slid(_starts(t1w, flair, LIKELY_DEGREES))
        near = linear.register(t1w, flair, starts, fixed_mask=brain)
        nearer = linear.rotations_about(near, t1w.centre, NEAR_DEGREES)
        return linear.register(t1w, flair, nearer, fixed_mask=around)

    def measured(matrix: np.ndarray) -> Measured:
        return measure(target, candidate, pull_transform(matrix))

    matrix, check = first_accepted((likely, anything), measured, FLAIR_LIMITS)
    return Registration(np.eye(4) if matrix is None else matrix, check)


def _starts(t1w: linear.Pyramid, flair: linear.Pyramid, degrees: tuple[float, ...]) -> list[np.ndarray]:
    """Positions by header and by centres of mass, each turned in all combinations of `degrees`."""
    shift = linear.translation(t1w.centre - flair.centre)
    return [turned for start in (np.eye(4), shift) for turned in linear.rotations_about(start, t1w.centre, degrees)]


def _slid(starts: list[np.ndarray]) -> list[np.ndarray]:
    """The starts, each moved up and down by `SHIFTS_MM`."""
    return [linear.translation(np.array([0, 0, shift])) @ start for shift in SHIFTS_MM for start in starts]


def _target(t1w: linear.Pyramid, mask: Image) -> Target:
    """The brain of the T1w, all of which is looked at."""
    grid = t1w.at(COMPARE_MM)
    small = sitk.Resample(linear.downsample(soft(mask), COMPARE_MM), grid)
    brain = sitk.GetArrayFromImage(small).T > COVERED
    return Target(grid, brain, brain)


def _candidate(flair: linear.Pyramid) -> Candidate:
    """The FLAIR, and where it shows tissue; it has no brain mask."""
    image = flair.at(COMPARE_MM)
    values = sitk.GetArrayFromImage(image)
    tissue = ndimage.binary_fill_holes(values > TISSUE * np.percentile(values, 98))
    mask = sitk.GetImageFromArray(tissue.astype(np.float32))
    mask.CopyInformation(image)
    return Candidate(image, mask, brain_alone=False)
