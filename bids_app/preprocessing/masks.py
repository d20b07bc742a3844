"""Masks drawn by hand, or made by another pipeline: what they must be before anything is measured with them.

Every way in (a participant, a single case, a training) reads them here. The rule is that of ``headers.py``: what loses
nothing is accepted, what may be wrong is reported, and what would have to be guessed is refused, because a mask in the
wrong place gives numbers that look right.

==========  ====================================================  =====================================================
what        found                                                 done (code)
==========  ====================================================  =====================================================
header      broken, in the ways of ``headers.py``                 as there; refused (``mask-unreadable``)
header      no form set                                           refused (``mask-side``)
values      0 and one value above one half                        that value is the lesion (``mask-values``, info, if
                                                                  it is neither 1 nor 255)
values      0 alone                                               no lesion (``empty-mask``, info)
values      nowhere above one half, or negative                   refused (``mask-values``)
values      several from 0 to 1                                   lesion above one half (``mask-values``, warning)
values      whole numbers, one for each separate lesion           all are the lesion (``mask-values``, warning)
values      any others: a scan, a label map                       refused (``mask-values``)
size        over `MAX_LESION_ML`, or half of the brain            refused (``mask-too-large``)
size        over `USUAL_LESION_ML`                                kept (``mask-too-large``, warning)
place       over half outside the scan                            refused (``mask-elsewhere``)
place       over half outside the brain                           refused (``lesion-outside-brain``)
place       a smaller part outside                                kept (the same codes, warning)
grid        that of the scan, in any storage order                fine
grid        another one                                           resampled by its header (``mask-grid``, warning)
side        number of voxels of the scan, stored in another       kept, as both headers may be right
            order within the same box                             (``mask-side``, warning)
side        the same, in another box; or a header without place;  refused (``mask-side``)
            or axes exchanged under the header of the scan
==========  ====================================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_app import images
from bids_app.errors import VisitError
from bids_app.images import Grid, Image
from bids_app.measures.volumes import volume_ml
from bids_app.preprocessing import headers
from bids_app.study.grid import NoOrientationError
from bids_app.study.models import Problem, Severity

#: From this value on, exclusively, a soft mask counts as lesion.
ONE_HALF = 0.5
#: Cubic splines overshoot a binary mask by less than this.
OVERSHOOT = 0.3
#: Values closer than this are one: scaled integers are not exact.
VALUE_TOLERANCE = 1e-3
#: Half of a brain: no lesion is larger, but a brain mask or a scan taken for a mask is.
MAX_LESION_ML = 700.0
#: The largest of 105 chronic strokes (LESYMAP) has 376 mL; acute ones above this were found implausible (SOOP).
USUAL_LESION_ML = 400.0
#: Share of the lesion that has to lie in the scan it was drawn on, and in its brain.
MIN_INSIDE = 0.5
#: Share of the lesion outside the scan that is worth a warning.
MAX_OUTSIDE_SCAN = 0.01
#: Share of the lesion outside the brain mask that is worth a warning; borders never agree to the voxel.
MAX_OUTSIDE_BRAIN = 0.1
#: Share of the brain that a lesion may take.
MAX_SHARE_OF_BRAIN = 0.5
#: Two grids are the same if their corners lie this close.
GRID_TOLERANCE_MM = 0.1
#: No two scans of one visit lie so differently in the scanner; storage orders differ by 90 degrees or more.
TURNED_DEGREES = 45.0

_WORLD_AXES = ("left and right", "front and back", "top and bottom")


class MaskError(VisitError):
    """A mask that cannot be used.

    Parameters
    ----------
    code : str
        As that of a `Problem`.
    """

    def __init__(self, message: str, hint: str = "", code: str = "mask-unreadable"):
        super().__init__(message, hint)
        self.code = code

    def __reduce__(self):
        return type(self), (self.message, self.hint, self.code)


@dataclass(frozen=True)
class GivenMask:
    """A mask that may be used.

    Attributes
    ----------
    image : Image
        uint8, 0 or 1, RAS+, on the grid of its file.
    problems : tuple of Problem
        None of severity ERROR.
    """

    image: Image
    problems: tuple[Problem, ...] = ()


def drawn_on(path: Path, scans: Sequence[Path]) -> Path | None:
    """Find the scan on whose voxels a mask lies, from headers alone.

    Returns
    -------
    Path or None
        The first of `scans` whose voxels are stored in the same order, else the first with the same voxels in another
        order; None if there is none, or if the mask cannot be read.
    """
    mask = _grid_or_none(path)
    grids = [(scan, grid) for scan in scans if mask and (grid := _grid_or_none(scan))]
    stored_alike = [scan for scan, grid in grids if mask.largest_gap_mm(grid) <= GRID_TOLERANCE_MM]
    alike = [scan for scan, grid in grids if mask.to_ras().largest_gap_mm(grid.to_ras()) <= GRID_TOLERANCE_MM]
    return next(iter(stored_alike + alike), None)


def _grid_or_none(path: Path) -> Grid | None:
    try:
        return headers.stored_grid(path)
    except VisitError:  # whatever is wrong with the file is told when it is read whole
        return None


def read_lesion_mask(path: Path, scan: Path) -> GivenMask:
    """Read a lesion mask, and judge it beside the scan that it was drawn on.

    Parameters
    ----------
    path : Path
        NIfTI file.
    scan : Path
        The scan as it is stored: its grid is compared with that of the mask, voxel by voxel.

    Raises
    ------
    MaskError
        If it is no lesion mask, or none of this scan.
    VisitError
        If the header of the scan cannot be used.
    """
    grid = headers.stored_grid(scan)
    stored = _stored(path, scan, grid)
    values = np.asarray(stored.image.dataobj)
    lesion, value_problems = _lesion_of(values, path)
    problems = (
        *stored.problems,
        *value_problems,
        *_check_size(lesion, stored.image, path),
        *check_grid(path, Grid.of(stored.image), scan, grid),
        *_check_place(lesion, stored.image, path, scan, grid),
    )
    return GivenMask(_as_mask(lesion, stored.image), problems)


def read_brain_mask(path: Path, scan: Path) -> GivenMask:
    """Read a brain mask of another pipeline, and compare its grid with that of its scan.

    Any value above one half is brain. Its volume is for the caller to check, on the grid of the scan. A mask stored in
    another order than the scan is no reason for a warning here: a brain has the same shape on both sides.

    Raises
    ------
    MaskError
        If it marks nothing, or has the voxels of the scan and the place of another.
    VisitError
        If the header of the scan cannot be used.
    """
    grid = headers.stored_grid(scan)
    stored = _stored(path, scan, grid)
    brain = np.asarray(stored.image.dataobj) > ONE_HALF
    if not brain.any():
        raise MaskError(f"{path.name} marks no brain: no voxel is above one half.", _ANOTHER_MASK, "mask-values")
    doubts = check_grid(path, Grid.of(stored.image), scan, grid)
    doubts = tuple(problem for problem in doubts if problem.code != "mask-side")
    return GivenMask(_as_mask(brain, stored.image), (*stored.problems, *doubts))


def check_preprocessed(path: Path, raw: Path) -> None:
    """Make sure that a preprocessed scan lies where the raw one does; their grids may differ.

    Raises
    ------
    VisitError
        If the middle of it lies outside the raw scan, or a header cannot be used.
    """
    grid = headers.stored_grid(raw)
    middle = headers.stored_grid(path).corners().mean(axis=0)
    if not _inside(grid, middle).all():
        message = f"{path.name} lies elsewhere than {raw.name}: the middle of it is outside the raw scan."
        raise VisitError(message, "Look at both; leave it out of --derivatives if it is of another scan.")


def check_in_brain(lesion: Image, brain: Image, name: str) -> tuple[Problem, ...]:
    """Compare a lesion drawn by hand with the brain it should lie in.

    Parameters
    ----------
    lesion, brain : Image
        Masks on one grid.
    name : str
        File name of the lesion mask.

    Raises
    ------
    MaskError
        If most of the lesion lies outside the brain, or most of the brain in the lesion.
    """
    marked, inside = np.asarray(lesion.dataobj) > 0, np.asarray(brain.dataobj) > 0
    total, common = np.count_nonzero(marked), np.count_nonzero(marked & inside)
    if common < MIN_INSIDE * total:
        raise MaskError(
            f"{1 - common / total:.0%} of the lesion in {name} lies outside the brain mask.",
            "Look at both; a better brain mask can be given with --derivatives.",
            "lesion-outside-brain",
        )
    if common > MAX_SHARE_OF_BRAIN * np.count_nonzero(inside):
        share = common / np.count_nonzero(inside)
        raise MaskError(f"{name} marks {share:.0%} of the brain, {_TOO_LARGE}", _ANOTHER_MASK, "mask-too-large")
    return lesion_outside_brain(lesion, brain, name)


def lesion_outside_brain(lesion: Image, brain: Image, what: str) -> tuple[Problem, ...]:
    """Warn if much of a lesion lies outside the brain mask: one of the two is wrong then.

    Parameters
    ----------
    lesion, brain : Image
        Masks on one grid.
    what : str
        What the lesion is of, for the sentence.
    """
    marked = np.asarray(lesion.dataobj) > 0
    total, outside = np.count_nonzero(marked), np.count_nonzero(marked & (np.asarray(brain.dataobj) == 0))
    if outside <= MAX_OUTSIDE_BRAIN * total:
        return ()
    message = f"{outside / total:.0%} of the lesion of {what} lies outside the brain mask: look at both."
    return (Problem("lesion-outside-brain", Severity.WARNING, message),)


def check_kept(drawn: Image, moved: Image, name: str) -> None:
    """Make sure that at least half of a lesion arrived on another grid.

    Parameters
    ----------
    drawn, moved : Image
        The mask before and after.
    name : str
        Its file name.

    Raises
    ------
    MaskError
        If most of it lies outside the grid, or was lost between its voxels.
    """
    before, after = volume_ml(drawn), volume_ml(moved)
    if after < MIN_INSIDE * before:
        raise MaskError(
            f"Of the lesion in {name}, {before:.3g} mL, {after:.3g} mL are left on the voxels of the scan.",
            "Look at where it lies; draw it on the scan itself.",
            "mask-grid",
        )


# ------------------------------------------------------------------------------------------------------ header

_ANOTHER_MASK = "Give another mask with --derivatives, or none."


def _stored(path: Path, scan: Path, grid: Grid) -> headers.Cleaned:
    """The file as it is stored, its problems naming it."""
    try:
        stored = headers.as_stored(path)
    except NoOrientationError as error:
        hint = _how_to_place(headers.stored_shape(path), scan, grid)
        raise MaskError(error.message, hint, "mask-side") from error
    except VisitError as error:
        raise MaskError(error.message, error.hint) from error
    problems = [
        Problem(problem.code, problem.severity, f"{path.name}: {problem.message}", problem.files)
        for problem in stored.problems
    ]
    return headers.Cleaned(stored.image, tuple(problems))


def _how_to_place(shape: Sequence[int], scan: Path, grid: Grid) -> str:
    """What to do about a mask whose header does not say where it lies."""
    if tuple(shape) == grid.shape:
        return f"It has the voxel grid of {scan.name}: if it was drawn on that scan, {_COPY_HEADER}."
    return (
        f"It has {_times(shape)} voxels, and {scan.name} has {_times(grid.shape)}: save it again from the program that "
        "it was drawn with, as a mask of the scan that is open there."
    )


_COPY_HEADER = (
    "copy the header of the scan onto it (fslcpgeom SCAN MASK of FSL, or CopyImageHeaderInformation SCAN MASK MASK "
    "1 1 1 of ANTs), and look at both"
)
_IF_DRAWN_ON_IT = f"If it was drawn on that scan, {_COPY_HEADER}. If not, resample it onto the scan."


def _as_mask(inside: np.ndarray, stored: Image) -> Image:
    """uint8 in RAS+ order."""
    image = images.to_ras(nib.Nifti1Image(inside.astype(np.uint8), stored.affine))
    return images.on_affine(np.ascontiguousarray(image.dataobj, dtype=np.uint8), image.affine)


# ------------------------------------------------------------------------------------------------------ values


def _lesion_of(values: np.ndarray, path: Path) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """Which voxels a mask means, bool, and how it says so if not by 0 and 1.

    Parameters
    ----------
    values : ndarray
        Finite.
    """
    lesion = values > ONE_HALF
    marked = values[values != 0]
    if not marked.size:
        message = f"{path.name} is empty: a brain without lesion."
        return lesion, (Problem("empty-mask", Severity.INFO, message, (path.name,)),)
    low, high = float(marked.min()), float(marked.max())
    if low < -OVERSHOOT:
        raise MaskError(f"{path.name} has negative values, down to {low:g}: {_NO_MASK}", _BINARY, "mask-values")
    if high <= ONE_HALF:
        message = f"{path.name} is nowhere above one half, from which a soft mask counts as lesion"
        raise MaskError(f"{message}; its highest value is {high:.3g}.", _BINARY, "mask-values")
    if high - low <= VALUE_TOLERANCE:
        return lesion, _other_value(high, path)
    if high <= 1 + OVERSHOOT:
        return lesion, (_soft(values, lesion, path),)
    if _numbers_lesions(values):
        message = f"{path.name} numbers its lesions, 1 to {high:g}: all of them count."
        return lesion, (_warning("mask-values", message, path),)
    raise MaskError(f"{path.name} has several values up to {high:g}: {_NO_MASK}", _BINARY, "mask-values")


_NO_MASK = "it is a scan or a label map, no lesion mask."
_BINARY = "Save it with 1 in the lesion and 0 elsewhere."


def _other_value(value: float, path: Path) -> tuple[Problem, ...]:
    """A note where the one value of a mask is none of those that masks have."""
    if any(abs(value - usual) <= VALUE_TOLERANCE for usual in (1, 255)):
        return ()
    message = f"{path.name} marks the lesion by the value {value:g}."
    return (Problem("mask-values", Severity.INFO, message, (path.name,)),)


def _soft(values: np.ndarray, lesion: np.ndarray, path: Path) -> Problem:
    """A warning that says how much of a soft mask counts."""
    share = np.count_nonzero(lesion) / np.count_nonzero(values > VALUE_TOLERANCE)
    message = (
        f"{path.name} has values between 0 and 1: those above one half count as lesion, "
        f"{share:.0%} of the voxels that are above 0."
    )
    return _warning("mask-values", message, path)


def _numbers_lesions(values: np.ndarray) -> bool:
    """Whether the values are whole numbers, and no two of them touch: a number for each lesion, and no label map."""
    if (values != np.round(values)).any():
        return False
    pieces, count = ndimage.label(values)
    indices = np.arange(1, count + 1)
    return np.array_equal(ndimage.minimum(values, pieces, indices), ndimage.maximum(values, pieces, indices))


# -------------------------------------------------------------------------------------------------------- size

_TOO_LARGE = "more than a lesion can have: is it a brain mask, a whole scan, or inverted?"


def _check_size(lesion: np.ndarray, stored: Image, path: Path) -> tuple[Problem, ...]:
    """Refuse what is larger than any lesion; warn of what is larger than usual."""
    volume = np.count_nonzero(lesion) * images.voxel_volume_mm3(stored) / 1000
    if volume > MAX_LESION_ML:
        raise MaskError(f"{path.name} marks {volume:.0f} mL, {_TOO_LARGE}", _ANOTHER_MASK, "mask-too-large")
    if volume > USUAL_LESION_ML:
        message = f"{path.name} marks {volume:.0f} mL, more than nearly every lesion has: look at it."
        return (_warning("mask-too-large", message, path),)
    return ()


# ------------------------------------------------------------------------------------------------ grid and side


def check_grid(path: Path, mask: Grid, scan_path: Path, scan: Grid) -> tuple[Problem, ...]:
    """Find out whether the header of a mask can be believed, from the grid of the scan.

    A mask of as many voxels as the scan was nearly always drawn on it, voxel by voxel. If its header then places it
    elsewhere, one of the two headers is wrong, unless a program stored the mask in another order.

    Raises
    ------
    MaskError
        If it has the voxels of the scan and the place of another.
    """
    apart = mask.to_ras().largest_gap_mm(scan.to_ras())
    if mask.largest_gap_mm(scan) <= GRID_TOLERANCE_MM or (mask.shape != scan.shape and apart <= GRID_TOLERANCE_MM):
        return ()
    if _is_transposed(mask, scan):
        raise MaskError(
            f"{path.name} has the header of {scan_path.name}, but {_times(mask.shape)} voxels instead of "
            f"{_times(scan.shape)}: its axes were exchanged, without a word in the header.",
            "Save it again with the axes of the scan.",
            "mask-side",
        )
    if mask.shape != scan.shape:
        return (other_grid(path, mask, scan_path),)
    same = f"{path.name} has the voxel grid of {scan_path.name} ({_times(scan.shape)})"
    if _is_unplaced(mask) and not _is_unplaced(scan):
        message = f"{same}, but its header does not say where it lies: its first voxel is at 0, 0, 0."
        raise MaskError(message, _IF_DRAWN_ON_IT, "mask-side")
    how = _how_turned(mask, scan)
    if not how:
        gap = f"{mask.largest_gap_mm(scan):.1f} mm"
        message = (
            f"{same}, but its header moves it by up to {gap}. It was believed; if the mask was drawn on that scan, "
            f"{_COPY_HEADER}."
        )
        return (_warning("mask-grid", message, path),)
    if apart > nib.affines.voxel_sizes(scan.affine).max():
        raise MaskError(
            f"{same}, but its header {how} and puts it {_distance_mm(mask, scan):.0f} mm away: the grid of the scan, "
            "the place of another.",
            _IF_DRAWN_ON_IT,
            "mask-side",
        )
    message = (
        f"{same}, but its header {how} ({_order(mask)}, the scan {_order(scan)}). Both headers were believed: look at "
        f"the side that the lesion is on. If it is the wrong one, {_COPY_HEADER}."
    )
    return (_warning("mask-side", message, path),)


def other_grid(path: Path, mask: Grid, scan: Path) -> Problem:
    """A warning that a mask is placed on a scan by its header alone."""
    sizes = " x ".join(f"{size:.3g}" for size in nib.affines.voxel_sizes(mask.affine))
    message = (
        f"{path.name} does not lie on the grid of {scan.name}, but on {_times(mask.shape)} voxels of {sizes} mm; "
        "its header is trusted to place it there."
    )
    return _warning("mask-grid", message, path)


def _is_unplaced(grid: Grid) -> bool:
    """Whether an affine is what programs write that know of none: no turn, and voxel 0 at the origin."""
    off_diagonal = grid.affine[:3, :3] - np.diag(np.diag(grid.affine[:3, :3]))
    return not off_diagonal.any() and not grid.affine[:3, 3].any()


def _is_transposed(mask: Grid, scan: Grid) -> bool:
    """Whether a mask has the affine of a scan and its voxel counts in another order, as SimpleITK's arrays have."""
    same_counts = sorted(mask.shape) == sorted(scan.shape) and mask.shape != scan.shape
    return same_counts and np.allclose(mask.affine, scan.affine, atol=VALUE_TOLERANCE)


