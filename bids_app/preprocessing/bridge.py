"""Transforms to one standard space made to serve another: through the template of the first, if it is on this machine.

fMRIPrep leads to MNI152NLin2009cAsym, this App writes MNI152NLin2009aSym: the two templates are registered with each
other once, and what brings the scan to the one brings it to the other.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from bids_app.images import data, voxel_volume_mm3, world
from bids_app.preprocessing import deformable
from bids_app.preprocessing.itk import RAS_TO_LPS, to_itk
from bids_app.preprocessing.normalization import BOX_MARGIN_MM, normalize, write_stored
from bids_app.preprocessing.templates import Template, load_template
from bids_app.preprocessing.transforms import read_itk

#: Voxels of the field that is computed, as those of the registrations of this App.
FIELD_MM = 2.0


@dataclass(frozen=True)
class Bridge:
    """What carries points of one template to the other (pull, ITK), and whether it can be believed."""

    pull: sitk.Transform
    usable: bool


@cache
def between(source: str, target: str) -> Bridge:
    """The registration of one template with another, made once a process.

    Returns
    -------
    Bridge
        ``pull`` carries points of `target` to `source`: it brings images from `source` to `target`.
    """
    moving, fixed = load_template(source), load_template(target)
    with tempfile.TemporaryDirectory() as folder:
        found = normalize(moving.t1w, moving.brain_mask, None, fixed, np.eye(4), Path(folder))
        if not found.check.usable:
            return Bridge(sitk.Transform(3, sitk.sitkIdentity), False)
        return Bridge(read_itk(found.forward), True)


def bridged(to_source: Path, source: str, target: str, folder: Path) -> tuple[Path, Path] | None:
    """Transforms between a scan and `target`, from one that brings the scan to `source`; None if there is no way.

    Parameters
    ----------
    to_source : Path
        ITK file that brings images of the scan to `source` (pull).
    folder : Path
        Where the two transforms are written.

    Returns
    -------
    forward, inverse : Path
        From the scan to `target`, and back; on the grid, and in the form, of those that this App makes itself.

    Raises
    ------
    VisitError
        If the file cannot be read.
    """
    bridge = between(source, target)
    if not bridge.usable:
        return None
    # ITK applies the last transform of a list first: from the target to the source, and on to the scan
    pull = sitk.CompositeTransform([read_itk(to_source), bridge.pull])
    template = load_template(target)
    affine = _affine_part(pull, template)
    field = _field_beyond(pull, affine, template)
    matrix = np.linalg.inv(RAS_TO_LPS @ affine @ RAS_TO_LPS)
    return write_stored(matrix, field, folder)


def _affine_part(pull: sitk.Transform, template: Template) -> np.ndarray:
    """The affine matrix, LPS, that is nearest to a transform in the brain of the template."""
    inside = np.argwhere(data(template.brain_mask) > 0)
    every = max(1, round(64 / voxel_volume_mm3(template.brain_mask)))
    points = world(template.brain_mask, inside[::every]) @ RAS_TO_LPS[:3, :3]
    moved = np.array([pull.TransformPoint(point) for point in points.tolist()])
    solution, *_ = np.linalg.lstsq(np.c_[points, np.ones(len(points))], moved, rcond=None)
    affine = np.eye(4)
    affine[:3] = solution.T
    return affine


def _field_beyond(pull: sitk.Transform, affine: np.ndarray, template: Template) -> sitk.Image:
    """What a transform does beyond its affine part, around the brain of the template: points are displaced first."""
    grid = _grid(template)
    total = sitk.TransformToDisplacementField(
        pull, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
    )
    moved = sitk.GetArrayFromImage(total)
    indices = np.indices(moved.shape[:3])[::-1].reshape(3, -1)
    direction = np.reshape(grid.GetDirection(), (3, 3)) * grid.GetSpacing()
    points = (direction @ indices + np.array(grid.GetOrigin())[:, None]).T.reshape(moved.shape)
    back = np.linalg.inv(affine)
    displaced = (points + moved) @ back[:3, :3].T + back[:3, 3]
    return deformable.unfolded(deformable.vectors(displaced - points, grid))


def _grid(template: Template) -> sitk.Image:
    """An empty image of `FIELD_MM` around the brain of the template, with a margin in which a field fades."""
    mask = to_itk(template.brain_mask, np.uint8)
    spacing = np.array(mask.GetSpacing())
    boxes = sitk.LabelShapeStatisticsImageFilter()
    boxes.Execute(mask)
    box = np.array(boxes.GetBoundingBox(1))
    start = mask.TransformContinuousIndexToPhysicalPoint((box[:3] - BOX_MARGIN_MM / spacing).tolist())
    size = np.ceil((box[3:] * spacing + 2 * BOX_MARGIN_MM) / FIELD_MM).astype(int)
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetOrigin(start)
    grid.SetSpacing([FIELD_MM] * 3)
    grid.SetDirection(mask.GetDirection())
    return grid
