"""Rigid and affine registration with SimpleITK: many cheap starts, few optimisations, coarse to fine.

Regular-step gradient descent with physical-shift scales was the fastest optimiser that reached the best value on whole
heads (docs/decisions.md); voxels are sampled on a regular pattern with a fixed seed, so that the same images give the
same matrix.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from bids_app.images import Image, data
from bids_app.preprocessing.itk import RAS_TO_LPS, from_itk, push_matrix, to_itk

Metric = Literal["mutual information", "correlation"]
Freedom = Literal["rigid", "similarity", "affine"]

COARSE_MM, MIDDLE_MM, FINE_MM = 8.0, 4.0, 2.0
STARTS_KEPT = 3  # starts that are optimised at MIDDLE_MM; the best of them goes on to FINE_MM
#: Steps shrink by this factor where the gradient turns back. ITK's 0.5 stops short, up to 2 degrees from the optimum.
RELAXATION = 0.8
SEED = 20251
HISTOGRAM_BINS = 32
SAMPLES = 60_000  # voxels that the metric looks at: more did not move the result by 0.05 mm


class Pyramid:
    """One image at several resolutions, each made when first asked for.

    Attributes
    ----------
    centre : array of shape (3,)
        World position in mm (RAS) of the intensity-weighted centre.
    """

    def __init__(self, image: Image):
        self._levels = {FINE_MM: downsample(to_itk(image), FINE_MM)}
        self.centre = centre_of_mass(from_itk(self._levels[FINE_MM]))

    def at(self, spacing_mm: float) -> sitk.Image:
        """The image on cubic voxels of `spacing_mm`, at least `FINE_MM`."""
        if spacing_mm not in self._levels:
            self._levels[spacing_mm] = downsample(self._levels[FINE_MM], spacing_mm)
        return self._levels[spacing_mm]


def register(
    fixed: Pyramid,
    moving: Pyramid,
    starts: Iterable[np.ndarray],
    freedom: Freedom = "rigid",
    metric: Metric = "mutual information",
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
) -> np.ndarray:
    """The best matrix from `moving` to `fixed` that any of the starts leads to.

    Parameters
    ----------
    starts : iterable of arrays of shape (4, 4)
        First guesses, RAS mm, moving to fixed (push).
    fixed_mask, moving_mask : Image, optional
        Voxels to look at; all by default.

    Returns
    -------
    array of shape (4, 4)
        RAS mm, moving to fixed (push).

    Raises
    ------
    RuntimeError
        From SimpleITK, if the images do not overlap at any start.
    """
    masks = [None if mask is None else to_itk(mask, np.uint8) for mask in (fixed_mask, moving_mask)]
    coarse, middle, fine = (
        _Problem(fixed.at(mm), moving.at(mm), *masks, metric, mm) for mm in (COARSE_MM, MIDDLE_MM, FINE_MM)
    )
    centre = RAS_TO_LPS[:3, :3] @ fixed.centre
    with _one_thread():
        guesses = sorted((_itk_start(start, centre, freedom) for start in starts), key=coarse.value)
        best = min((middle.optimise(guess, 60) for guess in guesses[:STARTS_KEPT]), key=middle.value)
        return push_matrix(fine.optimise(best, 40))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads add up a metric in an order that changes from run to run, and gain next to no time here."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


@dataclass(frozen=True)
class _Problem:
    """Two images at one resolution, and how their alignment is judged; lower values are better."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_mask: sitk.Image | None
    moving_mask: sitk.Image | None
    metric: Metric
    spacing_mm: float

    def _method(self, transform: sitk.Transform) -> sitk.ImageRegistrationMethod:
        method = sitk.ImageRegistrationMethod()
        if self.metric == "correlation":
            method.SetMetricAsCorrelation()
        else:
            method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
        if self.fixed_mask is not None:
            method.SetMetricFixedMask(self.fixed_mask)
        if self.moving_mask is not None:
            method.SetMetricMovingMask(self.moving_mask)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetInitialTransform(transform, inPlace=True)
        return method

    def value(self, transform: sitk.Transform) -> float:
        """Value of the metric, infinite where the images do not overlap."""
        try:
            return self._method(transform).MetricEvaluate(self.fixed, self.moving)
        except RuntimeError:
            return np.inf

    def optimise(self, transform: sitk.Transform, iterations: int) -> sitk.Transform:
        """The transform after gradient descent from `transform`, which is changed in place."""
        method = self._method(transform)
        share = min(1.0, SAMPLES / self.fixed.GetNumberOfPixels())
        method.SetMetricSamplingStrategy(method.REGULAR if share < 1 else method.NONE)
        method.SetMetricSamplingPercentage(share, SEED)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=self.spacing_mm / 2, minStep=self.spacing_mm / 1000, numberOfIterations=iterations,
            relaxationFactor=RELAXATION, gradientMagnitudeTolerance=1e-6,
        )  # fmt: skip
        method.SetOptimizerScalesFromPhysicalShift()
        method.Execute(self.fixed, self.moving)
        return transform


