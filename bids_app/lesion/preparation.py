"""From scans to the array a network sees, and from its logits back to the scan's grid.

The steps and numbers are those of nnU-Net's default preprocessing: axes in the order of the dataset's reader, crop to
the non-zero box, normalise, resample (Isensee et al., Nature Methods 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from bids_app import images
from bids_app.errors import VisitError
from bids_app.images import Image

#: (volume (c, x, y, z), new shape, spacing before, spacing after) to the resampled volume.
Resampler = Callable[[torch.Tensor, Sequence[int], Sequence[float], Sequence[float]], torch.Tensor]

#: (one channel, zero inside and -1 outside the non-zero mask) to the normalised channel.
Normalizer = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """How a model wants its scans.

    Attributes
    ----------
    axes : tuple of int
        The stored axes x, y, z (0, 1, 2) in the order the network sees them; (2, 1, 0) is nnU-Net's usual order.
    reorient : bool
        Whether scans are brought to RAS+ first (as nnU-Net's ``...WithReorient`` readers do); otherwise the voxels
        are taken as they are stored.
    spacing : tuple of float
        Target spacing in mm along the network's axes; two entries for a 2-d network, which keeps its slices.
    normalizers : tuple of callable
        One a channel.
    needs_mask : bool
        Whether a normalizer wants the non-zero mask.
    resample_scan, resample_logits : callable
    """

    axes: tuple[int, int, int]
    reorient: bool
    spacing: tuple[float, ...]
    normalizers: tuple[Normalizer, ...]
    needs_mask: bool
    resample_scan: Resampler
    resample_logits: Resampler


@dataclass(frozen=True)
class NetworkInput:
    """A network's input, and what is needed to bring its output back.

    Attributes
    ----------
    volume : Tensor, shape (channels, x, y, z), float32
        Along the network's axes.
    grid : Image
        The scan as it was put in (after reorientation, if the recipe asks for it).
    box : tuple of slice
        Where the non-zero box lies, along the network's axes.
    spacing_scan, spacing_network : tuple of float
        mm along the network's axes.
    """

    volume: torch.Tensor
    grid: Image
    box: tuple[slice, ...]
    spacing_scan: tuple[float, ...]
    spacing_network: tuple[float, ...]

    @property
    def box_shape(self) -> tuple[int, ...]:
        """Shape of the non-zero box in voxels of the scan."""
        return tuple(side.stop - side.start for side in self.box)


def prepare(scans: Sequence[Image], recipe: Recipe) -> NetworkInput:
    """A network's input from the scans of a visit.

    Parameters
    ----------
    scans : sequence of Image
        One a channel, on one grid, zero outside the brain.

    Raises
    ------
    ValueError
        If the scans do not share a grid.
    VisitError
        If they are empty.
    """
    if any(not images.same_grid(scans[0], scan) for scan in scans[1:]):
        raise ValueError("the channels of a visit must lie on one grid")
    oriented = [images.to_ras(scan) if recipe.reorient else scan for scan in scans]
    channels = np.stack([images.data(scan).transpose(recipe.axes) for scan in oriented])
    box = _nonzero_box(channels)
    channels = channels[(slice(None), *box)].copy()
    outside = _outside(channels) if recipe.needs_mask else None
    for index, normalize in enumerate(recipe.normalizers):
        channels[index] = normalize(channels[index], outside)
    zooms = oriented[0].header.get_zooms()
    spacing = tuple(float(zooms[axis]) for axis in recipe.axes)
    target = (*spacing[: 3 - len(recipe.spacing)], *recipe.spacing)
    shape = [max(1, round(a / b * size)) for a, b, size in zip(spacing, target, channels.shape[1:], strict=True)]
    volume = recipe.resample_scan(torch.from_numpy(channels), shape, spacing, target)
    return NetworkInput(volume, oriented[0], box, spacing, target)


def to_box(logits: torch.Tensor, prepared: NetworkInput, recipe: Recipe) -> torch.Tensor:
    """Logits, shape (k, x, y, z), resampled to the voxels of the scan inside the non-zero box."""
    return recipe.resample_logits(logits, prepared.box_shape, prepared.spacing_network, prepared.spacing_scan)


def to_scan(values: torch.Tensor, prepared: NetworkInput, recipe: Recipe, scan: Image) -> Image:
    """Values inside the non-zero box, shape (x, y, z), as an image on the grid of the scan, zero elsewhere."""
    shape = [prepared.grid.shape[axis] for axis in recipe.axes]
    full = np.zeros(shape, dtype=np.float32)
    full[prepared.box] = values.numpy()
    stored = images.like(prepared.grid, np.ascontiguousarray(full.transpose(np.argsort(recipe.axes))))
    if recipe.reorient:
        back = nib.orientations.ornt_transform(nib.io_orientation(stored.affine), nib.io_orientation(scan.affine))
        stored = stored.as_reoriented(back)
    return images.like(scan, images.data(stored))


def _nonzero_box(channels: np.ndarray) -> tuple[slice, ...]:
    """Smallest box that holds every non-zero voxel of any channel."""
    nonzero = (channels != 0).any(axis=0)
    if not nonzero.any():
        raise VisitError("The brain image is empty: all its voxels are zero.", "Check the scan and its brain mask.")
    box = []
    for axis in range(nonzero.ndim):
        line = np.flatnonzero(nonzero.any(axis=tuple(other for other in range(nonzero.ndim) if other != axis)))
        box.append(slice(int(line[0]), int(line[-1]) + 1))
    return tuple(box)


def _outside(channels: np.ndarray) -> np.ndarray:
    """-1 outside the non-zero mask, whose holes are filled, and 0 inside: nnU-Net's code for 'not brain'."""
    zero, _ = ndimage.label((channels == 0).all(axis=0))
    # background is what touches the border; labelling is many times faster than filling holes by dilation
    faces = [zero[side] for axis in range(3) for side in (_face(axis, 0), _face(axis, -1))]
    reached = np.zeros(zero.max() + 1, dtype=bool)
    reached[np.concatenate([np.unique(face) for face in faces])] = True
    reached[0] = False
    return np.where(reached[zero], np.int8(-1), np.int8(0))


def _face(axis: int, index: int) -> tuple:
    """Index of one face of a volume."""
    return (slice(None),) * axis + (index,)
