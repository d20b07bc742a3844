"""What a model says of the cases that its folds did not see, by the App's own way of running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bids_app import images
from bids_app.derivatives.write import atomic, write_image
from bids_app.lesion.model import LesionModel, load_model
from bids_app.lesion.preparation import prepare, to_box
from bids_app.networks.device import Device
from bids_app.networks.engine import TorchEngine
from bids_app.networks.sliding_window import predict_logits
from bids_app.training.fusion import Fused, fit_fusion
from bids_app.training.own.folds import Fold
from bids_app.training.own.prepare import Ready


@dataclass(frozen=True)
class Seen:
    """One case, and the fold that validates on it.

    Attributes
    ----------
    ready : Ready
    fold : int
    """

    ready: Ready
    fold: int


def held_out(cases: Sequence[Ready], folds: Sequence[Fold], trained: Sequence[int]) -> tuple[Seen, ...]:
    """The cases that a trained fold did not see, with that fold."""
    by_label = {case.label: case for case in cases}
    return tuple(
        Seen(by_label[label], number) for number in trained for label in folds[number].validation if label in by_label
    )


def predict_held_out(model_folder: Path, seen: Sequence[Seen], device: Device, target: Path) -> dict[str, Path]:
    """Lesion probability of each case by the fold that did not see it; those there already stay.

    Parameters
    ----------
    target : Path
        Folder for ``LABEL.nii.gz``: probability in thousandths, uint16, in the pose.

    Returns
    -------
    dict of str to Path
        By the label of the case.
    """
    found = {item.ready.label: target / f"{item.ready.label}.nii.gz" for item in seen}
    for fold in sorted({item.fold for item in seen}):
        todo = [item.ready for item in seen if item.fold == fold and not found[item.ready.label].is_file()]
        if not todo:
            continue
        model = load_model(model_folder, (str(fold),), device)
        for ready in todo:
            probability = model.predict([images.load(ready.channel(channel)) for channel in model.channels]).probability
            thousandths = np.round(1000 * images.data(probability)).astype(np.uint16)
            # whole or not at all: a file that is there is not predicted again
            write_image(found[ready.label], images.like(probability, thousandths))
    return found


def read_probability(path: Path) -> np.ndarray:
    """Probability in [0, 1], float32, of a file of `predict_held_out`."""
    return images.data(images.load(path)) / np.float32(1000)


def fit_fusions(late_folder: Path, seen: Sequence[Seen], device: Device, target: Path) -> tuple[tuple[int, Fused], ...]:
    """The fusion of each trained fold, fitted to the held-out cases of the other folds.

    So the fusion of a fold knows nothing of the cases that this fold validates on. With a single trained fold there
    are no others, and its own validation cases are taken.

    Parameters
    ----------
    late_folder : Path
        Complete model folder of the late fusion, whatever its fusions are.
    target : Path
        Folder for the branches' logits.
    """
    logits = _branch_logits(late_folder, seen, device, target)
    trained = sorted({item.fold for item in seen})

    def others(fold: int) -> list[Seen]:
        return [item for item in seen if item.fold != fold] or list(seen)

    def fitted(fold: int) -> Fused:
        return fit_fusion(_read_logits(logits[item.ready.label]) for item in others(fold))

    return tuple((fold, fitted(fold)) for fold in trained)


def _read_logits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as content:
        return content["logits"], content["truth"]


class _Branches(nn.Module):
    """The logits of all branches of a late fusion, side by side."""

    def __init__(self, fusion: nn.Module):
        super().__init__()
        self.fusion = fusion

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.fusion.apart(volume), dim=1)


def _branch_logits(folder: Path, seen: Sequence[Seen], device: Device, target: Path) -> dict[str, Path]:
    """Files with the branches' logits ``(4, n)`` and the truth ``(n,)`` of each held-out case."""
    found = {item.ready.label: target / f"{item.ready.label}.npz" for item in seen}
    target.mkdir(parents=True, exist_ok=True)
    for fold in sorted({item.fold for item in seen}):
        todo = [item.ready for item in seen if item.fold == fold and not found[item.ready.label].is_file()]
        if not todo:
            continue
        model = load_model(folder, (str(fold),), device)
        engine = TorchEngine(_Branches(model.engines[0].network), len(model.channels), 2 * len(model.channels), device)
        for ready in todo:
            logits, truth = _logits_and_truth(model, engine, ready)
            with atomic(found[ready.label]) as whole:
                np.savez(whole, logits=logits.astype(np.float16), truth=truth)
    return found


def _logits_and_truth(model: LesionModel, engine: TorchEngine, ready: Ready) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the branches at every voxel of the brain's box, and whether it is lesion."""
    prepared = prepare([images.load(ready.channel(channel)) for channel in model.channels], model.recipe)
    logits = predict_logits(engine, prepared.volume, model.patch_size, model.mirror_axes)
    box = to_box(logits.cpu(), prepared, model.recipe)
    mask = images.load(ready.mask)
    oriented = images.to_ras(mask) if model.recipe.reorient else mask
    truth = images.data(oriented).transpose(model.recipe.axes)[prepared.box] > 0
    return box.numpy().reshape(len(box), -1), truth.ravel()