def rotations_about(matrix: np.ndarray, centre: np.ndarray, degrees: Iterable[float]) -> list[np.ndarray]:
    """`matrix`, followed by every combination of rotations by `degrees` about the axes through `centre` (RAS mm)."""
    out = []
    for angles in itertools.product(degrees, repeat=3):
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        turn[:3, 3] = centre - turn[:3, :3] @ centre
        out.append(turn @ matrix)
    return out


def rigid_part(matrix: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The rigid matrix next to `matrix` that carries the same point to `centre` (RAS mm, of the target)."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    source = np.linalg.solve(matrix, np.append(centre, 1.0))[:3]
    rigid = np.eye(4)
    rigid[:3, :3] = left @ right
    rigid[:3, 3] = centre - rigid[:3, :3] @ source
    return rigid


def translation(vector: np.ndarray) -> np.ndarray:
    """The 4 x 4 matrix of a shift in mm."""
    matrix = np.eye(4)
    matrix[:3, 3] = vector
    return matrix


def centre_of_mass(image: Image) -> np.ndarray:
    """World position in mm of the intensity-weighted centre."""
    values = np.maximum(data(image), 0).astype(np.float64)
    total = values.sum()
    if total == 0:
        return image.affine[:3, :3] @ (np.array(image.shape) / 2) + image.affine[:3, 3]
    sums = [values.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    voxel = np.array([np.arange(len(profile)) @ profile for profile in sums]) / total
    return image.affine[:3, :3] @ voxel + image.affine[:3, 3]


def downsample(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """`image` blurred and sampled on cubic voxels along its own axes; coarser axes (5 mm slices) are interpolated."""
    sizes = np.array(image.GetSpacing())
    # the blur that turns voxels of one size into voxels of another: the variances of their point spreads subtract
    sigma = np.sqrt(np.maximum(spacing_mm**2 - sizes**2, 0) / (8 * np.log(2)))
    for axis in np.flatnonzero(sigma > 0.2 * sizes):
        image = sitk.RecursiveGaussian(image, float(sigma[axis]), direction=int(axis))
    shape = np.maximum(np.ceil(np.array(image.GetSize()) * sizes / spacing_mm), 1).astype(int).tolist()
    origin = image.TransformContinuousIndexToPhysicalPoint(((spacing_mm / sizes - 1) / 2).tolist())
    grid = (sitk.Transform(), sitk.sitkLinear, origin, [spacing_mm] * 3, image.GetDirection(), 0.0)
    return sitk.Resample(image, shape, *grid)


_TRANSFORMS = {
    "rigid": sitk.Euler3DTransform,
    "similarity": sitk.Similarity3DTransform,
    "affine": lambda: sitk.AffineTransform(3),
}


def _itk_start(matrix: np.ndarray, centre: np.ndarray, freedom: Freedom) -> sitk.Transform:
    """A pushing matrix as an ITK transform that turns about `centre` (LPS mm)."""
    pull = RAS_TO_LPS @ np.linalg.inv(matrix) @ RAS_TO_LPS
    linear = pull[:3, :3].ravel().tolist()
    transform = _TRANSFORMS[freedom]()
    transform.SetCenter(centre.tolist())
    if freedom == "affine":
        transform.SetMatrix(linear)
    else:
        transform.SetMatrix(linear, 1e-6)
    transform.SetTranslation((pull[:3, :3] @ centre + pull[:3, 3] - centre).tolist())
    return transform
