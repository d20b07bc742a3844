"""What a network's outputs are compared with, and how.

Lesions by Dice and cross-entropy, later with more weight on the hardest voxels, at every level of deep supervision; the
healthy anatomy by plain cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bids_app.networks.architectures import LateFusion, MirrorUNet
from bids_app.training.series import Batch
from bids_app.training.synthesis.scan import BOTH
from bids_app.training.synthesis.tissue import FLAIR, T1W

HARDEST_PERCENT = 2
"""2 % of the patch is 98 mL: as many voxels as a large lesion has."""

HARDEST_FROM, HARDEST_UNTIL, HARDEST_WEIGHT = 500, 1500, 0.1
"""Steps over which the term of the hardest voxels grows to its weight. From the start it keeps a network from learning:
all voxels at one even probability are a place that its gradients do not lead out of."""

LESION_WEIGHT = 0.1
"""Weight of the cross-entropy inside the lesion, averaged over it. Over the whole patch, a lesion of 1 mL is one part
in five thousand, and where a network is sure that there is none, the Dice has no gradient either."""

DICE_SMOOTHING = 8e-5
"""Share of the patch, of a whole brain 0.4 mL: so much marked in a healthy scan halves its Dice."""

ANATOMY_WEIGHT = 0.5
"""Weight of the anatomy's loss beside that of the lesion."""

#: Channel of image and target of a network with one contrast.
CHANNEL = {"T1w": T1W, "FLAIR": FLAIR}


@dataclass(frozen=True)
class Judged:
    """One output of a network and what it is compared with.

    Attributes
    ----------
    logits : list of torch.Tensor
        From full resolution down.
    channel : int
        Channel of the targets.
    anatomy : torch.Tensor or None
        Logits of the healthy anatomy, ``(n, 5, z/2, y/2, x/2)``.
    """

    logits: list[Tensor]
    channel: int
    anatomy: Tensor | None = None


def judged_outputs(network: torch.nn.Module, image: Tensor, contrasts: Sequence[str]) -> list[Judged]:
    """Everything of a network that has a loss.

    Of a late fusion these are its branches and the fused logits, whose gradient stops at the branches: each branch
    stays the best network for its contrast alone.

    Parameters
    ----------
    network : torch.nn.Module
        With deep supervision on.
    image : torch.Tensor
        ``(n, 2, z, y, x)``: T1w and FLAIR.
    contrasts : sequence of str
        Those that the network takes.
    """
    if isinstance(network, LateFusion):
        parts = [
            Judged(*_split(branch, image[:, CHANNEL[name] : CHANNEL[name] + 1], CHANNEL[name]))
            for branch, name in zip(network.branches, contrasts, strict=True)
        ]
        fused = network.fuse([[level.detach() for level in part.logits] for part in parts])
        return [*parts, Judged(fused, BOTH)]
    channels = [CHANNEL[name] for name in contrasts]
    return [Judged(*_split(network, image[:, channels], channels[0] if len(channels) == 1 else BOTH))]


def _split(network: MirrorUNet, image: Tensor, channel: int) -> tuple[list[Tensor], int, Tensor]:
    logits, anatomy = network.with_extra(image)
    return logits, channel, anatomy


def anatomy_loss(logits: Tensor, anatomy: Tensor) -> Tensor:
    """Cross-entropy with the anatomy as it would be without lesion, over the scans whose anatomy is known."""
    known = (anatomy.amax(dim=(1, 2, 3, 4)) > 0).float()
    per_scan = F.binary_cross_entropy_with_logits(logits, anatomy, reduction="none").mean(dim=(1, 2, 3, 4))
    return (per_scan * known).sum() / known.sum().clamp_min(1)


def lesion_loss(levels: Sequence[Tensor], targets: Sequence[Tensor], hardest: float) -> Tensor:
    """Dice and cross-entropy in three averages; each level of deep supervision weighs half of the one above.

    The Dice is that of each scan, so that a small lesion counts as much as a large one; smoothed, so that in a healthy
    scan, where nothing can overlap, it falls with what is marked. Cross-entropy averaged over the patch hardly feels
    some millilitres missed or falsely marked; its mean over the lesion, whatever its size (after Shirokikh et al.,
    MICCAI 2020), and its mean over the hardest 2 % of the voxels do.

    Parameters
    ----------
    levels : sequence of torch.Tensor
        Logits ``(n, 2, z, y, x)`` from full resolution down.
    targets : sequence of torch.Tensor
        ``(n, 1, z, y, x)`` of the same sizes.
    hardest : float
        Weight of the hardest voxels.
    """
    weights = [0.5**level for level in range(len(levels))]
    losses = [_level_loss(logits, target, hardest) for logits, target in zip(levels, targets, strict=True)]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)


def _level_loss(logits: Tensor, target: Tensor, hardest: float) -> Tensor:
    """Loss at one level; of two classes the difference of the logits says all, at half the work of a softmax."""
    lesion = target[:, 0].float()
    difference = logits[:, 1] - logits[:, 0]
    entropy = F.softplus(difference) - lesion * difference
    probability, smooth = torch.sigmoid(difference), DICE_SMOOTHING * lesion[0].numel()
    both, total = ((probability * lesion).flatten(1).sum(1), (probability + lesion).flatten(1).sum(1))
    missed = (entropy * lesion).flatten(1).sum(1) / lesion.flatten(1).sum(1).clamp_min(1)
    loss = entropy.mean() + LESION_WEIGHT * missed.mean() - ((2 * both + smooth) / (total + smooth)).mean()
    if hardest > 0:
        count = max(1, entropy.numel() * HARDEST_PERCENT // 100)
        loss = loss + hardest * entropy.flatten().topk(count, sorted=False).values.mean()
    return loss


def hardest_weight(step: int) -> float:
    """Weight of the hardest voxels at a step of the training."""
    grown = (step - HARDEST_FROM) / (HARDEST_UNTIL - HARDEST_FROM)
    return HARDEST_WEIGHT * min(max(grown, 0.0), 1.0)


def total_loss(network: torch.nn.Module, batch: Batch, contrasts: Sequence[str], step: int) -> Tensor:
    """Sum over everything of the network that has a loss."""
    total = torch.zeros((), device=batch.image.device)
    for output in judged_outputs(network, batch.image, contrasts):
        chosen = [level[:, output.channel : output.channel + 1] for level in batch.targets]
        total = total + lesion_loss([level.float() for level in output.logits], chosen, hardest_weight(step))
        if output.anatomy is not None:
            total = total + ANATOMY_WEIGHT * anatomy_loss(output.anatomy.float(), batch.anatomy)
    return total
