"""N4 bias correction inside the brain, applied to the whole head."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from bids_app.errors import VisitError
from bids_app.images import Image, data, like
from bids_app.preprocessing.itk import from_itk, to_itk

#: The bias field is smooth: it is estimated on voxels of about this size, which is 60 times faster than at 1 mm.
ESTIMATION_MM = 4.0
ITERATIONS = (20, 15, 15)
CONVERGENCE = 1e-3
_ADVICE = "Look at the scan and at the brain mask."


def correct_bias(image: Image, mask: Image) -> Image:
    """Divide `image` by the bias field that N4 finds inside `mask`.

    The field is estimated on a shrunken image, evaluated at full resolution from its B-splines, and divided out
    everywhere, so that tissue at the edge of the mask sees no step. The median of the brain keeps its value.

    Parameters
    ----------
    image : Image
        T1w or FLAIR of the head or brain, any positive scale.
    mask : Image
        Brain mask on the same grid.

    Returns
    -------
    Image
        float32, same grid, same scale.

    Raises
    ------
    VisitError
        If nothing inside the mask is positive, or all of it has one grey value.

    References
    ----------
    Tustison et al., N4ITK, IEEE Trans. Med. Imaging 2010, section III.
    """
    # N4 works on logarithms: voxels at or below 0 (air, NaN set to 0) can say nothing about the field
    inside = (data(mask) > 0) & (data(image) > 0)
    if not inside.any():
        raise VisitError("The brain mask covers no voxel above 0.", _ADVICE)
    if np.ptp(data(image)[inside]) == 0:  # N4 would make up a field
        raise VisitError("The scan has one grey value inside the brain mask.", _ADVICE)
    values = data(image) / np.exp(_log_field(to_itk(image), to_itk(like(image, inside), np.uint8)))
    values *= np.median(data(image)[inside]) / np.median(values[inside])
    return like(image, values.astype(np.float32))


def _log_field(image: sitk.Image, mask: sitk.Image) -> np.ndarray:
    """Logarithm of the bias field at full resolution, axes (x, y, z)."""
    factors = [max(1, round(ESTIMATION_MM / size)) for size in image.GetSpacing()]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(ITERATIONS)
    corrector.SetConvergenceThreshold(CONVERGENCE)
    corrector.Execute(sitk.Shrink(image, factors), sitk.Shrink(mask, factors))
    return data(from_itk(corrector.GetLogBiasFieldAsImage(image)))