def _how_turned(mask: Grid, scan: Grid) -> str:
    """How one header turns the voxels of the other, in words; empty if both lie the same way round."""
    turn = mask.affine[:3, :3] @ np.linalg.inv(scan.affine[:3, :3])
    left, _, right = np.linalg.svd(turn)
    turn = left @ right
    mirrored = np.linalg.det(turn) < 0
    degrees = np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    if not mirrored and degrees <= TURNED_DEGREES:
        return ""
    flipped = [name for name, cosine in zip(_WORLD_AXES, np.diag(turn), strict=True) if cosine < -0.7]
    if flipped:
        return f"exchanges {', and '.join(flipped)}"
    return "mirrors it" if mirrored else "turns it"


def _distance_mm(mask: Grid, scan: Grid) -> float:
    """Between the middles of two grids."""
    return float(np.linalg.norm(mask.corners().mean(axis=0) - scan.corners().mean(axis=0)))


def _order(grid: Grid) -> str:
    return "".join(nib.aff2axcodes(grid.affine))


# ------------------------------------------------------------------------------------------------------- place


def _check_place(lesion: np.ndarray, stored: Image, path: Path, scan: Path, grid: Grid) -> tuple[Problem, ...]:
    """Refuse a lesion most of which lies outside the scan; warn if a part does."""
    places = np.argwhere(lesion)
    if not len(places):
        return ()
    outside = 1 - _inside(grid, nib.affines.apply_affine(stored.affine, places)).mean()
    message = f"{outside:.0%} of the lesion in {path.name} lies outside {scan.name}"
    if outside > 1 - MIN_INSIDE:
        hint = "Resample it onto that scan, or give one that was drawn on it."
        raise MaskError(f"{message}.", hint, "mask-elsewhere")
    if outside > MAX_OUTSIDE_SCAN:
        return (_warning("mask-elsewhere", f"{message}: look at both.", path),)
    return ()


def _inside(grid: Grid, points: np.ndarray) -> np.ndarray:
    """Which world coordinates, shape (..., 3), lie in a voxel of a grid."""
    voxels = nib.affines.apply_affine(np.linalg.inv(grid.affine), points)
    return ((voxels > -0.5) & (voxels < np.array(grid.shape) - 0.5)).all(axis=-1)


def _warning(code: str, message: str, path: Path) -> Problem:
    return Problem(code, Severity.WARNING, message, (path.name,))


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
