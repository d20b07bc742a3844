"""What a brain loses beside a lesion: wide ventricles, wide sulci and a thin cortex, made in 3-d of a head's label map.

Each change is a displacement field of the head, so that the tissue is neither cut nor painted over. A voxel at some
distance from a border looks nearer to it, along a curve that never turns back: the border moves, tissue behind it is
compressed. Nothing of this is shared with `bids_app.anomaly.morphology`, which deforms grey values of single slices to
train with: what is measured here must not be what was learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bids_app.training import anatomy
from bids_app.training.anatomy import Head
from bids_app.training.synthesis.fields import sample

LEFT, RIGHT = -1, 1
"""Signs of x in RAS."""
LATERAL_VENTRICLES = {LEFT: (4, 5), RIGHT: (43, 44)}
CORTEX = {LEFT: (3,), RIGHT: (42,)}
WHITE = (2, 41)

DILATION_MM, WIDENING_MM = (2.0, 6.0), (1.0, 2.2)
"""How far the borders of the ventricles and of sulci move."""
THINNING = (0.4, 0.65)
"""Share of its thickness that the cortex loses."""
RADIUS_MM = (25.0, 45.0)
"""Of the region where sulci are wider or the cortex is thinner."""
MIDLINE_MM = 4.0
"""Changes of one side fade out over so much on both sides of the midline: the falx stays where it is."""
VENTRICLE_REACH, SULCUS_REACH = 3.0, 2.5
"""Tissue gives way over so many times the movement of the border (more than 0.86: else it would be folded)."""
LEAST_REACH_MM = {"ventricle": 12.0, "sulcus": 4.0}
DEPTH_MM = 10.0
"""From this far below the surface of the brain, ventricles push as they like; the surface itself stays."""
MARGIN_MM = 10
"""Fluid farther from a region than this does not matter to it."""
THICKEST_MM = 3.0
"""Between two gyri without fluid between them the distance to the next fluid says nothing of the cortex."""


@dataclass(frozen=True)
class Change:
    """Where the voxels of a changed head look.

    Attributes
    ----------
    head : Head
    look : ndarray
        ``(3, z, y, x)`` float32 on the grid of ``head.labels``: displacement (x, y, z) along the grid, mm. Grids are of
        1 mm.
    """

    head: Head
    look: np.ndarray

    def at(self, points: Tensor) -> Tensor:
        """Displacement, pose mm, at pose millimetres; both ``(1, z, y, x, 3)``."""
        to_pose = np.linalg.inv(self.head.pose_to_voxel)[:3, :3].astype(np.float32)
        along = sample(torch.from_numpy(self.look)[None], points, self.head.pose_to_voxel)
        return along.permute(0, 2, 3, 4, 1) @ torch.from_numpy(to_pose).T


@dataclass(frozen=True)
class Region:
    """A ball with soft edges in one hemisphere.

    Attributes
    ----------
    center : ndarray
        ``(3,)`` voxel indices (z, y, x).
    radius_mm : float
    side : int
        `LEFT` or `RIGHT`.
    """

    center: np.ndarray
    radius_mm: float
    side: int

    def weight(self, head: Head) -> np.ndarray:
        """1 in its middle, falling to 0 at its edge; on the grid of the labels."""
        axes = np.ogrid[tuple(slice(0, n) for n in head.labels.shape)]
        squared = sum((axis - middle) ** 2 for axis, middle in zip(axes, self.center, strict=True))
        inside = np.clip(1 - squared / self.radius_mm**2, 0, 1)
        # flat in the middle: the change is to be full in most of the region
        return np.minimum(1, 2 * inside).astype(np.float32) * side_weight(head, self.side)

    def box(self, head: Head) -> tuple[slice, ...]:
        """Where it lies on the grid of the labels, with what is near enough to matter for distances."""
        half = round(self.radius_mm) + MARGIN_MM
        return tuple(
            slice(max(0, middle - half), min(size, middle + half + 1))
            for middle, size in zip(self.center.tolist(), head.labels.shape, strict=True)
        )


def draw_region(head: Head, side: int, rng: np.random.Generator) -> Region:
    """A region around some place of the cortex."""
    places = np.argwhere(np.isin(head.labels, CORTEX[side]))
    return Region(places[rng.integers(len(places))], rng.uniform(*RADIUS_MM), side)


def side_weight(head: Head, side: int) -> np.ndarray:
    """1 in one hemisphere, 0 in the other, on the grid of the labels."""
    row = (head.pose_to_mni @ np.linalg.inv(head.pose_to_voxel))[0]
    z, y, x = np.ogrid[tuple(slice(0, n) for n in head.labels.shape)]
    right_mm = row[0] * x + row[1] * y + row[2] * z + row[3]
    return np.clip(0.5 + side * right_mm / (2 * MIDLINE_MM), 0, 1).astype(np.float32)


def dilate_ventricles(head: Head, sides: tuple[int, ...], mm: float) -> Change:
    """Lateral ventricles whose walls moved outwards.

    Parameters
    ----------
    head : Head
    sides : tuple of int
        `LEFT`, `RIGHT` or both.
    mm : float
        How far their walls move.
    """
    distance = signed_distance(np.isin(head.labels, sum((LATERAL_VENTRICLES[side] for side in sides), ())))
    fluid_or_outside = np.isin(head.labels, anatomy.EXTERNAL_CSF) | ~anatomy.brain_of(head.labels)
    depth = ndimage.distance_transform_edt(~fluid_or_outside) / DEPTH_MM
    amount = mm * sum(side_weight(head, side) for side in sides) * np.clip(depth, 0, 1)
    reach = max(LEAST_REACH_MM["ventricle"], VENTRICLE_REACH * mm)
    return Change(head, _towards(distance, grown(distance, amount, reach)))


def widen_sulci(head: Head, region: Region, mm: float) -> Change:
    """Sulci of a region whose walls moved apart by `mm` each: the gyri between them shrank."""
    box = region.box(head)
    labels = head.labels[box]
    distance = signed_distance(np.isin(labels, (*anatomy.EXTERNAL_CSF, anatomy.FAR_CSF)))
    reach = max(LEAST_REACH_MM["sulcus"], SULCUS_REACH * mm)
    # sulci are sheets of little more than a millimetre: hardly anything in them can be stretched
    moved = grown(distance, mm * region.weight(head)[box], reach, band=0.75, edge=0.5)
    # beyond the fluid lies the skull, which stays
    return Change(head, _placed(_towards(distance, moved * anatomy.brain_of(labels)), box, head))


def thin_cortex(head: Head, region: Region, share: float) -> Change:
    """Cortex of a region that lost a share of its thickness: white matter grew into it, the surface stayed."""
    box = region.box(head)
    cortex, white = (np.isin(head.labels[box], labels) for labels in (sum(CORTEX.values(), ()), WHITE))
    distance = signed_distance(white)
    outwards = np.clip(signed_distance(~(cortex | white)), 0, None)
    thickness = np.clip(np.clip(distance, 0, None) + outwards, 1.0, THICKEST_MM)
    amount = share * region.weight(head)[box] * thickness
    above = amount * np.clip((thickness - distance) / np.maximum(thickness - amount, 0.1), 0, 1)
    moved = np.where(distance < amount, _stretched(distance, amount), above)
    return Change(head, _placed(_towards(distance, moved * (cortex | white)), box, head))


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Millimetres to the border of a mask on a grid of 1 mm, negative inside of it, float32."""
    outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
    return np.where(mask, 0.5 - inside, outside - 0.5).astype(np.float32)


