"""Grey values that a scanner did not measure, found by their distance from all others: wrapped, spiked, below 0.

All of it happens before the brain is looked for, so that brain extraction, bias correction, registrations and networks
see the same values. A scan without such values comes out as it went in, bit for bit. The limits were set on the scans
that may be fitted to (docs/decisions.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_app.wording import counted, was

#: Distances from the background are compared with that of bright tissue: this percentile of what is no background.
TISSUE_PERCENTILE = 90.0
#: What is closer to the background than this share of bright tissue is background, or as dark as it.
DARK = 0.1
#: No ordinary voxel is farther from the background than so many times bright tissue (3.8 was the most seen: vessels
#: with contrast agent); on the side of the background where no tissue is, than this (0.2: splines ring around a brain).
ORDINARY, RINGING = 4.5, 1.0
#: Voxels beyond that are extreme if they begin at so many times the farthest ordinary one (1.2 was the largest gap
#: seen between two grey values), or if one of them is so far.
GAP, EXTREME = 2.0, 8.0
#: Outliers are few: where more of a scan is far from the rest, the rest may be what is odd.
MAX_OUTLIERS = 0.03
#: A scan has a sign if more of its tissue than this lies below 0 (0.5 % is what splines leave).
MAX_NEGATIVE = 0.05
#: What an unsigned type could not hold is noise around 0: no larger than this share of the largest value.
NOISE = 0.25
#: Voxels that percentiles are taken of, evenly spread: more do not change them by a hundredth.
SAMPLES = 1_000_000


@dataclass(frozen=True)
class Mended:
    """Voxels, and what was done to them.

    Attributes
    ----------
    values : array of shape (x, y, z)
    sentence : str
        Empty if nothing was done; `values` is then the very array that came in.
    """

    values: np.ndarray
    sentence: str = ""


def unwrapped(stored: np.ndarray) -> Mended:
    """Integers of 8 or 16 bits, read with the other meaning of their first bit where that joins them up again.

    A number too large for a signed type is stored as a negative one: bright fat becomes the blackest black, while the
    air around it is 0 or more. One below 0 in an unsigned type becomes the brightest white: noise of air, never far
    below 0. Either breaks the picture where it happens, in steps to the neighbours as high as the type is wide, which
    are small if the bit is read the other way.

    Parameters
    ----------
    stored : array of shape (x, y, z)
        As in the file, before scaling.
    """
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        return Mended(stored)
    width, signed = 1 << 8 * stored.dtype.itemsize, stored.dtype.kind == "i"
    first_bit = stored < 0 if signed else stored >= width // 2
    if not first_bit.any() or first_bit.all():
        return Mended(stored)
    if signed:
        likely = background_of(stored) >= 0
    else:
        likely = width - int(stored[first_bit].min()) <= NOISE * int(stored[~first_bit].max())
    shift = width if signed else -width
    if not likely or not _is_smoother(stored, first_bit, shift):
        return Mended(stored)
    values = stored.astype(np.int32)
    values[first_bit] += shift
    count = np.count_nonzero(first_bit)
    kind = "too large for a signed type" if signed else "below 0 in an unsigned type"
    return Mended(values, f"{counted(count, 'voxel')} had wrapped round, being {kind}, and {was(count)} put right.")


def _is_smoother(stored: np.ndarray, chosen: np.ndarray, shift: int) -> bool:
    """Whether the steps between chosen voxels and neighbours that are not become smaller if the former are shifted."""
    found = other = 0.0
    for axis in range(stored.ndim):
        first, last = [slice(None)] * stored.ndim, [slice(None)] * stored.ndim
        first[axis], last[axis] = slice(None, -1), slice(1, None)
        border = chosen[tuple(first)] != chosen[tuple(last)]
        steps = stored[tuple(last)][border].astype(np.int64) - stored[tuple(first)][border]
        moved = np.where(chosen[tuple(last)][border], steps + shift, steps - shift)
        found += float(np.abs(steps).sum())
        other += float(np.abs(moved).sum())
    return other < found


def clipped(values: np.ndarray) -> Mended:
    """Clip what is extreme to the farthest ordinary grey value.

    Robust against a single voxel of any value as against some thousand that are saturated: how far is too far is told
    by percentiles of the tissue. Fat, vessels, lesions and contrast agent are ordinary.

    Parameters
    ----------
    values : array of shape (x, y, z)
        Finite; T1w or FLAIR, with skull or without, in any unit and on any background.
    """
    background = background_of(values)
    distance = values - background
    tissue = _tissue_distance(distance)
    if tissue == 0:
        return Mended(values)
    if distance.max() <= ORDINARY * tissue and distance.min() >= -RINGING * tissue:
        return Mended(values)  # nearly every scan ends here
    above, below = (_extremes(side * distance, tissue) for side in (1, -1))
    count = np.count_nonzero(above) + np.count_nonzero(below)
    if count == 0 or count > MAX_OUTLIERS * np.count_nonzero(distance):
        return Mended(values)
    ordinary = values[~(above | below)]
    least, most = float(ordinary.min()), float(ordinary.max())
    seen = [f"{value:g}" for value, there in ((values.min(), below.any()), (values.max(), above.any())) if there]
    sentence = (
        f"{counted(count, 'voxel')} {was(count)} far from all others (up to {' and '.join(seen)}; "
        f"the others end at {least:g} and {most:g}) and {was(count)} clipped."
    )
    return Mended(np.clip(values, least, most), sentence)


def _extremes(distance: np.ndarray, tissue: float) -> np.ndarray:
    """Voxels on one side of the background that are extreme, or that a gap parts from the ordinary ones; else none."""
    there = np.count_nonzero(distance > DARK * tissue) > MAX_NEGATIVE * np.count_nonzero(distance)
    beyond = distance > (ORDINARY if there else RINGING) * tissue
    if not beyond.any():
        return beyond
    farthest = float(distance[~beyond].max(initial=0.0))
    far = distance[beyond]
    return beyond & (far.max() > EXTREME * tissue or far.min() >= GAP * farthest)


def raised(values: np.ndarray) -> Mended:
    """Shift a scan much of whose tissue is below 0, so that air is 0 and tissue above it.

    Standardised scans are like that, those of which a mean was subtracted, and those with a sign. A darker background
    becomes 0, and all else moves along; a brain below or around its background of 0 is moved alone.
    """
    if values.min() >= 0:
        return Mended(values)  # nearly every scan ends here
    background = background_of(values)
    distance = values - background
    floor = -DARK * _tissue_distance(distance)
    there = distance != 0
    below = np.count_nonzero(there & (values < floor))
    if background >= floor and below <= MAX_NEGATIVE * np.count_nonzero(there):
        return Mended(values)
    lowest = float(np.percentile(values, 0.1))
    if background - lowest <= -floor:
        return Mended(values - np.float32(background), _raised_by(-background))
    if _border_share(values, background) > 0.5:  # cut out, and put on a constant
        inside = ndimage.binary_fill_holes(there)
        least, most = float(values[inside].min()), float(values[inside].max())
        shift = 0.01 * (most - least) - least  # tissue stays different from the background
        return Mended(np.where(inside, values + np.float32(shift), np.float32(0)), _raised_by(shift))
    return Mended(values - np.float32(lowest), _raised_by(-lowest))


def _raised_by(shift: float) -> str:
    return f"Much of the scan was below 0; {shift:g} was added to its grey values."


def background_of(values: np.ndarray) -> float:
    """Grey value around the head: the median of the six faces of the image."""
    return float(np.median(_border(values)))


def _border_share(values: np.ndarray, level: float) -> float:
    """Share of the faces that has one grey value."""
    return float(np.mean(_border(values) == level))


def _border(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.take(values, index, axis).ravel() for axis in range(3) for index in (0, -1)])


def _tissue_distance(distance: np.ndarray) -> float:
    """How far bright tissue is from the background, up or down; 0 if there is nothing but background."""
    size = np.abs(distance.ravel(order="K")[:: max(1, distance.size // SAMPLES)])
    size = size[size != 0]
    if size.size == 0:
        return 0.0
    return float(np.percentile(size[size > DARK * np.percentile(size, TISSUE_PERCENTILE)], TISSUE_PERCENTILE))
