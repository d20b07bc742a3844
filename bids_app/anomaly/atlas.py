"""Names for places in the box: the structures of FreeSurfer's ``aseg``, from label maps of healthy heads."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from bids_app import images
from bids_app.images import Image

LABELS = Path(__file__).parents[1] / "data" / "atlas" / "aseg.nii.gz"
"""Made by ``python -m bids_app.training.atlas`` from SynthSeg's label maps 01 to 12 (Apache-2.0)."""

_SIDED = {
    (2, 41): "cerebral white matter",
    (3, 42): "cerebral cortex",
    (4, 43): "lateral ventricle",
    (5, 44): "inferior lateral ventricle",
    (7, 46): "cerebellar white matter",
    (8, 47): "cerebellar cortex",
    (10, 49): "thalamus",
    (11, 50): "caudate",
    (12, 51): "putamen",
    (13, 52): "pallidum",
    (17, 53): "hippocampus",
    (18, 54): "amygdala",
    (26, 58): "accumbens",
    (28, 60): "ventral diencephalon",
}
_MIDDLE = {14: "third ventricle", 15: "fourth ventricle", 16: "brain stem", 24: "cerebrospinal fluid"}

STRUCTURES = {
    label: f"{side} {name}"
    for labels, name in _SIDED.items()
    for side, label in zip(("left", "right"), labels, strict=True)
} | _MIDDLE
"""Label of the image, and name."""


@cache
def labels() -> Image:
    """Labels of `STRUCTURES` on the grid of `slices.box`; 0 elsewhere."""
    return images.load(LABELS)
