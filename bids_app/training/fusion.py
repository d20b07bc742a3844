"""The learned 1 x 1 x 1 convolution of a late fusion, fitted to what finished branches say of scans they never saw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bids_app.training.plans import shippable

#: Where no branch gives the lesion more than this (a probability of 2 %), fusion decides nothing.
SURE_LOGIT = -4.0
#: Of voxels that are surely healthy, every so many-th is looked at and counts for all.
STRIDE = 64
#: Pull towards the mean of the branches: logits of a separable data set would grow without end.
PULL = 1e-3
ITERATIONS = 60
#: Weights and biases of a fusion of two branches with two classes each.
FUSION_PARAMETERS = 2 * 4 + 2
_SMOOTH = 1.0


@dataclass(frozen=True)
class Fused:
    """A fusion of two branches with two classes each.

    Attributes
    ----------
    weight : numpy.ndarray
        ``(2, 4)`` float32: background and lesion, from background and lesion of the first branch, then of the second.
    bias : numpy.ndarray
        ``(2,)`` float32.
    """

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Fused logits, ``(4, n)`` to ``(2, n)``."""
        return self.weight @ logits + self.bias[:, None]


@dataclass(frozen=True)
class _Sample:
    """Voxels of one scan: logits ``(4, m)``, truth ``(m,)`` and how many voxels each stands for ``(m,)``."""

    logits: Tensor
    truth: Tensor
    counts: Tensor


def mean_of_branches() -> Fused:
    """The fusion that is the plain mean of the branches' logits."""
    return Fused(np.tile(np.eye(2, dtype=np.float32), 2) / 2, np.zeros(2, np.float32))


def fusion_checkpoint(fused: Fused) -> dict:
    """Checkpoint in nnU-Net's format with the fusion of one fold; its branches have their own."""
    weights = {
        "fusion.weight": torch.tensor(fused.weight, dtype=torch.float32)[..., None, None, None],
        "fusion.bias": torch.tensor(fused.bias, dtype=torch.float32),
    }
    return shippable({"network_weights": weights, "current_epoch": 0, "inference_allowed_mirroring_axes": None})


def fit_fusion(cases: Iterable[tuple[np.ndarray, np.ndarray]]) -> Fused:
    """Fit the fusion by Dice and cross-entropy, from the mean of the branches; the same cases give the same fusion.

    Every scan counts the same, whatever its size. Scans without lesion add to the cross-entropy alone.

    Parameters
    ----------
    cases : iterable of (numpy.ndarray, numpy.ndarray)
        One scan each: logits ``(4, n)`` (background and lesion of the first branch, then of the second) and truth
        ``(n,)`` bool. Read one by one, and thinned out at once where both branches surely see no lesion.

    Returns
    -------
    Fused
        The mean of the branches if there is no case.

    References
    ----------
    A learned 1 x 1 x 1 convolution over concatenated logits is the late fusion of StrokeSeg (Di Matteo et al. 2026).
    """
    samples = [_thinned(torch.as_tensor(logits).float(), torch.as_tensor(truth)) for logits, truth in cases]
    start = mean_of_branches()
    if not samples:
        return start
    first = torch.tensor(np.hstack([start.weight, start.bias[:, None]]), dtype=torch.float64)
    found = first.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([found], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(_loss(found, sample) for sample in samples) / len(samples) + PULL * (found - first).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    values = found.detach().numpy().astype(np.float32)
    return Fused(values[:, :4], values[:, 4]) if np.isfinite(values).all() else start


def _thinned(logits: Tensor, truth: Tensor) -> _Sample:
    """Every voxel that matters, and a part of those that surely are healthy."""
    lesion = torch.maximum(logits[1] - logits[0], logits[3] - logits[2])
    matters = (truth > 0) | (lesion > SURE_LOGIT)
    others = torch.nonzero(~matters).flatten()
    some = others[::STRIDE]
    kept = torch.cat([torch.nonzero(matters).flatten(), some])
    counts = torch.ones(len(kept), dtype=torch.float64)
    counts[len(kept) - len(some) :] = len(others) / max(1, len(some))
    return _Sample(logits[:, kept].double(), (truth[kept] > 0).double(), counts)


def _loss(parameters: Tensor, sample: _Sample) -> Tensor:
    """Cross-entropy, and one minus the soft Dice of a scan with lesion.

    The cross-entropy is averaged over as many voxels as matter, not over all: most of a brain is easy.
    """
    weights = parameters[1] - parameters[0]  # of two classes, only the difference of their logits counts
    difference = weights[:4] @ sample.logits + weights[4]
    entropy = F.binary_cross_entropy_with_logits(difference, sample.truth, sample.counts, reduction="sum")
    total = entropy / torch.clamp((sample.counts == 1).sum(), min=100)
    if sample.truth.any():
        probability = torch.sigmoid(difference) * sample.counts
        overlap = (probability * sample.truth).sum()
        total = total + 1 - (2 * overlap + _SMOOTH) / (probability.sum() + sample.truth.sum() + _SMOOTH)
    return total
