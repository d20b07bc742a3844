"""How alike two registered images are, where they lie and in other poses.

How similar a brain and a template are depends on the contrast, the slices and the patient: a correct alignment of one
scan reaches less than a wrong one of another, so no fixed number tells them apart. What does is the scan itself, moved
a little (by `NEAR` millimetres or degrees about each axis) and turned far (by 90 and 180 degrees): a correct alignment
is better than all of these, a wrong one is not.

*Similarity* is the squared correlation within windows of 12 mm, averaged over the tissue. It does not care whether grey
matter is darker (T1w) or brighter (FLAIR) than white matter, nor about bias fields, and no lesion is large enough to
spoil it alone. *Overlap* is measured where tissue is known to be: how much of the tissue lies in the scan's brain mask,
and how much of that mask lies in the brain. The fluid around the brain belongs to neither, so that a mask may stop at
the cortex or at the skull. Left for right is invisible in a symmetric template.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_app.images import Image
from bids_app.preprocessing.checks import FAR_DEGREES, NEAR, Measured
from bids_app.preprocessing.itk import RAS_TO_LPS, pull_transform, to_itk
from bids_app.preprocessing.linear import translation

#: Images are compared on voxels of this size, in windows of three voxels.
COMPARE_MM = 4.0
WINDOW_VOXELS = 3
#: Windows flatter than this share of the brain's variance say nothing.
FLAT = 1e-4
ROUNDING = 1e-9
#: A moved mask holds a voxel if it covers this much of it.
COVERED = 0.5


@dataclass(frozen=True)
class Target:
    """What scans are brought to, ready to be compared with.

    Attributes
    ----------
    image : sitk.Image
        On voxels of `COMPARE_MM`.
    brain, tissue : ndarray
        ``(x, y, z)`` bool, on that grid: the brain with the fluid around it, and what of it holds tissue for certain.
    """

    image: sitk.Image
    brain: np.ndarray
    tissue: np.ndarray

    @cached_property
    def values(self) -> np.ndarray:
        """Grey values of the image."""
        return _array(self.image)

    @cached_property
    def around(self) -> np.ndarray:
        """The brain and a voxel around it: masks follow the skull, the brain, or the cortex."""
        return ndimage.binary_dilation(self.brain)

    @cached_property
    def within(self) -> np.ndarray:
        """The brain without its outermost voxels."""
        return ndimage.binary_erosion(self.brain)

    @cached_property
    def centre(self) -> np.ndarray:
        """Centre of the brain, world mm (RAS)."""
        return self.centre_of(self.brain)

    def centre_of(self, mask: np.ndarray) -> np.ndarray:
        """Centre of a mask on this grid, world mm (RAS); that of the image for an empty one."""
        voxel = np.argwhere(mask).mean(axis=0) if mask.any() else (np.array(mask.shape) - 1) / 2
        lps = self.image.TransformContinuousIndexToPhysicalPoint(voxel.tolist())
        return RAS_TO_LPS[:3, :3] @ lps


@dataclass(frozen=True)
class Candidate:
    """A scan that was registered to a `Target`.

    Attributes
    ----------
    image : sitk.Image
        On voxels of about `COMPARE_MM`, zero outside the brain, or a whole head.
    mask : sitk.Image
        Where it shows the brain, or all it shows: 0 to 1.
    healthy : sitk.Image or None
        Where it may be looked at: 0 in the lesion; None without one.
    brain_alone : bool
        Whether `mask` is of the brain. If it is of a head, that it reaches beyond the brain is no fault.
    """

    image: sitk.Image
    mask: sitk.Image
    healthy: sitk.Image | None = None
    brain_alone: bool = True


@dataclass(frozen=True)
class Fit:
    """How a scan fits its target in one pose.

    Attributes
    ----------
    overlap, similarity : float
        As of `checks.Check`.
    likeness : float
        0 to 1: mean local correlation of the tissue that lies in both, which is the same for noise wherever it lies.
    """

    overlap: float
    similarity: float
    likeness: float


def measure(target: Target, candidate: Candidate, pull: sitk.Transform) -> Measured:
    """Compare a registered scan with its target, and with itself in other poses.

    Parameters
    ----------
    pull : sitk.Transform
        From the target's world to that of the scan, as ITK resamples (LPS).
    """
    here = fit(target, candidate, pull)
    if not here.similarity > 0:
        return Measured(here.overlap, np.nan, np.nan, np.nan)
    centre = target.centre
    # a brain that lies wrong may lie beside its place too; of a head, the centre says nothing about the brain
    own_centre = target.centre_of(_pulled(candidate.mask, target, pull) > COVERED) if candidate.brain_alone else centre
    near = [fit(target, candidate, _posed(pull, pose)) for pose in near_poses(centre)]
    far = [fit(target, candidate, _posed(pull, pose)) for pose in far_poses(own_centre, centre)]
    return Measured(
        here.overlap,
        here.similarity,
        nearby=max(pose.similarity for pose in near) / here.similarity,
        elsewhere=max(pose.likeness for pose in far) / here.likeness,
    )


def near_poses(centre: np.ndarray) -> Iterator[np.ndarray]:
    """Shifts, and rotations about each axis through `centre`, by `NEAR`: matrices of shape (4, 4), RAS mm."""
    for size, sign, axis in itertools.product(NEAR, (1, -1), np.eye(3)):
        yield translation(sign * size * axis)
        yield _turned(sign * size * axis, centre, centre)


def far_poses(source: np.ndarray, centre: np.ndarray) -> Iterator[np.ndarray]:
    """Rotations by `FAR_DEGREES` about each axis through `source`, which goes to `centre`: (4, 4), RAS mm."""
    for degrees, axis in itertools.product(FAR_DEGREES, np.eye(3)):
        yield _turned(degrees * axis, source, centre)


def local_correlation(first: np.ndarray, second: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Squared correlation of two arrays of one shape in windows of `WINDOW_VOXELS`, over the voxels `inside`.

    Returns
    -------
    ndarray
        0 (unrelated; about 0.1 by chance) to 1 for each voxel; 0 outside, and where a window is flat.

    References
    ----------
    Cachier and Pennec, 3D non-rigid registration by gradient descent on a Gaussian-windowed similarity measure, 2000.
    """
    out = np.zeros(inside.shape)
    if not inside.any():
        return out
    weight = inside.astype(np.float64)
    a, b = (np.where(inside, values, 0.0) for values in (first, second))
    share = np.maximum(_mean(weight), 1e-6)
    mean_a, mean_b = _mean(a) / share, _mean(b) / share
    variance_a = _mean(a * a) / share - mean_a**2
    variance_b = _mean(b * b) / share - mean_b**2
    covariance = _mean(a * b) / share - mean_a * mean_b
    telling = inside & (variance_a > _flat(a[inside])) & (variance_b > _flat(b[inside]))
    out[telling] = covariance[telling] ** 2 / (variance_a[telling] * variance_b[telling])
    return out


