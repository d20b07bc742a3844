"""Standard-space templates: one from nilearn's package, the others from the TemplateFlow cache. Never a download.

The cache is read as plain files: ``templateflow.api.get`` would fetch what is missing, which a run must not do, and its
index holds empty placeholder files for everything that was never fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_app.environment import user_cache
from bids_app.errors import UnavailableError
from bids_app.images import Image, data, like, to_ras
from bids_app.settings import DEFAULT_SPACE, NATIVE_SPACE

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
        Naming the first template that is missing, where it was looked for, and how to get it.
    """
    for space in spaces:
        if space not in (DEFAULT_SPACE, NATIVE_SPACE):
            _cached_files(space)


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
    head, mask = _cached_files(space)
    t1w = to_ras(nib.load(head))
    return _template(space, t1w, like(t1w, data(t1w) > 0) if mask is None else to_ras(nib.load(mask)))


def templateflow_home() -> Path:
    """Folder of the TemplateFlow cache: the variable TEMPLATEFLOW_HOME, else where templateflow itself puts it."""
    return Path(os.environ.get("TEMPLATEFLOW_HOME") or user_cache() / "templateflow")


def _cached_files(space: str) -> tuple[Path, Path | None]:
    """T1w and mask of a cached template; the mask is None where the T1w is of the brain alone."""
    stem = templateflow_home() / f"tpl-{space}" / f"tpl-{space}_res-01"
    brain, head, mask = (Path(f"{stem}_{name}.nii.gz") for name in ("desc-brain_T1w", "T1w", "desc-brain_mask"))
    if _is_whole(head) and _is_whole(mask):
        return head, mask
    if _is_whole(brain):
        return brain, None
    missing = mask if _is_whole(head) else head
    fetch = (
        f"from templateflow.api import get; get('{space}', resolution=1, suffix='T1w', desc=None); "
        f"get('{space}', resolution=1, suffix='mask', desc='brain')"
    )
    raise UnavailableError(
        f"The template of the output space {space} is not on this machine: {missing} is missing.",
        f'Where there is a network, run: TEMPLATEFLOW_HOME={templateflow_home()} python -c "{fetch}"; '
        "then set TEMPLATEFLOW_HOME to that folder (in a container, bind it too).",
    )


def _is_whole(path: Path) -> bool:
    """Whether a cached file was really fetched (TemplateFlow's index is made of empty files)."""
    return path.is_file() and path.stat().st_size > 0


def _template(space: str, t1w: Image, mask: Image) -> Template:
    """Mask, scale and fill in the two images of a template."""
    inside = ndimage.binary_fill_holes(data(mask) > 0)
    values = np.where(inside, np.maximum(data(t1w), 0), 0)
    values /= np.percentile(values[inside], REFERENCE_PERCENTILE)
    return Template(space, like(t1w, values.astype(np.float32)), like(t1w, inside))
