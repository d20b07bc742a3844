"""Arrays in one orientation, and brains aligned to MNI152NLin2009aSym."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform


def to_ras_zyx(image: nib.spatialimages.SpatialImage) -> tuple[np.ndarray, np.ndarray]:
    """Array and affine of an image, whatever order it is stored in, as (z, y, x) of a RAS grid.

    Returns
    -------
    data : numpy.ndarray
        ``(z, y, x)``, growing towards superior, anterior, right.
    affine : numpy.ndarray
        ``(4, 4)``, voxel indices (x, y, z) to millimetres (x, y, z).
    """
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("RAS"))
    data = apply_orientation(np.asarray(image.dataobj), turn)
    affine = image.affine @ inv_ornt_aff(turn, image.shape)
    return np.ascontiguousarray(data.transpose(2, 1, 0)), affine


def as_sitk(data: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """A RAS (z, y, x) array as a SimpleITK image; millimetres stay RAS, which is harmless while all do."""
    image = sitk.GetImageFromArray(data.astype(np.float32))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _register(fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform) -> sitk.Transform:
    """Mutual-information registration of ``moving`` to ``fixed``; fixed to moving millimetres."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.1)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 150)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def _matrix(transform: sitk.Transform) -> np.ndarray:
    """``(4, 4)`` matrix of a linear SimpleITK transform, whatever its class."""
    corner = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - corner for axis in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = np.stack(columns, axis=1), corner
    return matrix


def align_to_template(brain: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rigid and affine alignment of a brain-extracted T1w to the MNI152NLin2009aSym brain.

    Parameters
    ----------
    brain : numpy.ndarray
        ``(z, y, x)`` intensities, zero outside the brain.
    affine : numpy.ndarray
        ``(4, 4)`` voxel (x, y, z) to native millimetres.

    Returns
    -------
    pose_to_native, mni_to_native : numpy.ndarray
        ``(4, 4)`` each, millimetres to millimetres.
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    template = load_mni152_template(resolution=2)
    mask = load_mni152_brain_mask(resolution=2)
    fixed = as_sitk(*to_ras_zyx(nib.Nifti1Image(template.get_fdata() * mask.get_fdata(), template.affine)))
    moving = as_sitk(brain, affine)
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    rigid = _register(fixed, moving, start)
    matrix = _matrix(rigid)
    loose = sitk.AffineTransform(3)
    loose.SetMatrix(matrix[:3, :3].ravel().tolist())
    loose.SetTranslation(matrix[:3, 3].tolist())
    return matrix, _matrix(_register(fixed, moving, loose))