def grown(distance: np.ndarray, amount: np.ndarray, reach: float, band: float = 1.5, edge: float = 1.0) -> np.ndarray:
    """How much nearer to something each voxel looks if that something has grown by an amount.

    Parameters
    ----------
    distance : ndarray
        See `signed_distance`.
    amount : ndarray
        Of the same shape, mm, 0 or more.
    reach : float
        Tissue behind the new border has moved away by the amount, and by less and less over so many mm.
    band, edge : float
        Of what has grown, the part between these depths is stretched over the ground that it gained, mm: its inside
        stays, and its edge stays as sharp as it was.
    """
    relaxed = amount * np.exp(-((np.maximum(distance - amount, 0) / reach) ** 2))
    return np.where(distance < amount, _stretched(distance, amount, band, edge), relaxed)


def _stretched(distance: np.ndarray, amount: np.ndarray, band: float = 1.5, edge: float = 1.0) -> np.ndarray:
    return amount * np.clip((distance + band) / (amount + band - edge), 0, 1)


def _towards(distance: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Displacement field (x, y, z) of so much along the way to the border.

    Half-way between two borders there is no nearer one: there the smooth distance is flat, and the field fades.
    """
    slope = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.0)))
    steepness = np.sqrt((slope**2).sum(axis=0))
    field = -slope / np.maximum(steepness, 0.5) * moved
    return np.stack([ndimage.gaussian_filter(axis, 0.7) for axis in field[::-1]]).astype(np.float32)


def _placed(field: np.ndarray, box: tuple[slice, ...], head: Head) -> np.ndarray:
    """A field of a part of the labels' grid on all of it."""
    whole = np.zeros((3, *head.labels.shape), np.float32)
    whole[:, *box] = field
    return whole
