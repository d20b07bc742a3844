"""Whether a scan shows the contrast that its name says: T1w, FLAIR or neither.

Asked in the pose, where a template tells what lies where. Two measures, neither of which knows an absolute grey value,
nor minds a lesion:

* *whiteness*: where deep white matter lies between the lower quarter of the brain (0) and its brightest twentieth (1).
  In a T1w nothing is brighter; in a FLAIR grey matter is, and whatever is wrong with white matter.
* *fluid*: the grey value of the ventricles over that of deep white matter: low in T1w and FLAIR, high in T2w.

Measured: whiteness 0.78 to 1.00 in all T1w at hand and 0.03 to 0.33 in their FLAIR, but up to 0.84 (1 in 500 above
0.80) in FLAIR of old people with strokes, whose white matter is bright and whose cortex is thin; fluid up to 1.2, and
over 2.3 in T2w. The limits leave their margin on the side of silence, since most names are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from bids_app.images import Image, data
from bids_app.preprocessing.templates import Template

#: A T1w is doubted below its whiteness, a FLAIR above.
T1W_WHITENESS, FLAIR_WHITENESS = 0.55, 0.80
#: Either is doubted above this ratio of fluid to white matter.
BRIGHT_FLUID = 1.5
#: Scans of one visit that correlate so well in the brain are one (0.6 was the most seen of a T1w and its FLAIR).
SAME = 0.95
#: What is measured are means over so many voxels along each axis, which takes off noise.
BLOCK = 2
#: Grey values of the template, where white matter is near 1.
WHITE_LEVEL, FLUID_LEVEL = 0.85, 0.40
#: How deep in mm the brain that is looked at begins, and the ventricles.
BRAIN_DEPTH_MM, VENTRICLES_DEPTH_MM = 3.0, 20.0
#: Cerebellum and stem, often cut off or in shadow, lie lower in MNI.
LOWEST_MM = -12.0
FEWEST_VOXELS = 300


@dataclass(frozen=True)
class Contrast:
    """How bright tissues are in one scan; NaN where too little of them is in the field of view."""

    whiteness: float
    fluid: float


@dataclass(frozen=True)
class Doubt:
    """What is odd about the contrast of scans.

    Attributes
    ----------
    code : str
        ``contrast-mismatch`` or ``same-scan``.
    suffixes : tuple of str
        The scans that it is about.
    sentence : str
    """

    code: str
    suffixes: tuple[str, ...]
    sentence: str


def doubts(brains: Mapping[str, Image], template: Template) -> tuple[Doubt, ...]:
    """What speaks against the names of the scans of one visit.

    Parameters
    ----------
    brains : mapping of str to Image
        By suffix, ``T1w`` or ``FLAIR``: brains in the pose, on the grid of the template, zero outside.
    template : Template
    """
    coarse = {suffix: _coarse(data(brain)) for suffix, brain in brains.items()}
    agreement = _correlation(*coarse.values()) if len(coarse) == 2 else 0.0
    places = _places(template)
    return judged({suffix: _measured(values, places) for suffix, values in coarse.items()}, agreement)


def measure(brain: Image, template: Template) -> Contrast:
    """Whiteness and fluid of a brain in the pose, on the grid of the template, zero outside."""
    return _measured(_coarse(data(brain)), _places(template))


def judged(contrasts: Mapping[str, Contrast], agreement: float = 0.0) -> tuple[Doubt, ...]:
    """The doubts that measurements give rise to.

    Parameters
    ----------
    contrasts : mapping of str to Contrast
        By suffix.
    agreement : float
        Correlation of the two scans inside the brain, where there are two.
    """
    if agreement > SAME:
        sentence = f"T1w and FLAIR are the same scan, or nearly (correlation {agreement:.2f}): one of them is a copy."
        return (Doubt("same-scan", tuple(contrasts), sentence),)
    t1w, flair = contrasts.get("T1w"), contrasts.get("FLAIR")
    if t1w and flair and t1w.whiteness < FLAIR_WHITENESS and flair.whiteness > max(t1w.whiteness, T1W_WHITENESS):
        sentence = (
            "T1w and FLAIR look exchanged: white matter is the brighter tissue in what is named FLAIR "
            f"({_compared(flair, t1w)}). Check the names; the results rest on them."
        )
        return (Doubt("contrast-mismatch", ("T1w", "FLAIR"), sentence),)
    found = ((suffix, _mismatch(suffix, contrast)) for suffix, contrast in contrasts.items())
    return tuple(Doubt("contrast-mismatch", (suffix,), sentence) for suffix, sentence in found if sentence)


def _mismatch(suffix: str, contrast: Contrast) -> str:
    """What speaks against the name of one scan; empty if nothing does."""
    if contrast.fluid > BRIGHT_FLUID:
        why = f"fluid is {contrast.fluid:.1f} times as bright as white matter, as in a T2w"
    elif suffix == "T1w" and contrast.whiteness < T1W_WHITENESS:
        why = f"white matter is darker than much of the brain (whiteness {contrast.whiteness:.2f}), as in a FLAIR"
    elif suffix == "FLAIR" and contrast.whiteness > FLAIR_WHITENESS:
        why = f"white matter is the brightest tissue (whiteness {contrast.whiteness:.2f}), as in a T1w"
    else:
        return ""
    return f"The scan is named {suffix}, but {why}. Check the name; the results rest on it."


def _compared(more: Contrast, less: Contrast) -> str:
    return f"whiteness {more.whiteness:.2f} against {less.whiteness:.2f}"


@dataclass(frozen=True)
class _Places:
    """Where to look, on the coarse grid: the upper brain, its deep white matter, its ventricles."""

    brain: np.ndarray
    white: np.ndarray
    fluid: np.ndarray


@cache
def _places(template: Template) -> _Places:
    levels = _coarse(data(template.t1w))
    inside = levels > 0
    sizes = BLOCK * np.array(template.t1w.header.get_zooms()[:3])
    depth = ndimage.distance_transform_edt(inside, sampling=sizes)
    height = template.t1w.affine[2, 3] + sizes[2] * np.arange(inside.shape[2])
    return _Places(
        brain=(depth > BRAIN_DEPTH_MM) & (height > LOWEST_MM),
        # eroded: brains of another size do not lie on the template's to the millimetre
        white=ndimage.binary_erosion(inside & (levels > WHITE_LEVEL), iterations=2) & (height > LOWEST_MM),
        fluid=(depth > VENTRICLES_DEPTH_MM) & (levels < FLUID_LEVEL),
    )


def _measured(values: np.ndarray, places: _Places) -> Contrast:
    there = values > 0
    brain, white, fluid = (values[place & there] for place in (places.brain, places.white, places.fluid))
    if min(brain.size, white.size) < FEWEST_VOXELS:
        return Contrast(np.nan, np.nan)
    level = float(np.median(white))
    low, high = np.percentile(brain, [25, 95])
    whiteness = float((level - low) / (high - low)) if high > low else np.nan
    return Contrast(whiteness, float(np.median(fluid)) / level if fluid.size >= FEWEST_VOXELS else np.nan)


def _coarse(values: np.ndarray) -> np.ndarray:
    """Means over the brain's voxels in blocks of `BLOCK` along each axis; zero where a block lies mostly outside."""
    inside = _blocks((values > 0).astype(np.float32))
    return np.where(inside > 0.5, _blocks(np.maximum(values, 0)) / np.maximum(inside, 0.5), 0)


def _blocks(values: np.ndarray) -> np.ndarray:
    """Means over blocks; what is left over at the end of an axis is left out."""
    parts = [size // BLOCK for size in values.shape]
    cut = values[tuple(slice(0, BLOCK * count) for count in parts)]
    return cut.reshape(parts[0], BLOCK, parts[1], BLOCK, parts[2], BLOCK).mean(axis=(1, 3, 5))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Of two scans where both show brain; 0 where one of them has no contrast."""
    both = (first > 0) & (second > 0)
    if np.count_nonzero(both) < FEWEST_VOXELS or min(np.ptp(first[both]), np.ptp(second[both])) == 0:
        return 0.0
    return float(np.corrcoef(first[both], second[both])[0, 1])
