"""Where the brain is: deepbet on heads, the background itself on scans that are skull-stripped already."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_app.errors import UnavailableError, VisitError
from bids_app.images import Image, data, like, voxel_volume_mm3

#: Brain masks, fluid inside the skull included, of people from five years on lie within these volumes.
BRAIN_VOLUME_ML = (600.0, 2200.0)
#: Grey values within this share of the 99th percentile are the same background: splines ring around a stripped brain.
BACKGROUND_TOLERANCE = 2e-3
#: Of each face of the image, a stripped brain may cover this much: its stem, or the crown cut by a tight field of view.
MAX_BORDER_TISSUE = 0.15
#: Whether a scan is stripped is seen well enough on voxels of this size.
COARSE_MM = 3.0


class BrainExtractor:
    """deepbet with its networks loaded once.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda[:N]``, as torch names it.

    Raises
    ------
    UnavailableError
        If deepbet or its weights are not installed.

    References
    ----------
    Fisch et al., deepbet: Fast brain extraction of T1-weighted MRI, Computers in Biology and Medicine 2024.
    """

    def __init__(self, device: str = "cpu"):
        try:
            from deepbet.bet import BrainExtraction

            self._networks = BrainExtraction(no_gpu=True)
        except (ImportError, ValueError, RuntimeError) as error:
            raise UnavailableError(
                f"deepbet, which finds the brain, cannot be loaded: {error}.", "Run: pip install deepbet"
            ) from error
        # deepbet alone would take any GPU it sees; the device is decided once, elsewhere
        self._networks.model.to(device)
        self._networks.bbox_model.to(device)

    def __call__(self, image: Image) -> Image:
        """Brain mask of a head.

        Parameters
        ----------
        image : Image
            T1w or FLAIR of a whole head in any orientation, 0.5 to 7 mm slices (it learned from T1w, and was measured
            on FLAIR: docs/decisions.md).

        Returns
        -------
        Image
            uint8 on the same grid: one component without holes, fluid inside the skull included.

        Raises
        ------
        VisitError
            If no brain is found or its volume is impossible (`BRAIN_VOLUME_ML`).
        """
        try:
            _, mask, _ = self._networks.run(nib.Nifti1Image(data(image), image.affine))
        except (AssertionError, ValueError) as error:  # deepbet's words for "nothing found"
            raise VisitError("No brain was found in the scan.", _ADVICE) from error
        return checked_volume(_one_piece(like(image, data(mask, np.uint8) > 0)))


_ADVICE = "Look at the scan: is it a T1w or FLAIR of a head? A mask of your own can be given with --derivatives."


def extract_brain(image: Image, device: str = "cpu") -> Image:
    """Brain mask of one scan, skull-stripped or not (for many scans keep a `BrainExtractor`).

    Raises
    ------
    UnavailableError, VisitError
        As `BrainExtractor`.
    """
    return stripped_brain_mask(image) if is_skull_stripped(image) else BrainExtractor(device)(image)


def is_skull_stripped(image: Image) -> bool:
    """Whether a scan shows a brain and nothing else.

    True if one grey value (nearly always 0) covers the border of the image, but for a brain stem, and what remains has
    the volume of a brain. A head whose air was set to 0, de-faced or not, has twice the volume of its brain.
    """
    steps = [max(1, int(COARSE_MM / size)) for size in image.header.get_zooms()[:3]]
    coarse = image.slicer[:: steps[0], :: steps[1], :: steps[2]]
    tissue = _not_background(data(coarse))
    if max(face.mean() for face in _faces(tissue)) > MAX_BORDER_TISSUE:
        return False
    # all pieces: brain and scalp may be apart where the skull was set to the background too
    volume = _volume_ml(like(coarse, _filled(tissue)))
    return BRAIN_VOLUME_ML[0] < volume < BRAIN_VOLUME_ML[1]


def stripped_brain_mask(image: Image) -> Image:
    """Mask of a skull-stripped scan: its tissue without holes, largest piece only.

    Raises
    ------
    VisitError
        If the volume is not that of a brain.
    """
    return checked_volume(_one_piece(like(image, _not_background(data(image)))))


def checked_volume(mask: Image) -> Image:
    """`mask`, if its volume is possible.

    Raises
    ------
    VisitError
        If the volume lies outside `BRAIN_VOLUME_ML`.
    """
    volume = _volume_ml(mask)
    low, high = BRAIN_VOLUME_ML
    if not low < volume < high:
        raise VisitError(f"The brain mask has {volume:.0f} mL; between {low:.0f} and {high:.0f} is possible.", _ADVICE)
    return mask


def weights_sha256() -> str:
    """Checksum of deepbet's two networks: of ``model.pt`` followed by ``bbox_model.pt``."""
    from deepbet.utils import DATA_PATH

    digest = hashlib.sha256()
    for name in ("model.pt", "bbox_model.pt"):
        digest.update((Path(DATA_PATH) / "models" / name).read_bytes())
    return digest.hexdigest()


def _faces(values: np.ndarray) -> list[np.ndarray]:
    """The six outer planes of a volume."""
    return [np.take(values, index, axis) for axis in range(3) for index in (0, -1)]


def _not_background(values: np.ndarray) -> np.ndarray:
    """Voxels that differ from the commonest value of the border."""
    levels, counts = np.unique(np.concatenate([face.ravel() for face in _faces(values)]), return_counts=True)
    contrast = np.abs(values - levels[counts.argmax()])
    return contrast > BACKGROUND_TOLERANCE * np.percentile(contrast, 99)


def _one_piece(mask: Image) -> Image:
    """The largest component of a mask, without holes, as uint8."""
    inside = data(mask) > 0
    if not inside.any():
        return like(mask, inside)
    box = ndimage.find_objects(inside, max_label=1)[0]
    labels, _ = ndimage.label(inside[box])
    largest = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    filled = np.zeros(mask.shape, bool)
    filled[box] = _filled(largest)
    return like(mask, filled)


def _filled(inside: np.ndarray) -> np.ndarray:
    """The voxels that cannot be reached from outside; ten times faster than binary_fill_holes."""
    outside, _ = ndimage.label(np.pad(~inside, 1, constant_values=True))
    return (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]


def _volume_ml(mask: Image) -> float:
    return float(np.count_nonzero(data(mask, np.uint8)) * voxel_volume_mm3(mask) / 1000)
