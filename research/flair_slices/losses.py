"""Loss of slices whose masks were drawn on other images: invisible lesions weigh less, possible old ones nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: The Dice of a slice is smoothed by so many pixels: what is falsely marked in a clean slice costs something.
DICE_SMOOTHING_PX = 40.0
DICE_WEIGHT = 0.5
#: Cross-entropy averaged over the lesion; over the slice a small one is not felt.
LESION_WEIGHT = 0.05
LEVELS = 3


def slice_loss(levels: Sequence[Tensor], lesion: Tensor, counted: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy and Dice; each level of deep supervision weighs half of the one above.

    Parameters
    ----------
    levels : sequence of torch.Tensor
        Logits ``(n, 1, rows, columns)`` from full resolution down.
    lesion, counted : torch.Tensor
        ``(n, 1, rows, columns)``, 0 to 1: the truth, and the pixels that take part.
    weight : torch.Tensor
        ``(n,)``: how much a slice's lesion counts.
    """
    total, weights = torch.zeros(()), 0.0
    for level, logits in enumerate(levels[:LEVELS]):
        truth = F.avg_pool2d(lesion, 2**level) if level else lesion
        part = F.avg_pool2d(counted, 2**level) if level else counted
        total = total + 0.5**level * _level_loss(logits, truth, part, weight)
        weights += 0.5**level
    return total / weights


def _level_loss(logits: Tensor, lesion: Tensor, counted: Tensor, weight: Tensor) -> Tensor:
    entropy = F.binary_cross_entropy_with_logits(logits, lesion, reduction="none") * counted
    emphasis = 1 + (weight[:, None, None, None] - 1) * lesion  # of positives alone
    over_slice = (entropy * emphasis).mean(dim=(1, 2, 3))
    over_lesion = (entropy * lesion).sum((1, 2, 3)) / lesion.sum((1, 2, 3)).clamp_min(1)
    probability = torch.sigmoid(logits) * counted
    smooth = DICE_SMOOTHING_PX * lesion[0].numel() / (192 * 160)
    both = (probability * lesion).sum((1, 2, 3))
    sizes = probability.sum((1, 2, 3)) + (lesion * counted).sum((1, 2, 3))
    overlap = (2 * both + smooth) / (sizes + smooth)
    return (10 * over_slice + weight * (LESION_WEIGHT * over_lesion + DICE_WEIGHT * (1 - overlap))).mean()
