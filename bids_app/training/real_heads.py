"""Real heads in the pose, to see what a model says of them: ``python -m bids_app.training.real_heads T1W OUT``.

This is a plain copy of what the App does to a scan before it looks for lesions, kept apart so that training depends
on nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from bids_app.training.alignment import align_to_template, as_sitk, to_ras_zyx

POSE_SHAPE = (189, 233, 197)
"""``(z, y, x)`` of the 1 mm grid of MNI152NLin2009aSym."""
POSE_AFFINE = np.array([[1, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1.0]])


def extract_brain(path: Path) -> np.ndarray:
    """Brain mask by deepbet, ``(z, y, x)`` booleans in the order of ``to_ras_zyx``."""
    from deepbet import run_bet

    with tempfile.TemporaryDirectory() as folder:
        mask = Path(folder) / "mask.nii.gz"
        run_bet([str(path)], None, [str(mask)], None, threshold=0.5, n_dilate=0, no_gpu=True)
        data, _ = to_ras_zyx(nib.load(mask))
    return data > 0


def correct_bias(image: np.ndarray, affine: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """N4 bias-field correction, estimated on every third voxel inside the brain."""
    whole = as_sitk(image, affine)
    small = [sitk.Shrink(part, [3] * 3) for part in (whole, as_sitk(brain, affine))]
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations([30, 30, 20])
    method.Execute(small[0] + 1, sitk.Cast(small[1] > 0.5, sitk.sitkUInt8))
    return image / np.exp(sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(whole)))


def to_pose(image: np.ndarray, affine: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Brain-extracted T1w on the pose's grid, ``POSE_SHAPE``, positive in the brain and zero outside."""
    matrix, _ = align_to_template(image * brain, affine)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    grid = as_sitk(np.zeros(POSE_SHAPE), POSE_AFFINE)
    moved = sitk.Resample(as_sitk(image, affine), grid, transform, sitk.sitkBSpline)
    mask = sitk.Resample(as_sitk(brain, affine), grid, transform, sitk.sitkNearestNeighbor)
    # a voxel of exactly zero inside the brain would count as outside for nnU-Net
    return np.clip(sitk.GetArrayFromImage(moved), 0.01, None) * (sitk.GetArrayFromImage(mask) > 0.5)


def prepare_head(source: Path, target: Path) -> None:
    """Write a whole-head T1w as a brain-extracted, bias-corrected, rigidly aligned one."""
    image, affine = to_ras_zyx(nib.load(source))
    brain = extract_brain(source)
    corrected = correct_bias(image.astype(np.float32), affine, brain)
    pose = to_pose(corrected, affine, brain).astype(np.float32)
    nib.save(nib.Nifti1Image(pose.transpose(2, 1, 0), POSE_AFFINE), target)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.real_heads", description=__doc__)
    parser.add_argument("t1w", type=Path, help="whole-head T1w")
    parser.add_argument("out", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    prepare_head(options.t1w, options.out)


if __name__ == "__main__":
    main()
