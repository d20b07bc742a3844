"""Standard-space templates: one from nilearn's package, the others from the TemplateFlow cache. Never a download."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_app.images import Image, data, like, to_ras
from bids_app.settings import DEFAULT_SPACE, NATIVE_SPACE
from bids_app.templateflow_cache import cached_files

#: Brain intensities are divided by this percentile of the brain, so that all templates are alike.
REFERENCE_PERCENTILE = 99


@dataclass(frozen=True)
class Template:
    """A standard space.

    Attributes
    ----------
    space : str
        Its TemplateFlow name.
    t1w : Image
        float32 T1w of the brain alone, 1 mm, RAS, background 0, 99th percentile of the brain 1. For the default space
        the grid is 197 x 233 x 189 with its first voxel at (-98, -134, -72) mm, that of ATLAS v2.0.
    brain_mask : Image
        uint8, on the same grid.
    """

    space: str
    t1w: Image
    brain_mask: Image


def check_spaces(spaces: Iterable[str]) -> None:
    """Make sure, before any work, that every standard space can be loaded.

    Raises
    ------
    UnavailableError
        Naming the first template that is missing or unknown, and what to do.
    """
    for space in spaces:
        if space not in (DEFAULT_SPACE, NATIVE_SPACE):
            cached_files(space)


@cache
def load_template(space: str) -> Template:
    """The template of a standard space, loaded once a process.

    Raises
    ------
    UnavailableError
        If it is not on this machine.
    """
    if space == DEFAULT_SPACE:
        from nilearn.datasets import load_mni152_template

        brain = load_mni152_template(resolution=1)
        return _template(space, brain, like(brain, data(brain) > 0))
    head, mask = cached_files(space)
    t1w = to_ras(nib.load(head))
    return _template(space, t1w, like(t1w, data(t1w) > 0) if mask is None else to_ras(nib.load(mask)))


def _template(space: str, t1w: Image, mask: Image) -> Template:
    """Mask, scale and fill in the two images of a template."""
    inside = ndimage.binary_fill_holes(data(mask) > 0)
    values = np.where(inside, np.maximum(data(t1w), 0), 0)
    values /= np.percentile(values[inside], REFERENCE_PERCENTILE)
    return Template(space, like(t1w, values.astype(np.float32)), like(t1w, inside))