def soft(mask: Image) -> sitk.Image:
    """A mask as a float image that can be downsampled and moved."""
    return to_itk(mask, np.float32)


def fit(target: Target, candidate: Candidate, pull: sitk.Transform) -> Fit:
    """Overlap and similarity of a scan pulled onto its target."""
    mask = _pulled(candidate.mask, target, pull) > COVERED
    tissue, size = mask & target.tissue, np.count_nonzero(mask)
    if not tissue.any():
        return Fit(0.0, 0.0, 0.0)
    found = np.count_nonzero(tissue) / np.count_nonzero(target.tissue)
    overlap = min(found, np.count_nonzero(mask & target.around) / size) if candidate.brain_alone else found
    if candidate.healthy is not None:
        tissue &= _pulled(candidate.healthy, target, pull, outside=1.0) > COVERED
    # the outline of a mask is like that of any other: what lies a voxel within it is looked at
    inside = ndimage.binary_erosion(mask) & target.within
    tissue &= inside
    total = local_correlation(target.values, _pulled(candidate.image, target, pull), inside)[tissue].sum()
    # of a scan that shows a part of the brain, that part is judged
    whole = min(np.count_nonzero(target.tissue), size)
    return Fit(overlap, float(total / whole), float(total / max(1, np.count_nonzero(tissue))))


def _pulled(image: sitk.Image, target: Target, pull: sitk.Transform, outside: float = 0.0) -> np.ndarray:
    return _array(sitk.Resample(image, target.image, pull, sitk.sitkLinear, outside))


def _array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image).T.astype(np.float64)


def _posed(pull: sitk.Transform, pose: np.ndarray) -> sitk.Transform:
    """`pull`, and then the scan moved by `pose` in the target's world."""
    return sitk.CompositeTransform([pull, pull_transform(pose)])


def _turned(degrees: np.ndarray, source: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The matrix of a rotation (degrees about its axis) that carries the point `source` to `centre`."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(degrees, degrees=True).as_matrix()
    matrix[:3, 3] = centre - matrix[:3, :3] @ source
    return matrix


def _flat(values: np.ndarray) -> float:
    """The variance below which a window is flat; rounding errors alone stay below it."""
    return FLAT * float(values.var()) + ROUNDING * float(np.mean(values**2))


def _mean(values: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(values, WINDOW_VOXELS, mode="constant")
