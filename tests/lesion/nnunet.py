"""nnU-Net itself, to compare with."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from bids_app.images import Image

os.environ.setdefault("nnUNet_def_n_proc", "1")  # nnU-Net reads it once, when it is imported


def nnunet_predicts(
    model: Path, scans: Sequence[Image | Path], work: Path, folds: Sequence[str] = ()
) -> tuple[np.ndarray, Image]:
    """Probabilities (class, x, y, z) and segmentation by what ``nnUNetv2_predict -npp 0 -nps 0`` calls.

    Scans that are files are copied as they are; without `folds`, all are averaged.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    work.mkdir(parents=True)
    files = [str(work / f"case_{index:04d}.nii.gz") for index in range(len(scans))]
    for scan, file in zip(scans, files, strict=True):
        shutil.copy(scan, file) if isinstance(scan, Path) else nib.save(scan, file)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        folds = folds or sorted(path.name.removeprefix("fold_") for path in model.glob("fold_*"))
        predictor.initialize_from_trained_model_folder(str(model), folds)
        predictor.predict_from_files_sequential([files], [str(work / "result")], save_probabilities=True)
    probabilities = np.load(work / "result.npz")["probabilities"].transpose(0, 3, 2, 1)
    return probabilities, nib.load(work / "result.nii.gz")


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Of two arrays of bool."""
    return 2 * (first & second).sum() / (first.sum() + second.sum())
